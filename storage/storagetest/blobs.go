package storagetest

import (
	"context"
	"strings"
	"testing"
	"time"

	"berth.internal/storage"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/go-digest"
)

// same compares two values in full.
func same[T any](t *testing.T, got, want T) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("got other than wanted (-want +got):\n%s", diff)
	}
}

func cancelled(t *testing.T) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx, cancel
}

func testBlobUnknown(t *testing.T, f *fixture) {
	ctx, d := t.Context(), digest.FromString("nothing")
	f.blob("other", "x") // there is something, elsewhere
	x := inline("x").Digest
	for _, d := range []digest.Digest{d, x} {
		_, err := f.Blob(ctx, "repo", d)
		f.is(storage.ErrNotFound, err, "Blob")
		_, err = f.Promise(ctx, "repo", d, grace)
		f.is(storage.ErrNotFound, err, "Promise")
		_, err = f.Mount(ctx, "to", "repo", d, grace)
		f.is(storage.ErrNotFound, err, "Mount")
		f.is(storage.ErrNotFound, f.DeleteBlob(ctx, "repo", d), "DeleteBlob")
	}
	f.hasBlob("to", x, false)
	f.hasManifest("other", x, false)
}

func testBlobInline(t *testing.T, f *fixture) {
	for _, data := range []string{"", "x", strings.Repeat("y", storage.InlineMax)} {
		c := inline(data)
		got, err := f.PutBlob(t.Context(), storage.BlobPut{Repo: "repo", Content: c, Grace: grace})
		f.ok(err)
		same(t, got, c)
		got, err = f.Blob(t.Context(), "repo", c.Digest)
		f.ok(err)
		same(t, got, c)
		if len(got.Inline) > 0 {
			got.Inline[0]++ // the caller's to change
		}
		got, err = f.Promise(t.Context(), "repo", c.Digest, grace)
		f.ok(err)
		same(t, got, storage.Content{Digest: c.Digest, Size: c.Size})
		f.hasBlob("rep", c.Digest, false)
		f.hasBlob("repo2", c.Digest, false)
	}
	long := inline(strings.Repeat("z", storage.InlineMax+1))
	short := inline("short")
	short.Size++
	both := inline("both")
	both.Key = "key"
	for _, bad := range []storage.Content{long, short, both} {
		if _, err := f.PutBlob(t.Context(), storage.BlobPut{Repo: "repo", Content: bad, Grace: grace}); err == nil {
			t.Errorf("PutBlob of size %d, %d bytes inline, key %q succeeded", bad.Size, len(bad.Inline), bad.Key)
		}
		f.hasBlob("repo", bad.Digest, false)
	}
}

func testBlobAnnounced(t *testing.T, f *fixture) {
	ctx := t.Context()
	put := storage.BlobPut{Repo: "repo", Content: stored("data", "key"), Grace: grace}
	_, err := f.PutBlob(ctx, put)
	f.is(storage.ErrNotFound, err, "PutBlob of a key that was not announced")
	f.hasBlob("repo", put.Content.Digest, false)

	f.ok(f.Intend(ctx, "key", time.Minute))
	f.clock.add(time.Minute)
	f.orphans("key")
	_, err = f.PutBlob(ctx, put)
	f.is(storage.ErrNotFound, err, "PutBlob of a key that was given up")
	f.hasBlob("repo", put.Content.Digest, false)
	f.orphans("key") // still: what failed took nothing

	f.ok(f.Intend(ctx, "key", time.Minute))
	got, err := f.PutBlob(ctx, put)
	f.ok(err)
	same(t, got, put.Content)
	got, err = f.Blob(ctx, "repo", put.Content.Digest)
	f.ok(err)
	same(t, got, put.Content)
	f.clock.add(time.Hour)
	f.orphans()
}

func testBlobSecond(t *testing.T, f *fixture) {
	first := f.announced("one", "data", "key-1")
	second := f.announced("two", "data", "key-2")
	same(t, second, first)
	f.orphans("key-2")
	f.blob("three", "data") // inline, of no use now
	third, err := f.Blob(t.Context(), "three", first.Digest)
	f.ok(err)
	same(t, third, first)

	small := inline("small")
	f.blob("one", "small")
	got := f.announced("two", "small", "key-3")
	same(t, got, small)
	f.orphans("key-2", "key-3")
}

func testBlobRepeated(t *testing.T, f *fixture) {
	c := f.announced("one", "data", "key")
	for _, repo := range []string{"one", "two"} { // the answer got lost, say
		got, err := f.PutBlob(t.Context(), storage.BlobPut{Repo: repo, Content: c, Grace: grace})
		f.ok(err)
		same(t, got, c)
	}
	f.clock.add(time.Hour)
	f.orphans()
}

func testBlobMount(t *testing.T, f *fixture) {
	ctx := t.Context()
	c := f.announced("from", "data", "key")
	f.clock.add(30 * time.Minute)
	got, err := f.Mount(ctx, "to", "from", c.Digest, grace)
	f.ok(err)
	same(t, got, c)
	f.hasBlob("to", c.Digest, true)
	f.clock.add(30 * time.Minute) // from's review is due, to's is not
	equal(t, "condemned", f.collect(storage.ReviewPolicy{}), c.Digest)
	f.hasBlob("from", c.Digest, false)
	f.hasBlob("to", c.Digest, true)
	f.orphans()
	f.clock.add(30 * time.Minute)
	equal(t, "condemned", f.collect(storage.ReviewPolicy{}), c.Digest)
	f.hasBlob("to", c.Digest, false)
	f.orphans("key")
	_, err = f.Mount(ctx, "to", "from", c.Digest, grace)
	f.is(storage.ErrNotFound, err, "Mount of what is gone")
}

func testHolders(t *testing.T, f *fixture) {
	d := digest.FromString("data")
	for _, repo := range []string{"b", "a/x", "a", "a-b", "c"} {
		f.blob(repo, "data")
	}
	f.blob("d", "other")
	f.push("m", image("data")) // holds the same bytes, but not as a blob
	for _, tc := range []struct {
		after string
		n     int
		want  []string
	}{
		{"", 10, []string{"a", "a-b", "a/x", "b", "c"}},
		{"", 2, []string{"a", "a-b"}},
		{"a-b", 2, []string{"a/x", "b"}},
		{"a.", 1, []string{"a/x"}}, // need not exist
		{"c", 10, nil},
		{"", 0, nil},
	} {
		got, err := f.Holders(t.Context(), d, tc.after, tc.n)
		f.ok(err)
		equal(t, "Holders after "+tc.after, got, tc.want...)
	}
	got, err := f.Holders(t.Context(), digest.FromString("nothing"), "", 10)
	f.ok(err)
	equal(t, "Holders of nothing", got)
}

func testBlobDelete(t *testing.T, f *fixture) {
	ctx := t.Context()
	d := f.announced("one", "data", "key").Digest
	_, err := f.Mount(ctx, "two", "one", d, grace)
	f.ok(err)
	m := f.push("one", image("m", layers(d)...), "latest")

	f.is(storage.ErrReferenced, f.DeleteBlob(ctx, "one", d), "DeleteBlob of a layer")
	f.hasBlob("one", d, true)
	f.ok(f.DeleteBlob(ctx, "two", d))
	f.hasBlob("two", d, false)
	f.hasBlob("one", d, true)
	f.is(storage.ErrNotFound, f.DeleteBlob(ctx, "two", d), "second DeleteBlob")
	f.ok(f.DeleteManifest(ctx, "one", m, rules))
	f.orphans()
	f.ok(f.DeleteBlob(ctx, "one", d))
	f.orphans("key")
	f.clock.add(grace)
	equal(t, "condemned of what was deleted", f.collect(everything))
	// The digest may come back, and starts anew.
	c := f.announced("one", "data", "key-2")
	if c.Key != "key-2" {
		t.Errorf("content after deletion is at %s, want key-2", c.Key)
	}
}

func testPromise(t *testing.T, f *fixture) {
	ctx := t.Context()
	early, late := f.blob("repo", "early"), f.blob("repo", "late")
	kept := f.blob("repo", "kept")
	f.push("repo", image("m", layers(kept)...), "latest")
	promise := func(d digest.Digest) {
		t.Helper()
		c, err := f.Promise(ctx, "repo", d, grace)
		f.ok(err)
		same(t, c, storage.Content{Digest: d, Size: int64(len(inlineOf(t, f, "repo", d)))})
	}
	f.clock.add(20 * time.Minute)
	promise(early) // more than half is left: nothing moves
	f.clock.add(20 * time.Minute)
	promise(late) // 20 minutes left: moves to 100 minutes
	f.clock.add(20 * time.Minute)
	equal(t, "condemned after an hour", f.collect(storage.ReviewPolicy{}), early)
	_, err := f.Promise(ctx, "repo", early, grace)
	f.is(storage.ErrNotFound, err, "Promise of a condemned blob")
	f.clock.add(39 * time.Minute)
	equal(t, "condemned after 99 minutes", f.collect(storage.ReviewPolicy{}))
	f.clock.add(time.Minute)
	equal(t, "condemned after 100 minutes", f.collect(storage.ReviewPolicy{}), late)
	promise(kept) // reviewed and kept: nothing waits, nothing is queued
	f.clock.add(2 * grace)
	if got, err := f.Review(ctx, storage.ReviewPolicy{}, 10); err != nil || len(got) != 0 {
		t.Errorf("Review = %v, %v; want nothing", got, err)
	}
}

func inlineOf(t *testing.T, f *fixture, repo string, d digest.Digest) []byte {
	t.Helper()
	c, err := f.Blob(t.Context(), repo, d)
	f.ok(err)
	return c.Inline
}

func testBlobSession(t *testing.T, f *fixture) {
	ctx := t.Context()
	for _, id := range []string{"mine", "other"} {
		f.ok(f.PutSession(ctx, storage.Session{ID: id, Repo: "repo"}))
	}
	put := storage.BlobPut{Repo: "repo", Content: stored("x", "key"), Session: "mine", Grace: grace}
	_, err := f.PutBlob(ctx, put)
	f.is(storage.ErrNotFound, err, "PutBlob of a key that was not announced")
	_, err = f.Session(ctx, "mine")
	f.ok(err) // what failed ended nothing
	put.Content = inline("x")
	for range 2 { // the second time the session is gone already
		_, err = f.PutBlob(ctx, put)
		f.ok(err)
	}
	_, err = f.Session(ctx, "mine")
	f.is(storage.ErrNotFound, err, "Session that PutBlob ended")
	idle, _, err := f.Idle(ctx, f.clock.Now().Add(time.Hour), "", 10)
	f.ok(err)
	if len(idle) != 1 || idle[0].ID != "other" {
		t.Errorf("Idle = %v, want the other session", idle)
	}
}
