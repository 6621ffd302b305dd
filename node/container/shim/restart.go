package shim

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// goesOn reports whether another run follows one that ended like that. s.mu is
// held.
func (s *shim) goesOn(e Exit) bool {
	return s.state.Run > 0 && s.Restart.wants(e.ExitCode, s.state.Run-1)
}

// over is what follows the end of a run: another one, or none. Either is on disk
// before anybody is told. s.mu is held.
func (s *shim) over(e Exit) {
	s.letGo()
	s.closeStdin()
	s.term.master = nil // closed by who copies the rest of it
	s.plan.free()
	s.fate = nil
	if !s.goesOn(e) {
		s.stop(e)
		return
	}
	st := &s.state
	s.before = st.Last
	st.Status, st.Pid, st.Last = StatusRestarting, 0, &e
	delay := s.delays.next(e.Finished.Sub(e.Started))
	st.Next = time.Now().UTC().Add(delay)
	step("ended")
	if err := s.record(LastFile); err != nil {
		s.warn(fmt.Sprintf("write down how run %d ended: %v", st.Run, err))
	}
	step("recorded")
	s.timer = time.AfterFunc(delay, s.again)
	close(s.turn)
	s.turn = make(chan struct{})
}

// again begins the next run. What fails is how that run ended.
func (s *shim) again() {
	s.killRest() // by a pid namespace's end it is empty but for what others put there
	if err := s.Cgroup.Reset(killLimit); err != nil {
		s.mu.Lock()
		s.warn(err.Error())
		s.mu.Unlock()
	}
	if s.Cgroup.Frozen() {
		_ = s.Cgroup.Thaw() // what is born frozen never begins
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.Status != StatusRestarting {
		return // the policy was taken away
	}
	s.state.Run++
	s.state.Next, s.state.Started = time.Time{}, time.Now().UTC()
	step("forking")
	err := s.rebuild()
	if err == nil {
		step("forked")
		err = s.execute()
	}
	if err != nil {
		s.abandon()
		s.copies.Wait() // nobody is attached, and nobody else has the other ends
		_, code := classify(err)
		s.over(Exit{Started: s.state.Started, Finished: time.Now().UTC(), ExitCode: code, Error: err.Error()})
		return
	}
	step("running")
	s.tidy(25)
}

// rebuild makes stdio and a first process from the bundle.
func (s *shim) rebuild() error {
	c, blob, err := readPlan(filepath.Join(s.Bundle, PlanFile))
	if err != nil {
		return err
	}
	if s.Engine == nil {
		s.plan, err = decode(blob, c.Prepare)
		s.plan.blob = blob
		if err != nil {
			return err
		}
	}
	// All that belongs to the programs; this is what stays.
	c.Log, c.LogSize, c.LogFiles, c.Stdin, c.StdinOnce = s.Log, s.LogSize, s.LogFiles, s.Stdin, s.StdinOnce
	c.ID, c.Bundle, c.Cgroup, c.Restart = s.ID, s.Bundle, s.Cgroup, s.Restart
	s.Create = c
	if err := s.build(false); err != nil {
		return err
	}
	s.hasForked()
	return nil
}

// setRestart changes the policy. A container that waits for a run that it does
// not have any more is stopped.
func (s *shim) setRestart(r Restart) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.state.Status == "" || s.state.Status == StatusStopped:
		return failf(CodeStatus, "container is %s", s.state.Status)
	case r.Policy != "":
		if _, err := os.Stat(filepath.Join(s.Bundle, PlanFile)); err != nil {
			return fmt.Errorf("restart without a plan: %w", err)
		}
	}
	s.Restart = r
	if s.state.Status == StatusRestarting && !s.goesOn(*s.state.Last) {
		s.timer.Stop()
		last := *s.state.Last
		s.state.Last = s.before
		s.stop(last)
	}
	return nil
}

// WritePlan writes the file PlanFile of a bundle.
func WritePlan(path string, c Create, blob []byte) error {
	msg, err := message(c, blob)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", msg, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// readPlan reads what WritePlan wrote.
func readPlan(path string) (c Create, blob []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return c, nil, err
	}
	defer f.Close()
	blob, err = body(f, make([]byte, 8), 0, &c)
	if err != nil {
		return c, nil, fmt.Errorf("read %s: %w", path, err)
	}
	return c, blob, nil
}
