package host

import (
	"context"
	"errors"
	"strconv"
	"time"

	"berth.internal/node/container"
)

// Resize sets the size of a container's terminal. Errors: ErrNotFound; ErrConflict
// if it does not run; ErrInvalid if it has none.
func (h *Host) Resize(ctx context.Context, ref string, size container.TerminalSize) error {
	c, err := h.findBegun(ctx, ref)
	if err != nil {
		return err
	}
	switch {
	case !c.rec.Spec.Tty:
		return invalid("container %s has no terminal", c.name())
	case !c.alive():
		return conflict("container %s is not running", c.rec.ID)
	}
	if err := h.opts.Runtime.Resize(ctx, c.rec.ID, size); err != nil {
		return c.runtimeError(err)
	}
	h.tell(c, "resize", sizeAttrs(size)...)
	return nil
}

// resizePatience is how long a change of size waits for its process to run: clients
// ask for both at once.
const resizePatience = 10 * time.Second

// ResizeExec sets the size of the terminal of a process of exec. Errors:
// ErrNotFound; ErrConflict if it does not run; ErrInvalid if it has none.
func (h *Host) ResizeExec(ctx context.Context, id string, size container.TerminalSize) error {
	x, err := h.execution(id)
	if err != nil {
		return err
	}
	if !x.spec.Tty {
		return invalid("exec %s has no terminal", id)
	}
	late := time.NewTimer(resizePatience)
	defer late.Stop()
	select {
	case <-x.begun:
	case <-late.C:
	case <-ctx.Done():
		return ctx.Err()
	case <-h.closing:
		return ErrClosed
	}
	x.mu.Lock()
	process, running := x.process, x.state.Running
	x.mu.Unlock()
	if process == nil || !running {
		return conflict("exec process is not started")
	}
	if err := process.Resize(size); err != nil {
		return x.ctr.runtimeError(err)
	}
	h.tell(x.ctr, "exec_resize", append([]string{"execID", id}, sizeAttrs(size)...)...)
	return nil
}

// runtimeError puts what the runtime says of a container that is not in the right
// state into Docker's words.
func (c *ctr) runtimeError(err error) error {
	switch {
	case errors.Is(err, container.ErrStatus), errors.Is(err, container.ErrNotFound):
		return conflict("container %s is not running", c.rec.ID)
	case errors.Is(err, container.ErrUnsupported):
		return unsupported("%v", err)
	case errors.Is(err, container.ErrInvalid):
		return invalid("%v", err)
	}
	return err
}

func sizeAttrs(size container.TerminalSize) []string {
	return []string{"height", strconv.Itoa(int(size.Rows)), "width", strconv.Itoa(int(size.Columns))}
}
