package container_test

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth.internal/node/container"
)

// cyclerEnv makes this program an agent that makes and removes containers until it
// is killed.
const cyclerEnv = "BERTH_TEST_CYCLER"

// cyclerArgs is what it is given, as JSON.
type cyclerArgs struct {
	Config  container.Config
	Bundles []container.Bundle // one for each of those that work side by side
	Seed    uint64
}

// cycler is that agent. It says a line for each step and for each whole cycle.
func cycler(args string) int {
	var a cyclerArgs
	if err := json.Unmarshal([]byte(args), &a); err != nil {
		fmt.Println("error", err)
		return 1
	}
	prog, err := os.ReadFile(os.Args[1])
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	a.Config.Init = prog
	r, err := container.Open(a.Config)
	if err == nil {
		err = r.Sweep()
	}
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	fmt.Println("open")
	var wg sync.WaitGroup
	for i, b := range a.Bundles {
		rnd := rand.New(rand.NewPCG(a.Seed, uint64(i)))
		wg.Go(func() {
			for {
				if err := cycleOnce(r, b, rnd); err != nil {
					fmt.Println("error", err)
				}
			}
		})
	}
	wg.Wait()
	return 0
}

// cycleOnce is one life, of one of several kinds. That a shim was killed is no
// error.
func cycleOnce(r *container.Runtime, b container.Bundle, rnd *rand.Rand) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	say := func(what string) { fmt.Println(what) }
	kind := rnd.IntN(6)
	b.Spec.Process.Args = [][]string{
		{"sleep", "1000"},
		{"true"},
		{"nothing"},
		{"sh", "-c", "sleep 1000 & sleep 1000 & echo x; wait"},
		{"sh", "-c", "(sleep 1000 &); echo x"},
		{"sleep", "1000"},
	}[kind]
	if b.Spec.Process.Terminal = rnd.IntN(4) == 0; b.Spec.Process.Terminal {
		b.Terminal = &container.TerminalSize{Rows: 24, Columns: 80}
	}
	b.Init = rnd.IntN(4) == 0 && b.Engine == ""
	if kind == 0 && rnd.IntN(2) == 0 {
		b.Restart = container.Restart{Policy: container.RestartAlways}
	}
	say("create")
	begun := kind != 5 && rnd.IntN(3) == 0 // at once
	create := r.Create
	if begun {
		create = func(ctx context.Context, b container.Bundle) error {
			_, err := r.Run(ctx, b)
			return err
		}
	}
	switch err := create(ctx, b); {
	case errors.Is(err, container.ErrNoCommand): // runc and crun look for it now
		say("cycle")
		return nil
	case err != nil:
		return dead(err, "create")
	}
	var streams *container.Streams
	if rnd.IntN(3) == 0 {
		say("attach")
		s, err := r.Attach(ctx, b.ID, container.AttachOptions{Stdout: true, Stderr: !b.Spec.Process.Terminal})
		if err != nil && !errors.Is(err, container.ErrStatus) {
			return dead(err, "attach")
		}
		if streams = s; s != nil {
			defer s.Close()
		}
	}
	if kind != 5 { // that one is removed as it was created
		if !begun {
			say("start")
			if _, err := r.Start(ctx, b.ID); err != nil && !errors.Is(err, container.ErrNoCommand) && !errors.Is(err, container.ErrStatus) {
				return dead(err, "start")
			}
		}
		if kind == 0 || kind == 3 {
			say("exec")
			p := *b.Spec.Process
			p.Args = []string{[]string{"true", "sleep", "nothing"}[rnd.IntN(3)], "1000"}
			spec := container.ExecSpec{AttachOptions: container.AttachOptions{Stdin: rnd.IntN(2) == 0, Stdout: rnd.IntN(2) == 0}}
			if p.Terminal = rnd.IntN(2) == 0; p.Terminal {
				spec.Terminal = &container.TerminalSize{Rows: 24, Columns: 80}
			}
			spec.Process = p
			e, err := r.Exec(ctx, b.ID, spec)
			if err == nil {
				err = e.Close()
			}
			if err != nil && !errors.Is(err, container.ErrStatus) && !errors.Is(err, container.ErrNoCommand) {
				return dead(err, "exec")
			}
		}
		if kind == 3 && rnd.IntN(2) == 0 {
			say("pause")
			if err := r.Pause(ctx, b.ID); err != nil && !errors.Is(err, container.ErrStatus) {
				return dead(err, "pause")
			}
		}
		if b.Restart.Policy != container.RestartNo {
			for range rnd.IntN(3) {
				say("restart")
				if err := r.Kill(ctx, b.ID, syscall.SIGKILL); err != nil && !errors.Is(err, container.ErrStatus) {
					return dead(err, "restart")
				}
				// The first run only: that a later one ends nobody sees to.
				if _, err := r.WaitRun(ctx, b.ID, 1); err != nil {
					return dead(err, "wait for the run of")
				}
			}
			say("take the policy from")
			if err := r.SetRestart(ctx, b.ID, container.Restart{}); err != nil && !errors.Is(err, container.ErrStatus) {
				return dead(err, "set the policy of")
			}
		}
		say("kill")
		if err := r.Kill(ctx, b.ID, syscall.SIGKILL); err != nil && !errors.Is(err, container.ErrStatus) {
			return dead(err, "kill")
		}
		say("wait")
		s, err := r.Wait(ctx, b.ID)
		if errors.Is(err, context.DeadlineExceeded) {
			s, serr := r.State(context.Background(), b.ID)
			return fmt.Errorf("%w: %q, terminal %t, init %t, restart %q, engine %q, %+v, %w", err, b.Spec.Process.Args, b.Spec.Process.Terminal, b.Init, b.Restart.Policy, b.Engine, s, serr)
		}
		if err != nil {
			return dead(err, "wait")
		}
		if s.Status != container.StatusStopped || s.Pid != 0 || s.Finished.IsZero() {
			return fmt.Errorf("a container that was waited for is %+v", s)
		}
	}
	say("delete")
	if err := r.Delete(ctx, b.ID); err != nil {
		return dead(err, "delete")
	}
	if streams != nil {
		if _, err := io.Copy(io.Discard, streams.Stdout); err != nil && !errors.Is(err, syscall.EIO) {
			return fmt.Errorf("read output of a removed container: %w", err)
		}
	}
	if fds, err := os.ReadDir("/proc/self/fd"); err != nil || len(fds) > 100 {
		return fmt.Errorf("the agent has %d descriptors: %w", len(fds), err)
	}
	say("cycle")
	return nil
}

// dead returns nil for an error that means the shim was killed meanwhile, which
// somebody does.
func dead(err error, what string) error {
	for _, e := range []error{io.EOF, syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNREFUSED, container.ErrStatus, container.ErrExists} {
		if errors.Is(err, e) {
			fmt.Println("lost", what)
			return nil
		}
	}
	return err
}

// TestCycles makes and removes $CYCLES containers (300 if it says nothing), while the
// agent and shims are killed at random moments. Each time another agent goes on,
// and at the end nothing is left on the machine. $CYCLES_SEED repeats a run, as far
// as the machine's own timing allows.
func TestCycles(t *testing.T) {
	cycles, err := strconv.Atoi(cmp.Or(os.Getenv("CYCLES"), "300"))
	if err != nil {
		t.Fatalf("CYCLES: %v", err)
	}
	seed, err := strconv.ParseUint(cmp.Or(os.Getenv("CYCLES_SEED"), strconv.FormatUint(rand.Uint64(), 10)), 10, 64)
	if err != nil {
		t.Fatalf("CYCLES_SEED: %v", err)
	}
	t.Logf("CYCLES=%d CYCLES_SEED=%d", cycles, seed)
	cycleWith(t, cycles, seed, "")
}

// TestEngineCycles is TestCycles for containers of runc and crun.
func TestEngineCycles(t *testing.T) {
	for name, path := range engines(t) {
		if path == "" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			cycleWith(t, 30, seed, path)
		})
	}
}

// cycleWith makes so many containers with that engine.
func cycleWith(t *testing.T, cycles int, seed uint64, engine string) {
	rnd := rand.New(rand.NewPCG(seed, 0))
	n := newNode(t)
	n.cfg.Spare = true
	a := cyclerArgs{Config: n.cfg}
	a.Config.Init = nil
	for range 3 {
		b := n.bundle(t, "true")
		b.Engine = engine
		a.Bundles = append(a.Bundles, b)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	descriptors := open(t)
	done, agents, shims := 0, 0, 0
	for done < cycles && !t.Failed() {
		agents++
		a.Seed = rnd.Uint64()
		n.cycleUntilKilled(t, a, rnd, cycles-done, &done, &shims)
		n.settle(t, a)
	}
	t.Logf("%d cycles; %d agents and %d shims were killed", done, agents, shims)
	if after := open(t); after > descriptors+2 { // the network poller opens some once
		t.Errorf("%d descriptors are open, %d before", after, descriptors)
	}
	n.open(t)
}

// cycleUntilKilled runs an agent for some steps, and kills shims of its meanwhile.
func (n *node) cycleUntilKilled(t *testing.T, a cyclerArgs, rnd *rand.Rand, most int, done, shims *int) {
	t.Helper()
	prog := filepath.Join(n.dir, "berth-init")
	if err := os.WriteFile(prog, initProgram, 0o700); err != nil {
		t.Fatal(err)
	}
	args, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], prog)
	cmd.Env = append(os.Environ(), cyclerEnv+"="+string(args))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	steps := 5 + rnd.IntN(200)
	if rnd.IntN(20) == 0 {
		steps *= 20 // long enough to see what it collects
	}
	lines, completed := bufio.NewScanner(out), 0
	for lines.Scan() {
		line := lines.Text()
		if line == "cycle" {
			completed++
		}
		if strings.HasPrefix(line, "error") {
			t.Error(line)
			break
		}
		if steps--; steps <= 0 || completed >= most {
			break
		}
		if rnd.IntN(25) == 0 {
			*shims += n.killShim(t, rnd)
		}
	}
	for range rnd.IntN(2000) {
		runtime.Gosched() // not always at the moment at which a step begins
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	for lines.Scan() {
		if lines.Text() == "cycle" {
			completed++
		} else if strings.HasPrefix(lines.Text(), "error") {
			t.Error(lines.Text())
		}
	}
	*done += completed
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("agent: %v", err)
	}
}

// killShim kills one of those that there are now, and returns how many that were.
func (n *node) killShim(t *testing.T, rnd *rand.Rand) int {
	t.Helper()
	var pids []int
	for _, p := range n.processes(t) {
		if pid, ok := strings.CutPrefix(p, "shim /proc/"); ok {
			// Its child is a copy of it until it executes the container's program.
			parent, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/2", parentOf(pid)))
			if number, aerr := strconv.Atoi(pid); aerr == nil && (err != nil || !strings.HasPrefix(parent, n.cfg.Root)) {
				pids = append(pids, number)
			}
		}
	}
	if len(pids) == 0 {
		return 0
	}
	slices.Sort(pids)
	if err := syscall.Kill(pids[rnd.IntN(len(pids))], syscall.SIGKILL); err != nil {
		return 0 // it ended by itself
	}
	return 1
}

// parentOf returns the number of a process's parent, 0 if it is gone.
func parentOf(pid string) int {
	b, _ := os.ReadFile("/proc/" + pid + "/stat")
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 2 {
		return 0
	}
	parent, _ := strconv.Atoi(f[1])
	return parent
}

// settle does what the next agent does: it goes on where the one before was killed.
// Everything there was can be brought to its end, and then nothing is left.
func (n *node) settle(t *testing.T, a cyclerArgs) {
	t.Helper()
	ctx := testContext(t)
	n.open(t)
	if err := n.Sweep(); err != nil {
		t.Error(err)
	}
	states, err := n.List(ctx)
	if err != nil {
		t.Error(err)
	}
	for _, s := range states {
		if s.Status != container.StatusStopped {
			if err := n.SetRestart(ctx, s.ID, container.Restart{}); err != nil && !errors.Is(err, container.ErrStatus) {
				t.Errorf("take the policy from %+v: %v", s, err)
			}
			if err := n.Kill(ctx, s.ID, syscall.SIGKILL); err != nil && !errors.Is(err, container.ErrStatus) {
				t.Errorf("kill %+v: %v", s, err)
			}
		}
		if s, err := n.Wait(ctx, s.ID); err != nil || s.Status != container.StatusStopped {
			t.Errorf("wait for %s: %+v, %v", s.ID, s, err)
		}
		if err := n.Delete(ctx, s.ID); err != nil {
			t.Error(err)
		}
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	for _, what := range n.left(t) {
		t.Errorf("left behind: %s", what)
	}
	for _, b := range a.Bundles {
		if err := os.Remove(b.Log.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	}
}
