package host

import (
	"context"
	"errors"
	"time"

	"berth.internal/node/container"
)

// A run that begins by itself is looked for so long after it should have begun, at
// first, and then half as often each time.
const (
	firstLook = 2 * time.Millisecond
	lastLook  = time.Second
)

// began notes that a run of the container's program has begun.
func (h *Host) began(c *ctr, st container.State) {
	c.mu.Lock()
	c.state = fromRuntime(st)
	c.state.Status = Running // it may have ended since
	c.state.Restarts = c.rec.Restarts + max(st.Run-1, 0)
	c.joinable, c.oomTold = true, false
	c.mu.Unlock()
	h.ask(c)
	h.tell(c, "start")
}

// endedRun notes how a run ended after which another one follows.
func (h *Host) endedRun(c *ctr, state State) {
	h.tellMemory(c, state)
	c.mu.Lock()
	state.Status = Restarting
	c.state = state
	c.joinable = false
	c.closeRun(state)
	c.stopAsking()
	c.mu.Unlock()
	h.tell(c, "die", exitAttr(state.ExitCode)...)
}

// closeRun tells who waits for the end of the run, and makes ready for the next one.
// c.mu is held.
func (c *ctr) closeRun(state State) {
	c.run.exit = Exit{Code: state.ExitCode, Error: state.Error}
	close(c.run.ended)
	c.run = newRun()
}

// finish notes how the container ended for good, tells who waits for it, and makes
// ready for the next start.
func (c *ctr) finish(state State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = state
	c.joinable = false
	c.closeRun(state)
	c.life.exit = Exit{Code: state.ExitCode, Error: state.Error}
	close(c.life.ended)
	c.life = newRun()
	c.stopAsking()
	for _, a := range c.waiting {
		a.join(nil, nil)
	}
	c.waiting = nil
}

// watch follows the container from run to run until it has stopped, and does what
// follows from that. run is the present run, or if it was not seen to have begun the
// next one.
func (h *Host) watch(ctx context.Context, c *ctr, run int, begun bool) {
	for {
		st, err := h.waitRun(ctx, c, run)
		if ctx.Err() != nil {
			return // the node stops, the container does not
		}
		if err != nil && !errors.Is(err, container.ErrNotFound) {
			h.opts.Log.Error("container is out of sight; it is looked for again", "container", c.rec.ID, "error", err)
			if sleep(ctx, lastLook) {
				continue
			}
			return
		}
		if err != nil {
			h.opts.Log.Error("lost sight of a container", "container", c.rec.ID, "error", err)
			_, state := c.now()
			st = container.State{ID: c.rec.ID, Status: container.StatusStopped, Run: run, Started: state.Started, Finished: time.Now(), ExitCode: 255, Error: err.Error()}
		}
		if st.Status == container.StatusStopped {
			h.stopped(ctx, c, st)
			return
		}
		if !begun {
			h.tell(c, "start") // too short to be seen
		}
		h.endedRun(c, c.exitOf(run, st))
		begun = true
		if run = st.Run; st.Status == container.StatusRestarting {
			run++
			begun = h.awaitRun(ctx, c, run, st.Next)
			continue
		}
		h.began(c, st)
	}
}

// sleep waits; it reports whether ctx goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// waitRun waits for the end of a run. The shim of an earlier berth knows one only.
func (h *Host) waitRun(ctx context.Context, c *ctr, run int) (container.State, error) {
	st, err := h.opts.Runtime.WaitRun(ctx, c.rec.ID, run)
	if errors.Is(err, container.ErrUnsupported) {
		return h.opts.Runtime.Wait(ctx, c.rec.ID)
	}
	return st, err
}

// exitOf returns how the run ended, from what was known after it: st is between it
// and the next one, or in a later one.
func (c *ctr) exitOf(run int, st container.State) State {
	_, state := c.now()
	ended := fromRuntime(st)
	if st.Run > run && st.Last != nil {
		ended = fromExit(*st.Last)
	}
	ended.PID, ended.Restarts = 0, state.Restarts
	return ended
}

// awaitRun returns when that run, which begins at next, has begun; or when it is
// over or will never come: then begun is false.
func (h *Host) awaitRun(ctx context.Context, c *ctr, run int, next time.Time) (begun bool) {
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		_, _ = h.waitRun(ctx, c, run) // who asks again learns the same
	}()
	defer func() {
		cancel()
		<-over
	}()
	timer := time.NewTimer(time.Until(next))
	defer timer.Stop()
	for look := firstLook; ; look = min(2*look, lastLook) {
		select {
		case <-over:
			return false
		case <-timer.C:
		}
		st, err := h.opts.Runtime.State(ctx, c.rec.ID)
		if err == nil && st.Status == container.StatusRunning && st.Run >= run {
			h.began(c, st)
			return true
		}
		timer.Reset(look)
	}
}

// stopped notes that the container's shim has stopped it, and begins it again if that
// was not what its policy wants: the shim was killed, or knows nothing of restarts.
func (h *Host) stopped(ctx context.Context, c *ctr, st container.State) {
	c.op.Lock() // who stops it has said so before, or gives up the next attempt
	h.endShm(c)
	rec, was := c.now()
	state := fromRuntime(st)
	state.Restarts = rec.Restarts + max(st.Run-1, 0)
	if st.Started.IsZero() {
		state.Started = was.Started
	}
	told := was.Status == Restarting && state.Started.Equal(was.Started) // no other run has come
	if was.Status == Restarting && !told {
		h.tell(c, "start") // too short to be seen
	}
	again := rec.again(state)
	switch {
	case again:
		if !told {
			h.endedRun(c, state)
		}
		c.mu.Lock()
		delay := nextDelay(c.delay, state.Finished.Sub(state.Started))
		c.mu.Unlock()
		h.revive(c, delay, state.Restarts+1)
	case told:
		c.finish(state)
	default:
		h.tellMemory(c, state)
		c.finish(state)
		h.tell(c, "die", exitAttr(state.ExitCode)...)
	}
	c.op.Unlock()
	if !again && rec.Spec.AutoRemove {
		h.removeExited(ctx, c)
	}
}

// watchMemory tells whenever the kernel kills for the container's memory limit from
// now on, until it has stopped; nothing before it has begun.
func (h *Host) watchMemory(c *ctr) {
	rec, _ := c.now()
	limited := rec.Spec.Resources.Memory != 0
	c.mu.Lock()
	begun := c.begun
	c.watched = limited
	c.mu.Unlock()
	if !limited {
		return
	}
	failed := func(err error) {
		h.opts.Log.Warn("container is not watched for the end of its memory", "container", c.rec.ID, "error", err)
	}
	watch, err := h.opts.Runtime.WatchOOM(c.rec.ID)
	if err != nil {
		if !errors.Is(err, container.ErrNotFound) {
			failed(err)
		}
		return
	}
	h.begin(func(ctx context.Context) {
		if begun != nil {
			<-begun
		}
		err := watch.Wait(ctx, func() {
			c.mu.Lock()
			c.oomTold = true
			c.mu.Unlock()
			h.tell(c, "oom")
		})
		if err != nil && ctx.Err() == nil {
			failed(err)
		}
	})
}

// tellMemory tells at the end of a run what was not told when it happened.
func (h *Host) tellMemory(c *ctr, state State) {
	c.mu.Lock()
	told := c.oomTold
	c.oomTold = state.OOMKilled || told
	c.mu.Unlock()
	if state.OOMKilled && !told {
		h.tell(c, "oom")
	}
}
