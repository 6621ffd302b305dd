package host

import (
	"context"
	"errors"

	"berth.internal/node/container"
)

// Pause freezes all processes of a container. Errors: ErrNotFound; ErrConflict if
// it does not run, or is paused.
func (h *Host) Pause(ctx context.Context, ref string) error {
	return h.setPaused(ctx, ref, true)
}

// Unpause lets a paused container go on. Errors: ErrNotFound; ErrConflict if it is
// not paused.
func (h *Host) Unpause(ctx context.Context, ref string) error {
	return h.setPaused(ctx, ref, false)
}

func (h *Host) setPaused(ctx context.Context, ref string, paused bool) error {
	c, err := h.findBegun(ctx, ref)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	c.mu.Lock()
	state, run := c.state, c.run
	c.mu.Unlock()
	do, event := h.opts.Runtime.Pause, "pause"
	switch {
	case state.Status == Restarting:
		return conflict("container %s is restarting, wait until the container is running", c.rec.ID)
	case state.Status != Running:
		return conflict("container %s is not running", c.rec.ID)
	case paused && state.Paused:
		return conflict("container %s is already paused", c.rec.ID)
	case !paused && !state.Paused:
		return conflict("container %s is not paused", c.rec.ID)
	case !paused:
		do, event = h.opts.Runtime.Resume, "unpause"
	}
	// Once begun it is done to the end, whether the client waits or not.
	err = do(context.WithoutCancel(ctx), c.rec.ID)
	switch {
	case errors.Is(err, container.ErrStatus), errors.Is(err, container.ErrNotFound):
		return conflict("container %s is not running", c.rec.ID)
	case err != nil:
		return err
	}
	c.mu.Lock()
	if c.run == run {
		c.state.Paused = paused
	}
	c.mu.Unlock()
	h.tell(c, event)
	return nil
}
