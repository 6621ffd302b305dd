package shim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
)

// exec runs a further process of the container, tells c that it runs, and
// returns its exit code when it has ended. The descriptors become its own.
func (s *shim) exec(c *Conn, e Exec, blob []byte, files []*os.File) (code *int, err error) {
	defer closeAll(files)
	plan := programs{blob: blob}
	defer plan.free()
	if s.Engine == nil {
		if plan, err = decode(blob, e.Prepare); err != nil {
			freeBlob(blob)
			return nil, err
		}
		plan.blob = blob
	}
	if len(files) != count(e.Stdin, e.Stdout, e.Stderr) {
		return nil, failf(CodeFailed, "%d descriptors for %d streams", len(files), count(e.Stdin, e.Stdout, e.Stderr))
	}
	null, err := s.devNull()
	if err != nil {
		return nil, err
	}
	streams := stdio{null, null, null}
	given := files
	for i, chosen := range []bool{e.Stdin, e.Stdout, e.Stderr} {
		if chosen {
			streams[i], given = given[0], given[1:]
		}
	}
	var p process
	if s.Engine != nil {
		p, err = s.execEngine(e, blob, streams)
	} else {
		p, err = s.forkExec(e, plan, streams)
	}
	plan.free() // the process may live long
	_ = null.Close()
	closeAll(files) // of the pipes only the process's ends stay, so that they end with it
	if err != nil {
		if coded, ok := errors.AsType[*Error](err); ok {
			return nil, coded
		}
		why, _ := classify(err)
		return nil, failf(why, "%v", err)
	}
	// If nobody is interested it runs on, like a container.
	_ = c.Send(Response{Version: Version, Pid: p.pid}, nil, p.terminal...)
	closeAll(p.terminal)
	n := exitCode(<-p.exited)
	return &n, nil
}

// devNull returns a descriptor of the container's /dev/null, or the node's for one
// that has none.
func (s *shim) devNull() (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.null == nil {
		return s.nowhere()
	}
	return duplicate(s.null.Fd())
}

// process is a further process of the container.
type process struct {
	pid      int
	exited   chan unix.WaitStatus
	terminal []*os.File // its master, if it has one
}

// forkExec forks the process and returns when it has executed its command. It lets others
// go on meanwhile: where its command is may be a file system of the container's.
func (s *shim) forkExec(e Exec, plan programs, streams stdio) (p process, err error) {
	ourSync, theirSync, err := syncPair()
	if err != nil {
		return p, err
	}
	defer ourSync.Close()
	defer theirSync.Close()
	ourStatus, theirStatus, err := s.execStatus()
	if err != nil {
		return p, err
	}
	defer ourStatus.Close()
	defer theirStatus.Close()
	l, err := s.launch(e)
	if err != nil {
		return p, err
	}
	defer l.close()
	l.fork.Status = int(theirStatus.Fd())
	l.fork.Regs = append(append(streams.regs(), theirSync.Fd(), theirStatus.Fd(), l.init.Fd()), s.given.further()...)
	if p.terminal, err = equipExec(e, plan, l.given(streams), ourSync, theirStatus); err == nil {
		p.pid, p.exited, err = s.begin(e, l, plan)
	}
	if err != nil {
		closeAll(p.terminal)
		return process{}, err
	}
	_ = theirSync.Close()
	_ = theirStatus.Close()
	var warnings []string
	_, err = readReports(ourStatus, plan, func(w string) { warnings = append(warnings, w) })
	if err != nil {
		if e.Once != nil && e.Once.Leave {
			go s.reap()
		}
		<-p.exited
		closeAll(p.terminal)
		return process{}, err
	}
	s.mu.Lock()
	for _, w := range warnings {
		s.warn("exec: " + w)
	}
	s.mu.Unlock()
	return p, nil
}

// equipExec makes what the process cannot make itself, and leaves it in its socket with the
// word to go on.
func equipExec(e Exec, plan programs, regs []uintptr, sync, status *os.File) (terminal []*os.File, err error) {
	regs, err = plan.prepare.Run(int(status.Fd()), regs)
	if e.Master == 0 {
		if err == nil {
			_, err = sync.Write([]byte{0})
		}
		return nil, err
	}
	defer release(regs, append(e.Send, e.Master))
	if err == nil {
		err = send(sync, regs, e.Send)
	}
	if err != nil {
		return nil, err
	}
	master, err := copyOf(regs, e.Master)
	if err != nil {
		return nil, err
	}
	return []*os.File{master}, nil
}

// launch is what a further process is forked with. It is the launch's own, since what the
// container has may be closed while it is forked.
type launch struct {
	fork call.Fork
	init *os.File // descriptor of the container's first process
	pts  *os.File // file system of terminals, if it shall have one
	own  *os.File // network namespace of this process, if another one is entered
	done func()
}

// given returns the registers of the program that is run for the process.
func (l *launch) given(streams stdio) []uintptr {
	regs := append(streams.regs(), call.Closed) // the process is not there yet
	if l.pts != nil {
		regs = append(regs, l.pts.Fd())
	}
	return regs
}

func (l *launch) close() {
	if l.done != nil {
		l.done()
	}
	closeAll([]*os.File{l.init, l.pts, l.own})
}

// launch returns what a process is forked with while the container runs.
func (s *shim) launch(e Exec) (l *launch, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.Status != StatusRunning {
		return nil, failf(CodeStatus, "container is %s, not running", s.state.Status)
	}
	l = &launch{fork: call.Fork{Share: e.Share && staysPrivate(suidDumpable)}}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.init, err = duplicate(uintptr(s.pidfd)); err != nil {
		return l, err
	}
	if e.Master != 0 {
		if l.pts, err = s.terminals(); err != nil {
			return l, err
		}
	}
	for _, kind := range e.Enter {
		own := s.pidns
		if kind == unix.CLONE_NEWNET {
			if l.own, err = os.Open("/proc/self/ns/net"); err != nil {
				return l, err
			}
			own = l.own
		}
		l.fork.Enter = append(l.fork.Enter, call.Namespace{FD: int(l.init.Fd()), Own: int(own.Fd()), Type: kind})
	}
	if l.done, err = s.intoCgroup(&l.fork, s.killed); err != nil {
		return l, err
	}
	if l.fork.Cgroup == 0 {
		err = s.joinLate(l)
	}
	return l, err
}

// suidDumpable is the setting of what the memory of a process that becomes another user can
// be used for (proc_sys_fs(5)).
const suidDumpable = "/proc/sys/fs/suid_dumpable"

// staysPrivate reports that a process which becomes another user, as one of exec does on its
// way, does not open its memory to that user by that. With 1 it does: then it must not be
// ours.
func staysPrivate(setting string) bool {
	b := make([]byte, 1)
	fd, err := unix.Open(setting, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	n, err := unix.Read(fd, b)
	return err == nil && n == 1 && b[0] != '1'
}

// joinLate lets the process enter the cgroup of version 2 itself, in which it cannot be
// born.
func (s *shim) joinLate(l *launch) error {
	if s.Cgroup.Unified == "" {
		return nil
	}
	fd, err := unix.Open(filepath.Join(s.Cgroup.Unified, "cgroup.procs"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open cgroup %s: %w", s.Cgroup.Unified, err)
	}
	before := l.done
	l.done = func() {
		_ = unix.Close(fd)
		before()
	}
	l.fork.Cgroup, l.fork.Tasks = 0, append(slices.Clip(l.fork.Tasks), fd)
	return nil
}

// begin forks the process. If the container has as many processes as it may, this one is
// born outside of its cgroup: whoever looks into it does not count.
func (s *shim) begin(e Exec, l *launch, plan programs) (int, chan unix.WaitStatus, error) {
	f := s.await()
	pid, pidfd, err := l.fork.Start(plan.child)
	if errors.Is(err, unix.EAGAIN) && l.fork.Cgroup > 0 {
		if err := s.joinLate(l); err != nil {
			s.known(f, 0)
			return 0, nil, err
		}
		pid, pidfd, err = l.fork.Start(plan.child)
	}
	if l.fork.Share {
		// The child's other ids have changed this as well, to what suidDumpable says.
		_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	}
	if err != nil {
		s.known(f, 0)
		return 0, nil, fmt.Errorf("fork into the container: %w", err)
	}
	exited := s.known(f, pid)
	s.hasForked()
	if e.Once != nil {
		s.given.process = os.NewFile(uintptr(pidfd), "process")
		if !e.Once.Leave { // else how it ends is for the next reaper to learn
			go s.reap()
		}
	} else {
		_ = unix.Close(pidfd) // its number stays its own until it is reaped
	}
	return pid, exited, nil
}

// forking is a process that is forked, and whose number is not known yet.
type forking struct {
	ended map[int]unix.WaitStatus // those that nobody knew, since then
}

// await says that a process is about to be forked: how it ends is kept until known says
// its number.
func (s *shim) await() *forking {
	f := &forking{ended: map[int]unix.WaitStatus{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forkings = append(s.forkings, f)
	return f
}

// known returns what tells how the process ends, or has. 0 says that there is none.
func (s *shim) known(f *forking, pid int) (exited chan unix.WaitStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forkings = slices.DeleteFunc(s.forkings, func(other *forking) bool { return other == f })
	if pid == 0 {
		return nil
	}
	exited = make(chan unix.WaitStatus, 1)
	if ws, ended := f.ended[pid]; ended {
		exited <- ws
	} else {
		s.execs[pid] = exited
	}
	return exited
}

// stray keeps how a process ended that nobody knows yet. s.mu is held.
func (s *shim) stray(pid int, ws unix.WaitStatus) {
	for _, f := range s.forkings {
		f.ended[pid] = ws
	}
}
