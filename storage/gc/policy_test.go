package gc_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"berth.internal/storage"
	"berth.internal/storage/gc"
	"berth.internal/storage/kv"
	"berth.internal/storage/mem"
	"github.com/opencontainers/go-digest"
)

// A policy that has become stricter reaches what was kept and forgotten before,
// after its grace, and is carried out once.
func TestStricterPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, index := new(mem.Store), mem.NewIndex(kv.Options{})
		run := func(policy storage.ReviewPolicy, d time.Duration) {
			t.Helper()
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			policy.Rules = rules
			c := gc.New(store, index, gc.Config{Policy: policy, Records: index}, slog.New(slog.DiscardHandler))
			wg.Go(func() { c.Run(ctx) })
			pass(d)
			cancel()
			wg.Wait()
		}
		data := []byte("{}")
		m := storage.Manifest{Content: storage.Content{Digest: digest.FromBytes(data), Size: int64(len(data)), Inline: data}}
		if err := index.PutManifest(t.Context(), storage.ManifestPut{Repo: "repo", Manifest: m, Rules: rules}); err != nil {
			t.Fatal(err)
		}
		held := func(want bool) {
			t.Helper()
			if _, err := index.Manifest(t.Context(), "repo", m.Digest); (err == nil) != want {
				t.Errorf("Manifest = %v, want it held: %v", err, want)
			}
		}
		run(storage.ReviewPolicy{}, 3*grace)
		held(true)
		run(storage.ReviewPolicy{Untagged: true}, grace/2)
		held(true)
		run(storage.ReviewPolicy{Untagged: true}, grace)
		held(false)
	})
}
