package gc_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"berth.internal/storage"
	"berth.internal/storage/gc"
	"berth.internal/storage/kv"
	"berth.internal/storage/mem"
)

// clock is a time that the test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// site is a registry without its API.
type site struct {
	t     *testing.T
	clock *clock
	store *mem.Store
	index *kv.Index
	gc    *gc.Collector
}

const grace = time.Hour

func newSite(t *testing.T, untagged bool) *site {
	s := &site{t: t, clock: &clock{now: time.Unix(1e9, 0)}, store: new(mem.Store)}
	s.index = mem.NewIndex(kv.Options{Now: s.clock.Now})
	s.gc = gc.New(s.store, s.index, gc.Config{
		Interval: time.Minute, Rate: 1e6, SessionExpiry: 24 * time.Hour, Policy: storage.ReviewPolicy{Untagged: untagged, Grace: grace},
	}, slog.New(slog.DiscardHandler))
	return s
}

// push lets repo hold a blob too large for the index.
func (s *site) push(repo, text string) storage.Content {
	s.t.Helper()
	data := strings.Repeat(text, storage.InlineMax/len(text)+1)
	up, err := s.store.Create(s.t.Context(), digest.SHA256)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := up.Write([]byte(data)); err != nil {
		s.t.Fatal(err)
	}
	c, err := storage.Commit(s.t.Context(), s.store, s.index, up, digest.FromString(data), storage.BlobPut{Repo: repo, Grace: grace})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

func (s *site) tag(repo, tag string, blobs ...storage.Content) digest.Digest {
	s.t.Helper()
	text := "manifest of"
	m := storage.Manifest{MediaType: "application/vnd.oci.image.manifest.v1+json"}
	for _, b := range blobs {
		text += b.Digest.String()
		m.References = append(m.References, storage.Reference{Digest: b.Digest})
	}
	m.Content = storage.Content{Digest: digest.FromString(text), Size: int64(len(text)), Inline: []byte(text)}
	if err := s.index.PutManifest(s.t.Context(), storage.ManifestPut{Repo: repo, Manifest: m, Tags: []string{tag}, Grace: grace}); err != nil {
		s.t.Fatal(err)
	}
	return m.Digest
}

func (s *site) collect() gc.Round {
	s.t.Helper()
	r, err := s.gc.Collect(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// has checks whether repo holds a blob, and whether its bytes are there.
func (s *site) has(repo string, c storage.Content, named, bytes bool) {
	s.t.Helper()
	_, err := s.index.Blob(s.t.Context(), repo, c.Digest)
	if (err == nil) != named {
		s.t.Errorf("%s holds %s: %v, want it held: %v", repo, c.Digest, err, named)
	}
	b, err := s.store.Open(s.t.Context(), c.Key)
	if err == nil {
		b.Close()
	}
	if (err == nil) != bytes {
		s.t.Errorf("bytes of %s: %v, want them there: %v", c.Key, err, bytes)
	}
}

func TestBlobsWithoutManifestGoAfterTheirGrace(t *testing.T) {
	s := newSite(t, false)
	used, unused := s.push("a", "used"), s.push("a", "unused")
	s.tag("a", "1", used)
	s.clock.pass(grace - time.Second)
	if r := s.collect(); r != (gc.Round{}) {
		t.Errorf("before its grace is over the collector did %+v, want nothing", r)
	}
	s.clock.pass(2 * time.Second)
	if r := s.collect(); r.Blobs != 1 || r.Keys != 1 || r.Bytes != unused.Size {
		t.Errorf("after it the collector did %+v, want one blob and its key", r)
	}
	s.has("a", used, true, true)
	s.has("a", unused, false, false)
}

func TestPromiseIsKept(t *testing.T) {
	s := newSite(t, false)
	c := s.push("a", "promised")
	s.clock.pass(grace - time.Second)
	if _, err := s.index.Promise(t.Context(), "a", c.Digest, grace); err != nil {
		t.Fatal(err)
	}
	s.clock.pass(grace - time.Second)
	s.collect()
	s.has("a", c, true, true)
	s.clock.pass(2 * time.Second)
	s.collect()
	s.has("a", c, false, false)
}

func TestBytesStayWhileAnyRepositoryHoldsThem(t *testing.T) {
	s := newSite(t, false)
	c := s.push("a", "shared")
	if _, err := s.index.Mount(t.Context(), "b", "a", c.Digest, grace); err != nil {
		t.Fatal(err)
	}
	s.tag("b", "1", c)
	s.clock.pass(2 * grace)
	s.collect()
	s.has("a", c, false, true)
	s.has("b", c, true, true)
}

func TestUntaggedManifestTakesItsBlobsAlong(t *testing.T) {
	s := newSite(t, true)
	old, now := s.push("a", "old"), s.push("a", "new")
	gone := s.tag("a", "latest", old)
	s.tag("a", "latest", now)
	s.clock.pass(2 * grace)
	if r := s.collect(); r.Manifests != 1 {
		t.Errorf("the collector did %+v, want one manifest", r)
	}
	if _, err := s.index.Manifest(t.Context(), "a", gone); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("the untagged manifest: %v, want it gone", err)
	}
	s.has("a", old, true, true) // its own grace has just begun
	s.clock.pass(2 * grace)
	s.collect()
	s.has("a", old, false, false)
	s.has("a", now, true, true)
}

func TestIdleUploadsEnd(t *testing.T) {
	s := newSite(t, false)
	ctx := t.Context()
	up, err := s.store.Create(ctx, digest.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	state, err := up.Save(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.index.PutSession(ctx, storage.Session{ID: "client's", Repo: "a", State: state}); err != nil {
		t.Fatal(err)
	}
	s.clock.pass(23 * time.Hour)
	s.collect()
	if _, err := s.index.Session(ctx, "client's"); err != nil {
		t.Errorf("the session before its expiry: %v", err)
	}
	s.clock.pass(2 * time.Hour)
	if r := s.collect(); r.Sessions != 1 {
		t.Errorf("the collector did %+v, want one session", r)
	}
	if _, err := s.index.Session(ctx, "client's"); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("the session after its expiry: %v, want it gone", err)
	}
	if _, err := s.store.Resume(ctx, state); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("its bytes: %v, want them gone", err)
	}
}

// broken is a store that cannot delete.
type broken struct{ *mem.Store }

func (broken) Delete(context.Context, storage.Key) error { return errors.New("medium error") }

func TestWhatCannotBeDeletedIsTriedAgain(t *testing.T) {
	s := newSite(t, false)
	c := s.push("a", "sticky")
	s.clock.pass(2 * grace)
	cfg := gc.Config{Interval: time.Minute, Rate: 1e6, SessionExpiry: time.Hour}
	if _, err := gc.New(broken{s.store}, s.index, cfg, slog.New(slog.DiscardHandler)).Collect(t.Context()); err == nil {
		t.Error("a store that cannot delete: no error")
	}
	s.has("a", c, false, true)
	if r := s.collect(); r.Keys != 1 {
		t.Errorf("the next round did %+v, want the key deleted", r)
	}
	s.has("a", c, false, false)
}
