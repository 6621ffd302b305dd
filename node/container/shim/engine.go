package shim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
)

// Engine is another runtime, runc or crun, that makes the container. The blob of
// create is then the two programs, which make its parts and a process of its user
// namespace, and the config; that of exec is the process as the config has it.
type Engine struct {
	Path  string `json:"path"`
	Base  string `json:"base"`  // directory of the node's that its files cover, in a mount namespace of their own
	Child int    `json:"child"` // size of the second program
	// Terminal is the size of the terminal that is the container's stdio; nil: it has none.
	Terminal *TerminalSize `json:"terminal,omitempty"`
}

// Names of files in the base directory, beside those of the plan.
const (
	engineConfig = "config.json"
	engineState  = "state" // what the tool itself writes down
	enginePid    = "pid"
)

// engineLimit is how long the tool may take for anything.
const engineLimit = 2 * time.Minute

// engineSays is how much of its log is read, in bytes.
const engineSays = 64 << 10

// engine is where the tool works.
type engine struct {
	mnt    *os.File // the mount namespace
	config []byte
	calls  atomic.Int64 // of the tool, which have a log each
}

// decodeEngine reads the blob of create.
func (s *shim) decodeEngine(blob []byte) (p programs, err error) {
	end := s.Prepare + s.Engine.Child
	if s.Engine.Child < 0 || s.Prepare < 0 || end > len(blob) {
		return p, errors.New("damaged program")
	}
	s.engine.config = blob[end:]
	return decode(blob[:end], s.Prepare)
}

// onThread runs fn on a thread that ends with it, so that it can enter namespaces.
func onThread(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // without an end: the thread ends with its goroutine
		done <- fn()
	}()
	return <-done
}

// within runs fn in the tool's mount namespace.
func (s *shim) within(fn func() error) error {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		if err := unix.Setns(int(s.engine.mnt.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("enter the mount namespace of %s: %w", s.Engine.Path, err)
		}
		return fn()
	})
}

// equipEngine makes the mount namespace in which the tool finds what it makes the
// container from. Nothing of it is to be seen on the node, or outlives the shim.
func (s *shim) equipEngine() (err error) {
	// What is ignored would be for the container, too.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGPIPE)
	users, err := s.userNamespace()
	if err != nil {
		return err
	}
	defer closeAll([]*os.File{users})
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("make a mount namespace: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
			return fmt.Errorf("make a mount namespace: %w", err)
		}
		if err := s.placeParts(users); err != nil {
			return err
		}
		s.plan, s.engine.config = programs{}, nil // not needed again
		if err := hideUnified(); err != nil {
			return err
		}
		s.engine.mnt, err = os.Open("/proc/thread-self/ns/mnt")
		return err
	})
}

// userNamespace returns a namespace with the container's mapping, nil if it has none.
func (s *shim) userNamespace() (*os.File, error) {
	if s.UIDMap == "" {
		return nil, nil
	}
	ours, theirs, err := syncPair()
	if err != nil {
		return nil, err
	}
	defer closeAll([]*os.File{ours, theirs})
	f := call.Fork{Flags: unix.CLONE_NEWUSER, Status: int(theirs.Fd()), Regs: []uintptr{0, 1, 2, theirs.Fd(), theirs.Fd(), theirs.Fd()}}
	pid, pidfd, err := f.Start(s.plan.child)
	if err != nil {
		return nil, fmt.Errorf("make a user namespace: %w", err)
	}
	defer unix.Close(pidfd)
	defer func() {
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		_, _ = unix.Wait4(pid, nil, 0, nil)
	}()
	proc := "/proc/" + strconv.Itoa(pid)
	if err := writeFile(proc+"/uid_map", s.UIDMap); err != nil {
		return nil, fmt.Errorf("map user ids: %w", err)
	}
	if err := writeFile(proc+"/gid_map", s.GIDMap); err != nil {
		return nil, fmt.Errorf("map group ids: %w", err)
	}
	return os.Open(proc + "/ns/user")
}

// placeParts attaches what the first program makes below the base directory, and
// writes the config there.
func (s *shim) placeParts(users *os.File) error {
	status, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer status.Close()
	none := ^uintptr(0)
	given := []uintptr{none, none, none, none, none, none, none}
	if users != nil {
		given[4] = users.Fd()
	}
	regs, err := s.plan.prepare.Run(int(status.Fd()), given)
	defer closeMade(regs, given)
	if err != nil {
		return err
	}
	base := s.Engine.Base
	if err := unix.Mount("tmpfs", base, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size=16m"); err != nil {
		return fmt.Errorf("mount a file system on %s: %w", base, err)
	}
	for i, r := range s.Send {
		fd, err := registered(regs, r)
		if err != nil {
			return err
		}
		name := "rootfs"
		if i > 0 {
			name = "mount" + strconv.Itoa(i-1)
		}
		if err := place(fd, filepath.Join(base, name)); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(base, engineState), 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(base, engineConfig), s.engine.config, 0o600)
}

// place attaches a mount to a path that is made for it.
func place(fd int, path string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	var err error
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = os.Mkdir(path, 0o755)
	} else {
		err = os.WriteFile(path, nil, 0o644)
	}
	if err != nil {
		return err
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach %s: %w", path, err)
	}
	return nil
}

// hideUnified hides version 2 of cgroups where version 1 is beside it, as far as the tool
// can see: crun refuses both. There is an empty directory in its place that ends with the
// container: crun makes cgroups of version 2 all the same, and would make them in the
// node's file system below.
func hideUnified() error {
	mounts, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	var unified []string
	both := false
	for line := range strings.SplitSeq(string(mounts), "\n") {
		head, tail, ok := strings.Cut(line, " - ")
		fields := strings.Fields(head)
		if !ok || len(fields) < 5 {
			continue
		}
		switch fstype, _, _ := strings.Cut(tail, " "); fstype {
		case "cgroup":
			both = true
		case "cgroup2":
			unified = append(unified, fields[4])
		}
	}
	for _, dir := range unified {
		if !both {
			return nil
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("hide %s: %w", dir, err)
		}
		if err := unix.Mount("none", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=1m,mode=755"); err != nil {
			return fmt.Errorf("hide %s: %w", dir, err)
		}
	}
	return nil
}

// nowhere returns what a stream is that nobody asked for. Our first process puts the
// container's own /dev/null in its place; crun gives what it gets to the container's
// user, so it gets one that is nobody else's.
func (s *shim) nowhere() (*os.File, error) {
	if s.Engine == nil {
		return os.OpenFile(os.DevNull, os.O_RDWR, 0)
	}
	ctx, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a null device: %w", err)
	}
	defer unix.Close(ctx)
	if err := unix.FsconfigCreate(ctx); err != nil {
		return nil, fmt.Errorf("make a null device: %w", err)
	}
	dir, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a null device: %w", err)
	}
	defer unix.Close(dir)
	const major, minor = 1, 3
	if err := unix.Mknodat(dir, "null", unix.S_IFCHR|0o666, int(unix.Mkdev(major, minor))); err != nil {
		return nil, fmt.Errorf("make a null device: %w", err)
	}
	fd, err := unix.Openat(dir, "null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a null device: %w", err)
	}
	return os.NewFile(uintptr(fd), "null"), nil
}

// tool runs the tool in its mount namespace and returns when it has ended. What it
// says went wrong is the error. Its exit code is not known: who reaps may be faster.
func (s *shim) tool(streams stdio, args ...string) error {
	base := s.Engine.Base
	log := filepath.Join(base, "log"+strconv.FormatInt(s.engine.calls.Add(1), 10))
	defer func() { _ = os.Remove(log) }()
	pidfd := -1
	proc, err := os.StartProcess(s.Engine.Path, append([]string{
		filepath.Base(s.Engine.Path), "--root", filepath.Join(base, engineState), "--log", log, "--log-format", "json",
	}, args...), &os.ProcAttr{
		Dir: base, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, Files: streams[:], Sys: &syscall.SysProcAttr{PidFD: &pidfd, Pdeathsig: syscall.SIGKILL}, // this thread waits for its end
	})
	if err != nil {
		return fmt.Errorf("run %s: %w", s.Engine.Path, err)
	}
	_ = proc.Release()
	defer unix.Close(pidfd)
	if err := await(pidfd, engineLimit); err != nil {
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		return fmt.Errorf("run %s %s: %w", s.Engine.Path, args[0], err)
	}
	return s.complaint(log, args[0])
}

// toolWithTerminal is tool with an argument more, by which the tool gives the master
// of a terminal that it makes. Without a size there is none.
func (s *shim) toolWithTerminal(streams stdio, size *TerminalSize, args ...string) (master *os.File, err error) {
	if size == nil {
		return nil, s.tool(streams, args...)
	}
	path := filepath.Join(s.Engine.Base, "console"+strconv.FormatInt(s.engine.calls.Add(1), 10))
	listener, err := Listen(path)
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	defer func() { _ = os.Remove(path) }()
	if err := s.tool(streams, append([]string{args[0], "--console-socket", path}, args[1:]...)...); err != nil {
		return nil, err
	}
	fd, _, err := unix.Accept4(int(listener.Fd()), unix.SOCK_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("the tool has made no terminal: %w", err)
	}
	defer unix.Close(fd)
	name, rights := make([]byte, 4<<10), make([]byte, unix.CmsgSpace(4*maxFiles))
	_, n, _, _, err := unix.Recvmsg(fd, name, rights, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return nil, fmt.Errorf("receive a terminal: %w", err)
	}
	files, err := filesOf(rights[:n])
	if err == nil && len(files) != 1 {
		closeAll(files)
		err = fmt.Errorf("receive a terminal: there are %d descriptors", len(files))
	}
	if err != nil {
		return nil, err
	}
	master = Pollable(files[0])
	if err := SetSize(master, *size); err != nil {
		_ = master.Close()
		return nil, err
	}
	return master, nil
}

// await returns when the process has ended.
func await(pidfd int, limit time.Duration) error {
	for end := time.Now().Add(limit); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, max(int(time.Until(end).Milliseconds()), 0))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("it has not ended within %v", limit)
		default:
			return nil
		}
	}
}

// complaint returns the last error in the tool's log.
func (s *shim) complaint(log, what string) error {
	f, err := os.Open(log)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	text := make([]byte, engineSays)
	n, _ := f.Read(text)
	var last string
	for line := range bytes.Lines(text[:n]) {
		var says struct{ Level, Msg string }
		if json.Unmarshal(line, &says) == nil && (says.Level == "error" || says.Level == "fatal") {
			last = says.Msg
		}
	}
	if last == "" {
		return nil
	}
	last = fmt.Sprintf("%s %s: %s", filepath.Base(s.Engine.Path), what, last)
	switch lower := strings.ToLower(last); {
	case strings.Contains(lower, "in $path"), strings.Contains(lower, "exec") && strings.Contains(lower, "no such file or directory"):
		return failf(CodeNoCommand, "%s", last)
	case strings.Contains(lower, "exec") && (strings.Contains(lower, "permission denied") || strings.Contains(lower, "not permitted")):
		return failf(CodeNotExecutable, "%s", last)
	case slices.ContainsFunc(badPaths(), func(e syscall.Errno) bool { return strings.HasSuffix(lower, e.Error()) }):
		return failf(CodeInvalid, "%s", last)
	}
	return failf(CodeFailed, "%s", last)
}

// forkEngine lets the tool make the container's first process.
func (s *shim) forkEngine(streams stdio) (err error) {
	if s.engine.mnt == nil {
		if err := s.equipEngine(); err != nil {
			return err
		}
	}
	defer func() {
		if err != nil {
			s.letGo()
		}
	}()
	restore, err := s.Cgroup.MemoryLimits() // crun lifts them in version 1
	if err != nil {
		return err
	}
	err = s.within(func() error {
		pid := filepath.Join(s.Engine.Base, enginePid)
		if err := os.RemoveAll(filepath.Join(s.Engine.Base, engineState, s.ID)); err != nil { // of the run before
			return err
		}
		var err error
		if s.term.master, err = s.toolWithTerminal(streams, s.Engine.Terminal, "create", "--bundle", s.Engine.Base, "--pid-file", pid, s.ID); err != nil {
			return err
		}
		s.first, err = readPid(pid)
		return err
	})
	if err != nil {
		return err
	}
	s.state.Pid = s.first
	if s.pidfd, err = unix.PidfdOpen(s.first, 0); err == nil {
		err = s.Cgroup.Join(s.first)
	}
	if err == nil {
		err = restore()
	}
	if err != nil {
		s.abandon()
	}
	return err
}

// readPid reads a file that the tool has written, and removes it.
func readPid(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("the tool has made no process: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("the tool has made process %q", text)
	}
	return pid, os.Remove(path)
}

// executeEngine lets the container's first process execute its command.
func (s *shim) executeEngine() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	before := s.executable()
	err = s.within(func() error { return s.tool(stdio{null, null, null}, "start", s.ID) })
	if err == nil {
		s.awaitCommand(before)
	}
	if err != nil {
		_ = unix.PidfdSendSignal(s.pidfd, unix.SIGKILL, nil, 0)
		return err
	}
	s.state.Status, s.state.Started = StatusRunning, time.Now().UTC()
	return nil
}

// executable is what the container's first process executes.
func (s *shim) executable() string {
	name, _ := os.Readlink("/proc/" + strconv.Itoa(s.first) + "/exe") // "" if it has just ended
	return name
}

// awaitCommand returns when the container's first process does not execute any more
// what it did before: the tool does not wait for that, and crun cannot execute
// anything else until then.
func (s *shim) awaitCommand(before string) {
	for end := time.Now().Add(killLimit); time.Now().Before(end) && s.executable() == before; {
		if await(s.pidfd, time.Millisecond) == nil {
			return // it has ended
		}
	}
}

// execEngine lets the tool run a further process.
func (s *shim) execEngine(e Exec, blob []byte, streams stdio) (p process, err error) {
	s.mu.Lock()
	if s.state.Status != StatusRunning {
		s.mu.Unlock()
		return p, failf(CodeStatus, "container is %s, not running", s.state.Status)
	}
	s.mu.Unlock()
	f := s.await()
	name := filepath.Join(s.Engine.Base, "exec"+strconv.FormatInt(s.engine.calls.Add(1), 10))
	err = s.within(func() error {
		defer func() { _ = os.Remove(name) }()
		if err := os.WriteFile(name, blob, 0o600); err != nil {
			return err
		}
		master, err := s.toolWithTerminal(streams, e.Terminal, "exec", "--process", name, "--pid-file", name+".pid", "--detach", s.ID)
		if err != nil {
			return err
		}
		if master != nil {
			p.terminal = []*os.File{master}
		}
		p.pid, err = readPid(name + ".pid")
		return err
	})
	if err == nil {
		p.exited = s.known(f, p.pid)
		_ = s.Cgroup.Join(p.pid) // it is, but for version 2 beside version 1
	} else {
		s.known(f, 0)
	}
	s.hasForked()
	if err != nil {
		closeAll(p.terminal)
	}
	return p, err
}
