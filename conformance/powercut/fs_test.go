package powercut

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// TestCut writes files with and without each of the syncs that make them
// durable and looks at what a power cut leaves.
func TestCut(t *testing.T) {
	dir := t.TempDir()
	f, err := Mount(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Unmount()
	put := func(name, text string, syncFile, syncDir bool) {
		t.Helper()
		file, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, err := file.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if syncFile {
			if err := file.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		if syncDir {
			d, err := os.Open(filepath.Dir(file.Name()))
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if err := d.Sync(); err != nil {
				t.Fatal(err)
			}
		}
	}
	put("both", "kept", true, true)
	put("bytes", "nameless", true, false)
	if err := os.Rename(filepath.Join(dir, "both"), filepath.Join(dir, "moved")); err != nil {
		t.Fatal(err)
	}
	after := filepath.Join(t.TempDir(), "after")
	if err := f.Cut(after, 0, rand.New(rand.NewPCG(1, 1))); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"both": "kept"}
	check(t, after, want)
	put("name", "lost", false, true) // also syncs the names before it
	want = map[string]string{"moved": "kept", "bytes": "nameless", "name": ""}
	after2 := filepath.Join(t.TempDir(), "after")
	if err := f.Cut(after2, 0, rand.New(rand.NewPCG(1, 1))); err != nil {
		t.Fatal(err)
	}
	check(t, after2, want)
	all := filepath.Join(t.TempDir(), "after")
	if err := f.Cut(all, 1, rand.New(rand.NewPCG(1, 1))); err != nil {
		t.Fatal(err)
	}
	check(t, all, map[string]string{"moved": "kept", "bytes": "nameless", "name": "lost"})
}

func check(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		got[e.Name()] = string(b)
	}
	if len(got) != len(want) {
		t.Errorf("after the cut: %q, want %q", got, want)
	}
	for name, text := range want {
		if g, ok := got[name]; !ok || g != text {
			t.Errorf("after the cut: %s holds %q (there: %v), want %q", name, g, ok, text)
		}
	}
}
