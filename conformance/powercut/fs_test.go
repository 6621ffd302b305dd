package powercut

import (
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// mount mounts tree until the test ends.
func mount(t *testing.T, tree *Tree) (*FS, string) {
	t.Helper()
	dir := t.TempDir()
	f, err := Mount(dir, tree)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return f, dir
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func create(t *testing.T, path, text string, sync bool) {
	t.Helper()
	file, err := os.Create(path)
	ok(t, err)
	defer file.Close()
	_, err = file.WriteString(text)
	ok(t, err)
	if sync {
		ok(t, file.Sync())
	}
}

func syncDir(t *testing.T, dir string) {
	t.Helper()
	d, err := os.Open(dir)
	ok(t, err)
	defer d.Close()
	ok(t, d.Sync())
}

// holds checks what a disk has if the power is cut now: paths and what they
// hold, a directory ending in a slash.
func holds(t *testing.T, f *FS, keep float64, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	list(f.Disk(f.Now(), keep, nil), "", got)
	if !maps.Equal(got, want) {
		t.Errorf("after a power cut that keeps %v: %q, want %q", keep, got, want)
	}
}

func list(tree *Tree, at string, into map[string]string) {
	for name, child := range tree.Names {
		if child.Names == nil {
			into[at+name] = string(child.Data)
			continue
		}
		into[at+name+"/"] = ""
		list(child, at+name+"/", into)
	}
}

// TestDisk writes files with and without each of the syncs that make them
// durable and looks at what a power cut leaves.
func TestDisk(t *testing.T) {
	f, dir := mount(t, nil)
	create(t, dir+"/both", "kept", true)
	syncDir(t, dir)
	create(t, dir+"/bytes", "nameless", true)
	ok(t, os.Rename(dir+"/both", dir+"/moved"))
	holds(t, f, 0, map[string]string{"both": "kept"})
	create(t, dir+"/name", "lost", false)
	syncDir(t, dir) // also of the names before it
	holds(t, f, 0, map[string]string{"moved": "kept", "bytes": "nameless", "name": ""})
	holds(t, f, 1, map[string]string{"moved": "kept", "bytes": "nameless", "name": "lost"})

	ok(t, os.Mkdir(dir+"/sub", 0o700))
	create(t, dir+"/sub/file", "deep", true)
	syncDir(t, dir+"/sub")
	before := f.Now()
	syncDir(t, dir)
	ok(t, os.Remove(dir+"/name"))
	ok(t, os.Truncate(dir+"/moved", 2))
	holds(t, f, 0, map[string]string{"moved": "kept", "bytes": "nameless", "name": "", "sub/": "", "sub/file": "deep"})
	holds(t, f, 1, map[string]string{"moved": "ke", "bytes": "nameless", "sub/": "", "sub/file": "deep"})
	if at := f.Disk(before, 0, nil); at.Names["sub"] != nil {
		t.Error("a directory outlives a power cut before its name was synced")
	}
	if last := f.Syncs()[len(f.Syncs())-1]; last != before {
		t.Errorf("the last sync was at %d, want %d", last, before)
	}

	// What a disk holds can be mounted, and written to a directory.
	again, there := mount(t, f.Disk(f.Now(), 0, nil))
	create(t, there+"/more", "", false)
	holds(t, again, 0, map[string]string{"moved": "kept", "bytes": "nameless", "name": "", "sub/": "", "sub/file": "deep"})
	copied := filepath.Join(t.TempDir(), "copy")
	ok(t, again.Disk(again.Now(), 1, nil).Write(copied))
	if b, err := os.ReadFile(copied + "/sub/file"); string(b) != "deep" {
		t.Errorf("the copy holds %q, %v", b, err)
	}
}

// TestTorn looks for a write that a power cut has torn at a sector.
func TestTorn(t *testing.T) {
	f, dir := mount(t, nil)
	create(t, dir+"/file", strings.Repeat("x", 8*sector), false)
	syncDir(t, dir)
	torn := 0
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 10 {
		b := f.Disk(f.Now(), 0.5, rnd).Names["file"].Data
		for ; len(b) > 0; b = b[min(len(b), sector):] {
			if b[0] == 0 {
				torn++
			}
			if s := string(b[:sector]); strings.Trim(s, s[:1]) != "" {
				t.Fatalf("half a sector was written: %q", s)
			}
		}
	}
	if torn == 0 {
		t.Error("no write was ever torn")
	}
}

// TestFaults lets each kind of operation fail in both ways.
func TestFaults(t *testing.T) {
	for _, tc := range []struct {
		kind Kind
		do   func(dir string) error
		sign string // a path that is there after the operation if before it was not, and the reverse
	}{
		{Create, func(dir string) error { return os.WriteFile(dir+"/new", nil, 0o600) }, "new"},
		{Mkdir, func(dir string) error { return os.Mkdir(dir+"/new", 0o700) }, "new"},
		{Link, func(dir string) error { return os.Link(dir+"/file", dir+"/new") }, "new"},
		{Unlink, func(dir string) error { return os.Remove(dir + "/file") }, "file"},
		{Rename, func(dir string) error { return os.Rename(dir+"/file", dir+"/new") }, "new"},
	} {
		for _, happens := range []bool{false, true} {
			f, dir := mount(t, nil)
			create(t, dir+"/file", "text", true)
			_, before := os.Stat(filepath.Join(dir, tc.sign))
			f.Break(&Fault{Hits: func(k Kind, _ string) bool { return k == tc.kind }, Times: 1, Errno: syscall.EIO, Happens: happens})
			if err := tc.do(dir); err == nil {
				t.Errorf("%s did not fail", tc.kind)
			}
			_, after := os.Stat(filepath.Join(dir, tc.sign))
			if changed := (before == nil) != (after == nil); changed != happens {
				t.Errorf("%s failed and happened: %v, want %v", tc.kind, changed, happens)
			}
			if seen := f.Break(nil); seen != 1 {
				t.Errorf("%d operations to %s, want 1", seen, tc.kind)
			}
		}
	}
}

// TestLostSync fails an fsync: what it did not write, the next one does not
// write either.
func TestLostSync(t *testing.T) {
	f, dir := mount(t, nil)
	file, err := os.Create(dir + "/file")
	ok(t, err)
	defer file.Close()
	syncDir(t, dir)
	_, err = file.WriteString("lost ")
	ok(t, err)
	f.Break(&Fault{Hits: func(k Kind, path string) bool { return k == Sync && path == "file" }, Times: 1, Errno: syscall.EIO})
	if err := file.Sync(); err == nil {
		t.Error("the sync did not fail")
	}
	_, err = file.WriteString("kept")
	ok(t, err)
	ok(t, file.Sync())
	holds(t, f, 0, map[string]string{"file": "\x00\x00\x00\x00\x00kept"})
	_, err = file.Seek(0, io.SeekStart)
	ok(t, err)
	if b, err := io.ReadAll(file); string(b) != "lost kept" {
		t.Errorf("programs see %q, %v", b, err)
	}
}
