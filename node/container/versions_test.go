package container_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"berth.internal/node/container"
)

// firstShim is the commit with the first shim that ran containers for anybody.
// Those of its containers that still run must be understood forever.
const firstShim = "599c69a"

// oldAgent is an agent for a tree of another commit: it makes the containers that it
// is given, starts all but those whose id begins with "created", and leaves.
const oldAgent = `package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"berth.internal/node/container"
)

func main() {
	if err := run(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func run() error {
	var a struct {
		Config  container.Config
		Bundles []container.Bundle
	}
	if err := json.NewDecoder(os.Stdin).Decode(&a); err != nil {
		return err
	}
	var err error
	if a.Config.Init, err = os.ReadFile(os.Args[1]); err != nil {
		return err
	}
	r, err := container.Open(a.Config)
	if err != nil {
		return err
	}
	for _, b := range a.Bundles {
		if err := r.Create(context.Background(), b); err != nil {
			return err
		}
		if strings.HasPrefix(b.ID, "created") {
			continue
		}
		if err := last(r.Start(context.Background(), b.ID)); err != nil {
			return err
		}
	}
	return nil
}

// last returns the error of a call, whose other results depend on the commit.
func last(results ...any) error {
	err, _ := results[len(results)-1].(error)
	return err
}
`

// git runs git in this repository.
func git(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git %s: %v", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out))
}

// lastShim returns the commit before the one that changed the shim's program last.
func lastShim(t *testing.T) string {
	t.Helper()
	return git(t, "log", "-1", "--format=%H", "--", ":/node/container/shim", ":/node/container/call", ":/node/container/cgroup",
		":(top,exclude)*_test.go") + "~1"
}

// buildOld builds an agent and the shim of another commit in dir.
func buildOld(t *testing.T, commit, dir string) {
	t.Helper()
	archive := exec.Command("git", "archive", "--format=tar", commit, "go.mod", "go.sum", "internal", "node/container", "cmd/berth-init")
	archive.Dir, archive.Stderr = git(t, "rev-parse", "--show-toplevel"), os.Stderr
	unpack := exec.Command("tar", "-x", "-C", dir)
	unpack.Stderr = os.Stderr
	var err error
	if unpack.Stdin, err = archive.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := unpack.Start(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(archive.Run(), unpack.Wait()); err != nil {
		t.Fatalf("unpack %s: %v", commit, err)
	}
	agent := filepath.Join(dir, "cmd/old-agent")
	if err := errors.Join(os.MkdirAll(agent, 0o700), os.WriteFile(filepath.Join(agent, "main.go"), []byte(oldAgent), 0o600)); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir+"/", "./cmd/berth-init", "./cmd/old-agent")
	build.Dir = dir
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", commit, err, out)
	}
}

// TestOlderShims lets the agent of this commit go on with containers that others
// made: the first one ever, and the one before the shim was changed last.
func TestOlderShims(t *testing.T) {
	if git(t, "rev-parse", "--is-shallow-repository") == "true" {
		t.Fatal("this clone has no history, from which the test builds older shims: run git fetch --unshallow")
	}
	for _, commit := range []string{firstShim, lastShim(t)} {
		t.Run(git(t, "log", "-1", "--format=%h", commit), func(t *testing.T) {
			dir := t.TempDir()
			buildOld(t, commit, dir)
			n := newNode(t)
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			runs, ended, created, lost, again := n.bundle(t, "sh", "-c", "trap 'echo bye; exit 5' TERM; read x; echo got $x; while :; do sleep 0.01; done"),
				n.bundle(t, "sh", "-c", "echo done; echo errors >&2; exit 3"), n.bundle(t, "sh", "-c", "echo begun; exit 4"),
				n.bundle(t, "sleep", "1000"), n.bundle(t, "sh", "-c", counting+"exit 6")
			runs.Stdin, created.ID = true, "created"
			again.Restart = container.Restart{Policy: container.RestartOnFailure, Max: 2}
			n.startOld(t, dir, runs, ended, created, lost, again)
			n.open(t)

			n.oldRuns(t, runs)
			if s, err := n.Wait(testContext(t), ended.ID); err != nil || s.ExitCode != 3 || s.Run != 1 || s.Error != "" {
				t.Errorf("one that ends by itself: %+v, %v", s, err)
			}
			if out, errs := readLog(t, ended.Log.Path); out != "done\n" || errs != "errors\n" {
				t.Errorf("its log: %q, %q", out, errs)
			}
			n.start(t, created.ID)
			if s, err := n.Wait(testContext(t), created.ID); err != nil || s.ExitCode != 4 {
				t.Errorf("one that was only created: %+v, %v", s, err)
			}
			if err := syscall.Kill(n.shimOf(t, lost.ID), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if s, err := n.Wait(testContext(t), lost.ID); err != nil || s.ExitCode != 137 || s.Error == "" {
				t.Errorf("one whose shim is killed: %+v, %v", s, err)
			}
			times := 1
			if _, err := os.Stat(filepath.Join(dir, "node/container/shim/restart.go")); err == nil {
				times = 3
			}
			if s, err := n.Wait(testContext(t), again.ID); err != nil || s.ExitCode != 6 || s.Run != times {
				t.Errorf("one that begins again: %+v, %v; want %d runs", s, err, times)
			}
			for _, b := range []container.Bundle{ended, created, lost, again} {
				if err := n.Delete(testContext(t), b.ID); err != nil {
					t.Error(err)
				}
			}
			if left := n.processes(t); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// startOld lets the agent in dir make containers, and end.
func (n *node) startOld(t *testing.T, dir string, bundles ...container.Bundle) {
	t.Helper()
	cfg := n.cfg
	cfg.Init = nil
	args, err := json.Marshal(struct {
		Config  container.Config
		Bundles []container.Bundle
	}{cfg, bundles})
	if err != nil {
		t.Fatal(err)
	}
	agent := exec.Command(filepath.Join(dir, "old-agent"), filepath.Join(dir, "berth-init"))
	agent.Stdin = strings.NewReader(string(args))
	if out, err := agent.CombinedOutput(); err != nil {
		t.Fatalf("older agent: %v\n%s", err, out)
	}
}

// oldRuns asks for everything of a container that runs.
func (n *node) oldRuns(t *testing.T, b container.Bundle) {
	t.Helper()
	ctx := testContext(t)
	s, err := n.State(ctx, b.ID)
	if err != nil || s.Status != container.StatusRunning || s.Run != 1 || s.Pid == 0 || s.Started.IsZero() {
		t.Errorf("State = %+v, %v; want running", s, err)
	}
	waited := make(chan container.State, 1)
	go func() {
		s, err := n.WaitRun(ctx, b.ID, 1)
		if err != nil {
			t.Error(err)
		}
		waited <- s
	}()
	streams := n.attach(t, b.ID, all)
	if _, err := io.WriteString(streams.Stdin, "input\n"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len("got input\n"))
	if _, err := io.ReadFull(streams.Stdout, got); err != nil || string(got) != "got input\n" {
		t.Errorf("attached: %q, %v", got, err)
	}
	e, err := n.Exec(ctx, b.ID, container.ExecSpec{Process: *processWith(b, "sh", "-c", "cat; echo $0; exit 7", "arg"), AttachOptions: all})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = fmt.Fprintln(e.Stdin, "line")
	_ = e.Stdin.Close()
	if out := readAll(t, e.Stdout); out != "line\narg\n" {
		t.Errorf("exec printed %q", out)
	}
	if code, err := e.Wait(ctx); code != 7 || err != nil {
		t.Errorf("exec ended with %d, %v; want 7", code, err)
	}
	if err := errors.Join(n.Pause(ctx, b.ID), n.Resume(ctx, b.ID)); err != nil {
		t.Errorf("pause: %v", err)
	}
	// What it cannot do is said by name, and costs nothing.
	always := container.Restart{Policy: container.RestartAlways}
	if err := n.SetRestart(ctx, b.ID, always); !errors.Is(err, container.ErrUnsupported) || !strings.Contains(err.Error(), "restart the container") {
		t.Errorf("SetRestart = %v, want ErrUnsupported and what to do", err)
	}
	if err := n.SetRestart(ctx, b.ID, container.Restart{}); err != nil {
		t.Errorf("SetRestart to none = %v", err)
	}
	if err := n.Resize(ctx, b.ID, container.TerminalSize{Rows: 1, Columns: 1}); err == nil {
		t.Error("Resize: no error")
	}
	if err := n.Delete(ctx, b.ID); !errors.Is(err, container.ErrStatus) {
		t.Errorf("Delete = %v, want ErrStatus", err)
	}
	if err := n.Kill(ctx, b.ID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if s := <-waited; s.Status != container.StatusStopped || s.ExitCode != 5 || s.Run != 1 {
		t.Errorf("WaitRun = %+v; want stopped with 5", s)
	}
	if out, _ := readLog(t, b.Log.Path); out != "got input\nbye\n" {
		t.Errorf("log %q", out)
	}
	if err := n.Delete(ctx, b.ID); err != nil {
		t.Error(err)
	}
}
