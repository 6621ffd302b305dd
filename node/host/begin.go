package host

import "context"

// begins says that the container's program is about to run, before it can say
// anything itself; over that it does, or that it could not.
func (c *ctr) begins() (over func()) {
	begun := make(chan struct{})
	c.mu.Lock()
	c.begun = begun
	c.mu.Unlock()
	return func() { close(begun) }
}

// findBegun finds a container, and if its program is just about to run waits until it
// does: a client may know by its output sooner than this node.
func (h *Host) findBegun(ctx context.Context, ref string) (*ctr, error) {
	c, err := h.find(ref)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	begun := c.begun
	c.mu.Unlock()
	if begun == nil {
		return c, nil
	}
	return c, h.until(ctx, begun)
}
