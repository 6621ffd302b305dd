package storagetest

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
)

// Data is an Index and the Records beside it.
type Data interface {
	storage.Index
	storage.Records
}

// NewData makes an empty place for Data that tells the time by now, and returns
// the function that opens it: once at first, and again each time the one before
// was closed. What one keeps, the next one has.
type NewData func(t *testing.T, now func() time.Time) (open func() Data)

// grace is the time until review in these tests.
const grace = time.Hour

// rules are those of names in these tests, without trash.
var rules = storage.Rules{Grace: grace, Untagged: grace, Dangling: grace}

// everything is the policy that keeps nothing without a use.
var everything = storage.ReviewPolicy{Untagged: true, Dangling: true, Rules: rules}

// clock is a time that moves when told to.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// fixture is opened Data with short words for what tests say often.
type fixture struct {
	Data
	t     *testing.T
	clock *clock
	open  func() Data
}

func newFixture(t *testing.T, fresh NewData) *fixture {
	t.Helper()
	c := &clock{now: time.Date(2026, 11, 21, 1, 2, 3, 4, time.UTC)}
	f := &fixture{t: t, clock: c, open: fresh(t, c.Now)}
	f.Data = f.open()
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return f
}

func (f *fixture) reopen() {
	f.t.Helper()
	f.ok(f.Close())
	f.Data = f.open()
}

func (f *fixture) ok(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// is checks that err is want.
func (f *fixture) is(want, err error, what string) {
	f.t.Helper()
	if !errors.Is(err, want) {
		f.t.Errorf("%s = %v, want %v", what, err, want)
	}
}

// inline is content that the Index keeps.
func inline(data string) storage.Content {
	c := storage.Content{Digest: digest.FromString(data), Size: int64(len(data))}
	if data != "" {
		c.Inline = []byte(data)
	}
	return c
}

// stored is content that a Store keeps under key.
func stored(data string, key storage.Key) storage.Content {
	return storage.Content{Digest: digest.FromString(data), Size: int64(len(data)), Key: key}
}

// blob puts an inline blob into repo.
func (f *fixture) blob(repo, data string) digest.Digest {
	f.t.Helper()
	c, err := f.PutBlob(f.t.Context(), storage.BlobPut{Repo: repo, Content: inline(data), Grace: grace})
	f.ok(err)
	return c.Digest
}

// announced puts a blob into repo whose bytes a Store keeps under key.
func (f *fixture) announced(repo, data string, key storage.Key) storage.Content {
	f.t.Helper()
	f.ok(f.Intend(f.t.Context(), key, grace))
	c, err := f.PutBlob(f.t.Context(), storage.BlobPut{Repo: repo, Content: stored(data, key), Grace: grace})
	f.ok(err)
	return c
}

// layers makes references to blobs.
func layers(ds ...digest.Digest) (refs []storage.Reference) {
	for _, d := range ds {
		refs = append(refs, storage.Reference{Digest: d})
	}
	return refs
}

// children makes references to manifests.
func children(ds ...digest.Digest) (refs []storage.Reference) {
	for _, d := range ds {
		refs = append(refs, storage.Reference{Digest: d, Manifest: true})
	}
	return refs
}

// image is a manifest with content data.
func image(data string, refs ...storage.Reference) storage.Manifest {
	return storage.Manifest{Content: inline(data), MediaType: "application/vnd.oci.image.manifest.v1+json", References: refs}
}

// push puts m into repo under tags.
func (f *fixture) push(repo string, m storage.Manifest, tags ...string) digest.Digest {
	f.t.Helper()
	f.ok(f.PutManifest(f.t.Context(), storage.ManifestPut{Repo: repo, Manifest: m, Tags: tags, Rules: rules}))
	return m.Digest
}

func (f *fixture) hasBlob(repo string, d digest.Digest, want bool) {
	f.t.Helper()
	_, err := f.Blob(f.t.Context(), repo, d)
	f.held("blob "+d.String()+" in "+repo, err, want)
}

func (f *fixture) hasManifest(repo string, d digest.Digest, want bool) {
	f.t.Helper()
	_, err := f.Manifest(f.t.Context(), repo, d)
	f.held("manifest "+d.String()+" in "+repo, err, want)
}

func (f *fixture) held(what string, err error, want bool) {
	f.t.Helper()
	switch {
	case err != nil && !errors.Is(err, storage.ErrNotFound):
		f.t.Errorf("%s: %v", what, err)
	case (err == nil) != want:
		f.t.Errorf("%s: held = %v, want %v", what, err == nil, want)
	}
}

// tagged checks what tag is on; empty is nothing.
func (f *fixture) tagged(repo, tag string, want digest.Digest) {
	f.t.Helper()
	m, err := f.Tagged(f.t.Context(), repo, tag)
	if want == "" {
		f.is(storage.ErrNotFound, err, "Tagged("+repo+", "+tag+")")
		return
	}
	f.ok(err)
	if m.Digest != want {
		f.t.Errorf("tag %s in %s is on %s, want %s", tag, repo, m.Digest, want)
	}
}

// orphans checks which keys are orphans now.
func (f *fixture) orphans(want ...storage.Key) {
	f.t.Helper()
	now, err := f.Now(f.t.Context())
	f.ok(err)
	got, _, err := f.Orphans(f.t.Context(), now, "", 100)
	f.ok(err)
	if !slices.Equal(got, want) {
		f.t.Errorf("Orphans = %q, want %q", got, want)
	}
}

// collect reviews all that is due until nothing is, and returns what was
// condemned, but for the histories of tags.
func (f *fixture) collect(policy storage.ReviewPolicy) (condemned []digest.Digest) {
	f.t.Helper()
	for {
		verdicts, err := f.Review(f.t.Context(), policy, 3)
		f.ok(err)
		if len(verdicts) == 0 {
			return condemned
		}
		for _, v := range verdicts {
			if v.Why == "" {
				f.t.Errorf("verdict %+v does not say why", v)
			}
			if v.Condemned && v.Kind != storage.KindHistory {
				condemned = append(condemned, v.Digest)
			}
		}
	}
}

// equal compares two lists that a page has in order.
func equal[T comparable](t *testing.T, what string, got []T, want ...T) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s = %v, want %v", what, got, want)
	}
}
