package storagetest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
)

func testReviewRules(t *testing.T, f *fixture) {
	used, unused := f.blob("repo", "used"), f.blob("repo", "unused")
	sparse := f.blob("repo", "optional, but used")
	f.blob("other", "used") // nothing refers to it there
	m := image("tagged", layers(used)...)
	m.References = append(m.References, storage.Reference{Digest: sparse, Optional: true})
	tagged := f.push("repo", m, "latest")
	child := f.push("repo", image("child"))
	parent := f.push("repo", image("parent", children(child)...), "index")
	untagged := f.push("repo", image("untagged"))
	referrer, dangling := image("referrer"), image("dangling")
	referrer.Subject, dangling.Subject = tagged, digest.FromString("nothing")
	f.push("repo", referrer)
	f.push("repo", dangling)
	f.clock.add(grace)

	verdict := func(repo string, d digest.Digest, untaggedToo bool) storage.Verdict {
		t.Helper()
		list, _, err := f.Queued(t.Context(), storage.ReviewPolicy{Untagged: untaggedToo, Dangling: untaggedToo}, f.clock.Now(), "", 100)
		f.ok(err)
		i := slices.IndexFunc(list, func(v storage.Verdict) bool { return v.Repo == repo && v.Digest == d })
		if i < 0 {
			t.Fatalf("no verdict on %s in %s: %v", d, repo, list)
		}
		return list[i]
	}
	for _, tc := range []struct {
		name, repo         string
		digest             digest.Digest
		untagged, manifest bool
		condemned          bool
	}{
		{"blob in use", "repo", used, true, false, false},
		{"blob in use as an option", "repo", sparse, true, false, false},
		{"blob not in use", "repo", unused, false, false, true},
		{"blob in use elsewhere", "other", used, true, false, true},
		{"child", "repo", child, true, true, false},
		{"untagged, by policy kept", "repo", untagged, false, true, false},
		{"untagged", "repo", untagged, true, true, true},
		{"referrer", "repo", referrer.Digest, true, true, false},
		{"dangling, by policy kept", "repo", dangling.Digest, false, true, false},
		{"dangling", "repo", dangling.Digest, true, true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := verdict(tc.repo, tc.digest, tc.untagged)
			if v.Condemned != tc.condemned || (v.Kind == storage.KindManifest) != tc.manifest || v.Size == 0 || v.Why == "" {
				t.Errorf("verdict %+v, want condemned %v, manifest %v", v, tc.condemned, tc.manifest)
			}
		})
	}
	got := f.collect(everything)
	slices.Sort(got)
	want := []digest.Digest{unused, used, untagged, dangling.Digest} // used in other
	slices.Sort(want)
	equal(t, "condemned", got, want...)
	for _, d := range []digest.Digest{tagged, child, parent, referrer.Digest} {
		f.hasManifest("repo", d, true)
	}
	f.hasManifest("repo", untagged, false)
	f.hasBlob("repo", used, true)
	f.hasBlob("other", used, false)
}

// testReviewSameBytes names the bytes of a manifest as a layer. That keeps the
// blob, and not the manifest.
func testReviewSameBytes(t *testing.T, f *fixture) {
	for _, kept := range []bool{false, true} {
		subject := f.push("repo", image("subject"), "subject")
		f.blob("repo", "subject")
		artifact := image("artifact", layers(subject)...)
		artifact.Subject = subject
		f.push("repo", artifact)
		var tags []string
		if kept {
			tags = []string{"index"}
		}
		index := f.push("repo", image("index", children(subject)...), tags...)
		f.ok(f.DeleteTag(t.Context(), "repo", "subject", rules))
		for range 4 {
			f.clock.add(grace)
			f.collect(everything)
		}
		f.hasManifest("repo", subject, kept)
		f.hasManifest("repo", artifact.Digest, kept)
		f.hasBlob("repo", subject, kept)
		if !kept {
			continue
		}
		f.is(storage.ErrReferenced, f.DeleteManifest(t.Context(), "repo", subject, rules), "DeleteManifest of a child")
		f.ok(f.DeleteManifest(t.Context(), "repo", index, rules))
		f.ok(f.DeleteManifest(t.Context(), "repo", subject, rules))
		f.hasBlob("repo", subject, true)
		f.is(storage.ErrReferenced, f.DeleteBlob(t.Context(), "repo", subject), "DeleteBlob of a layer")
	}
}

func testReviewCascade(t *testing.T, f *fixture) {
	// An index, its child, the child's layer, a signature of the child, a
	// signature of that: all go once the tag is gone, step by step.
	policy := everything
	policy.Rules = storage.Rules{Grace: time.Minute, Untagged: time.Minute, Dangling: time.Minute}
	layer := f.announced("repo", "layer", "key").Digest
	child := f.push("repo", image("child", layers(layer)...))
	sig, sigsig := image("signature"), image("signature of the signature")
	sig.Subject, sigsig.Subject = child, sig.Digest
	f.push("repo", sig)
	f.push("repo", sigsig)
	index := f.push("repo", image("index", children(child)...), "latest")
	f.clock.add(grace)
	equal(t, "condemned while tagged", f.collect(policy))

	f.ok(f.DeleteTag(t.Context(), "repo", "latest", rules))
	f.clock.add(grace)
	for _, step := range [][]digest.Digest{{index}, {child}, {layer, sig.Digest}, {sigsig.Digest}, nil} {
		got := f.collect(policy)
		slices.Sort(got)
		slices.Sort(step)
		equal(t, "condemned in this step", got, step...)
		f.clock.add(time.Minute)
	}
	f.orphans("key")
	repos, err := f.Repositories(t.Context(), "", 10)
	f.ok(err)
	equal(t, "Repositories", repos)
	_, err = f.Tags(t.Context(), "repo", "", 1)
	f.is(storage.ErrNotFound, err, "Tags of a repository that holds nothing")
}

func testQueued(t *testing.T, f *fixture) {
	d := f.blob("repo", "x")
	for range 2 {
		f.clock.add(grace)
		list, _, err := f.Queued(t.Context(), storage.ReviewPolicy{}, f.clock.Now(), "", 10)
		f.ok(err)
		if len(list) != 1 || list[0].Digest != d || !list[0].Condemned {
			t.Errorf("Queued = %+v, want the blob condemned", list)
		}
		f.hasBlob("repo", d, true)
	}
	equal(t, "condemned in earnest", f.collect(storage.ReviewPolicy{}), d)

	// What is said of a deleted manifest depends on the time.
	m := f.push("repo", image("deleted"))
	under := rules
	under.Trash = grace
	f.ok(f.DeleteManifest(t.Context(), "repo", m, under))
	for _, why := range []string{"it was deleted, and can be restored until then", "its time in the trash is over"} {
		list, _, err := f.Queued(t.Context(), everything, f.clock.Now().Add(grace), "", 10)
		f.ok(err)
		if len(list) != 1 || list[0].Kind != storage.KindTrash || list[0].Why != why || !list[0].Condemned {
			t.Errorf("Queued = %+v, want %q", list, why)
		}
		f.clock.add(grace)
	}
}

// testReviewBatch condemns a parent in the same review in which its child and
// its layer are due: they are due again after their grace, not now.
func testReviewBatch(t *testing.T, f *fixture) {
	ctx := t.Context()
	layer := f.blob("repo", "layer")
	child := f.push("repo", image("child"))
	parent := f.push("repo", image("parent", append(children(child), layers(layer)...)...))
	f.clock.add(grace * 3 / 4)
	_, err := f.PromiseManifest(ctx, "repo", child, grace)
	f.ok(err)
	_, err = f.Promise(ctx, "repo", layer, grace)
	f.ok(err)
	f.clock.add(2 * grace)
	list, err := f.Review(ctx, everything, 100)
	f.ok(err)
	if len(list) != 1 || list[0].Digest != parent {
		t.Errorf("Review = %+v, want the parent only", list)
	}
	f.clock.add(grace - 1)
	equal(t, "condemned within their grace", f.collect(everything))
	f.clock.add(1)
	got := f.collect(everything)
	want := []digest.Digest{child, layer}
	slices.Sort(got)
	slices.Sort(want)
	equal(t, "condemned after it", got, want...)
}

func testReviewQueue(t *testing.T, f *fixture) {
	ctx := t.Context()
	review := func(n int, want ...digest.Digest) {
		t.Helper()
		list, err := f.Review(ctx, storage.ReviewPolicy{}, n)
		f.ok(err)
		var got []digest.Digest
		for _, v := range list {
			got = append(got, v.Digest)
		}
		equal(t, "reviewed", got, want...)
	}
	put := func(data string, grace time.Duration) digest.Digest {
		t.Helper()
		c, err := f.PutBlob(ctx, storage.BlobPut{Repo: "repo", Content: inline(data), Grace: grace})
		f.ok(err)
		return c.Digest
	}
	a, b, c := put("a", 3*time.Minute), put("b", time.Minute), put("c", 2*time.Minute)
	review(10)
	f.clock.add(3 * time.Minute)
	review(0)
	review(2, b, c) // earliest first
	review(10, a)
	review(10)

	// An event moves a review later, never earlier, and there is one of each.
	d := put("d", time.Hour)
	put("d", time.Minute)
	f.clock.add(2 * time.Minute)
	review(10)
	put("d", 2*time.Hour)
	f.clock.add(time.Hour)
	review(10)
	f.clock.add(time.Hour)
	review(10, d)
	put("forever", 1<<63-1)
	f.clock.add(24 * 365 * time.Hour)
	review(10)
}

// pages goes through a list, n at a time, and returns all of it.
func pages[T any](t *testing.T, n int, list func(from string, n int) ([]T, string, error)) (all []T) {
	t.Helper()
	for next, again := "", true; again; again = next != "" {
		page, then, err := list(next, n)
		if err != nil || len(page) > n || then != "" && len(page) < n || then == next && then != "" {
			t.Fatalf("page of %d from %q = %d, %q, %v", n, next, len(page), then, err)
		}
		all, next = append(all, page...), then
	}
	return all
}

// inPages says what the lists that have places hold, in pages of n, up to grace
// from now.
func (f *fixture) inPages(n int) (queued, orphans, idle []string) {
	f.t.Helper()
	ctx, until := f.t.Context(), f.clock.Now().Add(grace)
	for _, v := range pages(f.t, n, func(from string, n int) ([]storage.Verdict, string, error) {
		return f.Queued(ctx, everything, until, from, n)
	}) {
		queued = append(queued, fmt.Sprintf("%+v", v))
	}
	for _, k := range pages(f.t, n, func(from string, n int) ([]storage.Key, string, error) {
		return f.Orphans(ctx, until, from, n)
	}) {
		orphans = append(orphans, string(k))
	}
	for _, s := range pages(f.t, n, func(from string, n int) ([]storage.Session, string, error) {
		return f.Idle(ctx, until, from, n)
	}) {
		idle = append(idle, s.ID)
	}
	return queued, orphans, idle
}

func testPages(t *testing.T, f *fixture) {
	ctx := t.Context()
	for i := range 7 {
		f.announced("repo", fmt.Sprint("blob ", i), storage.Key(fmt.Sprint("named-", i)))
		f.ok(f.Intend(ctx, storage.Key(fmt.Sprint("key-", i)), grace/2))
		f.ok(f.PutSession(ctx, storage.Session{ID: fmt.Sprint("session-", i)}))
		if i%3 == 0 { // else at the same time as the one before
			f.clock.add(time.Second)
		}
	}
	queued, orphans, idle := f.inPages(100)
	if len(queued) != 7 || len(orphans) != 7 || len(idle) != 7 {
		t.Fatalf("queued %q, orphans %q, idle %q, want 7 of each", queued, orphans, idle)
	}
	for _, n := range []int{1, 2, 3, 6, 7, 8} {
		q, o, s := f.inPages(n)
		equal(t, fmt.Sprint("Queued in pages of ", n), q, queued...)
		equal(t, fmt.Sprint("Orphans in pages of ", n), o, orphans...)
		equal(t, fmt.Sprint("Idle in pages of ", n), s, idle...)
	}

	// What goes, the last of a page too, takes no other with it; and a place
	// outlives its process.
	later := f.clock.Now().Add(grace)
	verdicts, inQueue, err := f.Queued(ctx, everything, later, "", 3)
	f.ok(err)
	_, inOrphans, err := f.Orphans(ctx, later, "", 3)
	f.ok(err)
	_, inIdle, err := f.Idle(ctx, later, "", 3)
	f.ok(err)
	f.ok(f.DeleteBlob(ctx, "repo", verdicts[2].Digest))
	f.ok(f.Forget(ctx, storage.Key(orphans[2])))
	f.ok(f.EndSession(ctx, idle[2]))
	f.reopen()
	verdicts, _, err = f.Queued(ctx, everything, later, inQueue, 1)
	f.ok(err)
	equal(t, "Queued after what has gone", []string{fmt.Sprintf("%+v", verdicts[0])}, queued[3])
	keys, _, err := f.Orphans(ctx, later, inOrphans, 1)
	f.ok(err)
	equal(t, "Orphans after what has gone", keys, storage.Key(orphans[3]))
	sessions, _, err := f.Idle(ctx, later, inIdle, 1)
	f.ok(err)
	equal(t, "Idle after what has gone", []string{sessions[0].ID}, idle[3])

	for _, from := range []string{"x", "12", "not one", "AAAAAAAAAAA", strings.Repeat("é", 100)} {
		_, _, err := f.Queued(ctx, everything, later, from, 1)
		f.is(storage.ErrCursor, err, "Queued from "+from)
		_, _, err = f.Orphans(ctx, later, from, 1)
		f.is(storage.ErrCursor, err, "Orphans from "+from)
		_, _, err = f.Idle(ctx, later, from, 1)
		f.is(storage.ErrCursor, err, "Idle from "+from)
	}
}
