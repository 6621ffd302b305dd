package image_test

import (
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"berth.internal/node/image"
)

// A larger tree, such as a whole Debian, can be named by hand.
var treeFlag = flag.String("tree", "/etc", "`directory` that the comparison with GNU tar unpacks")

// TestLikeGNUTar unpacks a real tree, and beside it what a tree can hold at
// worst, as GNU tar does: types, content, owners, modes, times, extended
// attributes, hard links.
func TestLikeGNUTar(t *testing.T) {
	src := onTmpfs(t)
	oddities(t, src)
	for _, dir := range []string{src, *treeFlag} {
		data := gnuTar(t, dir, "--format=posix", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--one-file-system")
		ours, theirs := onTmpfs(t), onTmpfs(t)
		if err := untar(ours, data, image.Limits{}); err != nil {
			t.Fatalf("untar of %s: %v", dir, err)
		}
		cmd := exec.CommandContext(t.Context(), "tar", "-C", theirs, "-xpf", "-", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--same-owner")
		cmd.Stdin = bytes.NewReader(data)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("tar -x of %s: %v: %s", dir, err, out)
		}
		got, want := exact(t, ours), exact(t, theirs)
		if len(want) < 5 {
			t.Fatalf("%s has only %d entries", dir, len(want))
		}
		for i := range max(len(got), len(want)) {
			if i >= len(got) || i >= len(want) || got[i] != want[i] {
				t.Fatalf("%s: line %d is\n  %v\nGNU tar's is\n  %v", dir, i, slices.Concat(got[min(i, len(got)):], nil)[:1], want[min(i, len(want)):][:1])
			}
		}
		t.Logf("%s: %d entries are equal", dir, len(want))
	}
}

// oddities makes what is rare in a real tree.
func oddities(t *testing.T, dir string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.MkdirAll(at("a/b/c"), 0o755),
		os.WriteFile(at("a/suid"), []byte("suid"), 0o755),
		os.Chown(at("a/suid"), 12, 70000),
		unix.Chmod(at("a/suid"), 0o6711),
		unix.Setxattr(at("a/suid"), "user.note", []byte("\x00\xff=\n"), 0),
		os.WriteFile(at("a/cap"), []byte("cap"), 0o755),
		unix.Setxattr(at("a/cap"), "security.capability", []byte(capNetBind), 0),
		os.Link(at("a/suid"), at("a/b/same")),
		os.Symlink("../nowhere", at("a/b/link")),
		os.Link(at("a/b/link"), at("a/b/same-link")),
		unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Mkfifo(at("pipe"), 0o640),
		os.WriteFile(at(string(bytes.Repeat([]byte("ä"), 120))), bytes.Repeat([]byte("x"), 1<<20), 0o400),
		unix.Chmod(at("a/b/c"), 0o1777),
		unix.Lutimes(at("a/b/link"), []unix.Timeval{{Sec: 1}, {Sec: 1, Usec: 5}}),
		os.Chtimes(at("a/b"), epoch, epoch),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// exact is like tree, with times, and with the first name of each file's links
// instead of its content if that is large.
func exact(t *testing.T, root string) (lines []string) {
	t.Helper()
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if _, ok := first[st.Ino]; !ok {
			first[st.Ino] = rel
		}
		lines = append(lines, fmt.Sprintf("%s%s%s %d.%09d as %s", rel, describe(t, path), xattrs(t, path), st.Mtim.Sec, st.Mtim.Nsec, first[st.Ino]))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}
