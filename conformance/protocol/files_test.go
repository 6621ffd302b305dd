package protocol_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestFilesAreTheServersAlone looks at every file and directory that a server and a
// backup make: nobody else may read them, whatever the umask is.
func TestFilesAreTheServersAlone(t *testing.T) {
	dir := t.TempDir()
	password, secret := filepath.Join(dir, "password"), filepath.Join(dir, "secret")
	for _, path := range []string{password, secret} {
		if err := os.WriteFile(path, []byte("nobody knows this, not even by guessing it"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("BERTH_ADMIN_PASSWORD_FILE", password)
	t.Setenv("BERTH_SECRET_KEY_FILE", secret)
	before := syscall.Umask(0)
	defer syscall.Umask(before)
	r := own(t)
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), binary, args...).CombinedOutput(); err != nil {
			t.Fatalf("berth %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	run("user", "add", "--data", r.data, "--generate", "ann")
	backup := filepath.Join(dir, "backup")
	seen := 0
	for range 2 { // over an earlier one, too
		run("admin", "backup", "--data", r.data, backup)
		for _, root := range []string{r.data, backup} {
			err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
				if errors.Is(err, fs.ErrNotExist) {
					return nil // it goes on working
				} else if err != nil {
					return err
				}
				info, err := d.Info()
				if err != nil {
					return err
				}
				if seen++; info.Mode().Perm()&0o077 != 0 {
					t.Errorf("%s has the mode %s", path, info.Mode())
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if seen < 20 {
		t.Errorf("only %d files were looked at", seen)
	}
}
