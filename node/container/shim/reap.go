package shim

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"berth.internal/internal/durable"
)

// How long the end of a container is waited for after its first process: for
// others that hold its output, and for those that resist being killed.
const (
	drainLimit = 2 * time.Second
	killLimit  = 10 * time.Second
	readLimit  = 10 * time.Second // for those attached to read the rest
)

// exitCode is the code that a shell would give.
func exitCode(ws unix.WaitStatus) int {
	if ws.Signaled() {
		return ExitSignal + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// hasForked tells reap that there may be a child again.
func (s *shim) hasForked() {
	select {
	case s.forked <- struct{}{}:
	default:
	}
}

// reap waits for all children: the container's first process, processes of exec,
// and what these leave behind.
func (s *shim) reap() {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WALL, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil { // ECHILD: none is left
			select {
			case <-s.forked:
				continue
			case <-s.done:
				return
			}
		}
		s.mu.Lock() // whoever forked it has registered it by now
		exited, isExec := s.execs[pid]
		delete(s.execs, pid)
		first := pid == s.first
		switch {
		case first:
			s.first = 0
		case !isExec:
			s.stray(pid, ws)
		}
		s.mu.Unlock()
		switch {
		case isExec:
			exited <- ws
			runtime.Gosched() // to who gets it: a system call that waits would hold the processor for a while
		case first:
			go s.finish(ws)
		}
	}
}

// finish ends a run after its first process.
func (s *shim) finish(ws unix.WaitStatus) {
	ended := time.Now().UTC()
	s.mu.Lock()
	closeAll([]*os.File{s.term.peer}) // from now on its output has an end
	s.mu.Unlock()
	if s.Flags&unix.CLONE_NEWPID == 0 {
		// The kernel ends what is left only in a pid namespace.
		s.killRest()
	}
	// Somebody outside of the container may hold its output, which then never ends.
	limit := time.AfterFunc(drainLimit, func() {
		for _, out := range s.outs {
			_ = out.SetReadDeadline(time.Now())
		}
	})
	defer limit.Stop()
	drained := make(chan struct{})
	go func() {
		s.copies.Wait()
		close(drained)
	}()
	select {
	case <-drained:
	case <-time.After(2 * drainLimit): // somebody is attached and does not read; they get the rest when they do
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.exit(ws, ended)
	if s.goesOn(e) { // the next run's output comes after this one's
		s.mu.Unlock()
		s.out.hurry(readLimit)
		s.err.hurry(readLimit)
		<-drained
		s.mu.Lock()
	}
	s.over(e)
}

// killRest kills what is left in the container's cgroup.
func (s *shim) killRest() {
	pids, err := s.Cgroup.Pids()
	if err == nil && len(pids) > 0 {
		s.mu.Lock()
		s.killed = true
		s.mu.Unlock()
		err = s.Cgroup.Kill(killLimit)
	}
	if err != nil {
		s.mu.Lock()
		s.warn(err.Error())
		s.mu.Unlock()
	}
}

// exit returns how the run ended. s.mu is held.
func (s *shim) exit(ws unix.WaitStatus, ended time.Time) Exit {
	e := Exit{Started: s.state.Started, Finished: ended, ExitCode: exitCode(ws)}
	if ws.Signaled() {
		e.Signal = int(ws.Signal())
	}
	if s.fate != nil {
		e.ExitCode, e.Signal, e.Error = s.fate.ExitCode, 0, s.fate.Error
	}
	kills := s.Cgroup.OOMKills()
	e.OOMKilled = kills > s.ooms
	s.ooms = kills
	return e
}

// stop ends the container, whose last run ended like that. s.mu is held.
func (s *shim) stop(e Exit) {
	st := &s.state
	st.Status, st.Pid, st.Next = StatusStopped, 0, time.Time{}
	st.Started, st.Finished = e.Started, e.Finished
	st.ExitCode, st.Signal, st.OOMKilled, st.Error = e.ExitCode, e.Signal, e.OOMKilled, e.Error
	s.noteLog()
	if err := s.record(ExitFile); err != nil {
		st.Error = err.Error() // those that listen now still learn how it ended
	}
	s.out.hurry(readLimit)
	s.err.hurry(readLimit)
	s.end.Do(func() { close(s.done) })
}

// record writes the state to a file of the bundle.
func (s *shim) record(name string) error {
	b, err := json.Marshal(s.state)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(s.Bundle, name), append(b, '\n'), 0o600)
}
