package storagetest

import (
	"testing"
	"time"

	"berth.internal/storage"
)

// TestIndex holds a driver's Index to the contract.
func TestIndex(t *testing.T, fresh NewData) {
	for _, tc := range []struct {
		name string
		run  func(*testing.T, *fixture)
	}{
		{"clock", testClock},
		{"blobs/unknown", testBlobUnknown},
		{"blobs/inline", testBlobInline},
		{"blobs/announced", testBlobAnnounced},
		{"blobs/second content", testBlobSecond},
		{"blobs/repeated", testBlobRepeated},
		{"blobs/mount", testBlobMount},
		{"blobs/holders", testHolders},
		{"blobs/delete", testBlobDelete},
		{"blobs/promise", testPromise},
		{"blobs/session", testBlobSession},
		{"manifests/round trip", testManifestRoundTrip},
		{"manifests/missing", testManifestMissing},
		{"manifests/children", testManifestChildren},
		{"manifests/again", testManifestAgain},
		{"manifests/if match", testManifestIfMatch},
		{"manifests/if absent", testManifestIfAbsent},
		{"manifests/stored", testManifestStored},
		{"manifests/also a blob", testManifestAlsoBlob},
		{"manifests/delete", testManifestDelete},
		{"tags/move", testTagMove},
		{"tags/delete", testTagDelete},
		{"tags/list", testTags},
		{"tags/history", testHistory},
		{"tags/long history", testHistoryLong},
		{"repositories", testRepositories},
		{"referrers", testReferrers},
		{"trash/restore", testTrashRestore},
		{"trash/tags", testTrashTags},
		{"trash/hidden blob", testTrashHidden},
		{"trash/purge", testTrashPurge},
		{"trash/pushed again", testTrashPushedAgain},
		{"trash/referrers", testTrashReferrers},
		{"immutable", testImmutable},
		{"sessions", testSessions},
		{"review/rules", testReviewRules},
		{"review/cascade", testReviewCascade},
		{"review/same bytes", testReviewSameBytes},
		{"review/queued", testQueued},
		{"review/pages", testPages},
		{"review/queue", testReviewQueue},
		{"review/batch", testReviewBatch},
		{"review/graces", testReviewGraces},
		{"review/requeue", testRequeue},
		{"orphans", testOrphans},
		{"care/quarantine", testQuarantine},
		{"care/contents", testContents},
		{"together/one digest", testTogetherDigest},
		{"together/if match", testTogetherIfMatch},
		{"together/failures", testTogetherFailures},
		{"together/delete and put", testTogetherDelete},
		{"reopen", testIndexReopen},
		{"cancelled", testIndexCancelled},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.run(t, newFixture(t, fresh)) })
	}
}

func testClock(t *testing.T, f *fixture) {
	first, err := f.Now(t.Context())
	f.ok(err)
	if !first.Equal(f.clock.Now()) {
		t.Errorf("Now = %v, want %v", first, f.clock.Now())
	}
	f.clock.add(-time.Hour)
	second, err := f.Now(t.Context())
	f.ok(err)
	if second.Before(first) {
		t.Errorf("Now went back from %v to %v", first, second)
	}
}

func testSessions(t *testing.T, f *fixture) {
	ctx := t.Context()
	_, err := f.Session(ctx, "none")
	f.is(storage.ErrNotFound, err, "Session of an unknown id")
	f.ok(f.EndSession(ctx, "none"))

	began := f.clock.Now()
	state := storage.UploadState{ID: "a", Size: 5, Algorithm: "sha256", Hash: []byte{0, 1, 255}, Driver: []byte("part")}
	for _, id := range []string{"a", "b", "c"} {
		state.ID = id
		f.ok(f.PutSession(ctx, storage.Session{ID: id, Repo: "team/app", Owner: "ann", State: state}))
		f.clock.add(time.Minute)
	}
	state.ID, state.Size = "a", 7
	f.ok(f.PutSession(ctx, storage.Session{ID: "a", Repo: "team/app", Owner: "ann", State: state}))
	f.reopen()

	s, err := f.Session(ctx, "a")
	f.ok(err)
	if s.Repo != "team/app" || s.Owner != "ann" || s.State.Size != 7 || string(s.State.Hash) != "\x00\x01\xff" ||
		string(s.State.Driver) != "part" || !s.Updated.Equal(began.Add(3*time.Minute)) {
		t.Errorf("Session = %+v", s)
	}
	idle := func(before time.Time, n int, want ...string) {
		t.Helper()
		list, _, err := f.Idle(ctx, before, "", n)
		f.ok(err)
		var ids []string
		for _, s := range list {
			ids = append(ids, s.ID)
		}
		equal(t, "Idle", ids, want...)
	}
	idle(began, 10)
	idle(began.Add(time.Minute), 10) // b was written then, not before
	idle(began.Add(time.Minute+1), 10, "b")
	idle(began.Add(time.Hour), 10, "b", "c", "a")
	idle(began.Add(time.Hour), 2, "b", "c")
	idle(began.Add(time.Hour), 0)
	f.ok(f.EndSession(ctx, "b"))
	idle(time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), 10, "c", "a")
	idle(time.Time{}, 10)

	list, err := f.Expire(ctx, began, 10)
	if err != nil || len(list) > 0 {
		t.Errorf("Expire of what was written later = %+v, %v", list, err)
	}
	list, err = f.Expire(ctx, began.Add(time.Hour), 1)
	f.ok(err)
	if len(list) != 1 || list[0].ID != "c" || list[0].State.ID != "c" {
		t.Errorf("Expire = %+v, want c", list)
	}
	_, err = f.Session(ctx, "c")
	f.is(storage.ErrNotFound, err, "Session that has expired")
	f.is(storage.ErrNotFound, f.PutSession(ctx, list[0]), "PutSession of one that has expired")
	idle(began.Add(time.Hour), 10, "a")
	f.ok(f.PutSession(ctx, s))
	list[0].Updated = time.Time{}
	f.ok(f.PutSession(ctx, list[0]))
	idle(began.Add(time.Hour), 10, "a", "c")
}

func testOrphans(t *testing.T, f *fixture) {
	ctx := t.Context()
	f.ok(f.Intend(ctx, "second", 2*time.Minute))
	f.ok(f.Intend(ctx, "first", time.Minute))
	f.ok(f.Intend(ctx, "moved", time.Second))
	f.ok(f.Intend(ctx, "moved", time.Hour)) // again: the later one counts
	f.orphans()
	f.clock.add(2 * time.Minute)
	f.reopen()
	f.orphans("first", "second")
	got, _, err := f.Orphans(ctx, f.clock.Now(), "", 1)
	f.ok(err)
	equal(t, "Orphans, at most 1", got, "first")
	got, _, err = f.Orphans(ctx, time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), "", 10)
	f.ok(err)
	equal(t, "Orphans of all times", got, "first", "second", "moved")
	f.ok(f.Forget(ctx, "first"))
	f.ok(f.Forget(ctx, "first"))
	f.ok(f.Forget(ctx, "unknown"))
	f.orphans("second")
}

func testIndexReopen(t *testing.T, f *fixture) {
	ctx := t.Context()
	cfg := f.announced("team/app", "config", "key-1").Digest
	layer := f.blob("team/app", "layer")
	m := image("manifest", layers(cfg, layer)...)
	m.Annotations = map[string]string{"a": "1"}
	f.push("team/app", m, "1.0", "latest")
	before, err := f.Tagged(ctx, "team/app", "latest")
	f.ok(err)
	f.clock.add(time.Hour)
	f.reopen()
	after, err := f.Tagged(ctx, "team/app", "latest")
	f.ok(err)
	same(t, after, before)
	f.hasBlob("team/app", cfg, true)
	f.hasBlob("team/app", layer, true)
	f.orphans()
	if got := f.collect(everything); len(got) != 0 {
		t.Errorf("review after reopening condemned %v", got)
	}
	f.ok(f.DeleteManifest(ctx, "team/app", m.Digest, rules))
	f.reopen()
	f.clock.add(grace)
	f.collect(everything)
	f.reopen()
	f.hasBlob("team/app", cfg, false)
	f.orphans("key-1")
}

func testIndexCancelled(t *testing.T, f *fixture) {
	ctx, cancel := cancelled(t)
	defer cancel()
	if _, err := f.PutBlob(ctx, storage.BlobPut{Repo: "a", Content: inline("x"), Grace: grace}); err == nil {
		t.Error("PutBlob with a context that has ended succeeded")
	}
	if _, err := f.Repositories(ctx, "", 1); err == nil {
		t.Error("Repositories with a context that has ended succeeded")
	}
	f.hasBlob("a", inline("x").Digest, false)
}
