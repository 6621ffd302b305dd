package storagetest

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"testing"

	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
)

// clean checks that all rows of the Index go together.
func (f *fixture) clean() {
	f.t.Helper()
	next := ""
	for i := 0; i == 0 || next != ""; i++ {
		problems, at, err := f.Check(f.t.Context(), next, 7)
		f.ok(err)
		for _, p := range problems {
			f.t.Errorf("Check: %s", p)
		}
		next = at
	}
}

func testQuarantine(t *testing.T, f *fixture) {
	ctx := t.Context()
	c := f.announced("repo", "layer", "key-1")
	small := f.blob("repo", "config")
	m := image("m", layers(c.Digest, small)...)
	f.push("repo", m, "latest")
	other := c
	other.Key = "key-0"
	done, err := f.Quarantine(ctx, other, "of another key")
	if err != nil || done {
		t.Errorf("Quarantine of content at another key = %v, %v", done, err)
	}
	done, err = f.Quarantine(ctx, c, "bit rot")
	if err != nil || !done {
		t.Errorf("Quarantine = %v, %v", done, err)
	}
	since := f.clock.Now()
	f.clock.add(grace)
	_, err = f.Quarantine(ctx, c, "again") // the first counts
	f.ok(err)
	f.reopen()
	_, err = f.Blob(ctx, "repo", c.Digest)
	if q, ok := errors.AsType[*storage.QuarantinedError](err); !ok || q.Why != "bit rot" || !q.Since.Equal(since) || !storage.IsNotFound(err) {
		t.Errorf("Blob in quarantine = %v, want a QuarantinedError that is ErrNotFound", err)
	}
	_, err = f.Promise(ctx, "repo", c.Digest, grace)
	f.is(storage.ErrNotFound, err, "Promise in quarantine")
	_, err = f.Mount(ctx, "other", "repo", c.Digest, grace)
	f.is(storage.ErrNotFound, err, "Mount in quarantine")
	err = f.PutManifest(ctx, storage.ManifestPut{Repo: "repo", Manifest: image("n", layers(c.Digest)...), Rules: rules})
	if missing, ok := errors.AsType[*storage.MissingError](err); !ok || !slices.Equal(missing.Digests, []digest.Digest{c.Digest}) {
		t.Errorf("PutManifest that needs it = %v", err)
	}
	list, err := f.Quarantined(ctx, "", 10)
	f.ok(err)
	same(t, list, []storage.Quarantined{{Digest: c.Digest, Size: c.Size, Why: "bit rot", Since: since, Holders: []string{"repo"}}})
	list, err = f.Quarantined(ctx, c.Digest, 10)
	f.ok(err)
	equal(t, "Quarantined after the last", digestsOf(list))

	// The same content, pushed again, heals it.
	healed := f.announced("repo", "layer", "key-2")
	if healed.Key != "key-2" {
		t.Errorf("PutBlob of what is quarantined = %+v, want the new key", healed)
	}
	f.hasBlob("repo", c.Digest, true)
	f.orphans("key-1")
	f.clean()

	// Inline content and manifests, too.
	mc, err := f.Manifest(ctx, "repo", m.Digest)
	f.ok(err)
	_, err = f.Quarantine(ctx, mc.Content, "rot")
	f.ok(err)
	_, err = f.Tagged(ctx, "repo", "latest")
	f.is(storage.ErrNotFound, err, "Tagged in quarantine")
	f.push("repo", m, "latest")
	f.tagged("repo", "latest", m.Digest)

	// Who finds it whole ends the quarantine; who deletes it, too.
	bc, err := f.Blob(ctx, "repo", small)
	f.ok(err)
	_, err = f.Quarantine(ctx, bc, "an error of the disk")
	f.ok(err)
	f.hasBlob("repo", small, false)
	_, err = f.Quarantine(ctx, bc, "")
	f.ok(err)
	f.hasBlob("repo", small, true)
	_, err = f.Quarantine(ctx, bc, "an error of the disk")
	f.ok(err)
	f.ok(f.DeleteManifest(ctx, "repo", m.Digest, rules))
	f.ok(f.DeleteBlob(ctx, "repo", small))
	list, err = f.Quarantined(ctx, "", 10)
	f.ok(err)
	equal(t, "Quarantined after it was deleted", digestsOf(list))
	f.clean()
}

func digestsOf(list []storage.Quarantined) (ds []digest.Digest) {
	for _, q := range list {
		ds = append(ds, q.Digest)
	}
	return ds
}

func testContents(t *testing.T, f *fixture) {
	var want []storage.Content
	for i := range 5 {
		c := inline(fmt.Sprint("blob ", i))
		f.blob("repo", fmt.Sprint("blob ", i))
		want = append(want, c)
	}
	want = append(want, f.announced("other", "large", "key"))
	f.push("repo", image("m"))
	want = append(want, image("m").Content)
	slices.SortFunc(want, func(a, b storage.Content) int { return cmp.Compare(a.Digest, b.Digest) })
	var got []storage.Content
	for after := digest.Digest(""); ; {
		page, err := f.Contents(t.Context(), after, 2)
		f.ok(err)
		if len(page) == 0 {
			break
		}
		got = append(got, page...)
		after = page[len(page)-1].Digest
	}
	same(t, got, want)
}
