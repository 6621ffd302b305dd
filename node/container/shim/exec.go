package shim

import (
	"errors"
	"fmt"
	"os"
	"strconv"

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

// forkExec forks the process and returns when it has executed its command.
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
	f := call.Fork{
		Status: int(theirStatus.Fd()),
		Regs:   append(append(streams.regs(), theirSync.Fd(), theirStatus.Fd(), 0), s.given.further()...),
	}
	s.mu.Lock()
	killed := s.killed
	s.mu.Unlock()
	done, err := s.intoCgroup(&f, killed)
	if err != nil {
		return p, err
	}
	defer done()
	var warnings []string
	var pts *os.File
	p.pid, p.exited, err = s.begin(e, &f, plan)
	if err != nil {
		return p, err
	}
	_ = theirSync.Close()
	s.mu.Lock()
	if f.Cgroup == 0 { // it was not born there
		err = s.Cgroup.JoinUnified(p.pid)
	}
	s.adjustOOM("/proc/"+strconv.Itoa(p.pid), e.OOM)
	if e.Master != 0 && err == nil {
		pts, err = s.terminals()
	}
	s.mu.Unlock()
	defer closeAll([]*os.File{pts})
	if err == nil {
		regs := append(streams.regs(), uintptr(p.pid))
		if pts != nil {
			regs = append(regs, pts.Fd())
		}
		p.terminal, err = equipExec(e, plan, regs, ourSync, theirStatus)
	}
	_ = theirStatus.Close()
	if err == nil || errors.Is(err, unix.EPIPE) { // the child has ended before, and said why
		if _, rerr := readReports(ourStatus, plan, func(w string) { warnings = append(warnings, w) }); rerr != nil {
			err = rerr
		}
	}
	if err != nil {
		_ = ourSync.Close() // which ends the child, if it still waits
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

// equipExec gives the process what it cannot make itself, and the word to go on.
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

// begin forks with the container's first process in the register for it. If the
// container has as many processes as it may, this one is born outside of its cgroup:
// whoever looks into it does not count.
func (s *shim) begin(e Exec, f *call.Fork, plan programs) (int, chan unix.WaitStatus, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.Status != StatusRunning {
		return 0, nil, failf(CodeStatus, "container is %s, not running", s.state.Status)
	}
	f.Regs[5] = uintptr(s.pidfd)
	for _, kind := range e.Enter {
		own := s.pidns
		if kind == unix.CLONE_NEWNET {
			net, err := os.Open("/proc/self/ns/net")
			if err != nil {
				return 0, nil, err
			}
			defer net.Close()
			own = net
		}
		f.Enter = append(f.Enter, call.Namespace{FD: s.pidfd, Own: int(own.Fd()), Type: kind})
	}
	pid, pidfd, err := f.Start(plan.child)
	if errors.Is(err, unix.EAGAIN) && f.Cgroup > 0 {
		f.Cgroup = 0
		pid, pidfd, err = f.Start(plan.child)
	}
	if err != nil {
		return 0, nil, fmt.Errorf("fork into the container: %w", err)
	}
	exited := make(chan unix.WaitStatus, 1)
	s.execs[pid] = exited
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
