package node

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestIdentityIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "id")
	first, err := identity(path)
	if err != nil {
		t.Fatal(err)
	}
	again, err := identity(path)
	if err != nil || again != first || len(first) != 32 || len(first.short()) != 8 {
		t.Errorf("identity = %q, then %q, %v", first, again, err)
	}
	if err := os.WriteFile(path, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if id, err := identity(path); err == nil {
		t.Errorf("a damaged id became %q: containers would lose their node", id)
	}
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "node.sock")
	l, err := listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket has mode %v, %v; want 0660", info.Mode(), err)
	}
	if _, err := listen(t.Context(), path); err == nil || !strings.Contains(err.Error(), "--socket") {
		t.Errorf("a second node on the socket: %v, want an error with the next step", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket is still there after the end")
	}
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	l, err = listen(t.Context(), path)
	if err != nil {
		t.Fatalf("a socket that a dead node left behind: %v", err)
	}
	l.Close()
	if err := os.WriteFile(path, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(t.Context(), path); err == nil {
		t.Error("a file that is no socket was replaced")
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestValidate(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	err := Config{Socket: strings.Repeat("x", 108), RegistryUser: "robot+node"}.Validate()
	if err == nil {
		t.Fatal("an empty configuration is accepted")
	}
	for i, want := range []string{"registry: ", "registry_user: ", "data: ", "socket: ", "runtime: "} {
		if lines := strings.Split(err.Error(), "\n"); len(lines) != 5 || !strings.HasPrefix(lines[i], want) {
			t.Errorf("line %d of %q, want %s…", i+1, lines, want)
		}
	}
}
