package shim_test

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth.internal/node/container/shim"
)

// pair returns both ends of a connection.
func pair(t testing.TB) (a, b *shim.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*shim.Conn
	for i, fd := range fds {
		if conns[i], err = shim.NewConn(fd); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conns[i].Close() })
	}
	return conns[0], conns[1]
}

func TestMessage(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	blob := strings.Repeat("blob", 1<<20) // more than a socket holds
	sent := make(chan error, 1)
	go func() {
		sent <- errors.Join(a.Send(shim.Request{Version: 7, Method: "x"}, []byte(blob), w), w.Close(), a.Close())
	}()
	var req shim.Request
	got, files, err := b.Receive(&req)
	if err != nil || req.Version != 7 || req.Method != "x" || string(got) != blob || len(files) != 1 {
		t.Fatalf("Receive = %+v, %d bytes, %d files, %v", req, len(got), len(files), err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	if _, err := files[0].WriteString("through"); err != nil {
		t.Error(err)
	}
	_ = files[0].Close()
	if text, err := io.ReadAll(r); err != nil || string(text) != "through" {
		t.Errorf("through the descriptor: %q, %v", text, err)
	}
	if _, _, err := b.Receive(&req); !errors.Is(err, io.EOF) {
		t.Errorf("Receive at the end = %v, want EOF", err)
	}
}

func TestDeadline(t *testing.T) {
	a, _ := pair(t)
	if err := a.SetDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Receive(new(shim.Response)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Receive = %v, want ErrDeadlineExceeded", err)
	}
}

// TestLongPath listens where the kernel takes no name of that length.
func TestLongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, strings.Repeat("f", 64)+".sock")
	l, err := shim.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := shim.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	_ = l.Close()
	if _, err := shim.Dial(path); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("Dial when nobody listens = %v, want ECONNREFUSED", err)
	}
}

// FuzzReceive sends anything. What is announced and not sent is an error, not
// memory taken.
func FuzzReceive(f *testing.F) {
	body := []byte(`{"version":1,"method":"kill","kill":{"signal":9}}`)
	head := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	f.Add(append(append(head, 0, 0, 0, 3), append(body, "abc"...)...))
	f.Add([]byte{255, 255, 255, 255, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		c, err := shim.NewConn(fds[0])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = unix.Write(fds[1], b[:min(len(b), 100<<10)])
		_ = unix.Close(fds[1])
		var req shim.Request
		blob, _, err := c.Receive(&req)
		if err == nil && len(blob)+8 > len(b) {
			t.Errorf("%d bytes gave a blob of %d", len(b), len(blob))
		}
	})
}
