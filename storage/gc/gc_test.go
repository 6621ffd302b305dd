package gc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"berth.internal/storage"
	"berth.internal/storage/gc"
	"berth.internal/storage/kv"
	"berth.internal/storage/mem"
	"github.com/opencontainers/go-digest"
)

const grace = time.Hour

// registry is a store, an index and a collector that runs until stopped.
type registry struct {
	t     *testing.T
	store *mem.Store
	index *kv.Index
	log   *strings.Builder
}

// start runs a collector over store, in a bubble of testing/synctest.
func start(t *testing.T, config gc.Config, wrap func(storage.Store) storage.Store) *registry {
	t.Helper()
	r := &registry{t: t, store: new(mem.Store), index: mem.NewIndex(kv.Options{}), log: new(strings.Builder)}
	log := slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	store := storage.Store(r.store)
	if wrap != nil {
		store = wrap(store)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { gc.New(store, r.index, config, log).Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return r
}

// push commits a blob that the Store keeps.
func (r *registry) push(repo, data string) storage.Content {
	r.t.Helper()
	content := bytes.Repeat([]byte(data), 1+storage.InlineMax/len(data))
	up, err := r.store.Create(r.t.Context(), digest.SHA256)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := up.Write(content); err != nil {
		r.t.Fatal(err)
	}
	c, err := storage.Commit(r.t.Context(), r.store, r.index, up, digest.FromBytes(content), storage.BlobPut{Repo: repo, Grace: grace})
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// tag pushes a manifest of layers.
func (r *registry) tag(repo, tag string, layers ...digest.Digest) {
	r.t.Helper()
	data := fmt.Append(nil, repo, tag, layers)
	m := storage.Manifest{Content: storage.Content{Digest: digest.FromBytes(data), Size: int64(len(data)), Inline: data}}
	for _, l := range layers {
		m.References = append(m.References, storage.Reference{Digest: l})
	}
	if err := r.index.PutManifest(r.t.Context(), storage.ManifestPut{Repo: repo, Manifest: m, Tags: []string{tag}, Grace: grace}); err != nil {
		r.t.Fatal(err)
	}
}

// stored tells whether the bytes of c are there.
func (r *registry) stored(c storage.Content, want bool) {
	r.t.Helper()
	if _, err := r.store.Open(r.t.Context(), c.Key); (err == nil) != want {
		r.t.Errorf("bytes of %s: Open = %v, want them there: %v; log:\n%s", c.Digest, err, want, r.log)
	}
}

// pass lets time pass and the collector do what is then due.
func pass(d time.Duration) {
	time.Sleep(d) // the bubble's time, not ours
	synctest.Wait()
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, gc.Config{Policy: storage.ReviewPolicy{Untagged: true, Grace: time.Minute}}, nil)
		used, unused := r.push("repo", "used"), r.push("repo", "unused")
		r.tag("repo", "latest", used.Digest)
		pass(grace - time.Minute)
		r.stored(unused, true)
		pass(3 * time.Minute)
		r.stored(unused, false)
		r.stored(used, true)

		if err := r.index.DeleteTag(t.Context(), "repo", "latest", grace); err != nil {
			t.Fatal(err)
		}
		pass(grace - time.Minute)
		r.stored(used, true)
		pass(5 * time.Minute)
		r.stored(used, false)
		if repos, err := r.index.Repositories(t.Context(), "", 1); err != nil || len(repos) != 0 {
			t.Errorf("Repositories = %v, %v; want none", repos, err)
		}
		for _, want := range []string{"why=untagged", `why="no manifest refers to it"`, "keys=1"} {
			if !strings.Contains(r.log.String(), want) {
				t.Errorf("log does not say %s:\n%s", want, r.log)
			}
		}
	})
}

func TestRunExpiresSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, gc.Config{SessionExpiry: time.Hour}, nil)
		for i := range 250 { // more than one fetch
			up, err := r.store.Create(t.Context(), digest.SHA256)
			if err != nil {
				t.Fatal(err)
			}
			state, err := up.Save(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := r.index.PutSession(t.Context(), storage.Session{ID: fmt.Sprint(i), State: state}); err != nil {
				t.Fatal(err)
			}
		}
		pass(50 * time.Minute)
		live, err := r.index.Session(t.Context(), "7")
		if err != nil {
			t.Fatal(err)
		}
		if err := r.index.PutSession(t.Context(), live); err != nil {
			t.Fatal(err)
		}
		pass(20 * time.Minute)
		var left []string
		for id := range uploads(t, r.store) {
			left = append(left, id)
		}
		if len(left) != 1 || left[0] != live.State.ID {
			t.Errorf("uploads left: %v, want the one that was gone on with", left)
		}
		if idle, err := r.index.Idle(t.Context(), time.Now().Add(time.Hour), 10); err != nil || len(idle) != 1 {
			t.Errorf("sessions left: %v, %v", idle, err)
		}
	})
}

func uploads(t *testing.T, s storage.Store) map[string]bool {
	t.Helper()
	ids := map[string]bool{}
	for id, err := range s.Uploads(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		ids[id] = true
	}
	return ids
}

// broken fails to delete until it is mended.
type broken struct {
	storage.Store
	mended *atomic.Bool
}

func (b broken) Delete(ctx context.Context, key storage.Key) error {
	if !b.mended.Load() {
		return errors.New("input/output error")
	}
	return b.Store.Delete(ctx, key)
}

func TestRunGoesOnAfterAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mended atomic.Bool
		r := start(t, gc.Config{}, func(s storage.Store) storage.Store { return broken{s, &mended} })
		c := r.push("repo", "unused")
		pass(grace + 2*time.Minute)
		r.stored(c, true)
		if _, err := r.index.Blob(t.Context(), "repo", c.Digest); !storage.IsNotFound(err) {
			t.Errorf("Blob = %v, want ErrNotFound: it was condemned before its bytes went", err)
		}
		if !strings.Contains(r.log.String(), "input/output error") {
			t.Errorf("log does not say why:\n%s", r.log)
		}
		// The same content again is other bytes, which the late delete spares.
		again := r.push("repo", "unused")
		mended.Store(true)
		pass(2 * time.Minute)
		r.stored(c, false)
		r.stored(again, true)
	})
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, gc.Config{Rate: 10}, nil)
		pass(time.Second)
		for i := range 1000 {
			r.push("repo", fmt.Sprint("blob ", i))
		}
		pass(grace + 30*time.Second)
		keys := func() (n int) {
			for _, err := range r.store.Keys(t.Context()) {
				if n++; err != nil {
					t.Fatal(err)
				}
			}
			return n
		}
		if n := keys(); n < 500 {
			t.Errorf("%d of 1000 blobs are left after 30 seconds at 10 per second", n)
		}
		pass(5 * time.Minute)
		if n := keys(); n != 0 {
			t.Errorf("%d of 1000 blobs are left after 5 minutes", n)
		}
	})
}

func TestDryRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, x := new(mem.Store), mem.NewIndex(kv.Options{})
		c := gc.New(s, x, gc.Config{}, slog.New(slog.DiscardHandler))
		r := &registry{t: t, store: s, index: x}
		blob := r.push("repo", "unused")
		pass(grace)
		for range 2 {
			got, err := c.DryRun(t.Context(), 10)
			if err != nil || len(got) != 1 || !got[0].Condemned || got[0].Digest != blob.Digest {
				t.Errorf("DryRun = %+v, %v; want the blob condemned", got, err)
			}
		}
		looks := gc.New(s, x, gc.Config{Policy: storage.ReviewPolicy{DryRun: true}}, slog.New(slog.DiscardHandler))
		result, err := looks.Round(t.Context())
		if err != nil || len(result.Condemned) != 1 || result.Deleted != 0 {
			t.Errorf("Round with DryRun = %+v, %v; want the blob condemned and nothing deleted", result, err)
		}
		result, err = c.Round(t.Context())
		if err != nil || len(result.Condemned) != 1 || result.Deleted != 1 {
			t.Errorf("Round = %+v, %v", result, err)
		}
	})
}
