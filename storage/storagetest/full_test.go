package storagetest_test

import (
	"bytes"
	"errors"
	"io"
	"math"
	"os"
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

// smallDisk mounts a file system until the test ends.
func smallDisk(t *testing.T, size string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatalf("mount a small file system (this test needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// TestFull fills a file system of 4 MiB, and goes on when there is room again.
func TestFull(t *testing.T) {
	dir := smallDisk(t, "4m")
	s, err := disk.Open(dir, disk.Options{})
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
	n, err := io.Copy(up, struct{ io.Reader }{bytes.NewReader(make([]byte, 5<<20))}) // in pieces
	if !errors.Is(err, storage.ErrNoSpace) || up.Size() != n || n == 0 {
		t.Fatalf("Write = %d, %v; Size %d; want a part, and ErrNoSpace", n, err, up.Size())
	}
	rest := filepath.Join(dir, "rest")
	if err := os.WriteFile(rest, make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill the rest: %v", err)
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
	if err := errors.Join(up.Abort(), os.Remove(rest)); err != nil {
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

// TestReserve fills a file system of 40 MiB, of which the 4 MiB that are left at
// the end are not for blobs, and the last 2 MiB not for manifests.
func TestReserve(t *testing.T) {
	const mib = 1 << 20
	dir := smallDisk(t, "40m")
	s, err := disk.Open(dir, disk.Options{Reserve: 1 << 40}) // a tenth counts
	if err != nil {
		t.Fatal(err)
	}
	create := func() storage.Upload {
		t.Helper()
		up, err := s.Create(t.Context(), digest.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		return up
	}
	fits := func(what string, err error, want bool) {
		t.Helper()
		if (err == nil) != want || err != nil && !errors.Is(err, storage.ErrNoSpace) {
			t.Errorf("%s: %v, want that it fits: %v", what, err, want)
		}
	}
	reserve := func(up storage.Upload, n int64) error { return up.(storage.Reserver).Reserve(n) }

	// What was promised to one is not promised to another, until it is over.
	first, second := create(), create()
	fits("more than there is", reserve(first, 37*mib), false)
	fits("most of it", reserve(first, 20*mib), true)
	fits("the same again", reserve(second, 20*mib), false)
	fits("a small blob beside it", s.Room(storage.KindBlob, 10*mib), true)
	fits("a large one beside it", s.Room(storage.KindBlob, 17*mib), false)
	fits("what is left", reserve(second, 15*mib), true)
	_, err = first.Write(make([]byte, 20*mib))
	fits("what was promised", err, true)
	fits("nothing is promised twice", s.Room(storage.KindBlob, 2*mib), false)
	if err := second.Abort(); err != nil {
		t.Fatal(err)
	}
	fits("when the other has given up", s.Room(storage.KindBlob, 15*mib), true)

	// Who did not say how much will come is stopped when it is too much.
	n := 0
	unknown := create()
	for err = nil; err == nil && n < 40; n++ {
		_, err = unknown.Write(make([]byte, mib))
	}
	fits("without a promise", err, false)
	if n != 16 && n != 17 {
		t.Errorf("stopped after %d MiB, want 16", n)
	}
	filler := filepath.Join(dir, "filler")
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filler, make([]byte, max(int64(fs.Bavail)*fs.Bsize-3*mib, 0)), 0o600); err != nil {
		t.Fatal(err)
	}
	fits("a blob in the reserve", s.Room(storage.KindBlob, 0), false)
	fits("a manifest in the reserve", s.Room(storage.KindManifest, mib/2), true)
	fits("a manifest too large for that", s.Room(storage.KindManifest, 2*mib), false)
	_, err = create().Write(make([]byte, 100_000))
	fits("a file in the reserve", err, false)

	key, err := first.Seal(t.Context(), digest.FromBytes(make([]byte, 20*mib)))
	if err == nil {
		err = errors.Join(first.Commit(t.Context()), s.Delete(t.Context(), key))
	}
	if err != nil {
		t.Errorf("an upload ends and a blob is deleted on a full disk: %v", err)
	}
	fits("after a delete", s.Room(storage.KindBlob, 10*mib), true)
	if err := unknown.Abort(); err != nil {
		t.Error(err)
	}
}
