package gc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
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

var rules = storage.Rules{Grace: grace, Untagged: grace, Dangling: grace}

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
	if err := r.index.PutManifest(r.t.Context(), storage.ManifestPut{Repo: repo, Manifest: m, Tags: []string{tag}, Rules: rules}); err != nil {
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
		r := start(t, gc.Config{Policy: storage.ReviewPolicy{Untagged: true, Dangling: true, Rules: storage.Rules{Grace: time.Minute, Untagged: time.Minute, Dangling: time.Minute}}}, nil)
		used, unused := r.push("repo", "used"), r.push("repo", "unused")
		r.tag("repo", "latest", used.Digest)
		pass(grace - time.Minute)
		r.stored(unused, true)
		pass(3 * time.Minute)
		r.stored(unused, false)
		r.stored(used, true)

		if err := r.index.DeleteTag(t.Context(), "repo", "latest", rules); err != nil {
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

// TestSet wakes a collector that rests for long.
func TestSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, x := new(mem.Store), mem.NewIndex(kv.Options{})
		c := gc.New(s, x, gc.Config{Interval: 1000 * time.Hour}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { c.Run(ctx) })
		r := &registry{t: t, store: s, index: x, log: new(strings.Builder)}
		synctest.Wait()
		unused := r.push("repo", "unused")
		pass(10 * time.Hour)
		r.stored(unused, true)
		c.Set(time.Minute, 100, rules)
		pass(time.Second)
		r.stored(unused, false)
		unused = r.push("repo", "unused, too")
		pass(grace + 5*time.Minute)
		r.stored(unused, false)
		cancel()
		running.Wait()
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
		if idle, _, err := r.index.Idle(t.Context(), time.Now().Add(time.Hour), "", 10); err != nil || len(idle) != 1 {
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

func (b broken) Delete(ctx context.Context, keys ...storage.Key) error {
	if !b.mended.Load() {
		return errors.New("input/output error")
	}
	return b.Store.Delete(ctx, keys...)
}

func (b broken) Discard(ctx context.Context, id string) error {
	if !b.mended.Load() {
		return errors.New("input/output error")
	}
	return b.Store.Discard(ctx, id)
}

// An upload whose bytes cannot be dropped is not forgotten.
func TestRunDiscardsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mended atomic.Bool
		r := start(t, gc.Config{SessionExpiry: time.Hour}, func(s storage.Store) storage.Store { return broken{s, &mended} })
		up, err := r.store.Create(t.Context(), digest.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		state, err := up.Save(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := r.index.PutSession(t.Context(), storage.Session{ID: "a", State: state}); err != nil {
			t.Fatal(err)
		}
		pass(90 * time.Minute)
		if n := len(uploads(t, r.store)); n != 1 {
			t.Errorf("%d uploads are left, want the one that cannot be dropped", n)
		}
		mended.Store(true)
		pass(time.Hour)
		if n := len(uploads(t, r.store)); n != 0 {
			t.Errorf("%d uploads are left", n)
		}
	})
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
		c := gc.New(s, x, gc.Config{SessionExpiry: time.Hour}, slog.New(slog.DiscardHandler))
		r := &registry{t: t, store: s, index: x}
		unused, shared, used := r.push("repo", "unused"), r.push("repo", "shared"), r.push("repo", "used")
		r.push("other", "shared")
		r.tag("other", "latest", shared.Digest)
		r.tag("repo", "latest", used.Digest)
		for i := range 3 {
			up, err := s.Create(t.Context(), digest.SHA256)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := up.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			state, err := up.Save(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := x.PutSession(t.Context(), storage.Session{ID: fmt.Sprint(i), Repo: "repo", State: state}); err != nil {
				t.Fatal(err)
			}
		}
		for i, size := range []int{-1, 7} { // bytes that a crash left without a name, or has not even written
			up, err := s.Create(t.Context(), digest.SHA256)
			if err != nil {
				t.Fatal(err)
			}
			data := bytes.Repeat([]byte{byte(i)}, max(size, 0))
			if _, err := up.Write(data); err != nil {
				t.Fatal(err)
			}
			key, err := up.Seal(t.Context(), digest.FromBytes(data))
			if err != nil {
				t.Fatal(err)
			}
			if err := x.Intend(t.Context(), key, time.Minute); err != nil {
				t.Fatal(err)
			}
			if size < 0 {
				continue
			}
			if err := up.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if page, next, err := c.DryRun(t.Context(), gc.Look{N: 100}); err != nil || next != "" || len(page) != 0 {
			t.Errorf("DryRun before anything is due = %+v, %q, %v", page, next, err)
		}
		// What is queued, with the time when it is due.
		began := time.Now()
		queued, next, err := c.DryRun(t.Context(), gc.Look{N: 100, Ahead: true})
		if err != nil || next != "" || len(queued) != 3+4 {
			t.Errorf("DryRun ahead = %d entries, %q, %v; want 3 uploads and 4 blobs", len(queued), next, err)
		}
		for _, e := range queued {
			if !e.Due.Equal(began.Add(grace)) {
				t.Errorf("%s %s is due at %v, want in an hour", e.Kind, e.Why, e.Due)
			}
		}
		pass(grace + time.Second)

		for _, n := range []int{1, 2, 3, 4, 100} {
			var goes, keeps []string
			for next, pages := "", 0; pages == 0 || next != ""; pages++ {
				var page []gc.Entry
				var err error
				page, next, err = c.DryRun(t.Context(), gc.Look{After: next, N: n})
				if err != nil || len(page) > n || pages > 20 {
					t.Fatalf("DryRun, %d at a time = %d entries, %q, %v", n, len(page), next, err)
				}
				for _, e := range page {
					line := fmt.Sprintf("%s %s %.12s%s %d %d %s", e.Kind, e.Repo, e.Digest, e.Upload, e.Size, e.Holders, e.Why)
					if e.Goes {
						goes = append(goes, line)
					} else {
						keeps = append(keeps, line)
					}
				}
			}
			slices.Sort(goes)
			slices.Sort(keeps)
			short := func(c storage.Content) string { return string(c.Digest)[:12] }
			want := []string{
				fmt.Sprintf("blob repo %s %d 1 no manifest refers to it", short(unused), unused.Size),
				fmt.Sprintf("blob repo %s %d 2 no manifest refers to it", short(shared), shared.Size),
				"bytes   0 0 no repository names these bytes any more",
				"bytes   7 0 no repository names these bytes any more",
				"upload repo 0 5 0 nobody went on with it since 2000-01-01T00:00:00Z",
				"upload repo 1 5 0 nobody went on with it since 2000-01-01T00:00:00Z",
				"upload repo 2 5 0 nobody went on with it since 2000-01-01T00:00:00Z",
			}
			slices.Sort(want)
			if !slices.Equal(goes, want) {
				t.Errorf("DryRun, %d at a time, lets go\n%s\nwant\n%s", n, strings.Join(goes, "\n"), strings.Join(want, "\n"))
			}
			if len(keeps) != 2 || !strings.Contains(keeps[0], "refers to it") {
				t.Errorf("DryRun, %d at a time, keeps %q; want the blobs that manifests name", n, keeps)
			}
		}
		for _, cursor := range []string{"x", "uploads", "uploads.-1", "reviews.7", "reviews.1234567890", "bytes.x y", "bytes.99999999999", "bytes.AAAAAAAAAAB"} {
			if _, _, err := c.DryRun(t.Context(), gc.Look{After: cursor, N: 10}); !errors.Is(err, storage.ErrCursor) {
				t.Errorf("DryRun after %q = %v, want ErrCursor", cursor, err)
			}
		}

		// A round does what it said.
		told := map[gc.Kind]int{}
		result, err := c.Round(t.Context(), func(e gc.Entry) {
			if e.Goes {
				told[e.Kind]++
			}
		})
		want := gc.Result{Expired: 3, Condemned: 2, Kept: 2, Deleted: 3, Freed: unused.Size + 7}
		if err != nil || result != want {
			t.Errorf("Round = %+v, %v; want %+v", result, err, want)
		}
		if told[gc.Upload] != 3 || told[gc.Blob] != 2 || told[gc.Bytes] != 3 {
			t.Errorf("Round told of %v", told)
		}
		if page, _, err := c.DryRun(t.Context(), gc.Look{N: 100}); err != nil || len(page) != 0 {
			t.Errorf("DryRun after a round = %+v, %v", page, err)
		}
	})
}

// TestOneRoundAtATime lets a second round begin while the first one deletes.
func TestOneRoundAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{Store: new(mem.Store), delete: make(chan struct{})}
		x := mem.NewIndex(kv.Options{})
		c := gc.New(s, x, gc.Config{}, slog.New(slog.DiscardHandler))
		(&registry{t: t, store: s.Store.(*mem.Store), index: x}).push("repo", "unused")
		pass(grace)
		first := make(chan gc.Result)
		go func() {
			result, err := c.Round(t.Context(), nil)
			if err != nil {
				t.Error(err)
			}
			first <- result
		}()
		synctest.Wait()
		soon, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := c.Round(soon, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a second round = %v, want it to wait", err)
		}
		close(s.delete)
		if result := <-first; result.Deleted != 1 {
			t.Errorf("the first round = %+v", result)
		}
		if _, err := c.Round(t.Context(), nil); err != nil {
			t.Errorf("a round after the first = %v", err)
		}
	})
}

// slow deletes when it is told to.
type slow struct {
	storage.Store
	delete chan struct{}
}

func (s *slow) Delete(ctx context.Context, keys ...storage.Key) error {
	<-s.delete
	return s.Store.Delete(ctx, keys...)
}
