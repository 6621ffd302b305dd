package container_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container"
	"berth.internal/node/container/shim"
)

// withTerminal returns a container with a terminal of 24 rows and 80 columns that
// runs a shell script. users is "own" or "host".
func (n *node) withTerminal(t testing.TB, users, script string) container.Bundle {
	t.Helper()
	b := n.bundle(t, "sh", "-c", script)
	b.Terminal, b.Stdin, b.StdinOnce = &container.TerminalSize{Rows: 24, Columns: 80}, true, true
	b.Spec.Process.Terminal = true
	if users == "host" {
		b.Spec.Linux.Namespaces = b.Spec.Linux.Namespaces[1:]
		b.Spec.Linux.UIDMappings, b.Spec.Linux.GIDMappings = nil, nil
	}
	return b
}

// TestTerminal looks at a container's terminal from inside.
func TestTerminal(t *testing.T) {
	n := newNode(t)
	for _, users := range []string{"own", "host"} {
		for _, tc := range []struct{ name, script, want string }{
			{"name", "tty; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && readlink /proc/self/fd/2", "/dev/pts/0\n/dev/pts/0\n"},
			{"owner", "stat -c '%u:%g %a' /dev/pts/0 /dev/pts/ptmx /dev/console", "0:5 620\n0:0 666\n0:5 620\n"},
			{"size", "stty size", "24 80\n"},
			{"controlling", "echo x >/dev/tty; echo y >/dev/console", "x\ny\n"},
			{"error stream", "echo x >&2", "x\n"},
		} {
			t.Run(users+"/"+tc.name, func(t *testing.T) {
				out, errs, s := n.run(t, n.withTerminal(t, users, tc.script))
				if out != strings.ReplaceAll(tc.want, "\n", "\r\n") || errs != "" || s.ExitCode != 0 {
					t.Errorf("%q: log has %q, %q; exit code %d; want %q", tc.script, out, errs, s.ExitCode, tc.want)
				}
			})
		}
	}
}

// screen reads what a terminal shows.
type screen struct {
	*bufio.Reader
}

// screenOf returns what is shown on r. It ends long before the test's own limit.
func screenOf(t *testing.T, r io.ReadCloser) screen {
	t.Helper()
	context.AfterFunc(testContext(t), func() { _ = r.Close() })
	return screen{bufio.NewReader(r)}
}

// expect reads up to want, and returns what came before.
func (s screen) expect(t *testing.T, want string) string {
	t.Helper()
	var got strings.Builder
	for !strings.HasSuffix(got.String(), want) {
		c, err := s.ReadByte()
		if err != nil {
			t.Fatalf("read %q, then %v; want %q", got.String(), err, want)
		}
		got.WriteByte(c)
	}
	return strings.TrimSuffix(got.String(), want)
}

// write types into a terminal.
func write(t *testing.T, to io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(to, text); err != nil {
		t.Fatal(err)
	}
}

var both = container.AttachOptions{Stdin: true, Stdout: true}

// TestTerminalInput types a line, and the end of input. The first client to leave
// ends nothing.
func TestTerminalInput(t *testing.T) {
	n := newNode(t)
	b := n.withTerminal(t, "own", "read a; read line; echo got $line; cat; echo end; exit 3")
	n.create(t, b)
	n.start(t, b.ID)
	first := n.attach(t, b.ID, both)
	write(t, first.Stdin, "x\n")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	// An agent that comes later finds the terminal as it is.
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n.open(t)
	s := n.attach(t, b.ID, all)
	out := screenOf(t, s.Stdout)
	if got := readAll(t, s.Stderr); got != "" {
		t.Errorf("standard error of a terminal has %q", got)
	}
	for _, step := range []struct{ input, want string }{
		{"hello\n", "got hello\r\n"}, {"echo\n", "echo\r\necho\r\n"}, {"\x04", "end\r\n"},
	} {
		write(t, s.Stdin, step.input)
		out.expect(t, step.want)
	}
	if _, err := out.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v, want EOF", err)
	}
	if st, err := n.Wait(testContext(t), b.ID); err != nil || st.ExitCode != 3 {
		t.Errorf("%+v, %v; want exit code 3", st, err)
	}
	if log, _ := readLog(t, b.Log.Path); !strings.HasSuffix(log, "end\r\n") {
		t.Errorf("the log ends with %q", log)
	}
}

// TestJobControl stops and interrupts jobs from the keyboard, with an init in front
// and without.
func TestJobControl(t *testing.T) {
	n := newNode(t)
	const job = "#!/bin/sh\ntrap 'echo going on' CONT\necho ready\nwhile :; do sleep 0.05; done\n"
	if err := os.WriteFile(filepath.Join(n.lower, "bin/job"), []byte(job), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, users := range []string{"own", "host"} {
		for _, init := range []bool{false, true} {
			b := n.withTerminal(t, users, "exec sh -i")
			b.Init = init
			n.create(t, b)
			n.start(t, b.ID)
			s := n.attach(t, b.ID, both)
			out := screenOf(t, s.Stdout)
			write(t, s.Stdin, "job\n")
			out.expect(t, "\nready\r\n")
			write(t, s.Stdin, "\x1a") // Ctrl-Z
			out.expect(t, "Stopped")
			write(t, s.Stdin, "fg\n")
			out.expect(t, "\ngoing on\r\n")
			write(t, s.Stdin, "\x03") // Ctrl-C
			out.expect(t, "^C")
			write(t, s.Stdin, "echo code $?; exit 5\n")
			out.expect(t, "\ncode 130\r\n")
			if st, err := n.Wait(testContext(t), b.ID); err != nil || st.ExitCode != 5 {
				t.Errorf("%s users, init %t: %+v, %v; want exit code 5", users, init, st, err)
			}
		}
	}
}

// TestTerminalOfUser runs as a user without rights, who may also open terminals.
func TestTerminalOfUser(t *testing.T) {
	n := newNode(t)
	for _, users := range []string{"own", "host"} {
		b := n.withTerminal(t, users, "stat -c '%u:%g' /dev/pts/0; echo x >/dev/tty; (exec 5<>/dev/ptmx && ls /dev/pts); tty </dev/console")
		b.Spec.Process.User.UID, b.Spec.Process.User.GID = 33, 34
		const want = "33:5 x 0 1 ptmx /dev/console" // in columns
		if out, _, s := n.run(t, b); strings.Join(strings.Fields(out), " ") != want || s.ExitCode != 0 {
			t.Errorf("%s users: %q, exit code %d; want %q", users, out, s.ExitCode, want)
		}
	}
}

// TestTerminalClosedByItsProgram lets a program close its terminal and open it
// again: that is no end.
func TestTerminalClosedByItsProgram(t *testing.T) {
	n := newNode(t)
	b := n.withTerminal(t, "own", "echo before; exec 0<&- 1<&- 2<&-; until [ -e /tmp/go ]; do :; done; echo after >/dev/pts/0; echo last >/dev/console")
	n.create(t, b)
	s := n.attach(t, b.ID, container.AttachOptions{Stdout: true})
	n.start(t, b.ID)
	out := screenOf(t, s.Stdout)
	out.expect(t, "before\r\n")
	for _, args := range [][]string{{"sh", "-c", "until ! ls /proc/1/fd | grep 0; do :; done"}, {"touch", "/tmp/go"}} {
		e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *plain(b, args...)})
		if err != nil {
			t.Fatal(err)
		}
		if code, err := e.Wait(testContext(t)); code != 0 || err != nil {
			t.Fatalf("%q: exit code %d, %v", args, code, err)
		}
	}
	if got := readAll(t, out); got != "after\r\nlast\r\n" {
		t.Errorf("got %q", got)
	}
}

// TestMuchTerminalOutput reads slowly what is written fast.
func TestMuchTerminalOutput(t *testing.T) {
	n := newNode(t)
	b := n.withTerminal(t, "own", "seq 1 50000")
	n.create(t, b)
	s := n.attach(t, b.ID, container.AttachOptions{Stdout: true})
	n.start(t, b.ID)
	var want strings.Builder
	for i := range 50000 {
		fmt.Fprintf(&want, "%d\r\n", i+1)
	}
	var got strings.Builder
	buf := make([]byte, 100)
	for {
		k, err := s.Stdout.Read(buf)
		got.Write(buf[:k])
		if err != nil {
			break
		}
		runtime.Gosched()
	}
	if got.String() != want.String() {
		t.Errorf("attached: %d bytes, want %d", got.Len(), want.Len())
	}
	if st, err := n.Wait(testContext(t), b.ID); err != nil || st.ExitCode != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	if out, _ := readLog(t, b.Log.Path); out != want.String() {
		t.Errorf("log: %d bytes, want %d", len(out), want.Len())
	}
}

// TestResize changes the size of the terminals of a container and of exec.
func TestResize(t *testing.T) {
	n := newNode(t)
	b := n.withTerminal(t, "own", "trap 'stty size' WINCH; echo ready; while read x; do :; done")
	n.create(t, b)
	s := n.attach(t, b.ID, container.AttachOptions{Stdin: true, Stdout: true})
	out := bufio.NewReader(s.Stdout)
	n.start(t, b.ID)
	line := func() string {
		t.Helper()
		text, err := out.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	if got := line(); got != "ready\r\n" {
		t.Fatalf("got %q", got)
	}
	if err := n.Resize(testContext(t), b.ID, container.TerminalSize{Rows: 50, Columns: 132}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(s.Stdin, "\n"); err != nil { // the shell acts on signals after a command
		t.Fatal(err)
	}
	for got := line(); ; got = line() {
		if strings.TrimSpace(got) == "50 132" {
			break
		}
		if strings.TrimSpace(got) != "" {
			t.Fatalf("after Resize: %q", got)
		}
	}
}

func TestExecTerminal(t *testing.T) {
	n := newNode(t)
	for _, users := range []string{"own", "host"} {
		b := n.withTerminal(t, users, "read x")
		b.Spec.Process.Terminal, b.Terminal, b.StdinOnce = false, nil, false
		n.create(t, b)
		n.start(t, b.ID)
		p := *processWith(b, "sh", "-c", "tty; stat -c '%u:%g' /dev/pts/0; stty size; read x; stty size; exit 4")
		p.Terminal, p.User.UID, p.User.GID = true, 7, 8
		e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{
			Process: p, Terminal: &container.TerminalSize{Rows: 5, Columns: 6}, AttachOptions: container.AttachOptions{Stdin: true, Stdout: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		out := bufio.NewReader(e.Stdout)
		for _, want := range []string{"/dev/pts/0\r\n", "7:5\r\n", "5 6\r\n"} {
			if got, err := out.ReadString('\n'); err != nil || got != want {
				t.Errorf("%s users: %q, %v; want %q", users, got, err, want)
			}
		}
		if err := e.Resize(container.TerminalSize{Rows: 7, Columns: 8}); err != nil {
			t.Error(err)
		}
		if _, err := io.WriteString(e.Stdin, "\n"); err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, out); got != "\r\n7 8\r\n" {
			t.Errorf("%s users: after Resize %q", users, got)
		}
		if code, err := e.Wait(testContext(t)); code != 4 || err != nil {
			t.Errorf("%s users: exit code %d, %v; want 4", users, code, err)
		}
		if err := e.Streams.Close(); err != nil {
			t.Error(err)
		}
		if err := e.Resize(container.TerminalSize{}); !errors.Is(err, container.ErrStatus) {
			t.Errorf("Resize of a closed terminal = %v, want ErrStatus", err)
		}
		if err := n.Resize(testContext(t), b.ID, container.TerminalSize{}); !errors.Is(err, container.ErrStatus) {
			t.Errorf("Resize of a container without a terminal = %v, want ErrStatus", err)
		}
	}
}

// plain is processWith without a terminal.
func plain(b container.Bundle, args ...string) *specs.Process {
	p := processWith(b, args...)
	p.Terminal = false
	return p
}

// TestExecHangup closes the streams of a process with a terminal, as the death of an
// agent does: it is told so.
func TestExecHangup(t *testing.T) {
	n := newNode(t)
	b := n.withTerminal(t, "own", "read x")
	n.create(t, b)
	n.start(t, b.ID)
	p := *processWith(b, "sh", "-c", "trap 'exit 9' HUP; echo ready; while :; do sleep 0.01; done")
	e := n.execTerminal(t, b.ID, p, both)
	screenOf(t, e.Stdout).expect(t, "ready\r\n")
	if err := e.Streams.Close(); err != nil {
		t.Fatal(err)
	}
	if code, err := e.Wait(testContext(t)); code != 9 || err != nil {
		t.Errorf("exit code %d, %v; want 9", code, err)
	}
}

func (n *node) execTerminal(t *testing.T, id string, p specs.Process, o container.AttachOptions) *container.Exec {
	t.Helper()
	p.Terminal = true
	e, err := n.Exec(testContext(t), id, container.ExecSpec{Process: p, Terminal: &container.TerminalSize{Rows: 10, Columns: 20}, AttachOptions: o})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestExecTerminals runs many processes with terminals, some that cannot be
// executed, some that nobody looks at, and counts what the shim has open then.
func TestExecTerminals(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sleep", "1000")
	n.create(t, b)
	n.start(t, b.ID)
	// All but sockets: that of a request is closed when it has been answered.
	count := func() (some int) {
		dir := fmt.Sprintf("/proc/%d/fd", n.shimOf(t, b.ID))
		fds, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			if to, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && !strings.HasPrefix(to, "socket:") {
				some++
			}
		}
		return some
	}
	here, there := open(t), 0
	for i := range 20 {
		// More than a terminal holds; the process goes on only if somebody reads it.
		e := n.execTerminal(t, b.ID, *processWith(b, "sh", "-c", "seq 1 5000; tty"), container.AttachOptions{Stdout: i%2 == 0})
		if i%2 == 0 {
			if got := readAll(t, e.Stdout); !strings.HasSuffix(got, "5000\r\n/dev/pts/0\r\n") {
				t.Errorf("got %d bytes", len(got))
			}
		}
		if code, err := e.Wait(testContext(t)); code != 0 || err != nil {
			t.Errorf("exit code %d, %v", code, err)
		}
		if err := e.Streams.Close(); err != nil {
			t.Error(err)
		}
		p := *processWith(b, "nothing")
		p.Terminal = true
		if _, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: p, Terminal: &container.TerminalSize{}, AttachOptions: both}); !errors.Is(err, container.ErrNoCommand) {
			t.Errorf("Exec of nothing = %v, want ErrNoCommand", err)
		}
		if i == 0 {
			there = count()
		}
	}
	if after := count(); after > there {
		t.Errorf("the shim has %d descriptors, %d at first", after, there)
	}
	if after := open(t); after > here+2 {
		t.Errorf("%d descriptors are open here, %d before", after, here)
	}
	p := *processWith(b, "true")
	if _, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: p, Terminal: &container.TerminalSize{}}); err == nil || !strings.Contains(err.Error(), "process.terminal") {
		t.Errorf("Exec with a terminal that the process does not ask for = %v", err)
	}
}

// TestPtmxReplaced lets a container with the right to mount put something else where
// terminals are opened: a FIFO that would stop who opens it, or a file of its own. The
// shim enters nothing of it, and its file system goes on to work.
func TestPtmxReplaced(t *testing.T) {
	n := newNode(t)
	for _, users := range []string{"own", "host"} {
		b := n.bundle(t, "sh", "-c", "sleep 1000")
		if users == "host" {
			hostUsers(&b)
		}
		b.Spec.Linux.Seccomp = nil
		caps := append(container.DefaultCapabilities(), "CAP_SYS_ADMIN")
		b.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
		n.create(t, b)
		n.start(t, b.ID)
		do := func(script string) {
			t.Helper()
			e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *processWith(b, "sh", "-c", script)})
			if err != nil {
				t.Fatal(err)
			}
			if code, err := e.Wait(testContext(t)); code != 0 || err != nil {
				t.Fatalf("%s users: %s: exit code %d, %v", users, script, code, err)
			}
		}
		p := *processWith(b, "tty")
		p.Terminal = true
		for _, script := range []string{
			"mknod /tmp/fifo p && mount --bind /tmp/fifo /dev/pts/ptmx", "echo >/tmp/file && mount --bind /tmp/file /dev/pts/ptmx",
		} {
			do(script)
			e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: p, Terminal: &container.TerminalSize{}, AttachOptions: both})
			if !errors.Is(err, unix.EXDEV) && (err == nil || !strings.Contains(err.Error(), "open a terminal: "+unix.EXDEV.Error())) {
				t.Errorf("%s users: %s: Exec = %v, %v; want it to refuse what is mounted there", users, script, e, err)
			}
			do("umount /dev/pts/ptmx")
		}
		// Away, or under something else, the terminals are still those of the container.
		do("mount -t tmpfs none /dev/pts")
		e := n.execTerminal(t, b.ID, *processWith(b, "sh", "-c", "[ -t 0 ] && echo a terminal"), both)
		if got := readAll(t, e.Stdout); got != "a terminal\r\n" {
			t.Errorf("%s users: %q", users, got)
		}
		if _, err := e.Wait(testContext(t)); err != nil {
			t.Error(err)
		}
		if err := e.Streams.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestTerminalRestarts gives each run a terminal of its own.
func TestTerminalRestarts(t *testing.T) {
	n := newNode(t)
	b := n.withTerminal(t, "own", "tty; stty size; exit 1")
	b.Restart = container.Restart{Policy: container.RestartOnFailure, Max: 2}
	out, _, s := n.run(t, b)
	if want := strings.Repeat("/dev/pts/0\r\n24 80\r\n", 3); out != want || s.Run != 3 {
		t.Errorf("log has %q after run %d, want %q", out, s.Run, want)
	}
}

// TestOldShim asks a shim that knows no terminals.
func TestOldShim(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sleep", "1000")
	n.create(t, b)
	n.start(t, b.ID)
	socket := filepath.Join(n.cfg.Run, b.ID+".sock")
	if err := os.Rename(socket, socket+".real"); err != nil {
		t.Fatal(err)
	}
	l, err := shim.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan error)
	go func() {
		for range 2 {
			answered <- func() error {
				fd, _, err := unix.Accept4(int(l.Fd()), unix.SOCK_CLOEXEC)
				if err != nil {
					return err
				}
				c, err := shim.NewConn(fd)
				if err != nil {
					return err
				}
				defer c.Close()
				if _, _, err := c.Receive(new(shim.Request)); err != nil {
					return err
				}
				return c.Send(shim.Response{Version: 1, Error: &shim.Error{Code: shim.CodeUnknown, Message: "restart the container"}}, nil)
			}()
		}
	}()
	if err := unix.SetNonblock(int(l.Fd()), false); err != nil {
		t.Fatal(err)
	}
	p := *processWith(b, "true")
	p.Terminal = true
	for _, ask := range []func() error{
		func() error { return n.Resize(testContext(t), b.ID, container.TerminalSize{}) },
		func() error {
			_, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: p, Terminal: &container.TerminalSize{}})
			return err
		},
	} {
		err := ask()
		if !errors.Is(err, container.ErrUnsupported) || !strings.Contains(err.Error(), "restart the container") {
			t.Errorf("an old shim gives %v, want ErrUnsupported and what to do", err)
		}
		if err := <-answered; err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(l.Close(), os.Rename(socket+".real", socket)); err != nil {
		t.Fatal(err)
	}
}
