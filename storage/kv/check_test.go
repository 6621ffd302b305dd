package kv_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"berth.internal/storage"
	"berth.internal/storage/kv"
	"berth.internal/storage/mem"
	"github.com/opencontainers/go-digest"
)

// TestCheck takes the rows of a small index away, one at a time, and looks
// whether Check misses each of them.
func TestCheck(t *testing.T) {
	ctx := t.Context()
	rules := storage.Rules{Grace: time.Hour, Untagged: time.Hour, Dangling: time.Hour, Trash: time.Hour}
	db := mem.NewDB()
	x := kv.New(db, kv.Options{})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	inline := func(data string) storage.Content {
		return storage.Content{Digest: digest.FromString(data), Size: int64(len(data)), Inline: []byte(data)}
	}
	put := func(data string, subject digest.Digest, tags []string, refs ...digest.Digest) digest.Digest {
		t.Helper()
		m := storage.Manifest{Content: inline(data), Subject: subject}
		for _, d := range refs {
			m.References = append(m.References, storage.Reference{Digest: d})
		}
		must(x.PutManifest(ctx, storage.ManifestPut{Repo: "repo", Manifest: m, Tags: tags, Rules: rules}))
		return m.Digest
	}
	for _, data := range []string{"layer", "hidden", "unused"} {
		_, err := x.PutBlob(ctx, storage.BlobPut{Repo: "repo", Content: inline(data), Grace: time.Hour})
		must(err)
	}
	image := put("image", "", []string{"latest"}, digest.FromString("layer"))
	put("signature", image, nil)
	gone := put("deleted", "", nil, digest.FromString("hidden"))
	must(x.DeleteManifest(ctx, "repo", gone, rules))
	must(x.DeleteBlob(ctx, "repo", digest.FromString("hidden")))
	must(x.Intend(ctx, "key", time.Hour))

	check := func() (problems []string) {
		t.Helper()
		next := ""
		for again := true; again; again = next != "" {
			page, at, err := x.Check(ctx, next, 3)
			must(err)
			problems = append(problems, page...)
			next = at
		}
		return problems
	}
	if problems := check(); problems != nil {
		t.Fatalf("Check of a whole index found %q", problems)
	}
	type row struct{ key, value []byte }
	var rows []row
	must(db.View(func(tx kv.Tx) error {
		for k, v := range tx.Ascend(nil) {
			rows = append(rows, row{append([]byte{}, k...), append([]byte{}, v...)})
		}
		return nil
	}))
	// What only lists or counts, and what nothing else says: a tag's history,
	// numbers, and holdings that are the end of a chain of their own.
	alone := "yn"
	kinds := map[byte]int{}
	for _, r := range rows {
		must(db.Update(func(tx kv.Tx) error { tx.Delete(r.key); return nil }))
		if found := check(); len(found) == 0 && !strings.ContainsRune(alone, rune(r.key[0])) {
			t.Errorf("Check does not miss row %q", r.key)
		}
		must(db.Update(func(tx kv.Tx) error { tx.Put(r.key, r.value); return nil }))
		kinds[r.key[0]]++
	}
	for _, kind := range "bmcghitrsSqQoOxXz" {
		if kinds[byte(kind)] == 0 {
			t.Errorf("no row of kind %c was tried: %v", kind, fmt.Sprint(kinds))
		}
	}
}
