package host

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPropagation asks for each kind of each kind of mount.
func TestPropagation(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	mount := func(source, name, fstype string, flags, spread uintptr) {
		t.Helper()
		if err := os.Mkdir(at(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(source, at(name), fstype, flags, ""); err != nil {
			t.Fatalf("mount %s: %v", name, err)
		}
		t.Cleanup(func() { _ = unix.Unmount(at(name), unix.MNT_DETACH) })
		if err := unix.Mount("", at(name), "", spread, ""); err != nil {
			t.Fatalf("spread %s: %v", name, err)
		}
	}
	mount("none", "private", "tmpfs", 0, unix.MS_PRIVATE)
	mount("none", "shared", "tmpfs", 0, unix.MS_SHARED)
	mount(at("shared"), "slave", "", unix.MS_BIND, unix.MS_SLAVE)
	if err := os.Symlink("shared", at("link")); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ source, propagation, says string }{
		{"private", "", ""},
		{"private", "rprivate", ""},
		{"private", "rshared", "is mounted on " + at("private") + " but it is not a shared mount"},
		{"private", "slave", "is mounted on " + at("private") + " but it is not a shared or slave mount"},
		{"shared", "shared", ""},
		{"shared", "rslave", ""},
		{"slave", "rslave", ""},
		{"slave", "rshared", "not a shared mount"},
		{"link", "rshared", ""},
		{"nothing", "rshared", ""}, // is said elsewhere
	} {
		err := checkPropagation(Mount{Type: MountBind, Source: at(tc.source), Target: "/x", Propagation: tc.propagation})
		if (err == nil) != (tc.says == "") || err != nil && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tc.says)) {
			t.Errorf("%s of %s: %v, want %q", tc.propagation, tc.source, err, tc.says)
		}
	}
}
