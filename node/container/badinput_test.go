package container_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container"
)

// TestBadPrograms gives images whose program cannot be executed, or not as asked.
// Docker's users know them by the exit code: 126, 127.
func TestBadPrograms(t *testing.T) {
	n := newNode(t)
	elf, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	foreign := slices.Clone(elf)
	foreign[18], foreign[19] = 243, 0 // e_machine: RISC-V
	many := make([]string, 65_000)
	for i := range many {
		many[i] = fmt.Sprintf("VARIABLE_%d=%d", i, i)
	}
	for name, content := range map[string][]byte{
		"foreign": foreign, "cutoff": elf[:100], "empty": nil, "script": []byte("#!/no/such/interpreter\n"), "loop": []byte("#!/bin/loop\n"),
		"directory": []byte("#!/etc\n"), "fine": []byte("#!/bin/sh\necho fine\n"), "long": []byte("#!/" + strings.Repeat("x", 5000) + "\n"),
	} {
		if err := os.WriteFile(filepath.Join(n.lower, "bin", name), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(n.lower, "bin/plain"), []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(n.lower, "bin/dangling")); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		args []string
		env  []string
		exit int
		has  string // of the error, or of what it says
	}{
		{"missing", []string{"/no/such/program"}, nil, 127, "no such file or directory"},
		{"missing in PATH", []string{"nonesuch"}, nil, 127, `find "nonesuch" in PATH`},
		{"dangling link", []string{"dangling"}, nil, 127, `find "dangling" in PATH`},
		{"not executable", []string{"/bin/plain"}, nil, 126, "permission denied"},
		{"not executable in PATH", []string{"plain"}, nil, 126, "permission denied"},
		{"of another processor", []string{"/bin/foreign"}, nil, 126, "exec format error"},
		{"cut off", []string{"/bin/cutoff"}, nil, 126, "exec format error"},
		{"empty", []string{"/bin/empty"}, nil, 126, "exec format error"},
		{"script without its interpreter", []string{"/bin/script"}, nil, 127, "no such file or directory"},
		{"script that interprets itself", []string{"/bin/loop"}, nil, 126, "too many levels of symbolic links"},
		{"script interpreted by a directory", []string{"/bin/directory"}, nil, 126, "permission denied"},
		{"script with an endless name", []string{"/bin/long"}, nil, 126, "exec format error"},
		{"name beyond the limit", []string{"/bin/" + strings.Repeat("x", 300)}, nil, 126, "file name too long"},
		{"65 000 variables", []string{"env"}, many, 0, "VARIABLE_64999=64999\n"},
		{"variables beyond the limit", []string{"true"}, slices.Repeat(many, 3), 126, "argument list too long"},
		{"one argument beyond the limit", []string{"true", strings.Repeat("x", 200<<10)}, nil, 126, "argument list too long"},
		{"variable without a value", []string{"sh", "-c", "echo fine"}, []string{"", "=", "NAME", "=x", "A=\n"}, 0, "fine\n"},
		{"script", []string{"fine"}, nil, 0, "fine\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := n.bundle(t, tc.args...)
			b.Spec.Process.Env = append(b.Spec.Process.Env, tc.env...)
			n.create(t, b)
			_, err := n.Start(testContext(t), b.ID)
			if want := map[int]error{126: container.ErrNotExecutable, 127: container.ErrNoCommand}[tc.exit]; !errors.Is(err, want) {
				t.Errorf("Start = %v, want %v", err, want)
			}
			s, werr := n.Wait(testContext(t), b.ID)
			if werr != nil {
				t.Fatal(werr)
			}
			said, _ := readLog(t, b.Log.Path)
			if s.ExitCode != tc.exit || !strings.Contains(s.Error+said, tc.has) || (err != nil && !strings.Contains(err.Error(), tc.has)) {
				t.Errorf("exit code %d, error %q, said %.200q; want %d and %q", s.ExitCode, s.Error, said, tc.exit, tc.has)
			}
		})
	}
	// The same for a process of exec: there is no container to stop then.
	b := n.bundle(t, "sleep", "1000")
	n.create(t, b)
	n.start(t, b.ID)
	for name, want := range map[string]error{"/bin/foreign": container.ErrNotExecutable, "/bin/plain": container.ErrNotExecutable, "/bin/script": container.ErrNoCommand} {
		if e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *processWith(b, name)}); !errors.Is(err, want) {
			t.Errorf("Exec of %s = %v, want %v", name, err, want)
			if err == nil {
				_ = e.Close()
			}
		}
	}
}

// TestTooMuchToAsk asks for more than a message to the shim holds: an error, and
// nothing stays.
func TestTooMuchToAsk(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "true")
	b.Spec.Process.Env = slices.Repeat([]string{"A=" + strings.Repeat("x", 100<<10)}, 200)
	if err := n.Create(testContext(t), b); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("Create = %v, want that it is too long", err)
	}
}

// TestBadDirectories begins in working directories that cannot be one.
func TestBadDirectories(t *testing.T) {
	n := newNode(t)
	if err := os.WriteFile(filepath.Join(n.lower, "etc/file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	running := n.bundle(t, "sleep", "1000")
	n.create(t, running)
	n.start(t, running.ID)
	for _, tc := range []struct{ cwd, create, exec string }{
		{"/etc/file", "not a directory", "not a directory"},
		{"/etc/file/x", "not a directory", "not a directory"},
		{"/no/such", "", "no such file or directory"}, // made, as Docker makes it
		{"/proc/self/fd/2", "not a directory", "too many levels"},
		{"relative", "not an absolute path", "not an absolute path"},
		{"/" + strings.Repeat("x", 300), "file name too long", "file name too long"},
		{"/" + strings.Repeat("x/", 3000), "file name too long", "file name too long"},
		{"/" + strings.Repeat("x/", 2000), "", "no such file or directory"},
		{"/etc\x00", "zero byte", "zero byte"},
	} {
		b := n.bundle(t, "true")
		b.Spec.Process.Cwd = tc.cwd
		err := n.Create(testContext(t), b)
		if (err == nil) != (tc.create == "") || err != nil && !strings.Contains(err.Error(), tc.create) && !strings.Contains(err.Error(), "too many levels") {
			t.Errorf("Create in %.30q = %v, want %q", tc.cwd, err, tc.create)
		}
		if err != nil && !errors.Is(err, container.ErrInvalid) {
			t.Errorf("Create in %.30q = %v, want ErrInvalid", tc.cwd, err)
		}
		p := processWith(running, "true")
		p.Cwd = tc.cwd
		if _, err := n.Exec(testContext(t), running.ID, container.ExecSpec{Process: *p}); err == nil || !strings.Contains(err.Error(), tc.exec) {
			t.Errorf("Exec in %.30q = %v, want %q", tc.cwd, err, tc.exec)
		}
	}
}

// TestFileAsDirectory: each of runc and crun says it in words of its own.
func TestFileAsDirectory(t *testing.T) {
	n := newNode(t)
	for name, path := range engines(t) {
		b := n.bundle(t, "true")
		b.Engine, b.Spec.Process.Cwd = path, "/bin/busybox"
		err := n.Create(testContext(t), b)
		if err == nil {
			_, err = n.Start(testContext(t), b.ID)
		}
		if !errors.Is(err, container.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}

// TestBadMounts binds files where directories are and the other way round, with each
// of what makes containers, and what is no file at all.
func TestBadMounts(t *testing.T) {
	n := newNode(t)
	file, dir := filepath.Join(t.TempDir(), "file"), t.TempDir()
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("circle", filepath.Join(n.lower, "circle")); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ source, target, want string }{
		{file, "/etc", "mount a file on /etc: is a directory"},
		{dir, "/bin/busybox", "mount a directory on /bin/busybox: not a directory"},
		{dir, "/bin/busybox/x", "mount a directory on /bin/busybox/x: not a directory"},
		{file, "/bin/busybox/x", "mount a file on /bin/busybox/x: not a directory"},
		{dir, "/circle/x", "mount a directory on /circle/x: too many levels of symbolic links"},
		{file + "/x", "/x", "not a directory"},
		{"/dev", "/x", "map user ids of /dev (its file system must support idmapped mounts): operation not supported"},
	} {
		for name, path := range engines(t) {
			b := n.bundle(t, "true")
			b.Engine = path
			b.Spec.Mounts = append(b.Spec.Mounts, specs.Mount{Type: "bind", Source: tc.source, Destination: tc.target, Options: []string{"rbind", "ridmap"}})
			_, err := n.Run(testContext(t), b)
			if !errors.Is(err, container.ErrInvalid) || path == "" && !strings.HasSuffix(err.Error(), tc.want) {
				t.Errorf("%s: Run with %s on %s = %v, want ErrInvalid, %q", name, tc.source, tc.target, err, tc.want)
			}
		}
	}
}

// TestBadOptions asks for what cannot be set.
func TestBadOptions(t *testing.T) {
	n := newNode(t)
	for name, set := range map[string]func(*specs.Spec){
		"sysctl of the node": func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel.panic": "1"} },
		"unknown limit":      func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} },
		"processors that are not there": func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "5000"}}
		},
		"too small a share": func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: new(uint64(1))}}
		},
	} {
		b := n.bundle(t, "true")
		set(b.Spec)
		if err := n.Create(testContext(t), b); !errors.Is(err, container.ErrInvalid) {
			t.Errorf("%s: Create = %v, want ErrInvalid", name, err)
		}
	}
}

// TestReaderThatNeverReads attaches and reads nothing. The container waits with its
// writing, is killed at once all the same, and removed.
func TestReaderThatNeverReads(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "yes")
	n.create(t, b)
	s := n.attach(t, b.ID, container.AttachOptions{Stdout: true})
	n.start(t, b.ID)
	if _, err := s.Stdout.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	other, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *processWith(b, "true")})
	if err != nil {
		t.Fatal(err)
	}
	if code, err := other.Wait(testContext(t)); code != 0 || err != nil {
		t.Errorf("exec beside it: %d, %v", code, err)
	}
	if err := n.Kill(testContext(t), b.ID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if st, err := n.Wait(testContext(t), b.ID); err != nil || st.ExitCode != 137 {
		t.Errorf("Wait = %+v, %v; want 137", st, err)
	}
	_ = s.Close()
	if err := n.Delete(testContext(t), b.ID); err != nil {
		t.Error(err)
	}
}

// TestForkBomb lets a container fork until its limit. It can be looked into, killed
// and removed.
func TestForkBomb(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sh", "-c", "bomb() { bomb | bomb & }; bomb; while :; do sleep 1; done")
	b.Spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: new(int64(60))}
	n.create(t, b)
	n.start(t, b.ID)
	for range 5 {
		e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *processWith(b, "true")})
		if err != nil {
			t.Fatal(err)
		}
		if code, err := e.Wait(testContext(t)); code != 0 || err != nil {
			t.Errorf("exec: %d, %v", code, err)
		}
	}
	if err := n.Kill(testContext(t), b.ID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if s, err := n.Wait(testContext(t), b.ID); err != nil || s.ExitCode != 137 || s.OOMKilled {
		t.Errorf("Wait = %+v, %v; want 137", s, err)
	}
}

// TestMemoryFiller takes all memory that its limit allows.
func TestMemoryFiller(t *testing.T) {
	n := newNode(t)
	n.probe(t)
	b := n.bundle(t, "probe", "fill")
	b.Spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: new(int64(24 << 20)), Swap: new(int64(24 << 20))}
	if _, stderr, s := n.run(t, b); s.ExitCode != 137 || s.Signal != 9 || !s.OOMKilled {
		t.Errorf("%+v, stderr %q; want 137 and OOMKilled", s, stderr)
	}
	// A child of its may be killed, and it goes on: it was killed for memory, too.
	b = n.bundle(t, "sh", "-c", "probe fill; echo child $?; exit 3")
	b.Spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: new(int64(24 << 20)), Swap: new(int64(24 << 20))}
	if stdout, _, s := n.run(t, b); s.ExitCode != 3 || !s.OOMKilled || stdout != "child 137\n" {
		t.Errorf("%+v, stdout %q; want 3, OOMKilled", s, stdout)
	}
}

// TestOutputWithoutEnd writes 100 MB without an end of line. All of it is in the
// log, and to whoever is attached; the shim does not keep it.
func TestOutputWithoutEnd(t *testing.T) {
	n := newNode(t)
	const size = 100 << 20
	b := n.bundle(t, "sh", "-c", fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x; read x", size))
	b.Stdin, b.StdinOnce = true, true
	n.create(t, b)
	s := n.attach(t, b.ID, container.AttachOptions{Stdin: true, Stdout: true})
	n.start(t, b.ID)
	if got, err := io.CopyN(io.Discard, s.Stdout, size); err != nil || got != size {
		t.Errorf("attached: %d bytes, %v", got, err)
	}
	if kb := rollup(t, fmt.Sprintf("/proc/%d", n.shimOf(t, b.ID)), "Private_Dirty:"); kb > 4<<10 {
		t.Errorf("the shim has %d kB of memory after that", kb)
	}
	_ = s.Stdin.Close()
	if st, err := n.Wait(testContext(t), b.ID); err != nil || st.ExitCode != 1 {
		t.Errorf("%+v, %v", st, err)
	}
	log, err := os.ReadFile(b.Log.Path)
	if err != nil {
		t.Fatal(err)
	}
	if got := bytes.Count(log, []byte("x")); got != size {
		t.Errorf("log: %d bytes of output, want %d", got, size)
	}
	if err := os.Remove(b.Log.Path); err != nil {
		t.Error(err)
	}
}

// TestClosedInput gives no input, or one that was closed before the program began.
func TestClosedInput(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sh", "-c", "cat; echo end; exec 0<&-; exec sh -c 'cat 2>/dev/null; echo end'")
	if stdout, _, s := n.run(t, b); stdout != "end\nend\n" || s.ExitCode != 0 {
		t.Errorf("without input: %q, %+v", stdout, s)
	}
	b = n.bundle(t, "sh", "-c", "cat; echo end")
	b.Stdin, b.StdinOnce = true, true
	n.create(t, b)
	s := n.attach(t, b.ID, container.AttachOptions{Stdin: true})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	n.start(t, b.ID)
	if st, err := n.Wait(testContext(t), b.ID); err != nil || st.ExitCode != 0 {
		t.Errorf("%+v, %v", st, err)
	}
}

// TestKillsItsGroup has a container signal its process group, with and without a
// pid namespace: the shim is of no group of its.
func TestKillsItsGroup(t *testing.T) {
	n := newNode(t)
	n.probe(t)
	for _, pids := range []string{"own", "host"} {
		b := n.bundle(t, "sh", "-c", "sleep 1000 & echo begin; probe group; echo survived; exit 4")
		want := 4 // the kernel keeps the first process of a pid namespace from it
		if pids == "host" {
			hostUsers(&b)
			b.Spec.Linux.Namespaces = slices.DeleteFunc(b.Spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.PIDNamespace })
			want = 137
		}
		stdout, _, s := n.run(t, b)
		if s.ExitCode != want || s.Error != "" || !strings.HasPrefix(stdout, "begin\n") {
			t.Errorf("%s pids: %q, %+v; want exit code %d, written by its shim", pids, stdout, s, want)
		}
	}
	b := n.bundle(t, "sleep", "1000")
	n.create(t, b)
	n.start(t, b.ID)
	e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *processWith(b, "probe", "group")})
	if err != nil {
		t.Fatal(err)
	}
	if code, err := e.Wait(testContext(t)); code != 137 || err != nil {
		t.Errorf("exec: %d, %v; want 137", code, err)
	}
	if s, err := n.State(testContext(t), b.ID); err != nil || s.Status != container.StatusRunning {
		t.Errorf("a process of exec ended the container: %+v, %v", s, err)
	}
}

// TestZombies leaves dead children, orphans and processes that hold the output
// open, with and without a pid namespace.
func TestZombies(t *testing.T) {
	n := newNode(t)
	for _, pids := range []string{"own", "host"} {
		b := n.bundle(t, "sh", "-c", "for i in $(seq 100); do (true &); (sh -c 'sleep 1000 &' &); done; echo end; exit 6")
		if pids == "host" {
			hostUsers(&b)
			b.Spec.Linux.Namespaces = slices.DeleteFunc(b.Spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.PIDNamespace })
		}
		n.create(t, b)
		s := n.attach(t, b.ID, container.AttachOptions{Stdout: true})
		n.start(t, b.ID)
		if got := readAll(t, s.Stdout); got != "end\n" {
			t.Errorf("%s pids: %q", pids, got)
		}
		if st, err := n.Wait(testContext(t), b.ID); err != nil || st.ExitCode != 6 {
			t.Errorf("%s pids: %+v, %v; want 6", pids, st, err)
		}
		if err := n.Delete(testContext(t), b.ID); err != nil {
			t.Error(err)
		}
		for _, what := range n.processes(t) {
			t.Errorf("%s pids: left behind: %s", pids, what)
		}
	}
}

// TestIgnoresSignals is deaf to all that can be ignored.
func TestIgnoresSignals(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sh", "-c", "trap '' TERM INT HUP QUIT; echo begin; while :; do sleep 0.01; done")
	n.create(t, b)
	n.start(t, b.ID)
	waitLog(t, b.Log.Path, "begin")
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT} {
		if err := n.Kill(testContext(t), b.ID, sig); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := n.State(testContext(t), b.ID); err != nil || s.Status != container.StatusRunning {
		t.Errorf("%+v, %v; want it to run", s, err)
	}
	if err := n.Kill(testContext(t), b.ID, 99); err == nil {
		t.Error("signal 99 was sent")
	}
	if err := n.Kill(testContext(t), b.ID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if s, err := n.Wait(testContext(t), b.ID); err != nil || s.ExitCode != 137 || s.Signal != 9 {
		t.Errorf("%+v, %v; want 137", s, err)
	}
}

// TestExecGivesMemoryBack executes as often as a health check does. What a shim
// needed for that is not its size for ever.
func TestExecGivesMemoryBack(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sleep", "1000")
	n.create(t, b)
	n.start(t, b.ID)
	for range 60 {
		e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *processWith(b, "true")})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Wait(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	proc := fmt.Sprintf("/proc/%d", n.shimOf(t, b.ID))
	if kb := rollup(t, proc, "Anonymous:"); kb > 2100 {
		t.Errorf("the shim still has %d kB", kb)
	}
}
