package container_test

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"testing"

	"berth.internal/node/container"
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

// TestTerminalInput types into a terminal: a line, an interrupt, the end of input.
func TestTerminalInput(t *testing.T) {
	n := newNode(t)
	b := n.withTerminal(t, "own", "trap 'echo interrupted' INT; echo ready; read line; echo got $line; cat; echo end; exit 3")
	n.create(t, b)
	s := n.attach(t, b.ID, container.AttachOptions{Stdin: true, Stdout: true})
	out := bufio.NewReader(s.Stdout)
	expect := func(want string) {
		t.Helper()
		var got strings.Builder
		for !strings.HasSuffix(got.String(), want) {
			c, err := out.ReadByte()
			if err != nil {
				t.Fatalf("read %q, then %v; want %q", got.String(), err, want)
			}
			got.WriteByte(c)
		}
	}
	n.start(t, b.ID)
	expect("ready\r\n")
	for _, step := range []struct{ input, want string }{
		{"hello\n", "got hello\r\n"}, {"echo\n", "echo\r\necho\r\n"}, {"\x04", "end\r\n"},
	} {
		if _, err := io.WriteString(s.Stdin, step.input); err != nil {
			t.Fatal(err)
		}
		expect(step.want)
	}
	if _, err := out.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v, want EOF", err)
	}
	if st, err := n.Wait(testContext(t), b.ID); err != nil || st.ExitCode != 3 {
		t.Errorf("%+v, %v; want exit code 3", st, err)
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
