package call_test

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
)

// load encodes and loads p.
func load(t *testing.T, p *call.Program) *call.Code {
	t.Helper()
	c, err := call.Load(p.Encode())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// pipe returns a pipe, both ends as files.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close(); _ = w.Close() })
	return r, w
}

func TestRun(t *testing.T) {
	for _, tc := range []struct {
		name  string
		build func(p *call.Program, out call.Reg)
		want  string
		err   string
	}{
		{"calls in order", func(p *call.Program, out call.Reg) {
			p.Call(unix.SYS_WRITE, call.Get(out), call.Str("one "), call.Int(4))
			p.Call(unix.SYS_WRITE, call.Get(out), call.Data([]byte("two")), call.Int(3))
		}, "one two", ""},
		{"result", func(p *call.Program, out call.Reg) {
			dup := p.Reg()
			p.Call(unix.SYS_FCNTL, call.Get(out), call.Int(unix.F_DUPFD_CLOEXEC), call.Int(0)).To(dup)
			p.Call(unix.SYS_WRITE, call.Get(dup), call.Str("x"), call.Int(1))
			p.Call(unix.SYS_CLOSE, call.Get(dup))
		}, "x", ""},
		{"failure", func(p *call.Program, out call.Reg) {
			p.Call(unix.SYS_OPENAT, call.Int(unix.AT_FDCWD), call.Str("/no/such"), call.Int(0)).As("open it")
			p.Call(unix.SYS_WRITE, call.Get(out), call.Str("x"), call.Int(1))
		}, "", "open it: no such file or directory"},
		{"error with a branch", func(p *call.Program, out call.Reg) {
			skip := p.Label()
			p.Call(unix.SYS_OPENAT, call.Int(unix.AT_FDCWD), call.Str("/no/such"), call.Int(0)).On(skip, unix.EACCES, unix.ENOENT)
			p.Call(unix.SYS_WRITE, call.Get(out), call.Str("skipped"), call.Int(7))
			p.Place(skip)
			p.Call(unix.SYS_WRITE, call.Get(out), call.Str("end"), call.Int(3))
		}, "end", ""},
		{"success with a branch", func(p *call.Program, out call.Reg) {
			end := p.Label()
			p.Call(unix.SYS_WRITE, call.Get(out), call.Str("x"), call.Int(1)).Then(end)
			p.Fail(unix.EINVAL)
			p.Place(end)
		}, "x", ""},
		{"too little", func(p *call.Program, out call.Reg) {
			p.Call(unix.SYS_READ, call.Int(0), call.Data(make([]byte, 1)), call.Int(0)).AtLeast(1).As("read")
		}, "", "read: broken pipe"},
		{"patched memory", func(p *call.Program, out call.Reg) {
			p.Call(unix.SYS_WRITE, call.Get(out), call.Patched([]byte("12345678........"), 8, out), call.Int(8))
		}, "12345678", ""},
		{"mode", func(p *call.Program, out call.Reg) {
			dir, mode := p.Reg(), p.Reg()
			p.Call(unix.SYS_OPENAT, call.Int(unix.AT_FDCWD), call.Str("/tmp"), call.Int(unix.O_PATH), call.Int(0)).To(dir)
			p.Mode(dir).To(mode)
			p.Call(unix.SYS_WRITE, call.Get(out), call.Patched([]byte("12345678"), 0, mode), call.Int(8))
			p.Call(unix.SYS_CLOSE, call.Get(dir))
		}, "\xff\x03\x00\x00\x00\x00\x00\x00", ""},
		{"mode of nothing", func(p *call.Program, _ call.Reg) {
			none := p.Reg()
			p.Mode(none).As("look")
		}, "", "look: bad file descriptor"},
		{"tree of nothing", func(p *call.Program, _ call.Reg) {
			none := p.Reg()
			p.Tree(none, none).As("map")
		}, "", "map: no such file or directory"},
		{"unnamed", func(p *call.Program, _ call.Reg) { p.Call(unix.SYS_CLOSE, call.Int(-1)) }, "", "call 0 (close): bad file descriptor"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, w := pipe(t)
			p := call.New(1)
			tc.build(p, 0)
			_, err := load(t, p).Run(-1, []uintptr{w.Fd()})
			if got := errText(err); got != tc.err {
				t.Errorf("error %q, want %q\n%s", got, tc.err, p)
			}
			_ = w.Close()
			buf := make([]byte, 100)
			n, _ := r.Read(buf)
			if got := string(buf[:n]); got != tc.want {
				t.Errorf("wrote %q, want %q\n%s", got, tc.want, p)
			}
		})
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestFork lets a child say in all ways how far it came.
func TestFork(t *testing.T) {
	for _, share := range []bool{false, true} {
		t.Run(fmt.Sprintf("share %v", share), func(t *testing.T) { testFork(t, share) })
	}
}

func testFork(t *testing.T, share bool) {
	r, w := pipe(t)
	out, in := pipe(t)
	p := call.New(2)
	p.Call(unix.SYS_CLOSE, call.Int(-1)).Warn().As("close nothing")
	p.Ready()
	p.Call(unix.SYS_WRITE, call.Get(1), call.Str("from the child"), call.Int(14))
	p.Call(unix.SYS_EXECVE, call.Str("/no/such"), p.List([]string{"a"}), p.List(nil)).Command().As("execute /no/such")
	c := load(t, p)
	pid, pidfd, err := call.Fork{Share: share, Status: int(w.Fd()), Regs: []uintptr{w.Fd(), in.Fd()}}.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &ws, 0, nil); err != nil || ws.ExitStatus() != 1 {
		t.Errorf("child ended with %v, %v; want exit status 1", ws, err)
	}
	var got []string
	b := make([]byte, call.ReportSize)
	for range 3 {
		if _, err := r.Read(b); err != nil {
			t.Fatal(err)
		}
		switch rep := call.ParseReport(b, nil, c); {
		case rep.Ready:
			got = append(got, "ready")
		case rep.Warning:
			got = append(got, "warning: "+rep.Failure.Error())
		default:
			got = append(got, rep.Failure.Error())
			if !rep.Failure.Command || !errors.Is(rep.Failure, unix.ENOENT) {
				t.Errorf("failure %+v, want a command's and ENOENT", rep.Failure)
			}
		}
	}
	if want := "warning: close nothing: bad file descriptor, ready, execute /no/such: no such file or directory"; strings.Join(got, ", ") != want {
		t.Errorf("reports %q, want %q", got, want)
	}
	text := make([]byte, 20)
	if n, err := out.Read(text); err != nil || string(text[:n]) != "from the child" {
		t.Errorf("child wrote %q, %v", text[:n], err)
	}
}

// TestForkShared has a child that waits for its parent's other threads, which must go on
// meanwhile, also if only one may run at a time.
func TestForkShared(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	out, in := pipe(t)
	wait, word := pipe(t)
	_, w := pipe(t)
	p := call.New(3)
	b := p.Reg()
	p.Call(unix.SYS_WRITE, call.Get(1), call.Str("here"), call.Int(4))
	p.Call(unix.SYS_READ, call.Get(2), call.Data(make([]byte, 1)), call.Int(1)).To(b).AtLeast(1)
	p.Call(unix.SYS_EXIT_GROUP, call.Get(b))
	c := load(t, p)
	type result struct {
		pid int
		err error
	}
	started := make(chan result, 1)
	go func() {
		pid, pidfd, err := call.Fork{Share: true, Status: int(w.Fd()), Regs: []uintptr{w.Fd(), in.Fd(), wait.Fd()}}.Start(c)
		started <- result{pid, errors.Join(err, unix.Close(pidfd))}
	}()
	text := make([]byte, 5)
	if n, err := out.Read(text); err != nil || string(text[:n]) != "here" {
		t.Fatalf("child wrote %q, %v", text[:n], err)
	}
	select {
	case r := <-started:
		t.Errorf("start returned %v while the child still used the memory", r)
	default:
	}
	if _, err := word.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	r := <-started
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(r.pid, &ws, 0, nil); r.err != nil || err != nil || ws.ExitStatus() != 1 {
		t.Errorf("start %v, child ended with %v, %v; want exit status 1", r.err, ws, err)
	}
}

// TestForkClosesOthers forks a child that looks for a descriptor it was not
// given.
func TestForkClosesOthers(t *testing.T) {
	r, w := pipe(t)
	_, other := pipe(t)
	p := call.New(1)
	p.Call(unix.SYS_FCNTL, call.Get(0), call.Int(unix.F_GETFD), call.Int(0)).As("given")
	p.Call(unix.SYS_FCNTL, call.Int(int(other.Fd())), call.Int(unix.F_GETFD), call.Int(0)).As("not given")
	c := load(t, p)
	pid, pidfd, err := call.Fork{Status: int(w.Fd()), Regs: []uintptr{w.Fd()}}.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, call.ReportSize)
	if _, err := r.Read(b); err != nil {
		t.Fatal(err)
	}
	if got := call.ParseReport(b, nil, c).Failure.Error(); got != "not given: bad file descriptor" {
		t.Errorf("child failed with %q", got)
	}
}

func TestReceive(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	r, w := pipe(t)
	p := call.New(1)
	got := p.Regs(3)
	p.Receive(0, got, 3)
	p.Call(unix.SYS_WRITE, call.Get(got+2), call.Str("x"), call.Int(1))
	if err := unix.Sendmsg(fds[1], []byte{0}, unix.UnixRights(0, 0, int(w.Fd())), nil, 0); err != nil {
		t.Fatal(err)
	}
	regs, err := load(t, p).Run(-1, []uintptr{uintptr(fds[0])})
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range append(regs[1:], uintptr(fds[0])) {
		_ = unix.Close(int(fd))
	}
	b := make([]byte, 1)
	if _, err := r.Read(b); err != nil || b[0] != 'x' {
		t.Errorf("read %q, %v", b, err)
	}
	// The other side is gone.
	_ = unix.Close(fds[1])
}

func FuzzLoad(f *testing.F) {
	p := call.New(2)
	list := p.List([]string{"a", "b"})
	end := p.Label()
	p.Call(unix.SYS_EXECVE, call.Str("/x"), list, list).On(end, unix.ENOENT).Then(end).Command().As("execute")
	p.Receive(0, 1, 1)
	p.Call(unix.SYS_SECCOMP, call.Filter(make([]byte, 16)), call.Patched(make([]byte, 32), 24, 1)).To(1).AtLeast(3)
	p.Fail(unix.EINVAL)
	p.Ready()
	p.Mode(0).To(1)
	p.Tree(0, 1).To(1)
	p.Place(end)
	f.Add(p.Encode())
	f.Add([]byte{call.Version})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := call.Load(b)
		if (c == nil) == (err == nil) {
			t.Errorf("Load = %v, %v", c, err)
		}
		if c != nil {
			// What a report points at must be there, whatever it is.
			report := make([]byte, call.ReportSize)
			for i := range 256 {
				report[0] = byte(i)
				_ = call.ParseReport(report, c, c).Failure.Error()
			}
		}
	})
}
