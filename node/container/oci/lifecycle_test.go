package oci_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/oci"
)

// TestLifecycle takes a container through its life as an engine does.
func TestLifecycle(t *testing.T) {
	r := newRuntime(t, "sh", "-c", "echo $0 $$; exec sleep 1000", "said")
	o, _ := r.options(t, "c1")
	stdio, out := piped(t)
	o.Stdio, o.PidFile = stdio, filepath.Join(t.TempDir(), "pid")
	if err := r.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	r.wantStatus(t, "c1", oci.StatusCreated)
	pid := r.state(t, "c1").Pid
	if b, err := os.ReadFile(o.PidFile); err != nil || string(b) != strconv.Itoa(pid) {
		t.Errorf("the pid file has %q, %v, want %d", b, err, pid)
	}
	if _, err := stdio[1].WriteString("not begun\n"); err != nil {
		t.Fatal(err)
	}
	r.start(t, "c1")
	r.wantStatus(t, "c1", oci.StatusRunning)
	wantLine(t, out, "not begun") // it says nothing before
	wantLine(t, out, "said 1")
	if pids, err := r.Pids("c1"); err != nil || !slices.Equal(pids, []int{pid}) {
		t.Errorf("Pids = %v, %v, want %d", pids, err, pid)
	}
	if err := r.Pause(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	r.wantStatus(t, "c1", oci.StatusPaused)
	if err := r.Resume("c1"); err != nil {
		t.Fatal(err)
	}
	if err := r.Update("c1", &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: new(int64(77))}}); err != nil {
		t.Fatal(err)
	}
	if s, err := r.Stats("c1"); err != nil || s.PidsLimit != 77 || s.Pids != 1 {
		t.Errorf("Stats = %d of %d processes, %v, want 1 of 77", s.Pids, s.PidsLimit, err)
	}
	if err := r.Kill("c1", unix.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if ws := waitPid(t, pid); ws.Signal() != unix.SIGKILL {
		t.Errorf("it ended with %#x, want by SIGKILL", ws)
	}
	r.wantStatus(t, "c1", oci.StatusStopped)
	if err := r.Delete(t.Context(), "c1", false); err != nil {
		t.Fatal(err)
	}
	if _, err := r.State("c1"); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("State after Delete: %v, want %v", err, oci.ErrNotFound)
	}
}

// TestOperations tries every operation in every state of a container.
func TestOperations(t *testing.T) {
	operations := map[string]func(r *runtime, id string) error{
		"create": func(r *runtime, id string) error {
			o, _ := r.options(t, id)
			return r.Create(t.Context(), o)
		},
		"start":  func(r *runtime, id string) error { return r.Start(t.Context(), id) },
		"kill":   func(r *runtime, id string) error { return r.Kill(id, unix.SIGWINCH, false) },
		"pause":  func(r *runtime, id string) error { return r.Pause(t.Context(), id) },
		"resume": func(r *runtime, id string) error { return r.Resume(id) },
		"update": func(r *runtime, id string) error { return r.Update(id, new(specs.LinuxResources)) },
		"stats": func(r *runtime, id string) error {
			_, err := r.Stats(id)
			return err
		},
		"exec": func(r *runtime, id string) error {
			stdio, _ := streams(t)
			p := *r.spec.Process
			p.Args = []string{"true"}
			_, err := r.Exec(t.Context(), oci.ExecOptions{ID: id, Process: &p, Stdio: stdio})
			return err
		},
		"delete": func(r *runtime, id string) error { return r.Delete(t.Context(), id, false) },
	}
	absent := map[string]error{}
	for name := range operations {
		absent[name] = oci.ErrNotFound
	}
	absent["create"] = nil
	for status, want := range map[string]map[string]error{
		"absent": absent,
		"created": {
			"create": oci.ErrExists, "start": nil, "kill": nil, "pause": nil, "resume": oci.ErrStatus, "update": nil, "stats": nil, "exec": nil, "delete": nil,
		},
		"running": {
			"create": oci.ErrExists, "start": oci.ErrStatus, "kill": nil, "pause": nil, "resume": oci.ErrStatus, "update": nil, "stats": nil, "exec": nil,
			"delete": oci.ErrStatus,
		},
		"paused": {
			"create": oci.ErrExists, "start": oci.ErrStatus, "kill": nil, "pause": oci.ErrStatus, "resume": nil, "update": nil, "stats": nil,
			"exec": oci.ErrStatus, "delete": oci.ErrStatus,
		},
		"stopped": {
			"create": oci.ErrExists, "start": oci.ErrStatus, "kill": oci.ErrStatus, "pause": oci.ErrStatus, "resume": oci.ErrStatus, "update": oci.ErrStatus,
			"stats": oci.ErrStatus, "exec": oci.ErrStatus, "delete": nil,
		},
	} {
		for name, operation := range operations {
			t.Run(status+"/"+name, func(t *testing.T) {
				r := newRuntime(t, "sleep", "1000")
				if status != "absent" {
					r.create(t, "c1")
				}
				if status == "running" || status == "paused" || status == "stopped" {
					r.start(t, "c1")
				}
				switch status {
				case "paused":
					if err := r.Pause(t.Context(), "c1"); err != nil {
						t.Fatal(err)
					}
				case "stopped":
					pid := r.state(t, "c1").Pid
					if err := r.Kill("c1", unix.SIGKILL, false); err != nil {
						t.Fatal(err)
					}
					waitPid(t, pid)
				}
				if err := operation(r, "c1"); !errors.Is(err, want[name]) {
					t.Errorf("%s of a container that is %s: %v, want %v", name, status, err, want[name])
				}
			})
		}
	}
}

// TestRun runs containers in the foreground.
func TestRun(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
		code int
		out  string
		err  error
	}{
		{"code", []string{"sh", "-c", "echo hello; exit 7"}, 7, "hello\n", nil},
		{"no command", []string{"nosuch"}, 0, "", oci.ErrNoCommand},
		{"not executable", []string{"/etc/passwd"}, 0, "", oci.ErrNotExecutable},
		{"no interpreter", []string{"/script"}, 0, "", oci.ErrNoCommand},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRuntime(t, tc.args...)
			if err := os.WriteFile(filepath.Join(r.bundle, "rootfs/etc/passwd"), []byte("root:x:0:0::/home/of/root:/bin/sh\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(r.bundle, "rootfs/script"), []byte("#!/no/such\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			o, out := r.options(t, "c1")
			code, err := r.Run(t.Context(), oci.RunOptions{CreateOptions: o})
			if code != tc.code || !errors.Is(err, tc.err) {
				t.Errorf("Run = %d, %v, want %d, %v", code, err, tc.code, tc.err)
			}
			if got := content(t, out); got != tc.out {
				t.Errorf("it said %q, want %q", got, tc.out)
			}
			if list, err := r.List(); err != nil || len(list) > 0 {
				t.Errorf("List afterwards = %v, %v", list, err)
			}
		})
	}
}

// TestEnvironment sees what is added to a process's environment.
func TestEnvironment(t *testing.T) {
	r := newRuntime(t, "env")
	if err := os.WriteFile(filepath.Join(r.bundle, "rootfs/etc/passwd"), []byte("x\nroot:x:0:0::/home/of/root:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r.spec.Process.Env = []string{"A=1", "PATH=/bin", "HOME=", "A=2"}
	o, out := r.options(t, "c1")
	if code, err := r.Run(t.Context(), oci.RunOptions{CreateOptions: o}); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	if got, want := content(t, out), "PATH=/bin\nA=2\nHOME=/home/of/root\n"; got != want {
		t.Errorf("the environment is %q, want %q", got, want)
	}
}

// TestHostilePasswd puts something else in the place of /etc/passwd: nothing outside
// of the root file system is read, and nobody waits.
func TestHostilePasswd(t *testing.T) {
	for name, put := range map[string]func(file string) error{
		"link out": func(file string) error { return os.Symlink("/../../../../../etc/passwd", file) },
		"fifo":     func(file string) error { return unix.Mkfifo(file, 0o644) },
		"device":   func(file string) error { return os.Symlink("/dev/zero", file) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRuntime(t, "env")
			r.spec.Process.Env = []string{"PATH=/bin"}
			if err := put(filepath.Join(r.bundle, "rootfs/etc/passwd")); err != nil {
				t.Fatal(err)
			}
			o, out := r.options(t, "c1")
			if code, err := r.Run(t.Context(), oci.RunOptions{CreateOptions: o}); code != 0 || err != nil {
				t.Fatal(code, err)
			}
			if got, want := content(t, out), "PATH=/bin\nHOME=/\n"; got != want {
				t.Errorf("the environment is %q, want %q", got, want)
			}
		})
	}
}

// TestFiles passes descriptors on, to the container and to a further process.
func TestFiles(t *testing.T) {
	show := "ls /proc/self/fd | tr '\\n' ' '; cat <&3; cat <&4"
	r := newRuntime(t, "sh", "-c", "exec sleep 1000")
	if err := os.Symlink("busybox", filepath.Join(r.bundle, "rootfs/bin/tr")); err != nil {
		t.Fatal(err)
	}
	given := func() []*os.File {
		var files []*os.File
		for i := range 2 {
			name := filepath.Join(t.TempDir(), "given")
			if err := os.WriteFile(name, fmt.Appendf(nil, "file %d\n", i), 0o644); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = f.Close() })
			files = append(files, f)
		}
		return files
	}
	r.create(t, "c1")
	r.start(t, "c1")
	stdio, out := streams(t)
	p := *r.spec.Process
	p.Args = []string{"sh", "-c", show}
	if code, err := r.Exec(t.Context(), oci.ExecOptions{ID: "c1", Process: &p, Stdio: stdio, Files: given()}); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	// 5 is the directory that ls itself looks at.
	const want = "0 1 2 3 4 5 file 0\nfile 1\n"
	if got := content(t, out); got != want {
		t.Errorf("exec: %q, want %q", got, want)
	}
	r.spec.Process.Args = p.Args
	o, out := r.options(t, "c2")
	o.Files = given()
	if code, err := r.Run(t.Context(), oci.RunOptions{CreateOptions: o}); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	if got := content(t, out); got != want {
		t.Errorf("run: %q, want %q", got, want)
	}
}

// TestExec runs further processes: in the foreground, and left to their caller.
func TestExec(t *testing.T) {
	r := newRuntime(t, "sleep", "1000")
	r.create(t, "c1")
	r.start(t, "c1")
	stdio, out := streams(t)
	p := *r.spec.Process
	p.Args, p.User.UID, p.Cwd = []string{"sh", "-c", "id -u; pwd; exit 9"}, 1234, "/etc"
	if code, err := r.Exec(t.Context(), oci.ExecOptions{ID: "c1", Process: &p, Stdio: stdio}); code != 9 || err != nil {
		t.Errorf("Exec = %d, %v, want 9", code, err)
	}
	if got := content(t, out); got != "1234\n/etc\n" {
		t.Errorf("it said %q", got)
	}
	p.Args = []string{"nosuch"}
	if _, err := r.Exec(t.Context(), oci.ExecOptions{ID: "c1", Process: &p, Stdio: stdio}); !errors.Is(err, oci.ErrNoCommand) {
		t.Errorf("Exec of what is not there: %v, want %v", err, oci.ErrNoCommand)
	}
	for range 20 { // however fast it ends, its caller learns how
		p.Args = []string{"sh", "-c", "exit 5"}
		pidFile := filepath.Join(t.TempDir(), "pid")
		if _, err := r.Exec(t.Context(), oci.ExecOptions{ID: "c1", Process: &p, Stdio: stdio, Detach: true, PidFile: pidFile}); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(pidFile)
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(string(b))
		if err != nil {
			t.Fatal(err)
		}
		if ws := waitPid(t, pid); ws.ExitStatus() != 5 {
			t.Fatalf("a detached process ended with %#x, want exit code 5", ws)
		}
	}
	signals := make(chan os.Signal, 1)
	stdio, said := piped(t)
	p.Args = []string{"sh", "-c", "trap 'exit 6' TERM; echo ready; while :; do sleep 0.01; done"}
	running := func() {
		go func() {
			if line, err := said.ReadString('\n'); line != "ready\n" {
				t.Errorf("it said %q, %v", line, err)
			}
			signals <- unix.SIGTERM
		}()
	}
	if code, err := r.Exec(t.Context(), oci.ExecOptions{ID: "c1", Process: &p, Stdio: stdio, Signals: signals, Running: running}); code != 6 || err != nil {
		t.Errorf("Exec with a signal = %d, %v, want 6", code, err)
	}
}

// TestBadIDs tries ids that are paths, or lead elsewhere.
func TestBadIDs(t *testing.T) {
	r := newRuntime(t, "true")
	outside := filepath.Join(filepath.Dir(r.root), "outside")
	if err := os.Mkdir(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outside, "state.json"), []byte(`{"version":1,"id":"x"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"", ".", "..", "../outside", "/", "a/b", "a\x00b", "a\nb", " ", "ä", strings.Repeat("a", 256)} {
		o, _ := r.options(t, "x")
		o.ID = id
		for name, err := range map[string]error{
			"create": r.Create(t.Context(), o), "start": r.Start(t.Context(), id), "kill": r.Kill(id, unix.SIGKILL, true),
			"delete": r.Delete(t.Context(), id, true), "pause": r.Pause(t.Context(), id),
		} {
			if !errors.Is(err, oci.ErrBadID) {
				t.Errorf("%s %q: %v, want %v", name, id, err, oci.ErrBadID)
			}
		}
	}
	if err := os.Mkdir(r.root, 0o700); err != nil {
		t.Fatal(err)
	}
	// Somebody's link in the place of a container's directory is none.
	link := filepath.Join(r.root, "x")
	if err := os.Symlink(outside, link); err != nil {
		t.Fatal(err)
	}
	if err := r.Delete(t.Context(), "x", false); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("delete of a link: %v, want %v", err, oci.ErrNotFound)
	}
	if _, err := os.Stat(filepath.Join(outside, "state.json")); err != nil {
		t.Error(err)
	}
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
}

// TestPidReuse gives the number of a container's first process to somebody else: this
// process, which is not killed.
func TestPidReuse(t *testing.T) {
	r := newRuntime(t, "sleep", "1000")
	r.create(t, "c1")
	pid := r.state(t, "c1").Pid
	name := filepath.Join(r.root, "c1", "state.json")
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var state map[string]any
	if err := json.Unmarshal(data, &state); err != nil {
		t.Fatal(err)
	}
	state["pid"] = os.Getpid()
	if data, err = json.Marshal(state); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	r.wantStatus(t, "c1", oci.StatusStopped)
	if err := r.Kill("c1", unix.SIGKILL, false); !errors.Is(err, oci.ErrStatus) {
		t.Errorf("Kill: %v, want %v", err, oci.ErrStatus)
	}
	stdio, _ := streams(t)
	if _, err := r.Exec(t.Context(), oci.ExecOptions{ID: "c1", Process: r.spec.Process, Stdio: stdio}); !errors.Is(err, oci.ErrStatus) {
		t.Errorf("Exec: %v, want %v", err, oci.ErrStatus)
	}
	if err := r.Delete(t.Context(), "c1", false); err != nil { // by its cgroup it is found nevertheless
		t.Fatal(err)
	}
	if ws := waitPid(t, pid); ws.Signal() != unix.SIGKILL {
		t.Errorf("the container's process ended with %#x", ws)
	}
}

// TestConcurrent creates and deletes one container from many sides.
func TestConcurrent(t *testing.T) {
	r := newRuntime(t, "sleep", "1000")
	o, _ := r.options(t, "c1")
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 8 {
				if err := r.Create(context.Background(), o); err != nil && !errors.Is(err, oci.ErrExists) && !strings.Contains(err.Error(), "deleted while") {
					t.Errorf("create: %v", err)
				}
			}
		})
		group.Go(func() {
			for range 8 {
				if err := r.Start(context.Background(), "c1"); err != nil && !errors.Is(err, oci.ErrNotFound) && !errors.Is(err, oci.ErrStatus) {
					t.Errorf("start: %v", err)
				}
				if err := r.Delete(context.Background(), "c1", true); err != nil {
					t.Errorf("delete: %v", err)
				}
			}
		})
	}
	group.Wait()
	if err := r.Delete(t.Context(), "c1", true); err != nil {
		t.Fatal(err)
	}
}

// TestBrokenOff deletes what a create left that was killed.
func TestBrokenOff(t *testing.T) {
	r := newRuntime(t, "sleep", "1000")
	r.create(t, "c1")
	pid := r.state(t, "c1").Pid
	name := filepath.Join(r.root, "c1", "state.json")
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(strings.Replace(string(data), `"pid":`, `"was":`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.Delete(t.Context(), "c1", false); err != nil {
		t.Fatal(err)
	}
	waitPid(t, pid)
}

// TestPowerCut deletes what is left when the record was not on disk yet.
func TestPowerCut(t *testing.T) {
	r := newRuntime(t, "sleep", "1000")
	for name, left := range map[string][]byte{"empty": nil, "zeros": make([]byte, 8192)} {
		dir := filepath.Join(r.root, name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "state.json"), left, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := r.Delete(t.Context(), name, true); err != nil {
			t.Errorf("Delete = %v", err)
		}
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", dir, err)
		}
	}
}

// TestConsole gives the terminal to a socket, as conmon wants it.
func TestConsole(t *testing.T) {
	r := newRuntime(t, "sh", "-c", "tty; stat -c %t:%T /dev/console; read line; echo got $line")
	r.spec.Process.Terminal = true
	o, _ := r.options(t, "c1")
	if err := r.Create(t.Context(), o); err == nil {
		t.Fatal("a terminal for nobody was created")
	}
	var received func() *os.File
	o.ConsoleSocket, received = consoleSocket(t)
	if err := r.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	master := received()
	pid := r.state(t, "c1").Pid
	r.start(t, "c1")
	if _, err := master.WriteString("input\n"); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	b := make([]byte, 1024)
	for {
		n, err := master.Read(b)
		out.Write(b[:n])
		if err != nil {
			break // EIO: the last one has left
		}
	}
	if ws := waitPid(t, pid); ws.ExitStatus() != 0 {
		t.Errorf("it ended with %#x", ws)
	}
	if got := strings.ReplaceAll(out.String(), "\r", ""); !strings.Contains(got, "/dev/pts/0\n") || !strings.Contains(got, "88:0\n") || !strings.HasSuffix(got, "got input\n") {
		t.Errorf("the terminal showed %q", got)
	}
}

// TestExecConsole does so for a further process, whose terminal is in the container.
func TestExecConsole(t *testing.T) {
	r := newRuntime(t, "sleep", "1000")
	r.create(t, "c1")
	r.start(t, "c1")
	socket, received := consoleSocket(t)
	p := *r.spec.Process
	p.Terminal, p.Args = true, []string{"sh", "-c", "tty; exit 3"}
	pidFile := filepath.Join(t.TempDir(), "pid")
	stdio, _ := streams(t)
	if _, err := r.Exec(t.Context(), oci.ExecOptions{ID: "c1", Process: &p, Stdio: stdio, Detach: true, PidFile: pidFile, ConsoleSocket: socket}); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1024)
	n, _ := received().Read(b)
	if got := string(b[:n]); got != "/dev/pts/0\r\n" {
		t.Errorf("the terminal showed %q", got)
	}
	text, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if ws := waitPid(t, pid); ws.ExitStatus() != 3 {
		t.Errorf("it ended with %#x", ws)
	}
}

// consoleSocket listens, and returns what takes the terminal that comes.
func consoleSocket(t *testing.T) (path string, received func() *os.File) {
	t.Helper()
	dir, err := os.MkdirTemp("", "console") // short enough for a socket's name
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path = filepath.Join(dir, "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 1))
	}
	if err != nil {
		t.Fatal(err)
	}
	return path, func() *os.File {
		defer unix.Close(fd)
		c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(c)
		oob := make([]byte, 64)
		_, n, _, _, err := unix.Recvmsg(c, make([]byte, 100), oob, unix.MSG_CMSG_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil || len(msgs) != 1 {
			t.Fatal(err, len(msgs))
		}
		fds, err := unix.ParseUnixRights(&msgs[0])
		if err != nil || len(fds) != 1 {
			t.Fatal(err, fds)
		}
		f := os.NewFile(uintptr(fds[0]), "master")
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
}

// TestBadBundles are refused, and leave nothing.
func TestBadBundles(t *testing.T) {
	for name, change := range map[string]func(*specs.Spec){
		"version":             func(s *specs.Spec) { s.Version = "2.0.0" },
		"no version":          func(s *specs.Spec) { s.Version = "" },
		"no root":             func(s *specs.Spec) { s.Root = nil },
		"root is not there":   func(s *specs.Spec) { s.Root.Path = "nosuch" },
		"root is a file":      func(s *specs.Spec) { s.Root.Path = "config.json" },
		"relative hook":       func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "x"}}} },
		"timeout of nothing":  func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/x", Timeout: new(0)}}} },
		"cgroup at the top":   func(s *specs.Spec) { s.Linux.CgroupsPath = "/" },
		"cgroup further up":   func(s *specs.Spec) { s.Linux.CgroupsPath = "/a/../.." },
		"unknown rlimit":      func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} },
		"unknown device rule": func(s *specs.Spec) { s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Type: "x", Access: "r"}} },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRuntime(t, "true")
			path := r.spec.Linux.CgroupsPath
			change(r.spec)
			if path != r.spec.Linux.CgroupsPath {
				path = r.spec.Linux.CgroupsPath
			}
			o, _ := r.options(t, "c1")
			if path != "" {
				r.spec.Linux.CgroupsPath = path
				o, _ = r.options(t, "c1")
			}
			if err := r.Create(t.Context(), o); err == nil {
				t.Error("it was created")
			}
			if left, err := os.ReadDir(r.root); len(left) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("it left %v, %v", left, err)
			}
		})
	}
}

// TestNoProcess creates a container whose configuration has no process, which then
// cannot be started.
func TestNoProcess(t *testing.T) {
	r := newRuntime(t)
	r.spec.Process = nil
	r.create(t, "c1")
	r.wantStatus(t, "c1", oci.StatusCreated)
	if err := r.Start(t.Context(), "c1"); err == nil {
		t.Error("it was started")
	}
	r.wantStatus(t, "c1", oci.StatusCreated)
}

// TestCgroupInUse refuses a cgroup that somebody else uses, or has frozen.
func TestCgroupInUse(t *testing.T) {
	r := newRuntime(t, "sleep", "1000")
	r.create(t, "c1")
	r.spec.Linux.CgroupsPath = filepath.Join("/x", r.cgroup) // which options leaves alone
	o, _ := r.options(t, "c2")
	config, err := os.ReadFile(filepath.Join(r.bundle, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	in := strings.Replace(string(config), filepath.Join("/x", r.cgroup), filepath.Join(r.cgroup, "c1"), 1)
	if err := os.WriteFile(filepath.Join(r.bundle, "config.json"), []byte(in), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.Create(t.Context(), o); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("Create in a cgroup in use: %v", err)
	}
	r.wantStatus(t, "c1", oci.StatusCreated)
}

// TestSharedPids kills all processes of a container that has no pid namespace of its
// own, also when the first one has ended.
func TestSharedPids(t *testing.T) {
	r := newRuntime(t, "sleep", "1000")
	r.spec.Linux.Namespaces = slices.DeleteFunc(r.spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.PIDNamespace })
	r.create(t, "c1")
	r.start(t, "c1")
	pidFile := filepath.Join(t.TempDir(), "pid")
	stdio, _ := streams(t)
	if _, err := r.Exec(t.Context(), oci.ExecOptions{ID: "c1", Process: r.spec.Process, Stdio: stdio, Detach: true, PidFile: pidFile}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	second, err := strconv.Atoi(string(b))
	if err != nil {
		t.Fatal(err)
	}
	first := r.state(t, "c1").Pid
	if err := unix.Kill(first, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitPid(t, first)
	r.wantStatus(t, "c1", oci.StatusStopped)
	if err := r.Kill("c1", unix.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if ws := waitPid(t, second); ws.Signal() != unix.SIGKILL {
		t.Errorf("the other process ended with %#x", ws)
	}
	if err := r.Kill("c1", unix.SIGKILL, false); !errors.Is(err, oci.ErrStatus) {
		t.Errorf("Kill of nobody: %v, want %v", err, oci.ErrStatus)
	}
}

// TestUpdateMemory takes a limit away that another one is measured by.
func TestUpdateMemory(t *testing.T) {
	r := newRuntime(t, "sleep", "1000")
	r.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: new(int64(64 << 20)), Swap: new(int64(96 << 20))}
	r.create(t, "c1")
	if err := r.Update("c1", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(-1))}}); err != nil {
		t.Fatal(err)
	}
	if s, err := r.Stats("c1"); err != nil || s.MemoryLimit != 0 {
		t.Errorf("the limit is %d, %v, want none", s.MemoryLimit, err)
	}
}
