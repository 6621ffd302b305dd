package shim

import (
	"encoding/json"
	"errors"
	"path/filepath"
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

// reap waits for all children until the container's first process and all
// others have ended: processes of exec, and what these leave behind.
func (s *shim) reap() {
	finishing := false
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WALL, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return // ECHILD: none is left
		}
		s.mu.Lock() // whoever forked it has registered it by now
		exited, isExec := s.execs[pid]
		delete(s.execs, pid)
		first := pid == s.state.Pid && !finishing
		s.mu.Unlock()
		switch {
		case isExec:
			exited <- ws
		case first:
			finishing = true
			go s.finish(ws)
		}
	}
}

// finish writes down how the container ended, and tells everybody.
func (s *shim) finish(ws unix.WaitStatus) {
	ended := time.Now().UTC()
	if s.Flags&unix.CLONE_NEWPID == 0 {
		// The kernel ends what is left only in a pid namespace.
		if err := s.Cgroup.Kill(killLimit); err != nil {
			s.mu.Lock()
			s.warn(err.Error())
			s.mu.Unlock()
		}
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
	if s.sync != nil { // never started
		_ = s.sync.Close()
		s.sync = nil
	}
	st := &s.state
	st.Status, st.Pid, st.Finished = StatusStopped, 0, ended
	st.ExitCode = exitCode(ws)
	if ws.Signaled() {
		st.Signal = int(ws.Signal())
	}
	if s.fate != nil {
		st.ExitCode, st.Signal, st.Error = s.fate.ExitCode, 0, s.fate.Error
	}
	st.OOMKilled = s.Cgroup.OOMKills() > 0
	if lost := s.out.log.lost; lost != nil {
		s.warn("write log: " + lost.Error())
	}
	if err := s.record(); err != nil {
		st.Error = err.Error() // those that listen now still learn how it ended
	}
	s.mu.Unlock()
	s.out.hurry(readLimit)
	s.err.hurry(readLimit)
	s.end.Do(func() { close(s.done) })
}

// record writes the exit record.
func (s *shim) record() error {
	b, err := json.Marshal(s.state)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(s.Bundle, ExitFile), append(b, '\n'), 0o600)
}
