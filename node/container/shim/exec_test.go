package shim

import (
	"os"
	"path/filepath"
	"testing"
)

func TestStaysPrivate(t *testing.T) {
	for value, want := range map[string]bool{"0\n": true, "1\n": false, "2\n": true, "": false} {
		setting := filepath.Join(t.TempDir(), "suid_dumpable")
		if err := os.WriteFile(setting, []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := staysPrivate(setting); got != want {
			t.Errorf("staysPrivate with %q = %v, want %v", value, got, want)
		}
	}
	if staysPrivate(filepath.Join(t.TempDir(), "none")) {
		t.Error("staysPrivate without the setting = true, want false")
	}
}
