package storagetest

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
)

// together runs fn n times at once.
func together(n int, fn func(i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			fn(i)
		})
	}
	close(start)
	wg.Wait()
}

func testTogetherDigest(t *testing.T, f *fixture) {
	const n = 32
	for i := range n {
		f.ok(f.Intend(t.Context(), storage.Key(fmt.Sprint("key-", i)), grace))
	}
	var named [n]storage.Content
	together(n, func(i int) {
		var err error
		named[i], err = f.PutBlob(t.Context(), storage.BlobPut{
			Repo: fmt.Sprint("repo-", i%4), Content: stored("same", storage.Key(fmt.Sprint("key-", i))), Grace: grace,
		})
		if err != nil {
			t.Errorf("PutBlob %d = %v", i, err)
		}
	})
	for i := range named {
		same(t, named[i], named[0])
	}
	orphans, _, err := f.Orphans(t.Context(), f.clock.Now(), "", 2*n)
	f.ok(err)
	if len(orphans) != n-1 {
		t.Errorf("%d orphans, want all keys but the one named", len(orphans))
	}
	for _, k := range orphans {
		if k == named[0].Key {
			t.Errorf("%s is named and an orphan", k)
		}
	}
}

func testTogetherIfMatch(t *testing.T, f *fixture) {
	const n, rounds = 8, 5
	now := f.push("repo", image("start"), "latest")
	for round := range rounds {
		var won [n]bool
		together(n, func(i int) {
			err := f.PutManifest(t.Context(), storage.ManifestPut{
				Repo: "repo", Manifest: image(fmt.Sprint(round, i)), Tags: []string{"latest"}, IfMatch: now, Rules: rules,
			})
			won[i] = err == nil
			if err != nil && !errors.Is(err, storage.ErrConflict) {
				t.Errorf("PutManifest = %v, want nil or ErrConflict", err)
			}
		})
		winners := 0
		for i := range won {
			if won[i] {
				winners++
				now = image(fmt.Sprint(round, i)).Digest
			} else {
				f.hasManifest("repo", image(fmt.Sprint(round, i)).Digest, false)
			}
		}
		if winners != 1 {
			t.Fatalf("round %d: %d of %d puts on one state succeeded", round, winners, n)
		}
		f.tagged("repo", "latest", now)
	}
}

// Functions that share a commit: those that fail leave nothing and hurt nobody.
func testTogetherFailures(t *testing.T, f *fixture) {
	const n = 64
	l := f.blob("repo", "layer")
	together(n, func(i int) {
		m := image(fmt.Sprint("m", i), layers(l)...)
		fails := i%2 == 1
		if fails {
			m.References = append(m.References, layers(digest.FromString("missing"))...)
		}
		tags := []string{fmt.Sprint("tag-", i)}
		err := f.PutManifest(t.Context(), storage.ManifestPut{Repo: "repo", Manifest: m, Tags: tags, Rules: rules})
		if fails != (err != nil) {
			t.Errorf("PutManifest %d = %v, want failure %v", i, err, fails)
		}
	})
	tags, err := f.Tags(t.Context(), "repo", "", 2*n)
	f.ok(err)
	if len(tags) != n/2 {
		t.Errorf("%d tags, want the %d that succeeded", len(tags), n/2)
	}
	for i := range n {
		want := image(fmt.Sprint("m", i)).Digest
		f.hasManifest("repo", want, i%2 == 0)
		if i%2 == 1 {
			want = ""
		}
		f.tagged("repo", fmt.Sprint("tag-", i), want)
	}
}

// A blob goes and a manifest that needs it comes: one of them must fail.
func testTogetherDelete(t *testing.T, f *fixture) {
	for round := range 20 {
		d := f.blob("repo", fmt.Sprint("layer", round))
		m := image(fmt.Sprint("m", round), layers(d)...)
		var errs [2]error
		together(2, func(i int) {
			if i == 0 {
				errs[i] = f.DeleteBlob(t.Context(), "repo", d)
			} else {
				errs[i] = f.PutManifest(t.Context(), storage.ManifestPut{Repo: "repo", Manifest: m, Tags: []string{"latest"}, Rules: rules})
			}
		})
		if (errs[0] == nil) == (errs[1] == nil) {
			t.Fatalf("DeleteBlob = %v and PutManifest = %v: want one to fail", errs[0], errs[1])
		}
		f.hasBlob("repo", d, errs[0] != nil)
		f.hasManifest("repo", m.Digest, errs[1] == nil)
	}
}
