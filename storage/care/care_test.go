package care_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"berth.internal/storage"
	"berth.internal/storage/care"
	"berth.internal/storage/gc"
	"berth.internal/storage/kv"
	"berth.internal/storage/mem"
	"github.com/opencontainers/go-digest"
)

var rules = storage.Rules{Grace: time.Hour, Untagged: time.Hour, Dangling: time.Hour}

// ill is a store whose bytes can be damaged.
type ill struct {
	*mem.Store

	mu  sync.Mutex
	bad map[storage.Key]func(storage.Blob) (storage.Blob, error)
}

func (s *ill) Open(ctx context.Context, key storage.Key) (storage.Blob, error) {
	blob, err := s.Store.Open(ctx, key)
	s.mu.Lock()
	bad := s.bad[key]
	s.mu.Unlock()
	if err == nil && bad != nil {
		return bad(blob)
	}
	return blob, err
}

func (s *ill) damage(key storage.Key, how func(storage.Blob) (storage.Blob, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bad[key] = how
}

// blob is a blob with other bytes.
type blob struct {
	storage.Blob
	io.Reader
	size int64
}

func (b blob) Read(p []byte) (int, error) { return b.Reader.Read(p) }
func (b blob) Size() int64                { return b.size }

func flip(b storage.Blob) (storage.Blob, error) {
	data, err := io.ReadAll(b)
	data[len(data)/2] ^= 1
	return blob{b, bytes.NewReader(data), int64(len(data))}, err
}

func cut(b storage.Blob) (storage.Blob, error) { return blob{b, b, b.Size() - 1}, nil }

func unreadable(b storage.Blob) (storage.Blob, error) {
	return blob{b, io.MultiReader(io.LimitReader(b, 10), broken{}), b.Size()}, nil
}

func missing(b storage.Blob) (storage.Blob, error) {
	return nil, errors.Join(b.Close(), storage.ErrNotFound)
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("input/output error") }

type registry struct {
	t     *testing.T
	store *ill
	index *kv.Index
}

func newRegistry(t *testing.T) *registry {
	return &registry{t, &ill{Store: new(mem.Store), bad: map[storage.Key]func(storage.Blob) (storage.Blob, error){}}, mem.NewIndex(kv.Options{})}
}

func (r *registry) drivers() storage.Drivers {
	return storage.Drivers{Store: r.store, Index: r.index, Records: r.index}
}

// push commits a blob; a long one is kept by the Store.
func (r *registry) push(repo, data string) storage.Content {
	r.t.Helper()
	ctx := r.t.Context()
	up, err := r.store.Create(ctx, digest.SHA256)
	if err == nil {
		_, err = up.Write([]byte(data))
	}
	var c storage.Content
	if err == nil {
		c, err = storage.Commit(ctx, r.store, r.index, up, digest.FromString(data), storage.BlobPut{Repo: repo, Grace: rules.Grace})
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

func large(name string) string { return strings.Repeat(name, 1+storage.InlineMax/len(name)) }

func (r *registry) check(deep bool, want ...care.Kind) []care.Finding {
	r.t.Helper()
	told := false
	report, err := care.Check(r.t.Context(), r.store, r.index, care.Options{Deep: deep}, func(care.Progress) { told = true })
	if err != nil || !told {
		r.t.Fatalf("Check = %v, and told of progress: %v", err, told)
	}
	var got []care.Kind
	for _, f := range report.Findings {
		got = append(got, f.Kind)
		if f.What == "" || f.Next == "" {
			r.t.Errorf("finding %+v does not say what is wrong or what to do", f)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		r.t.Errorf("Check found %+v, want %v", report.Findings, want)
	}
	return report.Findings
}

func TestCheck(t *testing.T) {
	for _, tc := range []struct {
		name    string
		damage  func(storage.Blob) (storage.Blob, error)
		counted bool // is it found without reading?
		what    string
	}{
		{"flipped", flip, false, "have digest"},
		{"cut", cut, true, "bytes of"},
		{"unreadable", unreadable, false, "cannot be read: input/output error"},
		{"missing", missing, true, "missing in the store"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRegistry(t)
			r.push("a", "small")
			whole, sick := r.push("a", large("whole")), r.push("b", large("sick"))
			r.check(true)
			r.store.damage(sick.Key, tc.damage)
			if tc.counted {
				r.check(false, care.Damaged)
			} else {
				r.check(false)
			}
			found := r.check(true, care.Damaged)
			if found[0].Digest != sick.Digest || !strings.Contains(found[0].What, tc.what) {
				t.Errorf("found %+v, want %s and %q, and not %s", found[0], sick.Digest, tc.what, whole.Digest)
			}
		})
	}
}

func TestCheckUnnamed(t *testing.T) {
	r := newRegistry(t)
	r.push("a", large("named"))
	up, err := r.store.Create(t.Context(), digest.SHA256)
	if err == nil {
		_, err = up.Write([]byte(large("stray")))
	}
	if err != nil {
		t.Fatal(err)
	}
	key, err := up.Seal(t.Context(), digest.FromString(large("stray")))
	if err != nil {
		t.Fatal(err)
	}
	if err := up.Commit(t.Context()); err != nil { // without having announced the key
		t.Fatal(err)
	}
	if found := r.check(false, care.Unnamed); found[0].Key != key {
		t.Errorf("found %+v, want key %s", found[0], key)
	}
	if err := r.index.Intend(t.Context(), key, time.Hour); err != nil {
		t.Fatal(err)
	}
	r.check(false)
}

// What others push, delete and collect meanwhile is no finding.
func TestCheckBesideOthers(t *testing.T) {
	r := newRegistry(t)
	ctx, stop := context.WithCancel(t.Context())
	var others sync.WaitGroup
	for i := range 3 {
		others.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				c := r.push("repo", large(fmt.Sprint("blob ", i, n%5)))
				if n%2 == 0 {
					// Another one may have deleted it.
					if err := r.index.DeleteBlob(t.Context(), "repo", c.Digest); err != nil && !storage.IsNotFound(err) {
						t.Error(err)
					}
				}
			}
		})
	}
	collector := gc.New(r.store, r.index, gc.Config{Interval: time.Microsecond, Rate: 1 << 20}, slog.New(slog.DiscardHandler))
	others.Go(func() { collector.Run(ctx) })
	for range 50 {
		r.check(true)
	}
	stop()
	others.Wait()
}

func TestScrub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t)
		r.push("a", "small")
		whole, sick := r.push("a", large("whole")), r.push("b", large("sick"))
		size := whole.Size + sick.Size + 5
		for i := range 6 { // more than the limit lets through at once
			size += r.push("a", large(fmt.Sprint("blob ", i))).Size
		}
		ctx, stop := context.WithCancel(t.Context())
		scrub := care.NewScrub(r.drivers(), care.ScrubConfig{Interval: 24 * time.Hour, Rate: 32 << 10}, slog.New(slog.DiscardHandler))
		var running sync.WaitGroup
		running.Go(func() { scrub.Run(ctx) })
		state := func() care.ScrubState {
			t.Helper()
			s, _, err := scrub.State(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		synctest.Wait()
		if s := state(); s.Began.IsZero() || !s.Ended.IsZero() {
			t.Errorf("state during the first pass = %+v", s)
		}
		time.Sleep(time.Hour) // the bubble's time
		if s := state(); s.Checked != 9 || s.Bytes != size || s.Damaged != 0 || s.Ended.IsZero() || s.Ended.Sub(s.Began) < 2*time.Second {
			t.Errorf("state after a pass = %+v, want 9 contents, slowly", s)
		}

		// Damage is quarantined at the next pass, and nothing else is.
		r.store.damage(sick.Key, flip)
		time.Sleep(24 * time.Hour)
		if s := state(); s.Damaged != 1 {
			t.Errorf("state after the pass that finds damage = %+v", s)
		}
		_, err := r.index.Blob(t.Context(), "b", sick.Digest)
		if q, ok := errors.AsType[*storage.QuarantinedError](err); !ok || !strings.Contains(q.Why, "have digest sha256:") {
			t.Errorf("Blob of what is damaged = %v", err)
		}
		if _, err := r.index.Blob(t.Context(), "a", whole.Digest); err != nil {
			t.Errorf("Blob of what is whole = %v", err)
		}
		r.check(true, care.Quarantined)

		// A disk that has recovered.
		r.store.damage(sick.Key, nil)
		if s, err := scrub.Now(t.Context(), func(care.Progress) {}); err != nil || s.Released != 1 || s.Damaged != 0 {
			t.Errorf("Now = %+v, %v; want one released", s, err)
		}
		r.check(true)

		// Damaged again, and pushed again.
		r.store.damage(sick.Key, missing)
		if s, err := scrub.Now(t.Context(), func(care.Progress) {}); err != nil || s.Damaged != 1 {
			t.Errorf("Now = %+v, %v; want one damaged", s, err)
		}
		if healed := r.push("b", large("sick")); healed.Key == sick.Key {
			t.Errorf("what was pushed again is at the old key %s", healed.Key)
		}
		r.check(true)

		// One at a time, wherever it runs.
		if _, err := r.index.Acquire(t.Context(), "scrub", "somebody else", time.Hour); err != nil {
			t.Fatal(err)
		}
		if _, err := scrub.Now(t.Context(), func(care.Progress) {}); !errors.Is(err, storage.ErrHeld) {
			t.Errorf("Now while another server is at it = %v, want ErrHeld", err)
		}
		stop()
		running.Wait()
	})
}

// A pass that was cut off goes on where it was, also in another process.
func TestScrubGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t)
		for i := range 20 {
			r.push("a", large(fmt.Sprint("blob ", i)))
		}
		run := func(d time.Duration) care.ScrubState {
			t.Helper()
			ctx, stop := context.WithCancel(t.Context())
			scrub := care.NewScrub(r.drivers(), care.ScrubConfig{Interval: 24 * time.Hour, Rate: 1 << 10}, slog.New(slog.DiscardHandler))
			var running sync.WaitGroup
			running.Go(func() { scrub.Run(ctx) })
			time.Sleep(d)
			stop()
			running.Wait()
			s, _, err := scrub.State(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		first := run(4 * time.Minute) // at 1 KiB/s one content takes a minute
		if first.Checked == 0 || first.Checked > 12 || first.After == "" || !first.Ended.IsZero() {
			t.Errorf("state after the first half = %+v", first)
		}
		second := run(time.Hour)
		if second.Checked != 20 || second.Ended.IsZero() || !second.Began.Equal(first.Began) {
			t.Errorf("state in the end = %+v, want 20 contents, each once, in one pass", second)
		}
	})
}
