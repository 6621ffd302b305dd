package container_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth.internal/node/container"
)

// silentFS mounts a file system whose server answers nothing after it is mounted, and
// returns what is closed when somebody has asked for something. Who asks can be killed,
// since the question is not taken.
func silentFS(t *testing.T, dir string) (asked <-chan struct{}) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	dev := os.NewFile(uintptr(fd), "/dev/fuse")
	t.Cleanup(func() { dev.Close() })
	if err := unix.Mount("silent", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	got := make(chan struct{})
	go func() {
		defer close(got)
		b := make([]byte, 1<<20)
		if _, err := dev.Read(b); err != nil { // FUSE_INIT (linux/fuse.h)
			t.Error(err)
			return
		}
		answer := make([]byte, 16+64) // fuse_out_header, fuse_init_out
		binary.NativeEndian.PutUint32(answer, uint32(len(answer)))
		copy(answer[8:16], b[8:16]) // unique
		binary.NativeEndian.PutUint32(answer[16:], 7)
		binary.NativeEndian.PutUint32(answer[20:], 31)
		binary.NativeEndian.PutUint32(answer[36:], 4096) // max_write
		if _, err := dev.Write(answer); err != nil {
			t.Error(err)
			return
		}
		if !poll(t, fd, unix.POLLIN, time.Now().Add(30*time.Second)) {
			t.Error("nobody asked")
		}
	}()
	return got
}

// TestExecThatHangs has a process of exec wait for a file system that does not answer,
// before it has executed its command: it uses the memory of its shim, which shall go on.
func TestExecThatHangs(t *testing.T) {
	n := newNode(t)
	source := filepath.Join(n.dir, "source")
	if err := os.MkdirAll(source+"/silent", 0o755); err != nil {
		t.Fatal(err)
	}
	asked := silentFS(t, source+"/silent")
	b := n.bundle(t, "sh", "-c", "echo ready; exec cat")
	hostUsers(&b)
	b.Stdin = true
	add("/x", "bind", source, "rbind")(b.Spec)
	out := n.begin(t, b)
	type result struct {
		code int
		err  error
	}
	hanging := make(chan result, 1)
	go func() {
		p := processWith(b, "true")
		p.Cwd = "/x/silent"
		r := result{}
		e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *p})
		if r.err = err; err == nil {
			r.code, r.err = e.Wait(testContext(t))
		}
		hanging <- r
	}()
	<-asked
	e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *processWith(b, "echo", "here"), AttachOptions: container.AttachOptions{Stdout: true}})
	if err != nil {
		t.Fatal(err)
	}
	said, err := io.ReadAll(e.Stdout)
	if code, werr := e.Wait(testContext(t)); string(said) != "here\n" || err != nil || code != 0 || werr != nil {
		t.Errorf("another one says %q, %v and ends with %d, %v", said, err, code, werr)
	}
	if s, err := n.State(testContext(t), b.ID); err != nil || s.Status != container.StatusRunning {
		t.Errorf("the container is %v, %v", s.Status, err)
	}
	select {
	case r := <-hanging:
		t.Errorf("the one that hangs has ended: %+v", r)
	default:
	}
	n.halt(t, b.ID, out)
	if r := <-hanging; r.code != 128+int(unix.SIGKILL) || r.err != nil {
		t.Errorf("the one that hung ended with %d, %v; want 137, as killed", r.code, r.err)
	}
}

// TestExecEndsAtOnce runs processes that end before anybody could ask for it, many at a time.
func TestExecEndsAtOnce(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sh", "-c", "echo ready; exec cat")
	b.Stdin = true
	out := n.begin(t, b)
	results := make(chan error)
	for i := range 8 {
		go func() {
			for range 25 {
				e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *processWith(b, "sh", "-c", fmt.Sprintf("exit %d", i))})
				if err != nil {
					results <- err
					return
				}
				code, err := e.Wait(testContext(t))
				if err == nil && code != i {
					err = fmt.Errorf("exit code %d, want %d", code, i)
				}
				if err != nil {
					results <- err
					return
				}
			}
			results <- nil
		}()
	}
	for range 8 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	n.halt(t, b.ID, out)
}
