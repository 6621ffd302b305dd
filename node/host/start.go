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
// the image has no such program or user, or a file where it needs a directory.
func (h *Host) Start(ctx context.Context, ref string) error {
	c, release, err := h.hold(ref)
	if err != nil {
		return err
	}
	defer release()
	if c.alive() && !c.giveUp() {
		return ErrNotModified
	}
	c.mu.Lock()
	c.delay = 0
	c.mu.Unlock()
	// Once begun it is done to the end, whether the client waits or not.
	if err = h.start(context.WithoutCancel(ctx), c, 0); err == nil {
		return nil
	}
	if c.rec.Spec.AutoRemove {
		h.begin(func(ctx context.Context) { h.removeExited(ctx, c) })
	}
	h.endShm(c)
	failed := State{Status: Created, ExitCode: failureCode(err), Error: err.Error()}
	c.finish(failed)
	rec, _ := c.now()
	rec.Last, rec.Asked = &failed, ""
	return errors.Join(err, c.save(rec))
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

// start starts the container, which does not run, and which the node has begun
// again so many times since its user started it. c.op is held. After an error its
// state is as before.
func (h *Host) start(ctx context.Context, c *ctr, restarts int) error {
	began := time.Now()
	err := h.clearLast(ctx, c, restarts)
	if err == nil {
		err = h.launch(ctx, c)
	}
	h.metrics.started(time.Since(began), err)
	if err != nil {
		return fmt.Errorf("failed to start container %q: %w", c.name(), err)
	}
	return nil
}

// clearLast lets the runtime forget the container's last run, after writing
// down how it ended, and that one with a restart policy shall run.
func (h *Host) clearLast(ctx context.Context, c *ctr, restarts int) error {
	rec, state := c.now()
	ran := state.Status == Exited || state.Status == Restarting
	if ran {
		state.Status = ended(state)
		rec.Last = &state
	}
	wanted := rec.Spec.Restart.Policy != RestartNo && (rec.Asked != askedStart || rec.Restarts != restarts)
	if wanted {
		rec.Asked, rec.Restarts = askedStart, restarts
	}
	if ran || wanted {
		if err := c.save(rec); err != nil {
			return err
		}
	}
	if !ran {
		return nil
	}
	return h.opts.Runtime.Delete(ctx, c.rec.ID)
}

// launch makes the container in the runtime, connects who waits for it, and
// executes its program. After an error the runtime has nothing of it.
func (h *Host) launch(ctx context.Context, c *ctr) (err error) {
	bundle, release, err := h.bundle(ctx, c)
	if err != nil {
		return err
	}
	rec, _ := c.now()
	id := rec.ID
	bundle.Restart = left(rec.Spec.Restart, rec.Restarts)
	defer c.begins()()
	st, err := h.execute(ctx, c, bundle, release)
	if err != nil {
		return err
	}
	for _, w := range st.Warnings {
		h.opts.Log.Warn("container is not all that was asked for", "container", id, "warning", w)
	}
	c.mu.Lock()
	c.revival = nil
	c.mu.Unlock()
	h.began(c, st)
	h.begin(func(ctx context.Context) { h.watch(ctx, c, max(st.Run, 1), true) })
	return nil
}

// execute makes the container in the runtime, connects who waits for it, and executes
// its program. After an error the runtime has nothing of it.
func (h *Host) execute(ctx context.Context, c *ctr, bundle container.Bundle, release func()) (st container.State, err error) {
	if c.unattended() {
		st, err = h.opts.Runtime.Run(ctx, bundle)
		release()
		if err != nil {
			return st, h.notExecuted(c, bundle.Spec.Process, err)
		}
		h.watchMemory(c)  // there is no limit now; there may have been one in the run before
		h.connect(ctx, c) // who has come meanwhile
		return st, nil
	}
	err = h.opts.Runtime.Create(ctx, bundle)
	release()
	if err != nil {
		return st, h.notExecuted(c, bundle.Spec.Process, err) // runc and crun look for it now
	}
	h.watchMemory(c)
	h.connect(ctx, c)
	if st, err = h.opts.Runtime.Start(ctx, bundle.ID); err != nil {
		return st, errors.Join(h.notExecuted(c, bundle.Spec.Process, err), h.undoCreate(ctx, c))
	}
	return st, nil
}

// unattended reports whether the container's program can begin as soon as it is there:
// nobody waits for what it says, or has to watch its memory from the beginning.
func (c *ctr) unattended() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.waiting) == 0 && c.rec.Spec.Resources.Memory == 0
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
	case errors.Is(err, container.ErrUnsupported):
		return unsupported("%v", err)
	case errors.Is(err, container.ErrInvalid):
		return invalid("%v", err)
	}
	return err
}

// removeExited removes a container that asked to go when it exits.
func (h *Host) removeExited(ctx context.Context, c *ctr) {
	if err := h.remove(ctx, c); err != nil && !errors.Is(err, errRemoving) {
		h.opts.Log.Error("container could not be removed after its exit", "container", c.rec.ID, "error", err)
	}
}
