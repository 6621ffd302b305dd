package oci_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/oci"
	"berth.internal/node/container/shim"
)

// initProgram is cmd/berth-init as it is shipped.
var initProgram []byte

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == shim.Name {
		os.Exit(shim.Main())
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "berth-oci-*")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir, "berth.internal/cmd/berth-init")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build berth-init: %v\n%s", err, out)
			return 1
		}
		if initProgram, err = os.ReadFile(filepath.Join(dir, "berth-init")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		// As conmon does: containers become this process's children.
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// runtime is one on a directory of its own, and a bundle for it.
type runtime struct {
	*oci.Runtime
	root, bundle string
	spec         *specs.Spec
	cgroup       string
}

// newRuntime returns a runtime whose bundle runs args in busybox.
func newRuntime(t *testing.T, args ...string) *runtime {
	t.Helper()
	dir := t.TempDir()
	r := &runtime{root: filepath.Join(dir, "state"), bundle: filepath.Join(dir, "bundle"), spec: oci.ExampleSpec()}
	r.cgroup = "/berth-oci-test-" + filepath.Base(filepath.Dir(dir)) + filepath.Base(dir)
	var err error
	if r.Runtime, err = oci.Open(oci.Config{Root: r.root, Init: initProgram}); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"bin", "etc", "tmp", "proc"} {
		if err := os.MkdirAll(filepath.Join(r.bundle, "rootfs", d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("the tests need a static busybox (apt-get install busybox-static): %v", err)
	}
	if err := os.WriteFile(filepath.Join(r.bundle, "rootfs/bin/busybox"), busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, applet := range []string{"sh", "cat", "id", "ls", "sleep", "true", "false", "echo", "env", "readlink", "tty", "stat", "ps", "kill"} {
		if err := os.Symlink("busybox", filepath.Join(r.bundle, "rootfs/bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	r.spec.Process.Terminal, r.spec.Process.Args = false, args
	r.spec.Root.Readonly = false
	t.Cleanup(func() { r.clean(t) })
	return r
}

// clean deletes all containers, and looks for what is left.
func (r *runtime) clean(t *testing.T) {
	t.Helper()
	list, err := r.List()
	if errors.Is(err, fs.ErrNotExist) {
		return // there never was one
	}
	if err != nil {
		t.Error(err)
	}
	for _, s := range list {
		if err := r.Delete(context.Background(), s.ID, true); err != nil {
			t.Errorf("delete %s at the end: %v", s.ID, err)
		}
	}
	entries, err := os.ReadDir(r.root)
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		t.Errorf("left behind: %s", e.Name())
	}
	for _, g := range r.cgroups(t) {
		left, err := os.ReadDir(g)
		if err != nil {
			t.Error(err)
		}
		for _, e := range left {
			if e.IsDir() {
				t.Errorf("left behind: %s", filepath.Join(g, e.Name()))
			}
		}
		if err := os.Remove(g); err != nil {
			t.Error(err)
		}
	}
}

// cgroups returns the directories that the test's containers are below.
func (r *runtime) cgroups(t *testing.T) []string {
	t.Helper()
	var list []string
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		found, err := filepath.Glob(pattern + r.cgroup)
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range found {
			if info, err := os.Lstat(strings.TrimSuffix(dir, r.cgroup)); err == nil && info.Mode()&fs.ModeSymlink == 0 {
				list = append(list, dir)
			}
		}
	}
	return list
}

// options returns those for a container with what is in r.spec now; its output goes to
// a file.
func (r *runtime) options(t *testing.T, id string) (oci.CreateOptions, *os.File) {
	t.Helper()
	if r.spec.Linux.CgroupsPath == "" || strings.HasPrefix(r.spec.Linux.CgroupsPath, r.cgroup) {
		r.spec.Linux.CgroupsPath = filepath.Join(r.cgroup, id)
	}
	data, err := json.Marshal(r.spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.bundle, "config.json"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	stdio, out := streams(t)
	return oci.CreateOptions{ID: id, Bundle: r.bundle, Stdio: stdio}, out
}

// streams returns standard streams: nothing to read, and a file for what is written.
func streams(t *testing.T) (stdio [3]*os.File, out *os.File) {
	t.Helper()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if out, err = os.Create(filepath.Join(t.TempDir(), "out")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = null.Close()
		_ = out.Close()
	})
	return [3]*os.File{null, out, out}, out
}

// piped returns standard streams: nothing to read, and what is written can be read
// by lines at once.
func piped(t *testing.T) (stdio [3]*os.File, out *bufio.Reader) {
	t.Helper()
	stdio, _ = streams(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = r.Close()
		_ = w.Close()
	})
	if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return [3]*os.File{stdio[0], w, w}, bufio.NewReader(r)
}

// wantLine waits for the next line of out.
func wantLine(t *testing.T, out *bufio.Reader, want string) {
	t.Helper()
	if line, err := out.ReadString('\n'); line != want+"\n" {
		t.Fatalf("the next line is %q, %v; want %q", line, err, want)
	}
}

func (r *runtime) create(t *testing.T, id string) *os.File {
	t.Helper()
	o, out := r.options(t, id)
	if err := r.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	return out
}

func (r *runtime) start(t *testing.T, id string) {
	t.Helper()
	if err := r.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

// waitPid returns how a process ended that is this one's child.
func waitPid(t *testing.T, pid int) (ws unix.WaitStatus) {
	t.Helper()
	if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil {
		t.Fatalf("wait for process %d: %v", pid, err)
	}
	return ws
}

func (r *runtime) state(t *testing.T, id string) *oci.State {
	t.Helper()
	s, err := r.State(id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (r *runtime) wantStatus(t *testing.T, id string, want oci.Status) {
	t.Helper()
	if s := r.state(t, id); s.Status != want {
		t.Errorf("container %s is %s, want %s", id, s.Status, want)
	}
}

func content(t *testing.T, f *os.File) string {
	t.Helper()
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func lines(s string) []string { return strings.Split(strings.TrimSuffix(s, "\n"), "\n") }

func runOptions(o oci.CreateOptions) oci.RunOptions { return oci.RunOptions{CreateOptions: o} }
