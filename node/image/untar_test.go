package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth.internal/node/image"
)

func TestUntar(t *testing.T) {
	mode := func(m int64) func(*tar.Header) { return func(h *tar.Header) { h.Mode = m } }
	xattr := func(name, value string) func(*tar.Header) {
		return func(h *tar.Header) { h.PAXRecords["SCHILY.xattr."+name] = value }
	}
	kind := func(typ byte) func(*tar.Header) { return func(h *tar.Header) { h.Typeflag = typ } }
	long := strings.Repeat("l", 200)
	for _, tc := range []struct {
		name    string
		entries []ent
		want    []string // see tree
	}{
		{"file", []ent{file("a", "x").with(mode(0o4755))}, []string{`a file 4755 0:0 "x"`}},
		{"hidden file", []ent{file(".bashrc", "x")}, []string{`.bashrc file 644 0:0 "x"`}},
		{"owner", []ent{dir("d").with(func(h *tar.Header) { h.Uid, h.Gid, h.Mode = 7, 70000, 0o2770 })}, []string{`d dir 2770 7:70000`}},
		{"dots and slashes", []ent{dir("./"), dir("./a//b/./"), file("./a/b/c", "")}, []string{`a dir 755 0:0`, `a/b dir 755 0:0`, `a/b/c file 644 0:0 ""`}},
		{"children before parents", []ent{file("a/b/c", "x"), dir("a").with(mode(0o700))}, []string{`a dir 700 0:0`, `a/b dir 755 0:0`, `a/b/c file 644 0:0 "x"`}},
		{"long names", []ent{file(long+"/"+long, "x")}, []string{long + ` dir 755 0:0`, long + "/" + long + ` file 644 0:0 "x"`}},
		{
			"links",
			[]ent{file("a", "x"), hardlink("b", "./a"), symlink("c", "/../../etc/passwd"), hardlink("d", "c"), hardlink("a", "a")},
			[]string{`a file 644 0:0 "x" links=2`, `b file 644 0:0 "x" links=2`, `c link 777 0:0 -> /../../etc/passwd links=2`, `d link 777 0:0 -> /../../etc/passwd links=2`},
		},
		{"devices", []ent{
			file("c", "").with(kind(tar.TypeChar)).with(func(h *tar.Header) { h.Devmajor, h.Devminor = 1, 3 }),
			file("b", "").with(kind(tar.TypeBlock)).with(func(h *tar.Header) { h.Devmajor, h.Devminor = 259, 70000 }),
			file("p", "").with(kind(tar.TypeFifo)),
		}, []string{`b block 644 0:0 259:70000`, `c char 644 0:0 1:3`, `p pipe 644 0:0`}},
		{"whiteout", []ent{file("d/.wh.gone", "")}, []string{`d dir 755 0:0`, `d/gone char 0 0:0 0:0`}},
		{"hard-linked whiteout", []ent{file("d/.wh.a", ""), hardlink("d/.wh.b", "d/.wh.a")}, []string{`d dir 755 0:0`, `d/a char 0 0:0 0:0`, `d/b char 0 0:0 0:0`}},
		{
			"opaque",
			[]ent{dir("d"), file("d/.wh..wh..opq", ""), file("d/new", "")},
			[]string{`d dir 755 0:0 trusted.overlay.opaque="y"`, `d/new file 644 0:0 ""`},
		},
		{"opaque root", []ent{file(".wh..wh..opq", "")}, []string{`. trusted.overlay.opaque="y"`}},
		{"whiteout and the same name as a file", []ent{file(".wh.a", ""), file("a", "x"), file("b", "x"), file(".wh.b", "")}, []string{`a file 644 0:0 "x"`, `b file 644 0:0 "x"`}},
		{
			"whiteout and the same name as a directory",
			[]ent{file(".wh.a", ""), dir("a"), dir("b"), file(".wh.b", ""), file(".wh.c", ""), file("c/d", "")},
			[]string{`a dir 755 0:0 trusted.overlay.opaque="y"`, `b dir 755 0:0 trusted.overlay.opaque="y"`, `c dir 755 0:0 trusted.overlay.opaque="y"`, `c/d file 644 0:0 ""`},
		},
		{
			"last of equals",
			[]ent{file("a", "1"), file("a", "22"), symlink("b", "x"), file("b", "3"), file("c", "4"), symlink("c", "y")},
			[]string{`a file 644 0:0 "22"`, `b file 644 0:0 "3"`, `c link 777 0:0 -> y`},
		},
		{"directory, then file", []ent{file("a/b/c", ""), file("a", "x"), dir("d"), symlink("d", "a")}, []string{`a file 644 0:0 "x"`, `d link 777 0:0 -> a`}},
		{
			"file, then directory",
			[]ent{file("a", "x"), dir("a"), file("a/b", "y"), symlink("c", "a"), dir("c"), file("c/d", "z")},
			[]string{`a dir 755 0:0`, `a/b file 644 0:0 "y"`, `c dir 755 0:0`, `c/d file 644 0:0 "z"`},
		},
		{"directory twice", []ent{file("a/b", "x"), dir("a").with(mode(0o500)), dir("a").with(mode(0o711))}, []string{`a dir 711 0:0`, `a/b file 644 0:0 "x"`}},
		{"extended attributes", []ent{
			file("a", "x").with(mode(0o755)).with(xattr("security.capability", capNetBind)).with(xattr("security.selinux", "label")),
			dir("d").with(xattr("user.note", "n")),
		}, []string{fmt.Sprintf(`a file 755 0:0 "x" security.capability=%q`, capNetBind), `d dir 755 0:0 user.note="n"`}},
		{"comment of git archive", []ent{{tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "c"}}, ""}}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := onTmpfs(t)
			if err := untar(root, tarOf(t, tc.entries...), image.Limits{}); err != nil {
				t.Fatalf("untar = %v", err)
			}
			if got := tree(t, root); !slices.Equal(got, tc.want) {
				t.Errorf("tree:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(tc.want, "\n  "))
			}
		})
	}
}

// capNetBind is cap_net_bind_service=ep as the kernel keeps it.
const capNetBind = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func TestUntarRefuses(t *testing.T) {
	xattr := func(name string) func(*tar.Header) {
		return func(h *tar.Header) { h.PAXRecords["SCHILY.xattr."+name] = "y" }
	}
	deep := strings.Repeat("d/", 300) + "f"
	for _, tc := range []struct {
		name    string
		entries []ent
		err     string
	}{
		{"parent", []ent{file("../out", "x")}, `entry "../out": not a valid image: refused: ".." in name`},
		{"parent inside", []ent{file("a/../b", "x")}, `".." in name`},
		{"absolute", []ent{file("/etc/passwd", "x")}, "absolute name"},
		{"through a symbolic link", []ent{symlink("a", "/etc"), file("a/passwd", "x")}, "a parent is"},
		{"through a symbolic link to inside", []ent{dir("b"), symlink("a", "b"), file("a/c", "x")}, "a parent is"},
		{"deep through a symbolic link", []ent{symlink("a", "."), file("a/b/c", "x")}, "a parent is a symbolic link"},
		{"through a file", []ent{file("a", ""), file("a/b", "x")}, "a parent is not a directory"},
		{"hard link out", []ent{hardlink("a", "../../etc/passwd")}, `hard link to "../../etc/passwd": refused: ".." in name`},
		{"hard link to absolute", []ent{hardlink("a", "/etc/passwd")}, "absolute name"},
		{"hard link through a symbolic link", []ent{symlink("e", "/etc"), hardlink("a", "e/passwd")}, "not in this layer"},
		{"hard link to nothing", []ent{hardlink("a", "b")}, "not in this layer"},
		{"hard link to a directory", []ent{dir("d"), hardlink("a", "d")}, "which is no file"},
		{"hard link to a whiteout", []ent{file(".wh.b", ""), hardlink("a", "b")}, "which is no file"},
		{"hard link that replaces its target's directory", []ent{file("a/b", ""), hardlink("a", "a/b")}, "create: no such file"},
		{"endless link", []ent{symlink("a", strings.Repeat("x", 5000))}, "create: file name too long"},
		{"link to nothing", []ent{symlink("a", "")}, "create: no such file"},
		{"wrong capabilities", []ent{file("a", "").with(xattr("security.capability"))}, "set extended attribute security.capability: invalid argument"},
		{"link over the root", []ent{symlink("./", "/etc")}, "the root is not a directory"},
		{"whiteout of nothing", []ent{file(".wh.", "")}, "whiteout of nothing"},
		{"whiteout of the parent", []ent{file("a/.wh...", "")}, "whiteout of nothing"},
		{"inside of a whiteout", []ent{file("a/.wh.b/c", "")}, "inside of a whiteout"},
		{"aufs", []ent{file(".wh..wh.plnk", "")}, "aufs"},
		{"overlay's attribute", []ent{dir("d").with(xattr("trusted.overlay.redirect"))}, `"trusted.overlay.redirect" is not supported`},
		{"overlay's user attribute", []ent{dir("d").with(xattr("user.overlay.opaque"))}, "not supported"},
		{"attribute on a link", []ent{symlink("l", "x").with(xattr("user.note"))}, "neither file nor directory"},
		{"long element", []ent{file(strings.Repeat("n", 256), "")}, "name element of 256 bytes"},
		{"long path", []ent{file(strings.Repeat("n/", 2100)+"n", "")}, "name of 4201 bytes"},
		{"deep", []ent{file(deep, "")}, "300 directories deep"},
		{"unknown type", []ent{file("a", "").with(func(h *tar.Header) { h.Typeflag = 'Z' })}, "unknown type"},
		{"owner", []ent{file("a", "").with(func(h *tar.Header) { h.Uid = 1 << 32 })}, "out of range"},
		{"many entries", slices.Repeat([]ent{dir("d")}, 11), "more than 10 entries"},
		{"many bytes", []ent{file("a", strings.Repeat("x", 60<<10)), file("b", strings.Repeat("x", 60<<10))}, "more than 102400 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			outer := onTmpfs(t)
			root := filepath.Join(outer, "x", "y", "root")
			if err := os.MkdirAll(root, 0o755); err != nil {
				t.Fatal(err)
			}
			err := untar(root, tarOf(t, tc.entries...), image.Limits{Entries: 10, Bytes: 100 << 10})
			if !errors.Is(err, image.ErrInvalid) || !strings.Contains(fmt.Sprint(err), tc.err) {
				t.Errorf("untar = %v, want %q", err, tc.err)
			}
			if got := outside(t, outer); len(got) != 0 {
				t.Errorf("outside of the root there is %v", got)
			}
		})
	}
}

// TestUntarSparse unpacks what GNU tar makes of a file with holes.
func TestUntarSparse(t *testing.T) {
	for _, format := range []string{"gnu", "posix"} {
		t.Run(format, func(t *testing.T) {
			src, dst := onTmpfs(t), onTmpfs(t)
			f, err := os.Create(filepath.Join(src, "f"))
			if err != nil {
				t.Fatal(err)
			}
			for _, at := range []int64{0, 1 << 20, 3 << 20} {
				if _, err := f.WriteAt([]byte("data"), at); err != nil {
					t.Fatal(err)
				}
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			if err := untar(dst, gnuTar(t, src, "--sparse", "--format="+format), image.Limits{}); err != nil {
				t.Fatal(err)
			}
			want, _ := os.ReadFile(filepath.Join(src, "f"))
			if got, err := os.ReadFile(filepath.Join(dst, "f")); err != nil || !bytes.Equal(got, want) {
				t.Errorf("unpacked %d bytes, %v, not the %d of the sparse file", len(got), err, len(want))
			}
		})
	}
}

// TestUntarTimes checks that directories keep their times though their content
// came later.
func TestUntarTimes(t *testing.T) {
	root := onTmpfs(t)
	if err := untar(root, tarOf(t, dir("./"), dir("d"), file("d/f", ""), symlink("d/l", "f"), file("made/f", "")), image.Limits{}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]time.Time{".": epoch, "d": epoch, "d/f": epoch, "d/l": epoch, "made": time.Unix(0, 0)} {
		info, err := os.Lstat(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if !info.ModTime().Equal(want) {
			t.Errorf("time of %s = %v, want %v", name, info.ModTime(), want)
		}
	}
}

// FuzzUntar holds that no tar reaches outside of its root, and that what it
// leaves inside can be removed. A tar is written as lines of a type, a name and
// a target, so that what changes is the entries and not their checksums.
func FuzzUntar(f *testing.F) {
	f.Add("0 ../out\n2 a ..\n0 a/out\n1 b a/out")
	f.Add("2 a /tmp\n5 a\n0 a/.wh.b\n0 a\n0 a/.wh..wh..opq")
	f.Add("0 .wh.a\n0 a/b\n2 a ../..\n1 c a\n5 c\n0 c/d")
	f.Fuzz(func(t *testing.T, script string) {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for line := range strings.Lines(script) {
			kind, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			name, target, _ := strings.Cut(rest, " ")
			if len(kind) != 1 {
				continue
			}
			if err := w.WriteHeader(&tar.Header{Typeflag: kind[0], Name: name, Linkname: target, Mode: 0o755}); err != nil {
				return // no tar can hold it
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		outer := onTmpfs(t)
		root := filepath.Join(outer, "x", "y", "root")
		if err := os.MkdirAll(root, 0o755); err != nil {
			t.Fatal(err)
		}
		err := untar(root, b.Bytes(), image.Limits{Entries: 1000, Bytes: 1 << 20})
		if got := outside(t, outer); len(got) != 0 {
			t.Errorf("untar = %v; outside of the root there is %v", err, got)
		}
		if err := os.RemoveAll(outer); err != nil {
			t.Errorf("what was unpacked cannot be removed: %v", err)
		}
	})
}

// outside lists what is in outer beside x/y/root.
func outside(t *testing.T, outer string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(outer, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(outer, path)
		switch {
		case err != nil:
			return err
		case rel == "x/y/root":
			if !d.IsDir() {
				found = append(found, rel)
			}
			return fs.SkipDir
		case rel != "." && rel != "x" && rel != "x/y":
			found = append(found, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func untar(root string, data []byte, limits image.Limits) error {
	f, err := os.Open(root)
	if err != nil {
		return err
	}
	defer f.Close()
	return image.Untar(context.Background(), f, bytes.NewReader(data), limits)
}

// onTmpfs returns a directory in memory: the tests make many files.
func onTmpfs(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "berth-image-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func gnuTar(t testing.TB, dir string, args ...string) []byte {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "tar", append(args, "-C", dir, "-cf", "-", ".")...).Output()
	if err != nil {
		t.Fatalf("tar %v of %s: %v", args, dir, err)
	}
	return out
}

// tree describes all that is below root, one line each: name, type, mode, owner,
// content, extended attributes.
func tree(t testing.TB, root string) (lines []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		line := rel
		if rel != "." {
			line += describe(t, path)
		}
		if line += xattrs(t, path); line != "." {
			lines = append(lines, line)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func describe(t testing.TB, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	kind := map[uint32]string{
		unix.S_IFREG: "file", unix.S_IFDIR: "dir", unix.S_IFLNK: "link",
		unix.S_IFCHR: "char", unix.S_IFBLK: "block", unix.S_IFIFO: "pipe",
	}[st.Mode&unix.S_IFMT]
	s := fmt.Sprintf(" %s %o %d:%d", kind, st.Mode&0o7777, st.Uid, st.Gid)
	switch kind {
	case "file":
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		s += fmt.Sprintf(" %q", data)
	case "link":
		target, err := os.Readlink(path)
		if err != nil {
			t.Fatal(err)
		}
		s += " -> " + target
	case "char", "block":
		s += fmt.Sprintf(" %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	if kind != "dir" && st.Nlink > 1 {
		s += fmt.Sprintf(" links=%d", st.Nlink)
	}
	return s
}

func xattrs(t testing.TB, path string) (s string) {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		t.Fatalf("list attributes of %s: %v", path, err)
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 4096)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatalf("attribute %s of %s: %v", name, path, err)
		}
		s += fmt.Sprintf(" %s=%q", name, value[:n])
	}
	return s
}
