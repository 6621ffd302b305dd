package datadir_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth.internal/internal/datadir"
)

func TestOpenMakesTheLayout(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "srv", "berth")
	d, err := datadir.Open(dir, datadir.Registry)
	if err != nil {
		t.Fatalf("Open of a new directory = %v", err)
	}
	if got, want := d.Path("blobs", "sha256"), filepath.Join(dir, "registry", "blobs", "sha256"); got != want {
		t.Errorf("Path = %q, want %q", got, want)
	}
	if v, err := os.ReadFile(filepath.Join(dir, "VERSION")); string(v) != "1\n" {
		t.Errorf("VERSION = %q, %v; want %q", v, err, "1\n")
	}
	n, err := datadir.Open(dir, datadir.Node)
	if err != nil {
		t.Fatalf("Open of the other part = %v", err)
	}
	if err := errors.Join(d.Close(), n.Close()); err != nil {
		t.Errorf("Close = %v", err)
	}
}

func TestOpenTakesThePart(t *testing.T) {
	dir := t.TempDir()
	first, err := datadir.Open(dir, datadir.Registry)
	if err != nil {
		t.Fatal(err)
	}
	_, err = datadir.Open(dir, datadir.Registry)
	if !errors.Is(err, datadir.ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Errorf("second Open = %v, want ErrLocked that names %s", err, dir)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := datadir.Open(dir, datadir.Registry)
	if err != nil {
		t.Fatalf("Open after Close = %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, tc := range []struct {
		name    string
		prepare func(dir string) error
		want    error  // nil: any
		text    string // what the error must say
	}{
		{"newer version", write("VERSION", "2\n"), datadir.ErrVersion, "version 2"},
		{"no number", write("VERSION", "one\n"), nil, "VERSION holds"},
		{"zero", write("VERSION", "0\n"), nil, "VERSION holds"},
		{"empty VERSION", write("VERSION", ""), nil, "VERSION holds"},
		{"somebody else's directory", write("node/app.js", ""), nil, "no VERSION"},
		{"a file where the part should be", func(dir string) error {
			return errors.Join(write("VERSION", "1\n")(dir), write("registry", "")(dir))
		}, nil, "not a directory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := tc.prepare(dir); err != nil {
				t.Fatal(err)
			}
			_, err := datadir.Open(dir, datadir.Registry)
			if err == nil {
				t.Fatal("Open succeeded")
			}
			if tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("Open = %v, want %v", err, tc.want)
			}
			if !strings.Contains(err.Error(), tc.text) || !strings.Contains(err.Error(), dir) {
				t.Errorf("Open = %q, want the directory and %q in it", err, tc.text)
			}
		})
	}
}

func write(name, data string) func(dir string) error {
	return func(dir string) error {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		return os.WriteFile(path, []byte(data), 0o600)
	}
}

// TestFill fills a directory, with a crash on the way.
func TestFill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	for range 2 { // the second goes on
		d, err := datadir.Fill(dir, datadir.Registry, "restore")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := datadir.Fill(dir, datadir.Registry, "restore"); !errors.Is(err, datadir.ErrLocked) {
			t.Errorf("Fill of what is being filled = %v", err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := datadir.Fill(dir, datadir.Registry, "backup"); !errors.Is(err, datadir.ErrUnfinished) || !strings.Contains(err.Error(), "holds a restore") {
		t.Errorf("Fill by another = %v", err)
	}
	_, open := datadir.Open(dir, datadir.Registry)
	_, read := datadir.Read(dir, datadir.Registry)
	for _, err := range []error{open, read} {
		if !errors.Is(err, datadir.ErrUnfinished) || !strings.Contains(err.Error(), "holds a restore") {
			t.Errorf("Open and Read of half a directory = %v", err)
		}
	}
	d, err := datadir.Fill(dir, datadir.Registry, "restore")
	if err == nil {
		err = errors.Join(d.Done(), d.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := datadir.Fill(dir, datadir.Registry, "restore"); !errors.Is(err, datadir.ErrNotEmpty) {
		t.Errorf("Fill of what is filled = %v", err)
	}
	// Several may read, and nobody writes meanwhile.
	one, err := datadir.Read(dir, datadir.Registry)
	if err != nil {
		t.Fatal(err)
	}
	two, err := datadir.Read(dir, datadir.Registry)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := datadir.Open(dir, datadir.Registry); !errors.Is(err, datadir.ErrLocked) {
		t.Errorf("Open of what is being read = %v", err)
	}
	if err := errors.Join(one.Close(), two.Close()); err != nil {
		t.Error(err)
	}
	if _, err := datadir.Read(filepath.Join(dir, "none"), datadir.Registry); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Read of nothing = %v", err)
	}
}
