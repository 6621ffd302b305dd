package layout

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

var amd64 = v1.Platform{OS: "linux", Architecture: "amd64"}

// tree makes a directory with some of everything.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.MkdirAll(at("bin"), 0o755),
		os.WriteFile(at("bin/b"), []byte("bbb"), 0o755),
		os.Chmod(at("bin/b"), os.ModeSetuid|0o755),
		os.Link(at("bin/b"), at("bin/c")),
		os.Symlink("/bin/b", at("bin/a")),
		os.MkdirAll(at("a"), 0o700),
		os.WriteFile(at("a.txt"), nil, 0o640),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func build(t *testing.T, r Recipe) *Built {
	t.Helper()
	r.Platform = amd64
	b, err := Build(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func layerOf(t *testing.T, b *Built) []string {
	t.Helper()
	var list []string
	for _, open := range b.layers {
		rc, err := open(0)
		if err != nil {
			t.Fatal(err)
		}
		for tr := tar.NewReader(rc); ; {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, fmt.Sprintf("%c %s>%s %o %d:%d %d %d", h.Typeflag, h.Name, h.Linkname, h.Mode, h.Uid, h.Gid, h.Size, h.ModTime.Unix()))
		}
		if err := rc.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return list
}

func TestBuild(t *testing.T) {
	got := strings.Join(layerOf(t, build(t, Recipe{Path: tree(t), Time: time.Unix(7, 0)})), "\n")
	want := strings.Join([]string{
		"5 a/> 700 0:0 0 7",
		"0 a.txt> 640 0:0 0 7",
		"5 bin/> 755 0:0 0 7",
		"2 bin/a>/bin/b 777 0:0 0 7",
		"0 bin/b> 4755 0:0 3 7",
		"1 bin/c>bin/b 4755 0:0 0 7",
	}, "\n")
	if got != want {
		t.Errorf("the layer has\n%s\nwant\n%s", got, want)
	}
}

// TestBuildIsDeterministic makes the same image of other files with the same
// content, and another one when something changes that should matter.
func TestBuildIsDeterministic(t *testing.T) {
	recipe := func(dir string) Recipe { return Recipe{Path: dir, Time: time.Unix(0, 0)} }
	first := build(t, recipe(tree(t))).root.Digest
	other := tree(t)
	for _, err := range []error{
		os.Chtimes(filepath.Join(other, "bin/b"), time.Unix(1e9, 5), time.Unix(1e9, 5)),
		os.Lchown(filepath.Join(other, "bin/a"), 1000, 1000),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if again := build(t, recipe(other)).root.Digest; again != first {
		t.Errorf("the same files made %s and %s", first, again)
	}
	keep := recipe(other)
	keep.KeepOwner = true
	env := recipe(other)
	env.Config.Env = []string{"A=b"}
	later := recipe(other)
	later.Time = time.Unix(1, 0)
	for name, r := range map[string]Recipe{"owner": keep, "env": env, "time": later} {
		if d := build(t, r).root.Digest; d == first {
			t.Errorf("another %s made the same image", name)
		}
	}
}

func TestBuildOfAFile(t *testing.T) {
	name := filepath.Join(tree(t), "bin/b")
	got := layerOf(t, build(t, Recipe{Path: name, Time: time.Unix(0, 0)}))
	if want := "0 b> 4755 0:0 3 0"; len(got) != 1 || got[0] != want {
		t.Errorf("the layer has %q, want %q", got, want)
	}
}

// TestBuildOffsets reads the layer from several places, as a resumed push does.
func TestBuildOffsets(t *testing.T) {
	b := build(t, Recipe{Path: tree(t), Time: time.Unix(0, 0)})
	for d, open := range b.layers {
		whole, err := open(0)
		if err != nil {
			t.Fatal(err)
		}
		all, err := io.ReadAll(whole)
		if err := errors.Join(err, whole.Close()); err != nil || digest.FromBytes(all) != d {
			t.Fatalf("the layer's bytes have digest %s, %v, want %s", digest.FromBytes(all), err, d)
		}
		for _, offset := range []int{1, 512, len(all) - 1, len(all)} {
			rc, err := open(int64(offset))
			if err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(rc)
			if err := errors.Join(err, rc.Close()); err != nil || string(rest) != string(all[offset:]) {
				t.Errorf("from %d on there are %d bytes, %v, want %d", offset, len(rest), err, len(all)-offset)
			}
		}
		half, err := open(0)
		if err != nil {
			t.Fatal(err)
		}
		if err := half.Close(); err != nil { // waits for who writes it
			t.Errorf("close in the middle: %v", err)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	for _, tc := range []struct {
		name string
		make func(dir string) error
		want string
	}{
		{"whiteout", func(dir string) error { return os.WriteFile(filepath.Join(dir, ".wh.x"), nil, 0o600) }, ".wh.x: in a layer"},
		{"socket", func(dir string) error {
			l, err := new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Join(dir, "sock"))
			if err == nil {
				l.(*net.UnixListener).SetUnlinkOnClose(false)
				err = l.Close()
			}
			return err
		}, "sock: this kind of file has no place in an image"},
		{"absent", os.RemoveAll, "no such file"},
	} {
		dir := t.TempDir()
		if err := tc.make(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := Build(t.Context(), Recipe{Path: dir}); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: Build = %v, want %s", tc.name, err, tc.want)
		}
	}
}

// TestBuildNoticesChanges has a file that shrinks between the two times that it
// is read.
func TestBuildNoticesChanges(t *testing.T) {
	dir := tree(t)
	b := build(t, Recipe{Path: dir, Time: time.Unix(0, 0)})
	if err := os.WriteFile(filepath.Join(dir, "bin/b"), []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	var m v1.Descriptor
	for d, open := range b.layers {
		m.Digest = d
		m.Size = 1 << 20
		if err := copyVerified(io.Discard, m, open, func(int64) {}); err == nil {
			t.Error("a layer whose files have changed was taken for the same")
		}
	}
}
