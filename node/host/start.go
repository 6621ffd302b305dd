package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	"berth.internal/node/container"
)

// Start runs the container's program. It returns when that runs, or could not
// be run. Errors: ErrNotFound; ErrNotModified if it runs already; ErrInvalid if
// the image has no such program or user.
func (h *Host) Start(ctx context.Context, ref string) error {
	c, err := h.find(ref)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	if err := c.live(); err != nil {
		return err
	}
	if c.running() {
		return ErrNotModified
	}
	// Once begun it is done to the end, whether the client waits or not.
	if err = h.start(context.WithoutCancel(ctx), c); err == nil || !c.rec.Spec.AutoRemove {
		return err
	}
	h.begin(func(ctx context.Context) { h.removeExited(ctx, c) })
	return err
}

// live reports a container that is being removed. c.op is held.
func (c *ctr) live() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.removing {
		return conflict("container %s is marked for removal and cannot be started", shortID(c.rec.ID))
	}
	return nil
}

// start starts the container, which does not run. c.op is held.
func (h *Host) start(ctx context.Context, c *ctr) error {
	began := time.Now()
	if err := h.clearLast(ctx, c); err != nil {
		return err
	}
	err := h.launch(ctx, c)
	h.metrics.started(time.Since(began), err)
	if err != nil {
		err = fmt.Errorf("failed to start container %q: %w", c.name(), err)
		failed := State{Status: Created, ExitCode: failureCode(err), Error: err.Error()}
		c.end(failed)
		rec := c.rec
		rec.Last = &failed
		return errors.Join(err, c.save(rec))
	}
	return nil
}

// clearLast lets the runtime forget the container's last run, after writing
// down how it ended.
func (h *Host) clearLast(ctx context.Context, c *ctr) error {
	c.mu.Lock()
	state, rec := c.state, c.rec
	c.mu.Unlock()
	if state.Status != Exited {
		return nil
	}
	rec.Last = &state
	if err := c.save(rec); err != nil {
		return err
	}
	return h.opts.Runtime.Delete(ctx, c.rec.ID)
}

// launch makes the container in the runtime, connects who waits for it, and
// executes its program. After an error the runtime has nothing of it.
func (h *Host) launch(ctx context.Context, c *ctr) (err error) {
	bundle, err := h.bundle(c)
	if err != nil {
		return err
	}
	id := c.rec.ID
	if err := h.opts.Runtime.Create(ctx, bundle); err != nil {
		if errors.Is(err, container.ErrUnsupported) {
			return unsupported("%v", err)
		}
		return err
	}
	h.connect(ctx, c)
	if err := h.opts.Runtime.Start(ctx, id); err != nil {
		return errors.Join(startFailure(bundle.Spec.Process.Args[0], err), h.undoCreate(ctx, c))
	}
	st, err := h.opts.Runtime.State(ctx, id)
	if err != nil {
		return err // it runs; the next start of the node finds it
	}
	c.mu.Lock()
	c.state = State{Status: Running, PID: st.Pid, Started: st.Started}
	run := c.run
	c.mu.Unlock()
	for _, w := range st.Warnings {
		h.opts.Log.Warn("container is not all that was asked for", "container", id, "warning", w)
	}
	h.tell(c, "start")
	h.begin(func(ctx context.Context) { h.watch(ctx, c, run) })
	return nil
}

// The exit codes of a container whose program did not run, as Docker's.
const (
	codeNotStarted    = 128
	codeNotExecutable = 126
	codeNotFound      = 127
)

// The same as errors.
var (
	errNotExecutable = &failure{"permission denied", ErrInvalid}
	errNoCommand     = &failure{"executable file not found in $PATH", ErrInvalid}
)

func failureCode(err error) int {
	switch {
	case errors.Is(err, errNoCommand):
		return codeNotFound
	case errors.Is(err, errNotExecutable):
		return codeNotExecutable
	}
	return codeNotStarted
}

// startFailure puts into Docker's words why a program could not be executed:
// its clients know by them which exit code to end with.
func startFailure(command string, err error) error {
	switch {
	case errors.Is(err, container.ErrNoCommand):
		return fmt.Errorf("exec: %q: %w", command, errNoCommand)
	case errors.Is(err, container.ErrNotExecutable):
		return fmt.Errorf("exec: %q: %w (%w)", command, errNotExecutable, err)
	}
	return err
}

// watch waits for the end of the container's run and does what follows from it.
func (h *Host) watch(ctx context.Context, c *ctr, run *run) {
	st, err := h.opts.Runtime.Wait(ctx, c.rec.ID)
	if ctx.Err() != nil {
		return // the node stops, the container does not
	}
	if err != nil {
		h.opts.Log.Error("lost sight of a container", "container", c.rec.ID, "error", err)
		st = container.State{ID: c.rec.ID, Status: container.StatusStopped, Started: c.snapshot().State.Started, Finished: time.Now(), ExitCode: 255, Error: err.Error()}
	}
	state := fromRuntime(st)
	if state.OOMKilled {
		h.tell(c, "oom")
	}
	c.finish(run, state)
	h.tell(c, "die", exitAttr(state.ExitCode)...)
	if c.rec.Spec.AutoRemove {
		h.removeExited(ctx, c)
	}
}

// removeExited removes a container that asked to go when it exits.
func (h *Host) removeExited(ctx context.Context, c *ctr) {
	if err := h.remove(ctx, c); err != nil && !errors.Is(err, errRemoving) {
		h.opts.Log.Error("container could not be removed after its exit", "container", c.rec.ID, "error", err)
	}
}

// end finishes the present run.
func (c *ctr) end(state State) {
	c.mu.Lock()
	run := c.run
	c.mu.Unlock()
	c.finish(run, state)
}

// finish notes how a run ended, tells who waits for it, and makes ready for the
// next one.
func (c *ctr) finish(run *run, state State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = state
	c.joinable = false
	run.exit = Exit{Code: state.ExitCode, Error: state.Error}
	close(run.ended)
	c.run = newRun()
	for _, a := range c.waiting {
		a.join(nil, nil)
	}
	c.waiting = nil
}
