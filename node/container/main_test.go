package container_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container"
	"berth.internal/node/container/shim"
)

// initProgram is cmd/berth-init as it is shipped.
var initProgram []byte

// probeProgram is testdata/probe, what a hostile program does in a container.
var probeProgram []byte

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == shim.Name {
		os.Exit(shim.Main())
	}
	os.Exit(func() int {
		if args := os.Getenv(agentEnv); args != "" {
			return agent(args)
		}
		if args := os.Getenv(cyclerEnv); args != "" {
			return cycler(args)
		}
		dir, remove, err := programs()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer remove()
		for name, prog := range map[string]*[]byte{"berth-init": &initProgram, "probe": &probeProgram} {
			if *prog, err = os.ReadFile(filepath.Join(dir, name)); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
		}
		return m.Run()
	}())
}

// programs returns a directory with the programs of the tests. On a machine without
// Go somebody has built them.
func programs() (dir string, remove func(), err error) {
	if dir := os.Getenv("BERTH_TEST_PROGRAMS"); dir != "" {
		return dir, func() {}, nil
	}
	if dir, err = os.MkdirTemp("", "berth-init-*"); err != nil {
		return "", nil, err
	}
	remove = func() { _ = os.RemoveAll(dir) }
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir, "berth.internal/cmd/berth-init", "./testdata/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		remove()
		return "", nil, fmt.Errorf("build berth-init: %w\n%s", err, out)
	}
	return dir, remove, nil
}

// node is a runtime on directories of its own, and a root file system of
// busybox.
type node struct {
	*container.Runtime
	cfg    container.Config
	dir    string
	lower  string
	nextID int

	before []*container.Runtime // which were open before this one

	mu       sync.Mutex
	executed []*container.Exec
}

// firstID is where the users of the tests' containers begin on the machine.
const firstID = 3 << 30

func newNode(t testing.TB) *node {
	t.Helper()
	descriptors := open(t)
	dir, err := os.MkdirTemp("/dev/shm", "berth-test-*")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{dir: dir, lower: filepath.Join(dir, "lower")}
	n.cfg = container.Config{
		Root: filepath.Join(dir, "containers"), Run: filepath.Join(dir, "run"),
		CgroupParent: "berth-" + filepath.Base(dir), Init: initProgram,
	}
	n.open(t)
	for _, d := range []string{"bin", "etc", "tmp", "proc"} {
		if err := os.MkdirAll(filepath.Join(n.lower, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("the tests need a static busybox (apt-get install busybox-static): %v", err)
	}
	if err := os.WriteFile(filepath.Join(n.lower, "bin/busybox"), busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, applet := range []string{"sh", "cat", "id", "ls", "sleep", "true", "echo", "head", "dd", "stat", "ps", "mount", "kill", "touch", "mkdir", "pwd", "env", "hostname", "grep", "seq", "mknod", "yes", "ip", "tr", "readlink", "umount", "ln", "wc", "chmod", "cut", "uname", "ionice", "find", "df", "tty", "stty", "rm", "rmdir", "tail"} {
		if err := os.Symlink("busybox", filepath.Join(n.lower, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		n.clean(t)
		for _, e := range n.executed {
			_ = e.Close() // it may be closed already
		}
		for _, r := range append(n.before, n.Runtime) {
			r.Reaped()
		}
		// The network poller opens some once.
		if after := open(t); after > descriptors+2 {
			t.Errorf("%d descriptors are open, %d before", after, descriptors)
		}
	})
	return n
}

// open opens the runtime, again if it was open before.
func (n *node) open(t testing.TB) {
	t.Helper()
	r, err := container.Open(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if n.Runtime != nil {
		n.before = append(n.before, n.Runtime)
	}
	n.Runtime = r
}

// Exec is the runtime's. What the test does not close is closed at its end.
func (n *node) Exec(ctx context.Context, id string, spec container.ExecSpec) (*container.Exec, error) {
	e, err := n.Runtime.Exec(ctx, id, spec)
	if err == nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.executed = append(n.executed, e)
	}
	return e, err
}

// clean removes all containers and then looks for what they left behind.
func (n *node) clean(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	states, err := n.List(ctx)
	if err != nil {
		t.Errorf("list containers at the end: %v", err)
	}
	for _, s := range states {
		_ = n.SetRestart(ctx, s.ID, container.Restart{}) // it may have stopped
		if s.Status == container.StatusRunning {
			_ = n.Kill(ctx, s.ID, 9)
			if _, err := n.Wait(ctx, s.ID); err != nil {
				t.Errorf("wait for %s at the end: %v", s.ID, err)
			}
		}
		if err := n.Delete(ctx, s.ID); err != nil {
			t.Errorf("delete %s at the end: %v", s.ID, err)
		}
	}
	if err := n.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	for _, what := range n.left(t) {
		t.Errorf("left behind: %s", what)
	}
	if err := os.RemoveAll(n.dir); err != nil {
		t.Error(err)
	}
}

// left returns what there still is of the node's containers when everything was
// removed and processes that are about to end have: a shim whose agent was killed ends
// by itself.
func (n *node) left(t testing.TB) []string {
	t.Helper()
	end := time.Now().Add(20 * time.Second)
	for _, p := range n.processes(t) {
		pid, err := strconv.Atoi(filepath.Base(p))
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		poll(t, fd, unix.POLLIN, end)
		_ = unix.Close(fd)
	}
	return n.traces(t)
}

// poll waits for one of events on a descriptor. It reports whether it came before end.
func poll(t testing.TB, fd int, events int16, end time.Time) bool {
	t.Helper()
	p := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		_, err := unix.Poll(p, max(0, int(time.Until(end).Milliseconds())))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			t.Fatalf("poll: %v", err)
		}
		return p[0].Revents&events != 0
	}
}

// traces returns everything on the machine that belongs to the node's
// containers: files, cgroups, mounts and processes.
func (n *node) traces(t testing.TB) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{
		filepath.Join(n.cfg.Root, "*"), filepath.Join(n.cfg.Run, "*"),
		"/sys/fs/cgroup/" + n.cfg.CgroupParent, "/sys/fs/cgroup/*/" + n.cfg.CgroupParent,
	} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, names...)
	}
	found = append(found, n.below(t, "/sys/fs/cgroup/unified")...)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, n.dir) {
			found = append(found, "mount "+line)
		}
	}
	return append(found, n.processes(t)...)
}

// below returns what there is of the node's in a directory that a file system is mounted on.
func (n *node) below(t testing.TB, dir string) []string {
	t.Helper()
	top, err := unix.OpenTree(unix.AT_FDCWD, filepath.Dir(dir), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(top)
	names, err := filepath.Glob(filepath.Join(fmt.Sprintf("/proc/self/fd/%d", top), filepath.Base(dir), n.cfg.CgroupParent, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// processes returns those whose cgroup is the node's, and its shims.
func (n *node) processes(t testing.TB) []string {
	t.Helper()
	groups, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, g := range groups {
		proc := filepath.Dir(g)
		if stat, err := os.ReadFile(proc + "/stat"); err != nil || ended(stat) {
			continue
		}
		if b, err := os.ReadFile(g); err == nil && bytes.Contains(b, []byte(n.cfg.CgroupParent+"/")) {
			found = append(found, "process "+proc)
		}
		if says, err := os.Readlink(proc + "/fd/2"); err == nil && strings.HasPrefix(says, n.cfg.Root) {
			found = append(found, "shim "+proc)
		}
	}
	return found
}

// ended reports whether a process is dead, and waits for its parent to notice; or
// is about to be: its cgroup counts it no more.
func ended(stat []byte) bool {
	_, rest, _ := bytes.Cut(stat, []byte(") "))
	fields := bytes.Fields(rest)
	if len(fields) < 7 {
		return true
	}
	const exiting = 4 // PF_EXITING of the kernel
	flags, err := strconv.Atoi(string(fields[6]))
	return err != nil || flags&exiting != 0 || string(fields[0]) == "Z"
}

// bundle returns a container with a user namespace that runs args.
func (n *node) bundle(t testing.TB, args ...string) container.Bundle {
	t.Helper()
	n.nextID++
	id := fmt.Sprintf("c%d", n.nextID)
	rw := filepath.Join(n.dir, "rw", id)
	for _, d := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(rw, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s := container.DefaultSpec()
	s.Process.Args = args
	s.Hostname = id
	s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: uint32(firstID + n.nextID<<16), Size: 1 << 16}}
	s.Linux.GIDMappings = s.Linux.UIDMappings
	if err := container.SetDefaultSeccomp(s); err != nil {
		t.Fatal(err)
	}
	return container.Bundle{
		ID: id, Spec: s, Log: container.LogConfig{Path: filepath.Join(n.dir, id+".log")},
		Rootfs: container.Rootfs{Lowers: []string{n.lower}, Upper: filepath.Join(rw, "upper"), Work: filepath.Join(rw, "work")},
	}
}

// run creates and starts b, waits for its end, and returns its output.
func (n *node) run(t testing.TB, b container.Bundle) (stdout, stderr string, s container.State) {
	t.Helper()
	ctx := testContext(t)
	if err := n.Create(ctx, b); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Start(ctx, b.ID); err != nil {
		t.Fatal(err)
	}
	s, err := n.Wait(ctx, b.ID)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Warnings) > 0 {
		t.Errorf("container %s has warnings %q", b.ID, s.Warnings)
	}
	stdout, stderr = readLog(t, b.Log.Path)
	if err := n.Delete(ctx, b.ID); err != nil {
		t.Fatal(err)
	}
	return stdout, stderr, s
}

// sh runs a shell script in a default container and returns its output.
func (n *node) sh(t testing.TB, script string) string {
	t.Helper()
	stdout, stderr, s := n.run(t, n.bundle(t, "sh", "-c", script))
	if s.ExitCode != 0 || stderr != "" {
		t.Errorf("%s\nexit code %d, stderr %q, state %+v", script, s.ExitCode, stderr, s)
	}
	return stdout
}

// testContext ends long before the test's own limit.
func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// readLog returns what a log says was written to both streams.
func readLog(t testing.TB, path string) (stdout, stderr string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*strings.Builder{"stdout": {}, "stderr": {}}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(f) != 4 || out[f[1]] == nil || f[2] != "F" && f[2] != "P" {
			t.Fatalf("log line %q is not of the CRI's form", line)
		}
		if _, err := time.Parse(time.RFC3339Nano, f[0]); err != nil {
			t.Errorf("log line %q: %v", line, err)
		}
		out[f[1]].WriteString(f[3])
		if f[2] == "F" {
			out[f[1]].WriteByte('\n')
		}
	}
	return out["stdout"].String(), out["stderr"].String()
}
