package container_test

import (
	"errors"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

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
			err := n.Start(testContext(t), b.ID)
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
