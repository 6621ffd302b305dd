package storagetest_test

import (
	"bytes"
	"log/slog"
	"testing"
	"time"

	"berth.internal/storage"
	"berth.internal/storage/kv"
	"berth.internal/storage/mem"
	"github.com/opencontainers/go-digest"
)

func TestSweep(t *testing.T) {
	s, x := new(mem.Store), mem.NewIndex(kv.Options{})
	begin := func(data string) storage.Upload {
		t.Helper()
		up, err := s.Create(t.Context(), digest.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := up.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
		return up
	}
	save := func(up storage.Upload) storage.UploadState {
		t.Helper()
		state, err := up.Save(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return state
	}
	live := save(begin("live"))
	if err := x.PutSession(t.Context(), storage.Session{ID: "session", Repo: "repo", State: live}); err != nil {
		t.Fatal(err)
	}
	save(begin("dead"))
	large := bytes.Repeat([]byte("large"), storage.InlineMax)
	kept := begin(string(large))
	c, err := storage.Commit(t.Context(), s, x, kept, digest.FromBytes(large), storage.BlobPut{Repo: "repo", Grace: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	// A crash between Commit and PutBlob.
	lost := begin("lost")
	key, err := lost.Seal(t.Context(), digest.FromString("lost"))
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Intend(t.Context(), key, storage.IntendGrace); err != nil {
		t.Fatal(err)
	}
	if err := lost.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}

	for _, want := range []storage.Swept{{Uploads: 1, Keys: 1}, {}} {
		got, err := storage.Sweep(t.Context(), s, x, slog.New(slog.DiscardHandler))
		if err != nil || got != want {
			t.Errorf("Sweep = %+v, %v; want %+v", got, err, want)
		}
	}
	if _, err := s.Open(t.Context(), key); !storage.IsNotFound(err) {
		t.Errorf("bytes without a name: Open = %v, want ErrNotFound", err)
	}
	if err := check(s, c); err != nil {
		t.Errorf("a named blob after Sweep: %v", err)
	}
	if _, err := s.Resume(t.Context(), live); err != nil {
		t.Errorf("an upload with a session after Sweep: %v", err)
	}
}
