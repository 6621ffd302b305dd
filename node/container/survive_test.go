package container_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container"
)

// agentEnv makes this program an agent that creates and starts a container,
// says so, and waits to be killed.
const agentEnv = "BERTH_TEST_AGENT"

// agentArgs is what it is given, as JSON.
type agentArgs struct {
	Config container.Config
	Bundle container.Bundle
}

func agent(args string) int {
	var a agentArgs
	if err := json.Unmarshal([]byte(args), &a); err != nil {
		fmt.Println(err)
		return 1
	}
	prog, err := os.ReadFile(os.Args[1])
	if err != nil {
		fmt.Println(err)
		return 1
	}
	a.Config.Init = prog
	r, err := container.Open(a.Config)
	if err == nil {
		err = r.Create(context.Background(), a.Bundle)
	}
	if err == nil {
		_, err = r.Start(context.Background(), a.Bundle.ID)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("running")
	select {}
}

// startAgent runs an agent in a process group of its own until its container
// runs.
func (n *node) startAgent(t *testing.T, b container.Bundle) *exec.Cmd {
	t.Helper()
	prog := filepath.Join(n.dir, "berth-init")
	if err := os.WriteFile(prog, initProgram, 0o700); err != nil {
		t.Fatal(err)
	}
	cfg := n.cfg
	cfg.Init = nil
	args, err := json.Marshal(agentArgs{cfg, b})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], prog)
	cmd.Env = append(os.Environ(), agentEnv+"="+string(args))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "running\n" {
		t.Fatalf("agent said %q, %v", line, err)
	}
	return cmd
}

// waitLog returns when the log has the line.
func waitLog(t testing.TB, path, line string) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	grows := os.NewFile(uintptr(fd), "inotify")
	defer grows.Close()
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY); err != nil {
		t.Fatalf("watch %s: %v", path, err)
	}
	if err := grows.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	events := make([]byte, 4096)
	for {
		out, _ := readLog(t, path)
		if strings.Contains("\n"+out, "\n"+line+"\n") {
			return
		}
		if _, err := grows.Read(events); err != nil {
			t.Fatalf("the log has no line %q: %v:\n%s", line, err, out)
		}
	}
}

// TestAgentKilled kills the agent with its process group. The container and its
// log go on, and another agent goes on with it.
func TestAgentKilled(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sh", "-c", "trap 'echo bye; exit 5' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done")
	cmd := n.startAgent(t, b)
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	lines, _ := readLog(t, b.Log.Path)
	count := strings.Count(lines, "\n")
	waitLog(t, b.Log.Path, strconv.Itoa(count+20))

	states, err := n.List(testContext(t))
	if err != nil || len(states) != 1 || states[0].ID != b.ID || states[0].Status != container.StatusRunning {
		t.Fatalf("List = %+v, %v; want the running container", states, err)
	}
	e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *processWith(b, "true")})
	if err != nil {
		t.Fatal(err)
	}
	if code, err := e.Wait(testContext(t)); code != 0 || err != nil {
		t.Errorf("exec after the agent's death: exit code %d, %v", code, err)
	}
	if err := n.Kill(testContext(t), b.ID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s, err := n.Wait(testContext(t), b.ID)
	if err != nil || s.ExitCode != 5 || s.Error != "" {
		t.Errorf("Wait = %+v, %v; want exit code 5", s, err)
	}
	out, _ := readLog(t, b.Log.Path)
	if !strings.HasSuffix(out, "\nbye\n") {
		t.Errorf("the log ends with %q", out[max(0, len(out)-20):])
	}
	for i, line := range strings.Fields(strings.TrimSuffix(out, "bye\n")) {
		if line != strconv.Itoa(i+1) {
			t.Fatalf("line %d of the log is %q", i+1, line)
		}
	}
}

// logFiles returns the files of a log, the oldest first.
func logFiles(t *testing.T, path string) []string {
	t.Helper()
	names := []string{path}
	for i := 1; ; i++ {
		name := fmt.Sprint(path, ".", i)
		if _, err := os.Stat(name); err != nil {
			return names
		}
		names = append([]string{name}, names...)
	}
}

// TestAgentKilledUnderLoad kills the agent of a container that writes as fast as
// it can, ends and begins again: no line is lost and no end of a run.
func TestAgentKilledUnderLoad(t *testing.T) {
	n := newNode(t)
	const perRun = 20000
	b := n.bundle(t, "sh", "-c", fmt.Sprintf("i=$(cat /i 2>/dev/null || echo 0); echo $((i+%d)) >/i; seq $((i+1)) $((i+%d)); exit 4", perRun, perRun))
	b.Log.MaxSize, b.Log.MaxFiles = 100<<10, 900
	b.Restart.Policy = container.RestartAlways
	cmd := n.startAgent(t, b)
	if s := n.waitRun(t, b.ID, 1); s.Last == nil || s.Last.ExitCode != 4 {
		t.Errorf("after the first run: %+v", s)
	}
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n.open(t)
	s := n.waitRun(t, b.ID, 3)
	for s.Status != container.StatusRestarting {
		s = n.waitRun(t, b.ID, s.Run)
	}
	if s.Last == nil || s.Last.ExitCode != 4 {
		t.Errorf("after run %d: %+v", s.Run, s)
	}
	if err := n.SetRestart(testContext(t), b.ID, container.Restart{}); err != nil {
		t.Fatal(err)
	}
	s, err := n.Wait(testContext(t), b.ID)
	if err != nil || s.ExitCode != 4 || s.Error != "" || len(s.Warnings) > 0 {
		t.Errorf("Wait = %+v, %v; want exit code 4", s, err)
	}
	files := logFiles(t, b.Log.Path)
	if len(files) < 10 {
		t.Errorf("the log has files %q, want many", files)
	}
	next, half := 1, ""
	for _, name := range files {
		if info, err := os.Stat(name); err != nil || info.Size() > b.Log.MaxSize {
			t.Errorf("%s: %v, %v; want at most %d bytes", name, info, err, b.Log.MaxSize)
		}
		out, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
			if len(f) != 4 {
				t.Fatalf("%s: line %q", name, line)
			}
			if half += f[3]; f[2] == "P" {
				continue
			}
			if half != strconv.Itoa(next) {
				t.Fatalf("%s: line %q, want %d", name, half, next)
			}
			next, half = next+1, ""
		}
	}
	if want := s.Run*perRun + 1; next != want {
		t.Errorf("the log ends before line %d, want %d", next, want)
	}
}

// TestProgramItself runs a container with this program as its own shim, as a
// berth that carries no berth-init does.
func TestProgramItself(t *testing.T) {
	n := newNode(t)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n.cfg.Init = nil
	n.open(t)
	if got := n.sh(t, "echo hello; grep Seccomp: /proc/self/status"); got != "hello\nSeccomp:\t2\n" {
		t.Errorf("got %q", got)
	}
}

// TestExitWithoutAgent lets a container end while there is no agent.
func TestExitWithoutAgent(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sh", "-c", "read x; echo $x; exit 9")
	b.Stdin, b.StdinOnce = true, true
	n.create(t, b)
	s := n.attach(t, b.ID, container.AttachOptions{Stdin: true})
	n.start(t, b.ID)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Stdin.Write([]byte("now\n")); err != nil {
		t.Fatal(err)
	}
	waitLog(t, b.Log.Path, "now")
	n.open(t)
	if s, err := n.Wait(testContext(t), b.ID); err != nil || s.ExitCode != 9 {
		t.Errorf("Wait = %+v, %v; want exit code 9", s, err)
	}
}

func processWith(b container.Bundle, args ...string) (p *specs.Process) {
	proc := *b.Spec.Process
	proc.Args = args
	return &proc
}

// shimOf returns the process of the container's shim.
func (n *node) shimOf(t *testing.T, id string) int {
	t.Helper()
	for _, p := range n.processes(t) {
		if proc, ok := strings.CutPrefix(p, "shim /proc/"); ok {
			if says, err := os.Readlink("/proc/" + proc + "/fd/2"); err == nil && strings.Contains(says, "/"+id+"/") {
				pid, err := strconv.Atoi(proc)
				if err != nil {
					t.Fatal(err)
				}
				return pid
			}
		}
	}
	t.Fatalf("container %s has no shim", id)
	return 0
}

// TestShimKilled kills shims in each state. Their containers are stopped with an
// error that says why, and nothing of them runs on.
func TestShimKilled(t *testing.T) {
	n := newNode(t)
	for _, state := range []container.Status{container.StatusCreated, container.StatusRunning} {
		b := n.bundle(t, "sh", "-c", "sleep 1000 & sleep 1000 & wait")
		n.create(t, b)
		if state == container.StatusRunning {
			n.start(t, b.ID)
		}
		waited := make(chan error, 1)
		go func() {
			_, err := n.Wait(context.Background(), b.ID)
			waited <- err
		}()
		if err := syscall.Kill(n.shimOf(t, b.ID), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := <-waited; err != nil {
			t.Errorf("%s: Wait = %v", state, err)
		}
		s, err := n.State(testContext(t), b.ID)
		if err != nil || s.Status != container.StatusStopped || s.ExitCode != 137 || !strings.Contains(s.Error, "shim ended") {
			t.Errorf("%s: State = %+v, %v; want stopped with 137 and an error about the shim", state, s, err)
		}
		if left := n.processes(t); len(left) > 0 {
			t.Errorf("%s: still running: %q", state, left)
		}
		if err := n.Delete(testContext(t), b.ID); err != nil {
			t.Error(err)
		}
	}
}

// TestSpareShim makes containers with the shim that was started before there was one
// for it, and with another one if that is dead. Nothing is left of a spare one, neither
// by Close nor by an agent that is killed.
func TestSpareShim(t *testing.T) {
	n := newNode(t)
	n.cfg.Spare = true
	n.open(t)
	if err := n.Sweep(); err != nil {
		t.Fatal(err)
	}
	for _, dead := range []bool{false, true, false} {
		b := n.bundle(t, "sleep", "1000")
		spare := n.SpareShim()
		if dead {
			if err := syscall.Kill(spare, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			n.SpareEnded()
		}
		n.create(t, b)
		if got := n.shimOf(t, b.ID); spare == 0 || (got == spare) == dead {
			t.Errorf("the spare shim is %d (dead: %t), that of the container %d", spare, dead, got)
		}
		n.start(t, b.ID)
	}
	if again := n.SpareShim(); again == 0 {
		t.Error("after a start there is no spare shim for the next one")
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n.cfg.Spare = false
	n.open(t)
	for _, file := range []string{filepath.Join(n.cfg.Root, ".spare-1"), filepath.Join(n.cfg.Run, ".spare-1.sock")} {
		if err := os.WriteFile(file, nil, 0o600); err != nil { // as a killed agent leaves them
			t.Fatal(err)
		}
	}
	if err := n.Sweep(); err != nil {
		t.Fatal(err)
	}
}

// TestReboot takes away what a reboot takes: processes, cgroups, the run
// directory.
func TestReboot(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sleep", "1000")
	n.create(t, b)
	n.start(t, b.ID)
	if err := syscall.Kill(n.shimOf(t, b.ID), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(n.cfg.Run); err != nil {
		t.Fatal(err)
	}
	// A power cut may leave the record empty.
	if err := os.WriteFile(filepath.Join(n.cfg.Root, b.ID, "bundle.json"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n.open(t)
	if s, err := n.State(testContext(t), b.ID); err != nil || s.Status != container.StatusStopped || s.Error == "" {
		t.Errorf("State = %+v, %v; want stopped with an error", s, err)
	}
}

// TestNothingIsLeft runs many containers, some of which end badly.
func TestNothingIsLeft(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sh", "-c", "(sleep 1000 &) ; echo x")
	missing := n.bundle(t, "nothing")
	before := open(t)
	for i := range 60 {
		switch i % 4 {
		case 0:
			if out, _, _ := n.run(t, b); !strings.HasSuffix(out, "x\n") {
				t.Fatalf("run %d: %q", i, out)
			}
			continue
		case 1: // created only
			n.create(t, b)
		case 2:
			n.create(t, b)
			n.start(t, b.ID)
			_ = n.Kill(testContext(t), b.ID, syscall.SIGKILL) // it may have ended
			if _, err := n.Wait(testContext(t), b.ID); err != nil {
				t.Fatal(err)
			}
		case 3:
			n.create(t, missing)
			if _, err := n.Start(testContext(t), missing.ID); err == nil {
				t.Fatal("Start of a missing command: no error")
			}
			if _, err := n.Wait(testContext(t), missing.ID); err != nil {
				t.Fatal(err)
			}
			if err := n.Delete(testContext(t), missing.ID); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := n.Delete(testContext(t), b.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if left := n.traces(t); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	n.open(t)
	if after := open(t); after > before+2 { // the network poller opens some once
		t.Errorf("%d descriptors are open, %d before", after, before)
	}
}

// open returns how many descriptors this process has.
func open(t testing.TB) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
