package host

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"berth.internal/node/container"
)

// Restart is a restart policy.
type Restart = container.Restart

// The restart policies, by their names in Docker. RestartNo is Docker's "no".
const (
	RestartNo            = container.RestartNo
	RestartAlways        = container.RestartAlways
	RestartUnlessStopped = container.RestartUnlessStopped
	RestartOnFailure     = container.RestartOnFailure
)

// What the user of a container with a restart policy asked for last.
const (
	askedStart = "start"
	askedStop  = "stop"
)

// How long the node waits before it begins a container again, as its shim does:
// twice as long each time, and from the beginning after a run that was long enough.
const (
	firstDelay = 100 * time.Millisecond
	lastDelay  = time.Minute
	steadyRun  = 10 * time.Second
)

// startsAtOnce is how many containers the node begins by itself at the same time.
const startsAtOnce = 4

// checkRestart follows Docker's words.
func checkRestart(r Restart, autoRemove bool) error {
	switch r.Policy {
	case RestartNo, RestartAlways, RestartUnlessStopped:
		if r.Max != 0 {
			return invalid("invalid restart policy: maximum retry count can only be used with 'on-failure'")
		}
	case RestartOnFailure:
		if r.Max < 0 {
			return invalid("invalid restart policy: maximum retry count cannot be negative")
		}
	default:
		return invalid("invalid restart policy: unknown policy '%s'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'", r.Policy)
	}
	if autoRemove && r.Policy != RestartNo {
		return invalid("can't create 'AutoRemove' container with restart policy")
	}
	return nil
}

// nextDelay is how long to wait after a run of that length, when it was last the
// last time; zero if there was none.
func nextDelay(last, ran time.Duration) time.Duration {
	if last == 0 || ran >= steadyRun {
		return firstDelay
	}
	return min(2*last, lastDelay)
}

// left is the policy of a container that the node itself has begun again so many
// times already.
func left(r Restart, restarts int) Restart {
	if r.Policy != RestartOnFailure || r.Max == 0 {
		return r
	}
	if r.Max -= restarts; r.Max <= 0 {
		return Restart{}
	}
	return r
}

// again reports whether a container begins again that ended so, when nobody else
// sees to it.
func (rec *record) again(state State) bool {
	if rec.Asked != askedStart {
		return false
	}
	switch r := rec.Spec.Restart; r.Policy {
	case RestartAlways, RestartUnlessStopped:
		return true
	case RestartOnFailure:
		return state.ExitCode != 0 && (r.Max == 0 || state.Restarts < r.Max)
	}
	return false
}

// onBoot reports whether a container begins when the node does. known says whether
// the runtime knows how it ended; else the machine has stopped under it.
func (rec *record) onBoot(state State, known bool) bool {
	switch rec.Spec.Restart.Policy {
	case RestartAlways:
		return rec.Asked != ""
	case RestartOnFailure:
		return rec.Asked == askedStart && !known || rec.again(state)
	}
	return rec.again(state)
}

// changeRestart changes the container's restart policy, also for the run there is.
// c.op is held.
func (h *Host) changeRestart(ctx context.Context, c *ctr, r Restart) error {
	rec, state := c.now()
	rec.Spec.Restart = r
	switch {
	case state.Alive():
		rec.Asked = askedStart
	case rec.Asked == "" && !state.Started.IsZero():
		rec.Asked = askedStop
	}
	if err := c.save(rec); err != nil {
		return err
	}
	if !state.Alive() {
		return nil
	}
	if r.Policy == RestartNo && c.giveUp() {
		return nil
	}
	return h.setRestart(ctx, c, left(r, rec.Restarts))
}

// setRestart tells the container's shim, if it has one. One that knows nothing of
// restarts makes none: then the node does, as long as it is there.
func (h *Host) setRestart(ctx context.Context, c *ctr, r Restart) error {
	err := h.opts.Runtime.SetRestart(ctx, c.rec.ID, r)
	for _, fine := range []error{container.ErrStatus, container.ErrNotFound, container.ErrUnsupported} {
		if errors.Is(err, fine) {
			return nil
		}
	}
	return err
}

// dismiss takes the container's restart policy away until it is started again,
// which is on disk before it is done: whoever stops a container does so for good.
func (h *Host) dismiss(ctx context.Context, c *ctr) error {
	if rec, _ := c.now(); rec.Spec.Restart.Policy == RestartNo {
		return nil
	}
	c.op.Lock() // a start that is under way is waited for
	defer c.op.Unlock()
	if err := c.live(); err != nil {
		return nil //nolint:nilerr // it is being removed
	}
	if rec, _ := c.now(); rec.Asked != askedStop {
		rec.Asked = askedStop
		if err := c.save(rec); err != nil {
			return err
		}
	}
	if c.giveUp() {
		return nil
	}
	return h.setRestart(ctx, c, Restart{})
}

// giveUp ends the wait for the node's own next attempt to begin the container, and
// with it the container's life. It reports whether there was one. c.op is held.
func (c *ctr) giveUp() bool {
	c.mu.Lock()
	waits := c.revival != nil
	if waits {
		close(c.revival)
		c.revival = nil
	}
	state := c.state
	c.mu.Unlock()
	if !waits {
		return false
	}
	state.Status = ended(state)
	c.finish(state)
	return true
}

// ended is the status of a container that has ended so.
func ended(s State) Status {
	if s.Started.IsZero() {
		return Created // its program was never executed
	}
	return Exited
}

// revive begins the container again by its policy after a while, and goes on trying
// until it runs or somebody gives up. restarts counts this one. The container does
// not run.
func (h *Host) revive(c *ctr, delay time.Duration, restarts int) {
	waits := c.awaitRevival(delay)
	h.begin(func(ctx context.Context) { h.goOn(ctx, c, waits, delay, restarts) })
}

// awaitRevival notes that the node will begin the container again. The channel is
// closed by who gives up.
func (c *ctr) awaitRevival(delay time.Duration) chan struct{} {
	waits := make(chan struct{})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.revival, c.delay = waits, delay
	c.state.Status = Restarting
	return waits
}

// goOn is revive from its first delay on.
func (h *Host) goOn(ctx context.Context, c *ctr, waits chan struct{}, delay time.Duration, restarts int) {
	for {
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-waits:
		case <-ctx.Done():
		}
		timer.Stop()
		select {
		case h.slots <- struct{}{}:
		case <-waits:
			return
		case <-ctx.Done():
			return
		}
		done := h.tryRevive(ctx, c, waits, restarts)
		<-h.slots
		if done {
			return
		}
		delay = c.longerDelay()
	}
}

// longerDelay is the one after an attempt that failed.
func (c *ctr) longerDelay() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.delay = nextDelay(c.delay, 0)
	return c.delay
}

// tryRevive begins the container again, unless somebody was faster or has given up.
// It reports whether there is nothing more to do.
func (h *Host) tryRevive(ctx context.Context, c *ctr, waits chan struct{}, restarts int) (done bool) {
	c.op.Lock()
	defer c.op.Unlock()
	select {
	case <-waits:
		return true
	case <-ctx.Done():
		return true
	default:
	}
	rec, state := c.now()
	err := h.start(context.WithoutCancel(ctx), c, restarts)
	if err == nil {
		h.opts.Log.Info("container begins again by its restart policy", "container", rec.ID, "name", rec.Name, "policy", string(rec.Spec.Restart.Policy))
		return true
	}
	h.opts.Log.Error("container could not begin again; it is tried further", "container", rec.ID, "name", rec.Name, "error", err)
	state.Error, state.ExitCode = err.Error(), failureCode(err)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state, c.joinable = state, false
	return false
}

// boot begins the containers that shall run when the node does, the oldest first.
// It returns before they do.
func (h *Host) boot(list []*ctr) {
	if len(list) == 0 {
		return
	}
	slices.SortFunc(list, func(a, b *ctr) int { return a.rec.Created.Compare(b.rec.Created) })
	h.opts.Log.Info("containers begin by their restart policies", "containers", len(list))
	waits := make([]chan struct{}, len(list))
	for i, c := range list {
		waits[i] = c.awaitRevival(0)
	}
	h.begin(func(ctx context.Context) {
		var begun sync.WaitGroup
		defer begun.Wait()
		for i, c := range list {
			select {
			case h.slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			begun.Go(func() {
				done := h.tryRevive(ctx, c, waits[i], 0)
				<-h.slots
				if !done {
					h.goOn(ctx, c, waits[i], c.longerDelay(), 0)
				}
			})
		}
	})
}
