package container_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"berth.internal/node/container"
)

// freezers calls f with nodes that pause in each way that this machine has.
func freezers(t *testing.T, f func(*testing.T, *node)) {
	t.Run("version 2", func(t *testing.T) { f(t, newNode(t)) })
	if !only2() {
		t.Run("version 1", func(t *testing.T) {
			n := newNode(t)
			n.WithoutUnified()
			f(t, n)
		})
	}
}

// used returns how much processor time a container has had.
func (n *node) used(t *testing.T, id string) int64 {
	t.Helper()
	s, err := n.Stats(testContext(t), id)
	if err != nil {
		t.Fatal(err)
	}
	return int64(s.CPU)
}

func (n *node) paused(t *testing.T, id string, want bool) {
	t.Helper()
	s, err := n.State(testContext(t), id)
	if err != nil || s.Status != container.StatusRunning || s.Paused != want {
		t.Errorf("State = %+v, %v; want running and Paused %t", s, err, want)
	}
}

// TestPause pauses a busy container, and does with it what can be done.
func TestPause(t *testing.T) {
	freezers(t, func(t *testing.T, n *node) {
		b := n.bundle(t, "sh", "-c", "trap 'echo bye; exit 3' TERM; echo up; while :; do :; done")
		n.create(t, b)
		if err := n.Pause(testContext(t), b.ID); !errors.Is(err, container.ErrStatus) {
			t.Errorf("Pause of a created container = %v", err)
		}
		n.start(t, b.ID)
		waitLog(t, b.Log.Path, "up")
		if err := n.Resume(testContext(t), b.ID); !errors.Is(err, container.ErrStatus) {
			t.Errorf("Resume of a running container = %v", err)
		}
		if err := n.Pause(testContext(t), b.ID); err != nil {
			t.Fatal(err)
		}
		n.paused(t, b.ID, true)
		before := n.used(t, b.ID)
		n.sh(t, "true") // meanwhile a busy one would have used more
		if after := n.used(t, b.ID); after != before {
			t.Errorf("a paused container used %d ns", after-before)
		}
		if err := n.Pause(testContext(t), b.ID); !errors.Is(err, container.ErrStatus) {
			t.Errorf("Pause of a paused container = %v", err)
		}
		if _, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *processWith(b, "true")}); !errors.Is(err, container.ErrStatus) {
			t.Errorf("Exec in a paused container = %v", err)
		}
		if err := n.Delete(testContext(t), b.ID); !errors.Is(err, container.ErrStatus) {
			t.Errorf("Delete of a paused container = %v", err)
		}
		if err := n.Kill(testContext(t), b.ID, syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		n.paused(t, b.ID, true)
		if err := n.Resume(testContext(t), b.ID); err != nil {
			t.Fatal(err)
		}
		if s, err := n.Wait(testContext(t), b.ID); err != nil || s.ExitCode != 3 {
			t.Errorf("Wait = %+v, %v; want exit code 3 by the signal that it got while it was paused", s, err)
		}
		for what, f := range map[string]func(context.Context, string) error{"Pause": n.Pause, "Resume": n.Resume} {
			if err := f(testContext(t), b.ID); !errors.Is(err, container.ErrStatus) {
				t.Errorf("%s of a stopped container = %v", what, err)
			}
			if err := f(testContext(t), "none"); !errors.Is(err, container.ErrNotFound) {
				t.Errorf("%s of no container = %v", what, err)
			}
		}
	})
}

// TestPauseOutlivesTheAgent opens another agent on a paused container, which kills
// it.
func TestPauseOutlivesTheAgent(t *testing.T) {
	freezers(t, func(t *testing.T, n *node) {
		b := n.bundle(t, "sh", "-c", "sleep 1000 & while :; do :; done")
		n.create(t, b)
		n.start(t, b.ID)
		if err := n.Pause(testContext(t), b.ID); err != nil {
			t.Fatal(err)
		}
		n.open(t)
		n.paused(t, b.ID, true)
		if err := n.Kill(testContext(t), b.ID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if s, err := n.Wait(testContext(t), b.ID); err != nil || s.ExitCode != 137 || s.Paused {
			t.Errorf("Wait = %+v, %v; want exit code 137", s, err)
		}
	})
}

// TestPausedLosesItsShim kills the shim of a paused container.
func TestPausedLosesItsShim(t *testing.T) {
	freezers(t, func(t *testing.T, n *node) {
		b := n.bundle(t, "sh", "-c", "sleep 1000 & while :; do :; done")
		n.create(t, b)
		n.start(t, b.ID)
		if err := n.Pause(testContext(t), b.ID); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(n.shimOf(t, b.ID), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if s, err := n.Wait(testContext(t), b.ID); err != nil || s.ExitCode != 137 || !strings.Contains(s.Error, "shim ended") {
			t.Errorf("Wait = %+v, %v; want exit code 137", s, err)
		}
	})
}

// TestPausedBySomebodyElse freezes the cgroup by hand.
func TestPausedBySomebodyElse(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sleep", "1000")
	n.create(t, b)
	n.start(t, b.ID)
	files := map[string]string{filepath.Join("/sys/fs/cgroup", n.cfg.CgroupParent, b.ID, "cgroup.freeze"): "1"}
	if !only2() {
		files = map[string]string{
			filepath.Join("/sys/fs/cgroup/unified", n.cfg.CgroupParent, b.ID, "cgroup.freeze"): "1",
			filepath.Join("/sys/fs/cgroup/freezer", n.cfg.CgroupParent, b.ID, "freezer.state"): "FROZEN",
		}
	}
	for name, word := range files {
		if err := os.WriteFile(name, []byte(word), 0); err != nil {
			t.Fatal(err)
		}
		n.paused(t, b.ID, true)
		if err := n.Resume(testContext(t), b.ID); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		n.paused(t, b.ID, false)
	}
}

// TestPauseOfForks pauses a container that forks all the time.
func TestPauseOfForks(t *testing.T) {
	freezers(t, func(t *testing.T, n *node) {
		b := n.bundle(t, "sh", "-c", "echo up; while :; do (:) & wait; done")
		n.create(t, b)
		n.start(t, b.ID)
		waitLog(t, b.Log.Path, "up")
		for range 10 {
			if err := n.Pause(testContext(t), b.ID); err != nil {
				t.Fatal(err)
			}
			n.paused(t, b.ID, true)
			if err := n.Resume(testContext(t), b.ID); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestPausedDies kills the first process of a paused container behind the runtime's
// back, as far as the kernel lets it: the next run is not paused.
func TestPausedDies(t *testing.T) {
	freezers(t, func(t *testing.T, n *node) {
		b := n.bundle(t, "sh", "-c", "echo up; while :; do :; done")
		b.Restart.Policy = container.RestartAlways
		n.create(t, b)
		n.start(t, b.ID)
		waitLog(t, b.Log.Path, "up")
		s, err := n.State(testContext(t), b.ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Pause(testContext(t), b.ID); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(s.Pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(t.Name(), "version_1") { // there it dies when it goes on
			if err := n.Resume(testContext(t), b.ID); err != nil {
				t.Fatal(err)
			}
		}
		n.waitRun(t, b.ID, 1)
		waitLog(t, b.Log.Path, "up\nup")
		n.paused(t, b.ID, false)
		if err := n.SetRestart(testContext(t), b.ID, container.Restart{}); err != nil {
			t.Fatal(err)
		}
	})
}

// TestCgroupsBelow kills and deletes a container that has made cgroups of its own,
// with a frozen process in one.
func TestCgroupsBelow(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sleep", "1000")
	n.create(t, b)
	n.start(t, b.ID)
	e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *processWith(b, "sleep", "1000")})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	dirs, freeze := []string{filepath.Join("/sys/fs/cgroup", n.cfg.CgroupParent, b.ID)}, []string{"cgroup.freeze", "1"}
	if !only2() {
		if dirs, err = filepath.Glob("/sys/fs/cgroup/*/" + n.cfg.CgroupParent + "/" + b.ID); err != nil {
			t.Fatal(err)
		}
		freeze = []string{"freezer.state", "FROZEN"}
	}
	for _, dir := range dirs {
		below := filepath.Join(dir, "child/grandchild")
		if err := os.MkdirAll(below, 0o755); err != nil {
			t.Fatal(err)
		}
		if filepath.Base(filepath.Dir(filepath.Dir(dir))) == "cpuset" {
			continue // nobody can be in one without processors
		}
		if err := os.WriteFile(filepath.Join(below, "cgroup.procs"), []byte(strconv.Itoa(e.Pid)), 0); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(below, freeze[0])
		if _, err := os.Stat(file); err != nil {
			continue
		}
		if err := os.WriteFile(file, []byte(freeze[1]), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Kill(testContext(t), b.ID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if s, err := n.Wait(testContext(t), b.ID); err != nil || s.ExitCode != 137 {
		t.Errorf("Wait = %+v, %v; want exit code 137", s, err)
	}
	if err := n.Delete(testContext(t), b.ID); err != nil {
		t.Error(err)
	}
}
