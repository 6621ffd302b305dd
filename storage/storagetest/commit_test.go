package storagetest_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"berth.internal/storage"
	"berth.internal/storage/kv"
	"berth.internal/storage/mem"
	"github.com/opencontainers/go-digest"
)

func TestCommit(t *testing.T) {
	for _, tc := range []struct {
		name   string
		data   string
		want   digest.Digest // what the client says it is
		inline bool
		err    error
	}{
		{"empty", "", digest.FromString(""), true, nil},
		{"small", "x", digest.FromString("x"), true, nil},
		{"sha512", "x", digest.SHA512.FromString("x"), true, nil},
		{"limit", strings.Repeat("x", storage.InlineMax), "", true, nil},
		{"large", strings.Repeat("x", storage.InlineMax+1), "", false, nil},
		{"small, wrong", "x", digest.FromString("y"), true, storage.ErrMismatch},
		{"large, wrong", strings.Repeat("x", storage.InlineMax+1), digest.FromString("y"), false, storage.ErrMismatch},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, x := new(mem.Store), mem.NewIndex(kv.Options{})
			if tc.want == "" {
				tc.want = digest.FromString(tc.data)
			}
			for _, repo := range []string{"first", "second"} { // the second brings what is there
				up, err := s.Create(t.Context(), digest.SHA256)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := up.Write([]byte(tc.data)); err != nil {
					t.Fatal(err)
				}
				if _, err := up.Save(t.Context()); err != nil {
					t.Fatal(err)
				}
				c, err := storage.Commit(t.Context(), s, x, up, tc.want, storage.BlobPut{Repo: repo, Grace: time.Hour})
				if !errors.Is(err, tc.err) {
					t.Fatalf("Commit = %v, want %v", err, tc.err)
				}
				if err != nil {
					continue
				}
				if (c.Key == "") != tc.inline || c.Size != int64(len(tc.data)) {
					t.Errorf("Commit = key %q, size %d; want inline %v, size %d", c.Key, c.Size, tc.inline, len(tc.data))
				}
				if err := check(s, c); err != nil {
					t.Error(err)
				}
			}
			for id, err := range s.Uploads(t.Context()) {
				t.Errorf("upload %s is left (%v)", id, err)
			}
			keys := 0
			for key, err := range s.Keys(t.Context()) {
				if keys++; err != nil {
					t.Errorf("key %s: %v", key, err)
				}
			}
			orphans, _, err := x.Orphans(t.Context(), time.Now().Add(1000*time.Hour), "", 10)
			if err != nil || len(orphans) != 0 || keys > 1 || keys == 1 && tc.inline {
				t.Errorf("left: %d keys, orphans %v, %v", keys, orphans, err)
			}
		})
	}
}
