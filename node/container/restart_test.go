package container_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container"
	"berth.internal/node/container/shim"
)

// counting is a script that counts its runs in $n and says which one it is.
const counting = "n=$(cat /n 2>/dev/null); n=$((n+1)); echo $n >/n; echo run $n; "

// waitRun waits for the end of a run and returns how it ended.
func (n *node) waitRun(t *testing.T, id string, run int) container.State {
	t.Helper()
	s, err := n.WaitRun(testContext(t), id, run)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRestart(t *testing.T) {
	n := newNode(t)
	always := container.Restart{Policy: container.RestartAlways}
	onFailure := func(most int) container.Restart {
		return container.Restart{Policy: container.RestartOnFailure, Max: most}
	}
	for _, tc := range []struct {
		name, script string
		restart      container.Restart
		runs, code   int
		last         int // exit code of the run before
		log          string
	}{
		{"never", counting + "exit 3", container.Restart{}, 1, 3, -1, "run 1\n"},
		{"until it succeeds", counting + "[ $n = 3 ] || exit 5", onFailure(0), 3, 0, 5, "run 1\nrun 2\nrun 3\n"},
		{"success at once", counting, onFailure(0), 1, 0, -1, "run 1\n"},
		{"below init", counting + "[ $$ != 1 ] || exit 1; exit 5", onFailure(1), 2, 5, 5, "run 1\nrun 2\n"},
		{"the command is gone below init", counting + "busybox mv /bin/sh /bin/gone", onFailure(2), 3, 127, 127, "run 1\n"},
		{"at most twice", counting + "exit $n", onFailure(2), 3, 3, 2, "run 1\nrun 2\nrun 3\n"},
		{"the command is gone", counting + "busybox mv /bin/sh /bin/gone", onFailure(2), 3, 127, 127, "run 1\n"},
		{"not executable any more", counting + "busybox mv /bin/sh /bin/gone; mkdir /bin/sh; exit 1", onFailure(1), 2, 126, 1, "run 1\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.code == 127 {
				tc.script += "; exit 1"
			}
			b := n.bundle(t, "sh", "-c", tc.script)
			b.Init = strings.HasSuffix(tc.name, "below init")
			b.Restart = tc.restart
			n.create(t, b)
			n.start(t, b.ID)
			s, err := n.Wait(testContext(t), b.ID)
			if err != nil || s.Status != container.StatusStopped || s.Run != tc.runs || s.ExitCode != tc.code || s.Pid != 0 || s.Started.IsZero() || !s.Next.IsZero() {
				t.Errorf("Wait = %+v, %v; want stopped after %d runs with %d", s, err, tc.runs, tc.code)
			}
			switch {
			case tc.last < 0 && s.Last != nil, tc.last >= 0 && (s.Last == nil || s.Last.ExitCode != tc.last):
				t.Errorf("the run before ended with %+v, want exit code %d", s.Last, tc.last)
			case s.Last != nil && s.Started.Sub(s.Last.Finished) < 100*time.Millisecond:
				t.Errorf("began %s after the end of the run before", s.Started.Sub(s.Last.Finished))
			}
			if tc.code == 127 && s.Error == "" {
				t.Error("no error says that the command is gone")
			}
			if out, _ := readLog(t, b.Log.Path); out != tc.log {
				t.Errorf("log %q, want %q", out, tc.log)
			}
			if err := n.Delete(testContext(t), b.ID); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("always", func(t *testing.T) {
		b := n.bundle(t, "sh", "-c", counting+"trap 'exit 9' TERM; [ $n -lt 3 ] && exit; cat /proc/1/cgroup >/dev/null; hostname; grep -c . /proc/net/dev; while :; do sleep 0.05; done")
		b.Restart = always
		n.create(t, b)
		n.start(t, b.ID)
		first := n.waitRun(t, b.ID, 1)
		if first.Run == 1 && (first.Status != container.StatusRestarting || first.Next.IsZero() || first.Last == nil || first.Pid != 0) {
			t.Errorf("after the first run: %+v; want restarting", first)
		}
		s := n.waitRun(t, b.ID, 2)
		if s.Last == nil || s.Last.ExitCode != 0 {
			t.Errorf("after the second run: %+v", s)
		}
		waitLog(t, b.Log.Path, "3") // of the two headings and lo: its own namespaces again
		e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *processWith(b, "cat", "/n"), AttachOptions: container.AttachOptions{Stdout: true}})
		if err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, e.Stdout); got != "3\n" {
			t.Errorf("exec in the third run printed %q", got)
		}
		if code, err := e.Wait(testContext(t)); code != 0 || err != nil {
			t.Errorf("exec: %d, %v", code, err)
		}
		if err := n.SetRestart(testContext(t), b.ID, container.Restart{}); err != nil {
			t.Fatal(err)
		}
		if err := n.Kill(testContext(t), b.ID, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if s, err := n.Wait(testContext(t), b.ID); err != nil || s.ExitCode != 9 || s.Run != 3 || s.Last == nil || s.Last.ExitCode != 0 {
			t.Errorf("Wait = %+v, %v; want exit code 9 of the third run", s, err)
		}
		if out, _ := readLog(t, b.Log.Path); out != "run 1\nrun 2\nrun 3\n"+b.ID+"\n3\n" {
			t.Errorf("log %q", out)
		}
	})
}

// restarting returns a container that waits for its next run, some seconds yet.
func (n *node) restarting(t *testing.T) container.Bundle {
	t.Helper()
	b := n.bundle(t, "sh", "-c", counting+"exit 4")
	b.Restart.Policy = container.RestartUnlessStopped
	n.create(t, b)
	n.start(t, b.ID)
	for run := 1; ; {
		s := n.waitRun(t, b.ID, run)
		if run = s.Run; s.Status == container.StatusRestarting && run >= 4 {
			return b
		}
		if s.Status == container.StatusRunning {
			continue
		}
		run++
	}
}

// TestRestarting asks a container for things while it has no process.
func TestRestarting(t *testing.T) {
	n := newNode(t)
	ctx := testContext(t)
	b := n.restarting(t)
	s, err := n.State(ctx, b.ID)
	if err != nil || s.Status != container.StatusRestarting || s.Last == nil || s.Last.ExitCode != 4 || s.ExitCode != 0 || s.Pid != 0 {
		t.Fatalf("State = %+v, %v; want restarting", s, err)
	}
	for what, err := range map[string]error{
		"Start":  func() error { _, err := n.Start(ctx, b.ID); return err }(),
		"Kill":   n.Kill(ctx, b.ID, syscall.SIGKILL),
		"Attach": func() error { _, err := n.Attach(ctx, b.ID, container.AttachOptions{Stdout: true}); return err }(),
		"Exec":   func() error { _, err := n.Exec(ctx, b.ID, container.ExecSpec{Process: *b.Spec.Process}); return err }(),
	} {
		if !errors.Is(err, container.ErrStatus) || !strings.Contains(err.Error(), "restarting") {
			t.Errorf("%s = %v, want ErrStatus and the word restarting", what, err)
		}
	}
	// Found again, and stopped.
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n.open(t)
	if list, err := n.List(ctx); err != nil || len(list) != 1 || list[0].Run != s.Run || list[0].Status != container.StatusRestarting {
		t.Errorf("List = %+v, %v; want %+v", list, err, s)
	}
	if err := n.SetRestart(ctx, b.ID, container.Restart{Policy: container.RestartAlways}); err != nil {
		t.Error(err)
	}
	if again, err := n.State(ctx, b.ID); err != nil || again.Status != container.StatusRestarting || again.Next != s.Next {
		t.Errorf("with another policy: %+v, %v; want %+v", again, err, s)
	}
	if err := n.SetRestart(ctx, b.ID, container.Restart{Policy: container.RestartOnFailure, Max: 1}); err != nil {
		t.Fatal(err)
	}
	end, err := n.Wait(ctx, b.ID)
	if err != nil || end.Status != container.StatusStopped || end.ExitCode != 4 || end.Run != s.Run || !end.Finished.Equal(s.Last.Finished) || end.Last == nil {
		t.Errorf("Wait = %+v, %v; want the end of run %d", end, err, s.Run)
	}
	if err := n.SetRestart(ctx, b.ID, container.Restart{}); !errors.Is(err, container.ErrStatus) {
		t.Errorf("SetRestart of a stopped container = %v, want ErrStatus", err)
	}

	deleted := n.restarting(t)
	if err := n.Delete(ctx, deleted.ID); err != nil {
		t.Errorf("Delete of a restarting container = %v", err)
	}
	if _, err := n.State(ctx, deleted.ID); !errors.Is(err, container.ErrNotFound) {
		t.Errorf("State after Delete = %v, want ErrNotFound", err)
	}
	if left := n.processes(t); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// TestRestartPolicies are those that are refused, and one that comes late.
func TestRestartPolicies(t *testing.T) {
	n := newNode(t)
	ctx := testContext(t)
	for _, r := range []container.Restart{{Policy: "sometimes"}, {Policy: container.RestartAlways, Max: 1}, {Policy: container.RestartOnFailure, Max: -1}, {Max: 1}} {
		b := n.bundle(t, "true")
		b.Restart = r
		if err := n.Create(ctx, b); err == nil {
			t.Errorf("Create with %+v: no error", r)
		}
	}
	b := n.bundle(t, "sh", "-c", counting+"read x; exit 1")
	b.Stdin, b.StdinOnce = true, true
	n.create(t, b)
	s := n.attach(t, b.ID, all)
	n.start(t, b.ID)
	if err := n.SetRestart(ctx, b.ID, container.Restart{Policy: container.RestartOnFailure, Max: 2}); err != nil {
		t.Fatal(err)
	}
	if err := s.Stdin.Close(); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, s.Stdout); got != "run 1\n" { // who is attached is so for one run
		t.Errorf("attached: %q", got)
	}
	if s, err := n.Wait(ctx, b.ID); err != nil || s.Run != 3 || s.ExitCode != 1 {
		t.Errorf("Wait = %+v, %v; want the end of the third run", s, err)
	}
	if out, _ := readLog(t, b.Log.Path); out != "run 1\nrun 2\nrun 3\n" {
		t.Errorf("log %q", out)
	}
}

// TestRestartTerminal gives a policy to a container with a terminal: each run has
// one.
func TestRestartTerminal(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sh", "-c", counting+"[ -t 0 ] && [ -t 1 ] && echo terminal; readlink /proc/self/fd/1; [ $n = 1 ] && read x; exit 1")
	b.Terminal = &container.TerminalSize{Rows: 20, Columns: 70}
	b.Spec.Process.Terminal = true
	b.Stdin = true
	n.create(t, b)
	s := n.attach(t, b.ID, container.AttachOptions{Stdin: true, Stdout: true})
	n.start(t, b.ID)
	if err := n.SetRestart(testContext(t), b.ID, container.Restart{Policy: container.RestartOnFailure, Max: 2}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(s.Stdin, "\n"); err != nil {
		t.Fatal(err)
	}
	if s, err := n.Wait(testContext(t), b.ID); err != nil || s.Run != 3 || s.ExitCode != 1 || len(s.Warnings) > 0 {
		t.Errorf("Wait = %+v, %v; want the end of the third run", s, err)
	}
	out, _ := readLog(t, b.Log.Path)
	out = strings.ReplaceAll(strings.ReplaceAll("\n"+out, "\r", ""), "\n\n", "\n")[1:] // without the echo of what was typed
	want := ""
	for run := range 3 {
		want += fmt.Sprintf("run %d\nterminal\n/dev/pts/0\n", run+1)
	}
	if out != want {
		t.Errorf("log %q, want %q", out, want)
	}
}

// TestRestartInput gives input to each run of a container that takes it more than
// once.
func TestRestartInput(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sh", "-c", counting+"read x; echo got $x; exit 1")
	b.Stdin = true
	b.Restart = container.Restart{Policy: container.RestartOnFailure, Max: 1}
	n.create(t, b)
	n.start(t, b.ID)
	for _, run := range []string{"1", "2"} {
		waitLog(t, b.Log.Path, "run "+run)
		s := n.attach(t, b.ID, container.AttachOptions{Stdin: true})
		if _, err := io.WriteString(s.Stdin, "line "+run+"\n"); err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
	}
	if _, err := n.Wait(testContext(t), b.ID); err != nil {
		t.Fatal(err)
	}
	if out, _ := readLog(t, b.Log.Path); out != "run 1\ngot line 1\nrun 2\ngot line 2\n" {
		t.Errorf("log %q", out)
	}
}

// TestRestartsLeakNothing looks at the shim's descriptors and the mounts after
// restarts, also such that fail on the way.
func TestRestartsLeakNothing(t *testing.T) {
	n := newNode(t)
	for _, script := range []string{"exit 1", "busybox mv /bin/sh /bin/gone; exit 1", "tty; exit 1"} {
		b := n.bundle(t, "sh", "-c", script)
		if strings.HasPrefix(script, "tty") {
			b.Terminal, b.Spec.Process.Terminal = &container.TerminalSize{}, true
		}
		b.Restart.Policy = container.RestartAlways
		n.create(t, b)
		n.start(t, b.ID)
		n.waitRun(t, b.ID, 2)
		fds := func() []string {
			var list []string
			for _, f := range open1(t, n.shimOf(t, b.ID)) {
				if !strings.HasPrefix(f, "socket:") { // this test's own questions
					list = append(list, f)
				}
			}
			slices.Sort(list)
			return list
		}
		quiet := func(run int) []string {
			for {
				s := n.waitRun(t, b.ID, run)
				if s.Status == container.StatusRestarting {
					return fds()
				}
				run = s.Run
			}
		}
		before, after := quiet(3), quiet(5)
		if len(after) > len(before) {
			t.Errorf("%s: the shim has open\n%q after the third run,\n%q after the fifth", script, before, after)
		}
		if err := n.SetRestart(testContext(t), b.ID, container.Restart{}); err != nil {
			t.Error(err)
		}
		if _, err := n.Wait(testContext(t), b.ID); err != nil {
			t.Error(err)
		}
	}
}

// open1 returns what a process has open.
func open1(t *testing.T, pid int) []string {
	t.Helper()
	dir := "/proc/" + strconv.Itoa(pid) + "/fd/"
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		if to, err := os.Readlink(dir + e.Name()); err == nil {
			list = append(list, to)
		}
	}
	return list
}

// TestRestartWithoutPidNamespace leaves processes behind that the kernel does not
// end with the first one.
func TestRestartWithoutPidNamespace(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sh", "-c", counting+"sleep 1000 & [ $n = 3 ] || exit 1; wait")
	b.Spec.Linux.UIDMappings, b.Spec.Linux.GIDMappings = nil, nil
	b.Spec.Linux.Namespaces = slices.DeleteFunc(b.Spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.UserNamespace || ns.Type == specs.PIDNamespace
	})
	b.Restart.Policy = container.RestartAlways
	n.create(t, b)
	n.start(t, b.ID)
	n.waitRun(t, b.ID, 2)
	waitLog(t, b.Log.Path, "run 3")
	e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *processWith(b, "true")})
	if err != nil {
		t.Fatal(err)
	}
	if code, err := e.Wait(testContext(t)); code != 0 || err != nil {
		t.Errorf("exec: %d, %v", code, err)
	}
	if left := n.processes(t); len(left) != 3 { // shim, shell, sleep
		t.Errorf("there are %q; want nothing of the runs before", left)
	}
	if err := n.SetRestart(testContext(t), b.ID, container.Restart{}); err != nil {
		t.Fatal(err)
	}
	if err := n.Kill(testContext(t), b.ID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if s, err := n.Wait(testContext(t), b.ID); err != nil || s.ExitCode != 137 || len(s.Warnings) > 0 {
		t.Errorf("Wait = %+v, %v", s, err)
	}
}

// TestRestartEmptiesCgroups leaves cgroups behind that only who made them knows.
func TestRestartEmptiesCgroups(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sh", "-c", counting+"read x; exit 1")
	b.Stdin = true
	b.Restart.Policy = container.RestartAlways
	n.create(t, b)
	s := n.attach(t, b.ID, container.AttachOptions{Stdin: true})
	n.start(t, b.ID)
	groups, err := filepath.Glob("/sys/fs/cgroup/*/" + n.cfg.CgroupParent + "/" + b.ID)
	if more, _ := filepath.Glob("/sys/fs/cgroup/" + n.cfg.CgroupParent + "/" + b.ID); err != nil || len(groups)+len(more) == 0 {
		t.Fatalf("no cgroups: %v", err)
	} else {
		groups = append(groups, more...)
	}
	for _, dir := range groups {
		if err := os.MkdirAll(dir+"/left/behind", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.WriteString(s.Stdin, "\n"); err != nil {
		t.Fatal(err)
	}
	waitLog(t, b.Log.Path, "run 2")
	for _, dir := range groups {
		if _, err := os.Stat(dir + "/left"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s/left: %v; want it gone", dir, err)
		}
	}
	if s, err := n.State(testContext(t), b.ID); err != nil || len(s.Warnings) > 0 {
		t.Errorf("State = %+v, %v", s, err)
	}
}

// TestRestartOutOfMemory says of each run whether it ended for lack of memory.
func TestRestartOutOfMemory(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sh", "-c", counting+"[ $n = 1 ] && dd if=/dev/zero of=/dev/null bs=64M count=1; exit 1")
	limit := int64(32 << 20)
	b.Spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
	b.Restart = container.Restart{Policy: container.RestartOnFailure, Max: 1}
	n.create(t, b)
	n.start(t, b.ID)
	s, err := n.Wait(testContext(t), b.ID)
	if err != nil || s.Run != 2 || s.Last == nil || !s.Last.OOMKilled || s.OOMKilled {
		t.Errorf("Wait = %+v, %v, the run before %+v; want that one alone to have run out of memory", s, err, s.Last)
	}
}

// TestShimKilledInRestart kills the shim between any two steps of a restart. The
// container is stopped, and what is known of the run before is not lost.
func TestShimKilledInRestart(t *testing.T) {
	file := filepath.Join(t.TempDir(), shim.Name)
	build := exec.Command("go", "build", "-tags", "steps", "-o", file, "berth.internal/cmd/berth-init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build berth-init: %v\n%s", err, out)
	}
	prog, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(t)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n.cfg.Init = prog
	n.open(t)
	for _, tc := range []struct {
		step string
		last bool // the end of the first run is on disk
	}{{"ended", false}, {"recorded", true}, {"forking", true}, {"forked", true}, {"running", true}} {
		t.Run(tc.step, func(t *testing.T) {
			b := n.bundle(t, "sh", "-c", counting+"[ $n = 1 ] && exit 6; sleep 1000")
			b.Restart.Policy = container.RestartAlways
			n.create(t, b)
			killAt := filepath.Join(n.cfg.Root, b.ID, "shim.log.kill-at")
			if err := os.WriteFile(killAt, []byte(tc.step), 0o600); err != nil {
				t.Fatal(err)
			}
			n.start(t, b.ID)
			// Another agent asks.
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			n.open(t)
			s, err := n.Wait(testContext(t), b.ID)
			if err != nil || s.Status != container.StatusStopped || s.ExitCode != 137 || !strings.Contains(s.Error, "shim") {
				t.Errorf("Wait = %+v, %v; want stopped with 137 and an error about the shim", s, err)
			}
			if tc.last != (s.Last != nil && s.Last.ExitCode == 6 && s.Run == 1 && !s.Started.IsZero()) {
				t.Errorf("the run before: %+v of %+v; known: %t", s.Last, s, tc.last)
			}
			if left := n.processes(t); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
			if err := errors.Join(os.Remove(killAt), n.Delete(testContext(t), b.ID)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAgentKilledWhileItWritesAPlan finds half a plan.
func TestAgentKilledWhileItWritesAPlan(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sh", "-c", counting+"[ $n = 1 ] && read x; exit 1")
	b.Stdin, b.StdinOnce = true, true
	n.create(t, b)
	s := n.attach(t, b.ID, container.AttachOptions{Stdin: true})
	n.start(t, b.ID)
	half := filepath.Join(n.cfg.Root, b.ID, "plan.new")
	if err := os.WriteFile(half, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.SetRestart(testContext(t), b.ID, container.Restart{Policy: container.RestartOnFailure, Max: 1}); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	if s, err := n.Wait(testContext(t), b.ID); err != nil || s.Run != 2 || s.ExitCode != 1 {
		t.Errorf("Wait = %+v, %v; want the end of the second run", s, err)
	}
	if err := os.WriteFile(half, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
}
