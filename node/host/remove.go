package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"berth.internal/internal/durable"
)

// Remove removes a container and everything it has on the node. With force one
// that runs is killed first. Errors: ErrNotFound; ErrConflict if it runs, or is
// being removed.
func (h *Host) Remove(ctx context.Context, ref string, force bool) error {
	c, err := h.find(ref)
	if err != nil {
		return err
	}
	if rec, state := c.now(); state.Alive() {
		if !force {
			return busy(rec.Name, state)
		}
		if err := h.killAndWait(ctx, c); err != nil {
			return err
		}
	}
	// Once begun it is done to the end, whether the client waits or not.
	err = h.remove(context.WithoutCancel(ctx), c)
	if errors.Is(err, errRemoving) && force {
		select {
		case <-c.gone: // by itself, since it has exited
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

// busy says why a container cannot be removed.
func busy(name string, state State) error {
	return conflict("cannot remove container %q: container is %s: stop the container before removing or force remove", "/"+name, state.Status)
}

// errRemoving says that somebody else removes the container.
var errRemoving = errors.New("removal is already in progress")

// remove removes a container that does not run. After a failure it is dead, and
// removing it again goes on.
func (h *Host) remove(ctx context.Context, c *ctr) error {
	c.mu.Lock()
	if c.removing && !c.failed {
		c.mu.Unlock()
		return &failure{fmt.Sprintf("removal of container %s is already in progress", shortID(c.rec.ID)), errors.Join(ErrConflict, errRemoving)}
	}
	c.mu.Unlock()
	c.op.Lock()
	defer c.op.Unlock()
	c.mu.Lock()
	switch {
	case c.state.Alive():
		state := c.state
		c.mu.Unlock()
		return busy(c.name(), state)
	case c.removing && !c.failed:
		c.mu.Unlock()
		return nil // done while we waited
	}
	c.removing, c.failed = true, false
	c.mu.Unlock()
	if err := h.discard(ctx, c); err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.failed = true
		return fmt.Errorf("remove container %s: %w", shortID(c.rec.ID), err)
	}
	return nil
}

// discard does the work of remove. The first thing is durable: from then on a
// restarted node goes on where this one ended.
func (h *Host) discard(ctx context.Context, c *ctr) error {
	if err := durable.Rename(c.recordPath(), c.gonePath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := h.opts.Runtime.Delete(ctx, c.rec.ID); err != nil {
		return err
	}
	if err := c.removeFiles(); err != nil {
		return err
	}
	h.forget(c)
	h.tell(c, "destroy")
	close(c.gone)
	return nil
}

// release lets the image of a removed container go.
func (h *Host) release(c *ctr) {
	if err := h.opts.Images.Release(digest.Digest(c.rec.ImageID), c.rec.ID); err != nil {
		h.opts.Log.Warn("image of a removed container was not cleaned up in full", "container", c.rec.ID, "image", c.rec.ImageID, "error", err)
	}
}
