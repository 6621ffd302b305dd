package host

import (
	"context"

	"berth.internal/node/container"
)

// Stats returns what a container has used since it was started. One that does not
// run has used nothing: Read is zero then. Errors: ErrNotFound.
func (h *Host) Stats(ctx context.Context, ref string) (Container, container.Stats, error) {
	c, err := h.find(ref)
	if err != nil {
		return Container{}, container.Stats{}, err
	}
	snapshot := c.snapshot()
	if snapshot.State.Status != Running {
		return snapshot, container.Stats{}, nil
	}
	stats, err := h.opts.Runtime.Stats(ctx, c.rec.ID)
	if gone(err) == nil && err != nil {
		return c.snapshot(), container.Stats{}, nil
	}
	return snapshot, stats, err
}
