package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// layer makes a directory from a list: "dir/" "file" "link>target" "!whiteout"
// "dir/*" for one that hides those below.
func layer(t *testing.T, entries ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, e := range entries {
		name, target, link := strings.Cut(e, ">")
		path := filepath.Join(dir, strings.Trim(name, "!*"))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch {
		case link:
			err = os.Symlink(target, path)
		case strings.HasPrefix(e, "!"):
			err = mknodWhiteout(path)
		case strings.HasSuffix(e, "/*"):
			if err = os.MkdirAll(path, 0o755); err == nil {
				err = unix.Setxattr(path, "trusted.overlay.opaque", []byte("y"), 0)
			}
		case strings.HasSuffix(e, "/"):
			err = os.MkdirAll(path, 0o755)
		default:
			err = os.WriteFile(path, []byte(e), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestDiffer(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("whiteouts are devices: this test needs root")
	}
	image := tree{
		layer(t, "etc/only-upper", "!etc/gone-in-image"),
		layer(t, "etc/motd", "etc/gone-in-image", "etc/old/a", "etc/old/b", "usr/lib/x", "link>etc"),
	}
	for _, tc := range []struct {
		name  string
		upper []string
		want  string
	}{
		{"nothing", nil, ""},
		{"a new file", []string{"new"}, "A /new"},
		{"a new directory", []string{"d/sub/f"}, "A /d,A /d/sub,A /d/sub/f"},
		{"an empty one", []string{"d/"}, "A /d"},
		{"a changed file", []string{"etc/motd"}, "C /etc,C /etc/motd"},
		{"a file removed", []string{"!etc/motd"}, "C /etc,D /etc/motd"},
		{"made and removed", []string{"!never"}, ""},
		{"removed in the image already", []string{"etc/gone-in-image"}, "C /etc,A /etc/gone-in-image"},
		{"a directory made anew", []string{"etc/old/*", "etc/old/c"}, "C /etc,C /etc/old,D /etc/old/a,D /etc/old/b,A /etc/old/c"},
		{"with a file of the same name", []string{"etc/old/*", "etc/old/a"}, "C /etc,C /etc/old,A /etc/old/a,D /etc/old/b"},
		{"a directory only looked at", []string{"usr/lib/"}, ""},
		{"a file in place of a directory", []string{"usr"}, "C /usr"},
		{"a directory in place of a link", []string{"link/*", "link/f"}, "C /link,A /link/f"},
		{"what is mounted there", []string{"dev/", "proc/", "etc/hosts", "srv/data/"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			upper, err := os.OpenRoot(layer(t, tc.upper...))
			if err != nil {
				t.Fatal(err)
			}
			defer upper.Close()
			given := newCtr("", record{Spec: Spec{Mounts: []Mount{{Target: "/srv/data"}}}}).given()
			d := differ{ctx: t.Context(), image: image, given: given}
			if err := d.dir(upper, "/", false); err != nil {
				t.Fatal(err)
			}
			d.sort()
			var got []string
			for _, c := range d.changes {
				got = append(got, fmt.Sprintf("%s %s", c.Kind, c.Path))
			}
			if strings.Join(got, ",") != tc.want {
				t.Errorf("changes are %q, want %q", strings.Join(got, ","), tc.want)
			}
		})
	}
}

// TestDifferIsBounded looks at a directory that a container made as deep as it could.
func TestDifferIsBounded(t *testing.T) {
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	at, err := root.OpenRoot(".")
	if err != nil {
		t.Fatal(err)
	}
	for range maxDepth + 5 {
		if err := at.Mkdir("d", 0o700); err != nil {
			t.Fatal(err)
		}
		next, err := at.OpenRoot("d")
		if err != nil {
			t.Fatal(err)
		}
		at.Close()
		at = next
	}
	at.Close()
	d := differ{ctx: t.Context()}
	if err := d.dir(root, "/", false); !errors.Is(err, ErrConflict) {
		t.Errorf("a directory without end: %v, want ErrConflict", err)
	}
}
