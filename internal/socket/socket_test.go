package socket_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth.internal/internal/socket"
)

// dir returns a directory whose path has at least n bytes.
func dir(t *testing.T, n int) string {
	t.Helper()
	path := t.TempDir()
	for len(path) < n {
		path = filepath.Join(path, strings.Repeat("d", 60))
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// greet serves one connection of l and reports whether a client reaches it.
func greet(t *testing.T, l net.Listener, path string) {
	t.Helper()
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = c.Write([]byte("x"))
			c.Close()
		}
	}()
	c, err := socket.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 1 {
		t.Errorf("no answer by the socket: %v", err)
	}
}

func TestListen(t *testing.T) {
	old := syscall.Umask(0) // the worst that there is
	defer syscall.Umask(old)
	for _, tc := range []struct {
		name string
		long int
	}{{"short path", 0}, {"path longer than the kernel takes", 200}} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(dir(t, tc.long), "admin.sock")
			l, err := socket.Listen(t.Context(), path, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Lstat(path)
			if err != nil || info.Mode() != os.ModeSocket|0o600 {
				t.Fatalf("the socket is %v, %v; want mode 0600", info, err)
			}
			greet(t, l, path)
			if _, err := socket.Listen(t.Context(), path, 0o600); !errors.Is(err, socket.ErrInUse) {
				t.Errorf("Listen where somebody serves = %v, want ErrInUse", err)
			}
			if left, err := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
				t.Errorf("beside the socket there is %v, %v", left, err)
			}
			for range 2 {
				if err := l.Close(); err != nil {
					t.Errorf("Close() = %v", err)
				}
			}
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the closed socket: %v, want it gone", err)
			}
			if _, err := socket.Dial(t.Context(), path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("Dial where nothing is = %v, want os.ErrNotExist", err)
			}
		})
	}
}

// abandon leaves a socket as a killed process does.
func abandon(t *testing.T, path string) {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	abandon(t, path)
	if err := os.MkdirAll(filepath.Join(filepath.Dir(path), ".s.new", "s"), 0o700); err != nil { // a crash in Listen
		t.Fatal(err)
	}
	if _, err := socket.Dial(t.Context(), path); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("Dial of a stale socket = %v, want ECONNREFUSED", err)
	}
	l, err := socket.Listen(t.Context(), path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	greet(t, l, path)

	// What somebody else has put in its place stays when it closes.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	abandon(t, path)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("another's socket: %v, want it there", err)
	}
}

func TestRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := socket.Listen(t.Context(), file, 0o600); !errors.Is(err, socket.ErrNotSocket) {
		t.Errorf("Listen on a file = %v, want ErrNotSocket", err)
	}
	if b, err := os.ReadFile(file); string(b) != "precious" {
		t.Errorf("the file holds %q, %v", b, err)
	}
	if _, err := socket.Listen(t.Context(), filepath.Join(t.TempDir(), "no", "s"), 0o600); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Listen in no directory = %v, want os.ErrNotExist", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := socket.Listen(ended, filepath.Join(t.TempDir(), "s"), 0o600); err == nil {
		t.Error("Listen with a context that has ended = nil")
	}
}
