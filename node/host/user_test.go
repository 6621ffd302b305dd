package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// files is an opener over texts.
func files(t testing.TB, texts map[string]string) opener {
	dir := t.TempDir()
	for name, text := range texts {
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(name)), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return func(name string) (*os.File, error) {
		if _, ok := texts[name]; !ok {
			return nil, fs.ErrNotExist
		}
		return os.Open(filepath.Join(dir, filepath.Base(name)))
	}
}

func TestLookupUser(t *testing.T) {
	open := files(t, map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n# comment\nann:x:1000:100::/home/ann:\nann:x:2000:200::/other:\n1:x:0:0:a trap:/:\nhuge:x:99999999999:0::/:\nshort:x:5\nrelative:x:7:7::home:\n",
		"etc/group":  "root:x:0:\nstaff:x:50:ann,bob\nusers:x:100:ann\nbroken\nwheel:x:10:ann\n",
	})
	for _, tc := range []struct {
		user  string
		extra []string
		want  string // "uid gid groups home", or "" for an error
	}{
		{"", nil, "0 0 [] /root"},
		{"root", nil, "0 0 [] /root"},
		{"ann", nil, "1000 100 [10 50] /home/ann"},
		{"1000", nil, "1000 100 [10 50] /home/ann"},
		{"1", nil, "1 0 [] /"}, // never the account that is called 1
		{"4242", nil, "4242 0 [] /"},
		{"ann:staff", nil, "1000 50 [] /home/ann"},
		{"ann:7", nil, "1000 7 [] /home/ann"},
		{"ann", []string{"root", "9"}, "1000 100 [0 9 10 50] /home/ann"},
		{"relative", nil, "7 7 [] /"},
		{"nobody", nil, ""},
		{"huge", nil, ""},
		{"short", nil, ""},
		{"ann:nogroup", nil, ""},
		{"ann:", nil, ""},
		{"ann:a:b", nil, ""},
		{"65536", nil, ""},
		{"99999999999999999999", nil, ""},
		{"0x0", nil, ""},
		{"-1", nil, ""},
		{"+1", nil, ""},
		{" 0", nil, ""},
	} {
		acc, err := lookupUser(open, tc.user, tc.extra)
		got := ""
		if err == nil {
			groups := acc.Groups
			if groups == nil {
				groups = []uint32{}
			}
			got = fmt.Sprintf("%d %d %v %s", acc.UID, acc.GID, groups, acc.Home)
		}
		if got != tc.want {
			t.Errorf("lookupUser(%q, %q) = %q %v, want %q", tc.user, tc.extra, got, err, tc.want)
		}
	}
}

func TestLookupUserWithoutFiles(t *testing.T) {
	open := files(t, nil)
	if acc, err := lookupUser(open, "12:34", nil); err != nil || acc.UID != 12 || acc.GID != 34 {
		t.Errorf("numbers need no files: %+v %v", acc, err)
	}
	if _, err := lookupUser(open, "ann", nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("a name without files: %v, want ErrInvalid", err)
	}
}

func TestAccountFilesAreBounded(t *testing.T) {
	open := files(t, map[string]string{"etc/passwd": strings.Repeat("x:x:1:1:::\n", maxAccounts/10)})
	if _, err := lookupUser(open, "last", nil); err == nil {
		t.Error("a passwd file without end was read to its end")
	}
}

// FuzzLookupUser looks for users that become root without being written 0, or
// being root's name.
func FuzzLookupUser(f *testing.F) {
	f.Add("ann:1", "root:x:0:0::/:\nann:x:1:1::/:\n", "g:x:1:ann\n")
	f.Add("0", "0:x:5:5::/:\n", "")
	f.Fuzz(func(t *testing.T, user, passwd, group string) {
		acc, err := lookupUser(files(t, map[string]string{"etc/passwd": passwd, "etc/group": group}), user, nil)
		if err != nil {
			return
		}
		if acc.UID > maxID || acc.GID > maxID {
			t.Fatalf("user %q is %+v, outside of the container's numbers", user, acc)
		}
		name, _, _ := strings.Cut(user, ":")
		if digits := name != "" && strings.Trim(name, "0123456789") == ""; digits && fmt.Sprint(acc.UID) != strings.TrimLeft(name[:len(name)-1], "0")+name[len(name)-1:] {
			t.Fatalf("user %q is number %d", user, acc.UID)
		}
		if acc.Home == "" {
			t.Fatalf("user %q has no home", user)
		}
	})
}

func TestTree(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("whiteouts are devices: this test needs root")
	}
	outside := filepath.Join(t.TempDir(), "secret")
	upper, lower := t.TempDir(), t.TempDir()
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := func(target, path string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
	}
	write(outside, "secret")
	write(filepath.Join(lower, "etc/passwd"), "lower")
	write(filepath.Join(lower, "etc/group"), "lower")
	write(filepath.Join(lower, "usr/share/passwd"), "shared")
	write(filepath.Join(upper, "etc/passwd"), "upper")
	link(outside, filepath.Join(upper, "etc/absolute"))
	link("../../../../../../../.."+outside, filepath.Join(upper, "etc/dots"))
	link("/usr/share/passwd", filepath.Join(upper, "etc/inside"))
	link("loop", filepath.Join(upper, "etc/loop"))
	link("/usr/share", filepath.Join(upper, "dir"))
	if err := mknodWhiteout(filepath.Join(upper, "etc/group")); err != nil {
		t.Fatal(err)
	}
	if err := mkfifo(filepath.Join(upper, "etc/fifo")); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, want string }{
		{"etc/passwd", "upper"},
		{"etc/group", ""}, // hidden
		{"etc/inside", "shared"},
		{"dir/passwd", "shared"},
		{"etc/../etc/./passwd", "upper"},
		{"etc/absolute", ""},
		{"etc/dots", ""},
		{"etc/loop", ""},
		{"etc/fifo", ""},
		{"etc", ""},
		{"etc/passwd/x", ""},
		{"absent", ""},
	} {
		got := ""
		f, err := tree{upper, lower}.open(tc.name)
		if err == nil {
			b := make([]byte, 100)
			n, _ := f.Read(b)
			got = string(b[:n])
			f.Close()
		}
		if got != tc.want {
			t.Errorf("open(%q) = %q %v, want %q", tc.name, got, err, tc.want)
		}
	}
}

func TestIDRange(t *testing.T) {
	r := newIDRange("00112233445566778899aabbccddeeff")
	seen := []uint32{}
	for range 3 {
		first, err := r.take()
		if err != nil || slices.Contains(seen, first) || first < firstNodeID || first%idsPerContainer != 0 {
			t.Fatalf("take() = %d, %v after %d", first, err, seen)
		}
		seen = append(seen, first)
	}
	r.free(seen[1], false)
	if again, err := r.take(); err != nil || again != seen[1] {
		t.Errorf("take() = %d, %v; want %d, which is free", again, err, seen[1])
	}
	if err := r.restore(seen[0], false); err == nil {
		t.Error("numbers were given to two containers")
	}
	for _, wrong := range []uint32{0, seen[0] + 1, r.base - idsPerContainer} {
		if err := r.restore(wrong, false); err == nil {
			t.Errorf("restore(%d) took numbers of somebody else", wrong)
		}
	}
	// What is shared stays reserved as long as one of those that share it is there.
	if err := r.share(seen[2]); err != nil {
		t.Fatal(err)
	}
	r.free(seen[2], false)
	if first, err := r.take(); err != nil || first == seen[2] {
		t.Errorf("take() = %d, %v: somebody still has these numbers", first, err)
	} else {
		r.free(first, false)
	}
	r.free(seen[2], true)
	if err := r.share(seen[2]); !errors.Is(err, ErrConflict) {
		t.Errorf("share() of free numbers: %v, want ErrConflict", err)
	}
	if again, err := r.take(); err != nil || again != seen[2] {
		t.Errorf("take() = %d, %v; want %d, which is free", again, err, seen[2])
	}
	for range containersMax - 3 {
		if _, err := r.take(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.take(); !errors.Is(err, ErrConflict) {
		t.Errorf("when all are taken: %v, want ErrConflict", err)
	}
}
