package shim

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// detached is what the caller of a container without a shim gives it. Descriptors
// of create: standard input, output and error; the FIFO that start writes to,
// opened for both; the FIFO that reports go to, opened for both and for reading;
// and those that the container's program gets from number 3 on. Of exec: standard
// input, output and error; a descriptor of the container's first process; and
// those for the program.
type detached struct {
	start, report, reports *os.File
	files                  []*os.File
	process                *os.File // of exec: the process that was made
}

// further returns the registers for the descriptors from number 3 on.
func (d *detached) further() []uintptr {
	var regs []uintptr
	if d != nil {
		for _, f := range d.files {
			regs = append(regs, f.Fd())
		}
	}
	return regs
}

// regs returns the registers of a first process that follow those of every one.
func (d *detached) regs() []uintptr {
	if d == nil {
		return nil
	}
	return append([]uintptr{d.start.Fd()}, d.further()...)
}

// statusPipe returns what the container's first process reports on, and its end.
// Without a shim the reports after start are for who starts it.
func (s *shim) statusPipe() (ours, theirs *os.File, err error) {
	if s.given == nil {
		return pipe(true)
	}
	return s.given.reports, s.given.report, nil
}

// untilDead reads the reports of a process that its caller could still write, too, so
// that they have no end of their own: it comes with the end of the process.
type untilDead struct {
	status *os.File
	pidfd  int
}

func (u untilDead) Read(b []byte) (int, error) {
	fds := []unix.PollFd{{Fd: int32(u.status.Fd()), Events: unix.POLLIN}, {Fd: int32(u.pidfd), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, -1); err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return 0, fmt.Errorf("wait for the container's first process: %w", err)
		}
		if fds[0].Revents&unix.POLLIN == 0 {
			return 0, io.EOF
		}
		return u.status.Read(b)
	}
}

// raise gives the descriptors numbers from least on: below, the child puts its
// program's own in their place.
func raise(files []*os.File, least int) error {
	for i, f := range files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, least)
		if err != nil {
			return fmt.Errorf("move descriptor: %w", err)
		}
		_ = f.Close()
		files[i] = os.NewFile(uintptr(fd), "received")
	}
	return nil
}

// createDetached builds a container that is left to whoever asked for it, and gives
// the master of its terminal, if it has one.
func (s *shim) createDetached(c *Conn, req Create, blob []byte, files []*os.File) (give []*os.File, after func(error), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.Status != "" || len(files) < 6 {
		closeAll(files)
		return nil, nil, failf(CodeFailed, "a container without a shim needs a process of its own, and its descriptors")
	}
	if err := raise(files, 3+len(files)); err != nil {
		return nil, nil, err
	}
	s.Create = req
	if s.plan, err = decode(blob, req.Prepare); err != nil {
		return nil, nil, err
	}
	s.given = &detached{start: files[3], report: files[4], reports: files[5], files: files[6:]}
	s.state = State{Version: Version, ID: s.ID, Created: time.Now().UTC()}
	if err := s.fork(stdio(files[:3]), false); err != nil {
		s.state = State{}
		code, _ := classify(err)
		return nil, nil, failf(code, "%v", err)
	}
	s.state.Status = StatusCreated
	if req.Detached.Pause {
		if err := s.pause(c); err != nil {
			s.abandon()
			s.state = State{}
			code, _ := classify(err)
			return nil, nil, failf(code, "%v", err)
		}
	}
	if s.term.master != nil {
		give = []*os.File{s.term.master}
	}
	return give, func(err error) {
		if err != nil { // nobody knows of it
			_ = unix.PidfdSendSignal(s.pidfd, unix.SIGKILL, nil, 0)
		}
		s.leave(err)
	}, nil
}

// pause lets who asked for the container do something with it, and takes it the
// rest of the way.
func (s *shim) pause(c *Conn) error {
	state := s.state
	if err := c.Send(Response{Version: Version, State: &state}, nil); err != nil {
		return err
	}
	_ = c.SetDeadline(time.Time{}) // hooks take their time
	var req Request
	_, files, err := c.Receive(&req)
	closeAll(files)
	if err != nil {
		return err
	}
	if req.Method != MethodGo {
		return failf(CodeUnknown, "method %q instead of %s", req.Method, MethodGo)
	}
	if _, err := s.sync.Write([]byte{0}); err != nil && !errors.Is(err, unix.EPIPE) { // if it has ended, the reports say why
		return err
	}
	ready, err := s.reports(s.plan)
	if err == nil && !ready {
		err = errors.New("the container's first process ended while it was built")
	}
	return err
}

// execStatus returns a pipe for reports whose end for the process is not in the
// way of the descriptors that the process is to have.
func (s *shim) execStatus() (ours, theirs *os.File, err error) {
	if ours, theirs, err = pipe(true); err != nil || len(s.given.further()) == 0 {
		return ours, theirs, err
	}
	high := []*os.File{theirs}
	if err := raise(high, 4+len(s.given.files)); err != nil {
		return nil, nil, err // this process ends with it
	}
	return ours, high[0], nil
}

// leave ends this process; what it made belongs to the reaper above it then.
func (s *shim) leave(error) { s.end.Do(func() { close(s.done) }) }

// execOnce runs a further process of a container that has no shim.
func (s *shim) execOnce(c *Conn, e Exec, blob []byte, files []*os.File) (code *int, err error) {
	defer func() { closeAll(files) }()
	if len(files) < 4 {
		return nil, failf(CodeFailed, "%d descriptors for a process", len(files))
	}
	if err := raise(files, 3+len(files)); err != nil {
		return nil, err
	}
	plan, err := decode(blob, e.Prepare)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	if s.state.Status != "" {
		s.mu.Unlock()
		return nil, failf(CodeStatus, "this shim has a container")
	}
	s.state.Status, s.Cgroup, s.pidfd = StatusRunning, e.Once.Cgroup, int(files[3].Fd())
	s.given = &detached{files: files[4:]}
	s.pidns, err = os.Open("/proc/self/ns/pid")
	if err == nil && e.Master != 0 {
		s.term.pts, err = openDevpts(s.pidfd)
	}
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	p, err := s.forkExec(e, plan, stdio(files[:3]))
	if err != nil {
		if coded, ok := errors.AsType[*Error](err); ok {
			return nil, coded
		}
		why, _ := classify(err)
		return nil, failf(why, "%v", err)
	}
	closeAll(files[:3])
	err = c.Send(Response{Version: Version, Pid: p.pid}, nil, append([]*os.File{s.given.process}, p.terminal...)...)
	closeAll(p.terminal)
	if err != nil || e.Once.Leave {
		return nil, err
	}
	n := exitCode(<-p.exited)
	return &n, nil
}

// openDevpts opens the file system of terminals that the process has at /dev/pts. It
// may be another by now than was made for it: whatever it is, it is one of terminals,
// and nothing else is opened. This thread looks at it from the process's mount
// namespace; if it cannot come back, nobody uses it again.
func openDevpts(process int) (*os.File, error) {
	runtime.LockOSThread()
	own, err := unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(own)
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return nil, fmt.Errorf("leave the directories of other threads: %w", err)
	}
	if err := unix.Setns(process, unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("enter the container's mount namespace: %w", err)
	}
	fd, err := unix.Openat2(unix.AT_FDCWD, "/dev/pts", &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if back := unix.Setns(own, unix.CLONE_NEWNS); back != nil {
		return nil, fmt.Errorf("return from the container's mount namespace: %w", back)
	}
	runtime.UnlockOSThread()
	if err != nil {
		return nil, fmt.Errorf("open the container's /dev/pts: %w", err)
	}
	var fs unix.Statfs_t
	if err = unix.Fstatfs(fd, &fs); err == nil && fs.Type != unix.DEVPTS_SUPER_MAGIC {
		err = errors.New("there is no devpts")
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("look at the container's /dev/pts: %w", err)
	}
	return os.NewFile(uintptr(fd), "devpts"), nil
}
