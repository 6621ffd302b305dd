package container_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container"
)

// create creates b and leaves it for the test to go on with.
func (n *node) create(t *testing.T, b container.Bundle) {
	t.Helper()
	if err := n.Create(testContext(t), b); err != nil {
		t.Fatal(err)
	}
}

func (n *node) start(t *testing.T, id string) {
	t.Helper()
	if _, err := n.Start(testContext(t), id); err != nil {
		t.Fatal(err)
	}
}

func (n *node) attach(t *testing.T, id string, o container.AttachOptions) *container.Streams {
	t.Helper()
	s, err := n.Attach(testContext(t), id, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var all = container.AttachOptions{Stdin: true, Stdout: true, Stderr: true}

func TestAttach(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sh", "-c", "cat; echo end >&2")
	b.Stdin, b.StdinOnce = true, true
	n.create(t, b)
	s := n.attach(t, b.ID, all)
	second := n.attach(t, b.ID, container.AttachOptions{Stdout: true})
	if _, err := n.Attach(testContext(t), b.ID, all); !errors.Is(err, container.ErrStatus) {
		t.Errorf("Attach to an input that was taken = %v, want ErrStatus", err)
	}
	n.start(t, b.ID)
	if _, err := io.WriteString(s.Stdin, "one\ntwo without end"); err != nil {
		t.Fatal(err)
	}
	if err := s.Stdin.Close(); err != nil {
		t.Fatal(err)
	}
	for _, got := range []string{readAll(t, s.Stdout), readAll(t, second.Stdout)} {
		if got != "one\ntwo without end" {
			t.Errorf("attached stdout = %q", got)
		}
	}
	if got := readAll(t, s.Stderr); got != "end\n" {
		t.Errorf("attached stderr = %q", got)
	}
	if _, err := n.Wait(testContext(t), b.ID); err != nil {
		t.Fatal(err)
	}
	if out, errs := readLog(t, b.Log.Path); out != "one\ntwo without end" || errs != "end\n" {
		t.Errorf("log = %q, %q", out, errs)
	}
	if _, err := n.Attach(testContext(t), b.ID, all); !errors.Is(err, container.ErrStatus) {
		t.Errorf("Attach to a stopped container = %v, want ErrStatus", err)
	}
}

// TestInputStaysOpen detaches and attaches again.
func TestInputStaysOpen(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sh", "-c", "read a; read b; echo $a $b")
	b.Stdin = true
	n.create(t, b)
	n.start(t, b.ID)
	for _, line := range []string{"first\n", "second\n"} {
		s := n.attach(t, b.ID, container.AttachOptions{Stdin: true})
		if _, err := io.WriteString(s.Stdin, line); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := n.Wait(testContext(t), b.ID); err != nil || s.ExitCode != 0 {
		t.Fatalf("%+v, %v", s, err)
	}
	if out, _ := readLog(t, b.Log.Path); out != "first second\n" {
		t.Errorf("log = %q", out)
	}
}

// TestOrder lets a container write to both streams, one after the other, each
// time when the line before has been logged.
func TestOrder(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sh", "-c", "while read x; do echo $x; read x; echo $x >&2; done")
	b.Stdin, b.StdinOnce = true, true
	n.create(t, b)
	s := n.attach(t, b.ID, all)
	n.start(t, b.ID)
	var want strings.Builder
	buf := make([]byte, 10)
	for i := range 20 {
		from := []io.Reader{s.Stdout, s.Stderr}[i%2]
		if _, err := fmt.Fprintln(s.Stdin, i); err != nil {
			t.Fatal(err)
		}
		if _, err := from.Read(buf); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&want, []string{"stdout", "stderr"}[i%2], i)
	}
	_ = s.Stdin.Close()
	if _, err := n.Wait(testContext(t), b.ID); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(b.Log.Path)
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for line := range strings.Lines(string(log)) {
		f := strings.Fields(line)
		fmt.Fprintln(&got, f[1], f[3])
	}
	if got.String() != want.String() {
		t.Errorf("log order:\n%s\nwant\n%s", got.String(), want.String())
	}
}

// TestMuchOutput reads slowly what is written fast: nothing may be lost, neither
// for who is attached nor in the log.
func TestMuchOutput(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "seq", "1", "200000")
	n.create(t, b)
	s := n.attach(t, b.ID, container.AttachOptions{Stdout: true})
	n.start(t, b.ID)
	var want strings.Builder
	for i := 1; i <= 200000; i++ {
		fmt.Fprintln(&want, i)
	}
	if got := readAll(t, s.Stdout); got != want.String() {
		t.Errorf("attached: %d bytes, want %d", len(got), want.Len())
	}
	if st, err := n.Wait(testContext(t), b.ID); err != nil || st.ExitCode != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	if out, _ := readLog(t, b.Log.Path); out != want.String() {
		t.Errorf("log: %d bytes, want %d", len(out), want.Len())
	}
}

// TestExecAfterAnother runs a command twice in each of two containers, the second of
// which has the name of the first and no filter.
func TestExecAfterAnother(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sleep", "1000")
	for _, want := range []string{"Seccomp:\t2\n", "Seccomp:\t0\n"} {
		n.create(t, b)
		n.start(t, b.ID)
		for range 2 {
			p := *b.Spec.Process
			p.Args = []string{"grep", "Seccomp:", "/proc/self/status"}
			e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: p, AttachOptions: container.AttachOptions{Stdout: true}})
			if err != nil {
				t.Fatal(err)
			}
			if out, err := io.ReadAll(e.Stdout); err != nil || string(out) != want {
				t.Errorf("it says %q, %v, want %q", out, err, want)
			}
			if _, err := e.Wait(testContext(t)); err != nil {
				t.Error(err)
			}
			if err := e.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
				t.Error(err)
			}
		}
		if err := n.Kill(testContext(t), b.ID, 9); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Wait(testContext(t), b.ID); err != nil {
			t.Fatal(err)
		}
		if err := n.Delete(testContext(t), b.ID); err != nil {
			t.Fatal(err)
		}
		b.Spec.Linux.Seccomp = nil
	}
}

func TestExec(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done")
	n.create(t, b)
	if _, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *b.Spec.Process}); !errors.Is(err, container.ErrStatus) {
		t.Errorf("Exec before Start = %v, want ErrStatus", err)
	}
	n.start(t, b.ID)
	for _, tc := range []struct {
		name, input string
		args        []string
		set         func(*specs.Process)
		start       error
		out, errs   string
		code        int
	}{
		{"output", "", []string{"sh", "-c", "echo out; echo err >&2; exit 7"}, nil, nil, "out\n", "err\n", 7},
		{"input", "typed", []string{"cat"}, nil, nil, "typed", "", 0},
		{"namespaces", "", []string{"sh", "-c", "for n in user mnt pid net ipc uts cgroup; do [ $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) ] || echo $n; done; hostname; grep -v ':/$' /proc/self/cgroup"}, nil, nil, "c1\n", "", 1},
		{"privileges", "", []string{"grep", "CapEff\\|Seccomp:\\|NoNew", "/proc/self/status"}, nil, nil, "CapEff:\t00000000a80425fb\nNoNewPrivs:\t0\nSeccomp:\t2\n", "", 0},
		{"descriptors", "", []string{"ls", "/proc/self/fd"}, nil, nil, "0\n1\n2\n3\n", "", 0},
		{"user", "", []string{"sh", "-c", "id; pwd; echo x >/dev/stderr"}, func(p *specs.Process) { p.User.UID, p.User.GID, p.Cwd = 5, 6, "/tmp" }, nil, "uid=5 gid=6\n/tmp\n", "x\n", 0},
		{"signal", "", []string{"sh", "-c", "kill -9 $$"}, nil, nil, "", "", 137},
		{"missing", "", []string{"nothing"}, nil, container.ErrNoCommand, "", "", 0},
		{"not executable", "", []string{"/etc"}, nil, container.ErrNotExecutable, "", "", 0},
		{"missing directory", "", []string{"true"}, func(p *specs.Process) { p.Cwd = "/no" }, os.ErrNotExist, "", "", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := *b.Spec.Process
			p.Args = tc.args
			if tc.set != nil {
				tc.set(&p)
			}
			e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: p, AttachOptions: all})
			if tc.start != nil {
				if err == nil || !errors.Is(err, tc.start) && !strings.Contains(err.Error(), tc.start.Error()) && !strings.Contains(err.Error(), "no such file") {
					t.Errorf("Exec = %v, want %v", err, tc.start)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(e.Stdin, tc.input); err != nil {
				t.Fatal(err)
			}
			_ = e.Stdin.Close()
			out, errs := readAll(t, e.Stdout), readAll(t, e.Stderr)
			code, err := e.Wait(testContext(t))
			if err != nil || out != tc.out || errs != tc.errs || code != tc.code {
				t.Errorf("%q: %q, %q, exit code %d, %v; want %q, %q, %d", tc.args, out, errs, code, err, tc.out, tc.errs, tc.code)
			}
			_ = e.Close()
		})
	}
	// The end of the container is the end of what was executed in it.
	p := *b.Spec.Process
	p.Args = []string{"sleep", "1000"}
	e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: p})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Kill(testContext(t), b.ID, 15); err != nil {
		t.Fatal(err)
	}
	if code, err := e.Wait(testContext(t)); code != 137 || err != nil {
		t.Errorf("process of exec ended with %d, %v; want 137", code, err)
	}
	if s, err := n.Wait(testContext(t), b.ID); err != nil || s.ExitCode != 0 {
		t.Errorf("container ended with %+v, %v; want exit code 0", s, err)
	}
	if _, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: p}); !errors.Is(err, container.ErrStatus) {
		t.Errorf("Exec in a stopped container = %v, want ErrStatus", err)
	}
}

// TestStatus calls everything at the wrong time.
func TestStatus(t *testing.T) {
	n := newNode(t)
	ctx := testContext(t)
	b := n.bundle(t, "sleep", "1000")
	if _, err := n.State(ctx, b.ID); !errors.Is(err, container.ErrNotFound) {
		t.Errorf("State = %v, want ErrNotFound", err)
	}
	if _, err := n.Start(ctx, b.ID); !errors.Is(err, container.ErrNotFound) {
		t.Errorf("Start = %v, want ErrNotFound", err)
	}
	if err := n.Delete(ctx, b.ID); err != nil {
		t.Errorf("Delete of nothing = %v", err)
	}
	n.create(t, b)
	if err := n.Create(ctx, b); !errors.Is(err, container.ErrExists) {
		t.Errorf("Create again = %v, want ErrExists", err)
	}
	if s, err := n.State(ctx, b.ID); err != nil || s.Status != container.StatusCreated || s.Pid == 0 {
		t.Errorf("State = %+v, %v; want created", s, err)
	}
	n.start(t, b.ID)
	if _, err := n.Start(ctx, b.ID); !errors.Is(err, container.ErrStatus) {
		t.Errorf("Start again = %v, want ErrStatus", err)
	}
	if err := n.Delete(ctx, b.ID); !errors.Is(err, container.ErrStatus) {
		t.Errorf("Delete of a running container = %v, want ErrStatus", err)
	}
	if err := n.Kill(ctx, b.ID, 9); err != nil {
		t.Fatal(err)
	}
	if s, err := n.Wait(ctx, b.ID); err != nil || s.ExitCode != 137 || s.Signal != 9 || s.Pid != 0 {
		t.Errorf("Wait = %+v, %v; want exit code 137", s, err)
	}
	if err := n.Kill(ctx, b.ID, 9); !errors.Is(err, container.ErrStatus) {
		t.Errorf("Kill again = %v, want ErrStatus", err)
	}
	if err := n.Delete(ctx, b.ID); err != nil {
		t.Error(err)
	}
	// What is not a container is left alone.
	if err := os.MkdirAll(filepath.Join(n.cfg.Root, "other"), 0o700); err != nil {
		t.Fatal(err)
	}
	if list, err := n.List(ctx); err != nil || len(list) > 0 {
		t.Errorf("List = %v, %v; want nothing", list, err)
	}
	if err := os.Remove(filepath.Join(n.cfg.Root, "other")); err != nil {
		t.Error(err)
	}
}
