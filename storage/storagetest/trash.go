package storagetest

import (
	"errors"
	"slices"
	"testing"
	"time"

	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
)

// withTrash are rules under which what was deleted can be restored for ten
// times the grace time.
func withTrash() storage.Rules {
	r := rules
	r.Trash = 10 * grace
	return r
}

// inTrash checks what the trash of repo holds.
func (f *fixture) inTrash(repo string, want ...digest.Digest) {
	f.t.Helper()
	list, err := f.Trashed(f.t.Context(), repo, "", 100)
	f.ok(err)
	var got []digest.Digest
	for _, m := range list {
		got = append(got, m.Digest)
	}
	slices.Sort(want)
	equal(f.t, "Trashed", got, want...)
}

func testTrashRestore(t *testing.T, f *fixture) {
	ctx := t.Context()
	layer := f.announced("repo", "layer", "key").Digest
	child := f.push("repo", image("child", layers(layer)...))
	index := image("index", children(child)...)
	index.Annotations = map[string]string{"k": "v"}
	f.push("repo", index, "latest", "1")
	before, err := f.Manifest(ctx, "repo", index.Digest)
	f.ok(err)

	f.clock.add(time.Minute)
	deleted := f.clock.Now()
	f.ok(f.DeleteManifest(ctx, "repo", index.Digest, withTrash()))
	f.ok(f.DeleteManifest(ctx, "repo", child, withTrash()))
	f.hasManifest("repo", index.Digest, false)
	f.hasManifest("repo", child, false)
	f.tagged("repo", "latest", "")
	f.inTrash("repo", index.Digest, child)
	f.inTrash("other")
	list, err := f.Trashed(ctx, "repo", "", 100)
	f.ok(err)
	i := slices.IndexFunc(list, func(m storage.Trashed) bool { return m.Digest == index.Digest })
	equal(t, "tags in the trash", list[i].Tags, "1", "latest")
	if !list[i].Deleted.Equal(deleted) || !list[i].Until.Equal(deleted.Add(10*grace)) || list[i].Size != index.Size || list[i].MediaType != index.MediaType {
		t.Errorf("Trashed = %+v", list[i])
	}
	page, err := f.Trashed(ctx, "repo", list[0].Digest, 1)
	f.ok(err)
	equal(t, "the page after the first", []digest.Digest{page[0].Digest}, list[1].Digest)

	one, err := f.TrashedManifest(ctx, "repo", index.Digest)
	f.ok(err)
	same(t, one, list[i])
	_, err = f.TrashedManifest(ctx, "repo", layer)
	f.is(storage.ErrNotFound, err, "TrashedManifest of what is not there")

	f.clock.add(9 * grace)
	equal(t, "condemned while in the trash", f.collect(everything))
	f.orphans()
	f.reopen()
	tags, err := f.Restore(ctx, "repo", index.Digest, nil, withTrash())
	f.ok(err)
	equal(t, "tags restored", tags, "1", "latest")
	f.inTrash("repo")
	f.tagged("repo", "latest", index.Digest)
	after, err := f.Manifest(ctx, "repo", index.Digest)
	f.ok(err)
	same(t, after, before)
	f.hasManifest("repo", child, true)
	f.hasBlob("repo", layer, true)
	f.is(storage.ErrReferenced, f.DeleteBlob(ctx, "repo", layer), "DeleteBlob of a restored layer")
	f.clock.add(100 * grace)
	equal(t, "condemned after it was restored", f.collect(everything))
	_, err = f.Restore(ctx, "repo", digest.FromString("none"), nil, rules)
	f.is(storage.ErrNotFound, err, "Restore of an unknown digest")
	f.clean()
}

func testTrashTags(t *testing.T, f *fixture) {
	ctx := t.Context()
	one := f.push("repo", image("1"), "latest")
	put := storage.ManifestPut{Repo: "repo", Manifest: image("2"), Tags: []string{"latest"}, Rules: withTrash()}
	f.ok(f.PutManifest(ctx, put))
	f.clock.add(9 * grace)
	equal(t, "condemned while the tag can be restored", f.collect(everything))
	tags, err := f.Restore(ctx, "repo", one, []string{"latest", "again"}, withTrash())
	f.ok(err)
	equal(t, "tags set", tags, "latest", "again")
	f.tagged("repo", "latest", one)
	f.tagged("repo", "again", one)

	f.ok(f.DeleteTag(ctx, "repo", "again", withTrash()))
	past, err := f.PastTags(ctx, "repo", "", 10)
	f.ok(err)
	equal(t, "PastTags", past, "again", "latest")
	past, err = f.PastTags(ctx, "repo", "again", 1)
	f.ok(err)
	equal(t, "PastTags after again", past, "latest")
	f.clock.add(10 * grace)
	equal(t, "condemned when the tag is gone for good", f.collect(everything), put.Manifest.Digest)
	past, err = f.PastTags(ctx, "repo", "", 10)
	f.ok(err)
	equal(t, "PastTags when the history is over", past, "latest")
	h, err := f.History(ctx, "repo", "again", 10)
	f.ok(err)
	equal(t, "History when it is over", h)

	// A tag that was set meanwhile stays where it is.
	f.ok(f.DeleteManifest(ctx, "repo", one, withTrash()))
	two := f.push("repo", image("2"), "latest")
	tags, err = f.Restore(ctx, "repo", one, nil, withTrash())
	f.ok(err)
	equal(t, "tags set", tags)
	f.tagged("repo", "latest", two)
	f.clean()
}

func testTrashHidden(t *testing.T, f *fixture) {
	ctx := t.Context()
	layer := f.announced("repo", "layer", "key").Digest
	m := f.push("repo", image("m", layers(layer)...), "latest")
	f.ok(f.DeleteManifest(ctx, "repo", m, withTrash()))
	f.ok(f.DeleteBlob(ctx, "repo", layer))
	f.hasBlob("repo", layer, false)
	f.is(storage.ErrNotFound, f.DeleteBlob(ctx, "repo", layer), "second DeleteBlob")
	_, err := f.Mount(ctx, "other", "repo", layer, grace)
	f.is(storage.ErrNotFound, err, "Mount of a deleted blob")
	holders, err := f.Holders(ctx, layer, "", 10)
	f.ok(err)
	equal(t, "Holders of a deleted blob", holders)
	err = f.PutManifest(ctx, storage.ManifestPut{Repo: "repo", Manifest: image("n", layers(layer)...), Rules: rules})
	if _, ok := errors.AsType[*storage.MissingError](err); !ok {
		t.Errorf("PutManifest of a deleted blob = %v, want that it is missing", err)
	}
	f.clock.add(2 * grace)
	equal(t, "condemned", f.collect(everything))
	f.orphans()
	_, err = f.Restore(ctx, "repo", m, nil, rules)
	f.ok(err)
	f.hasBlob("repo", layer, true)

	// Again, and now the trash is emptied.
	f.ok(f.DeleteManifest(ctx, "repo", m, withTrash()))
	f.ok(f.DeleteBlob(ctx, "repo", layer))
	f.ok(f.Purge(ctx, "repo", m, rules))
	f.orphans("key")
	f.is(storage.ErrNotFound, f.Purge(ctx, "repo", m, rules), "second Purge")
	f.clean()
}

func testTrashPurge(t *testing.T, f *fixture) {
	ctx := t.Context()
	layer := f.announced("repo", "layer", "key").Digest
	m := f.push("repo", image("m", layers(layer)...), "latest")
	f.ok(f.DeleteManifest(ctx, "repo", m, withTrash()))
	f.clock.add(10*grace - 1)
	equal(t, "condemned before the time in the trash is over", f.collect(everything))
	f.clock.add(1)
	equal(t, "condemned when it is", f.collect(everything), m)
	f.inTrash("repo")
	_, err := f.Restore(ctx, "repo", m, nil, rules)
	f.is(storage.ErrNotFound, err, "Restore of what was purged")
	f.hasBlob("repo", layer, true) // somebody may have been promised it
	f.clock.add(grace)
	equal(t, "condemned a grace later", f.collect(everything), layer)
	f.orphans("key")
	repos, err := f.Repositories(ctx, "", 10)
	f.ok(err)
	equal(t, "Repositories", repos)
	f.clean()
}

func testTrashPushedAgain(t *testing.T, f *fixture) {
	ctx := t.Context()
	layer := f.blob("repo", "layer")
	m := image("m", layers(layer)...)
	f.push("repo", m, "latest")
	f.ok(f.DeleteManifest(ctx, "repo", m.Digest, withTrash()))
	f.ok(f.DeleteBlob(ctx, "repo", layer))
	f.blob("repo", "layer")
	f.hasBlob("repo", layer, true)
	f.push("repo", m, "new")
	f.inTrash("repo")
	f.tagged("repo", "latest", "")
	f.clock.add(20 * grace)
	equal(t, "condemned of what was pushed again", f.collect(everything))
	f.hasManifest("repo", m.Digest, true)
	f.clean()
}

func testTrashReferrers(t *testing.T, f *fixture) {
	ctx := t.Context()
	subject := f.push("repo", image("m"), "latest")
	sig := image("signature")
	sig.Subject = subject
	f.push("repo", sig)
	f.ok(f.DeleteManifest(ctx, "repo", subject, withTrash()))
	f.clock.add(9 * grace)
	equal(t, "condemned while the subject is in the trash", f.collect(everything))
	_, err := f.Restore(ctx, "repo", subject, nil, rules)
	f.ok(err)
	// A referrer in the trash is not listed.
	f.ok(f.DeleteManifest(ctx, "repo", sig.Digest, withTrash()))
	list, err := f.Referrers(ctx, "repo", subject, "", "", 10)
	f.ok(err)
	if len(list) != 0 {
		t.Errorf("Referrers with the only one in the trash = %v", list)
	}
	_, err = f.Restore(ctx, "repo", sig.Digest, nil, rules)
	f.ok(err)
	list, err = f.Referrers(ctx, "repo", subject, "", "", 10)
	if err != nil || len(list) != 1 {
		t.Errorf("Referrers after it was restored = %v, %v", list, err)
	}
	f.ok(f.DeleteManifest(ctx, "repo", subject, withTrash()))
	f.clock.add(10 * grace)
	equal(t, "condemned", f.collect(everything), subject)
	f.clock.add(grace)
	equal(t, "condemned then", f.collect(everything), sig.Digest)
	f.clean()
}

func testImmutable(t *testing.T, f *fixture) {
	ctx := t.Context()
	once := withTrash()
	once.Immutable = func(tag string) bool { return tag[0] == 'v' }
	put := func(data string, tags ...string) error {
		return f.PutManifest(ctx, storage.ManifestPut{Repo: "repo", Manifest: image(data), Tags: tags, Rules: once})
	}
	f.ok(put("1", "v1", "latest"))
	f.ok(put("1", "v1")) // it is there
	f.is(storage.ErrImmutable, put("2", "latest", "v1"), "PutManifest over an immutable tag")
	f.tagged("repo", "latest", image("1").Digest) // all or none
	f.hasManifest("repo", image("2").Digest, false)
	f.ok(put("2", "latest"))
	f.is(storage.ErrImmutable, f.DeleteTag(ctx, "repo", "v1", once), "DeleteTag of an immutable tag")
	f.is(storage.ErrImmutable, f.DeleteManifest(ctx, "repo", image("1").Digest, once), "DeleteManifest under an immutable tag")
	_, err := f.Restore(ctx, "repo", image("2").Digest, []string{"v1"}, once)
	f.is(storage.ErrImmutable, err, "Restore over an immutable tag")
	f.tagged("repo", "v1", image("1").Digest)
	f.ok(f.DeleteTag(ctx, "repo", "v1", withTrash())) // the rules have changed
	f.ok(put("2", "v1"))
	f.clean()
}

func testReviewGraces(t *testing.T, f *fixture) {
	own := storage.Rules{Grace: grace, Untagged: 2 * grace, Dangling: 3 * grace}
	blob := f.blob("repo", "blob")
	untagged, dangling := image("untagged"), image("dangling")
	dangling.Subject = digest.FromString("nothing")
	for _, m := range []storage.Manifest{untagged, dangling} {
		f.ok(f.PutManifest(t.Context(), storage.ManifestPut{Repo: "repo", Manifest: m, Rules: own}))
	}
	for _, want := range []digest.Digest{blob, untagged.Digest, dangling.Digest} {
		f.clock.add(grace - 1)
		equal(t, "condemned before its grace is over", f.collect(everything))
		f.clock.add(1)
		equal(t, "condemned when it is", f.collect(everything), want)
	}
	// Each policy is for its own.
	f.push("repo", untagged)
	f.push("repo", dangling)
	f.clock.add(grace)
	equal(t, "condemned by the policy for untagged ones", f.collect(storage.ReviewPolicy{Untagged: true, Rules: rules}), untagged.Digest)
	f.push("repo", untagged)
	f.push("repo", dangling) // queued again
	f.clock.add(grace)
	equal(t, "condemned by the policy for dangling ones", f.collect(storage.ReviewPolicy{Dangling: true, Rules: rules}), dangling.Digest)
	f.blob("repo", "later")
	list, _, err := f.Queued(t.Context(), storage.ReviewPolicy{}, f.clock.Now().Add(grace), "", 10)
	f.ok(err)
	if len(list) != 1 || list[0].Kind != storage.KindBlob || !list[0].Due.Equal(f.clock.Now().Add(grace)) {
		t.Errorf("what is due within a grace = %+v", list)
	}
}

func testRequeue(t *testing.T, f *fixture) {
	f.push("a", image("tagged"), "latest")
	one := f.push("a", image("one"))
	f.push("b", image("one"))
	two := f.push("b", image("two"))
	f.clock.add(grace)
	equal(t, "condemned by a policy that keeps them", f.collect(storage.ReviewPolicy{}))
	next := ""
	for i := 0; i == 0 || next != ""; i++ {
		var err error
		next, err = f.Requeue(t.Context(), next, 1, rules)
		f.ok(err)
	}
	equal(t, "condemned within the grace", f.collect(everything))
	f.clock.add(grace)
	want := []digest.Digest{one, one, two}
	slices.Sort(want)
	got := f.collect(everything)
	slices.Sort(got)
	equal(t, "condemned after Requeue", got, want...)
	_, err := f.Requeue(t.Context(), "no cursor", 1, rules)
	if err == nil {
		t.Error("Requeue from a place of its own making succeeded")
	}
}
