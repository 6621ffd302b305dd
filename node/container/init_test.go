package container_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container"
)

// withInit returns a container that has an init, and runs a shell script below it.
// users is "own" or "host".
func (n *node) withInit(t testing.TB, users, script string) container.Bundle {
	t.Helper()
	b := n.bundle(t, "sh", "-c", script)
	b.Init = true
	if users == "host" {
		b.Spec.Linux.Namespaces = b.Spec.Linux.Namespaces[1:]
		b.Spec.Linux.UIDMappings, b.Spec.Linux.GIDMappings = nil, nil
	}
	return b
}

func TestInit(t *testing.T) {
	n := newNode(t)
	for _, users := range []string{"own", "host"} {
		for _, tc := range []struct {
			name, script, want string
			set                func(*specs.Spec)
			code               int
		}{
			{"processes", "cat /proc/1/comm; tr '\\0' ' ' </proc/1/cmdline", "berth-init\nberth-init -- sh -c cat /proc/1/comm; tr '\\0' ' ' </proc/1/cmdline ", nil, 0},
			{"environment", "", "A=1\x00GOGC=50\x00PATH=/bin\x00A=1\x00", func(s *specs.Spec) {
				s.Process.Env = []string{"A=1", "GOGC=50", "PATH=/bin", "A=1"}
				s.Process.Args = []string{"cat", "/proc/self/environ"}
			}, 0},
			{"exit code", "exit 7", "", nil, 7},
			{"signal", "kill -9 $$", "", nil, 137},
			{"descriptors", "ls /proc/self/fd", "0\n1\n2\n3\n", nil, 0},
			{"descriptors of the init", "ls /proc/1/fd", "0\n1\n2\n", nil, 0},
			{"user, read-only", "id -u; echo x 2>/dev/null >/x || echo no", "5\nno\n", func(s *specs.Spec) {
				s.Process.User.UID, s.Root = 5, &specs.Root{Readonly: true}
			}, 0},
			{"privileges", "grep Seccomp: /proc/1/status", "Seccomp:\t2\n", nil, 0},
		} {
			t.Run(users+"/"+tc.name, func(t *testing.T) {
				b := n.withInit(t, users, tc.script)
				if tc.set != nil {
					tc.set(b.Spec)
				}
				out, errs, s := n.run(t, b)
				if out != tc.want || errs != "" || s.ExitCode != tc.code {
					t.Errorf("%q: log has %q, %q; exit code %d; want %q, %d", tc.script, out, errs, s.ExitCode, tc.want, tc.code)
				}
			})
		}
	}
}

// TestInitWithoutCommand has the same errors and exit codes as a container without
// an init.
func TestInitWithoutCommand(t *testing.T) {
	n := newNode(t)
	for _, tc := range []struct {
		command string
		is      error
		code    int
	}{
		{"nothing", container.ErrNoCommand, 127},
		{"/no/such", container.ErrNoCommand, 127},
		{"", container.ErrNoCommand, 127},
		{"/etc", container.ErrNotExecutable, 126},
	} {
		var text [2]string
		for i, init := range []bool{false, true} {
			b := n.bundle(t, tc.command)
			b.Init = init
			n.create(t, b)
			_, err := n.Start(testContext(t), b.ID)
			if !errors.Is(err, tc.is) {
				t.Errorf("init %t: Start of %q = %v, want %v", init, tc.command, err, tc.is)
			}
			s, err := n.Wait(testContext(t), b.ID)
			if err != nil || s.ExitCode != tc.code {
				t.Errorf("init %t: %q: %+v, %v; want exit code %d", init, tc.command, s, err, tc.code)
			}
			text[i] = s.Error
		}
		if text[0] != text[1] || text[0] == "" {
			t.Errorf("%q: the record says %q without an init, %q with one", tc.command, text[0], text[1])
		}
	}
}

// TestInitPassesSignals sends signals to the first process. It also reaps what its
// command leaves.
func TestInitPassesSignals(t *testing.T) {
	n := newNode(t)
	b := n.withInit(t, "own", `
		for s in HUP INT TERM USR1 USR2 CONT WINCH URG ALRM 40; do trap "echo $s" $s; done
		trap 'echo bye; exit 4' QUIT
		(sh -c 'sleep 0.1 & echo orphan $!' &)
		echo ready
		while :; do sleep 0.01; done`)
	n.create(t, b)
	n.start(t, b.ID)
	waitLog(t, b.Log.Path, "ready")
	for sig, name := range map[syscall.Signal]string{
		unix.SIGHUP: "HUP", unix.SIGINT: "INT", unix.SIGTERM: "TERM", unix.SIGUSR1: "USR1", unix.SIGUSR2: "USR2", unix.SIGCONT: "CONT",
		unix.SIGWINCH: "WINCH", unix.SIGURG: "URG", unix.SIGALRM: "ALRM", 40: "40",
	} {
		if err := n.Kill(testContext(t), b.ID, sig); err != nil {
			t.Fatal(err)
		}
		waitLog(t, b.Log.Path, name)
	}
	if err := n.Kill(testContext(t), b.ID, unix.SIGPROF); err == nil || !strings.Contains(err.Error(), "init") {
		t.Errorf("Kill with a signal that cannot be passed on = %v", err)
	}
	out, _ := readLog(t, b.Log.Path)
	_, orphan, _ := strings.Cut(out, "orphan ")
	orphan, _, _ = strings.Cut(orphan, "\n")
	e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *processWith(b, "sh", "-c", "while [ -e /proc/"+orphan+" ]; do sleep 0.01; done")})
	if err != nil || orphan == "" {
		t.Fatalf("orphan %q: %v", orphan, err)
	}
	if _, err := e.Wait(testContext(t)); err != nil {
		t.Errorf("the orphan was not reaped: %v", err)
	}
	if err := n.Kill(testContext(t), b.ID, unix.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	if s, err := n.Wait(testContext(t), b.ID); err != nil || s.ExitCode != 4 || s.Signal != 0 {
		t.Errorf("%+v, %v; want exit code 4", s, err)
	}
}

// TestInitIsSealed attacks the program of all shims from a container in which it is
// the first process: root may open it for writing, and can write nothing.
func TestInitIsSealed(t *testing.T) {
	n := newNode(t)
	for _, users := range []string{"own", "host"} {
		b := n.withInit(t, users, `
			case $(readlink /proc/1/exe) in /memfd:*) echo memfd;; esac
			(echo evil >>/proc/1/exe) 2>/dev/null && echo appended
			(dd if=/dev/zero of=/proc/1/exe bs=1 count=1 conv=notrunc) 2>/dev/null && echo written
			(: >/proc/1/exe) 2>/dev/null && echo truncated
			chmod 777 /proc/1/exe 2>/dev/null
			cat /proc/1/exe >/tmp/copy && ls /proc/1/fd`)
		if out, _, s := n.run(t, b); out != "memfd\n0\n1\n2\n" || s.ExitCode != 0 {
			t.Errorf("%s users: the container says %q, exit code %d", users, out, s.ExitCode)
		}
		// While nobody executes it, it can be opened; it is sealed all the same.
		copied, err := os.ReadFile(filepath.Join(b.Rootfs.Upper, "tmp/copy"))
		if err != nil || !bytes.Equal(copied, initProgram) {
			t.Errorf("%s users: the program has %d bytes, %v; want %d that did not change", users, len(copied), err, len(initProgram))
		}
	}
	if got := n.sh(t, "echo intact"); got != "intact\n" {
		t.Errorf("afterwards: %q", got)
	}
}

// TestInitRestarts begins the init again with the command.
func TestInitRestarts(t *testing.T) {
	n := newNode(t)
	b := n.withInit(t, "own", "cat /proc/1/comm; exit 1")
	b.Restart = container.Restart{Policy: container.RestartOnFailure, Max: 1}
	if out, _, s := n.run(t, b); out != "berth-init\nberth-init\n" || s.Run != 2 || s.ExitCode != 1 {
		t.Errorf("log has %q after %+v", out, s)
	}
}
