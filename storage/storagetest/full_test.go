package storagetest_test

import (
	"bytes"
	"errors"
	"math"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"berth.internal/storage"
	"berth.internal/storage/bolt"
	"berth.internal/storage/disk"
	"berth.internal/storage/kv"
	"github.com/opencontainers/go-digest"
)

// TestFull fills a file system of 4 MiB, and goes on when there is room again.
func TestFull(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatalf("mount a small file system (this test needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	s, err := disk.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	x, err := bolt.Open(filepath.Join(dir, "index.db"), kv.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	}()

	up, err := s.Create(t.Context(), digest.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int64{5 << 20, math.MaxInt64} {
		if err := up.(storage.Reserver).Reserve(n); !errors.Is(err, storage.ErrNoSpace) {
			t.Errorf("Reserve(%d) = %v, want ErrNoSpace", n, err)
		}
	}
	if err := up.(storage.Reserver).Reserve(1 << 20); err != nil {
		t.Errorf("Reserve(1 MiB) = %v", err)
	}
	n, err := up.Write(make([]byte, 5<<20))
	if !errors.Is(err, storage.ErrNoSpace) || up.Size() != int64(n) || n == 0 {
		t.Fatalf("Write = %d, %v; Size %d; want a part, and ErrNoSpace", n, err, up.Size())
	}
	// A small upload stays in memory until it cannot, and then loses nothing.
	small, err := s.Create(t.Context(), digest.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := small.Write([]byte("small")); err != nil {
		t.Fatal(err)
	}
	if _, err := small.Save(t.Context()); !errors.Is(err, storage.ErrNoSpace) {
		t.Errorf("Save = %v, want ErrNoSpace", err)
	}
	put := func(i int) error {
		data := bytes.Repeat([]byte{byte(i)}, storage.InlineMax)
		_, err := x.PutBlob(t.Context(), storage.BlobPut{
			Repo: "repo", Content: storage.Content{Digest: digest.FromBytes(data), Size: int64(len(data)), Inline: data}, Grace: time.Hour,
		})
		return err
	}
	held := 0
	for err = nil; err == nil && held < 100; held++ {
		err = put(held)
	}
	if !errors.Is(err, storage.ErrNoSpace) {
		t.Errorf("PutBlob on a full disk = %v, want ErrNoSpace", err)
	}

	// There is room again, and all goes on.
	if err := up.Abort(); err != nil {
		t.Fatal(err)
	}
	if err := put(200); err != nil {
		t.Errorf("PutBlob when there is room again = %v", err)
	}
	if _, err := small.Save(t.Context()); err != nil {
		t.Errorf("Save when there is room again = %v", err)
	}
	if data, err := small.Inline(t.Context(), digest.FromString("small")); string(data) != "small" {
		t.Errorf("Inline = %q, %v", data, err)
	}
	if err := small.Abort(); err != nil {
		t.Error(err)
	}
	for i := range held - 1 {
		d := digest.FromBytes(bytes.Repeat([]byte{byte(i)}, storage.InlineMax))
		if _, err := x.Blob(t.Context(), "repo", d); err != nil {
			t.Errorf("blob put before the disk was full: %v", err)
		}
	}
}
