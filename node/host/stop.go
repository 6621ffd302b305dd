package host

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth.internal/node/container"
)

const sigKill = syscall.SIGKILL

// StopOptions say how to stop. What is not set, the container says.
type StopOptions struct {
	Signal  string
	Timeout *int // seconds until it is killed; below 0: never
}

// Stop asks the container to end, and kills it if it has not within the
// timeout. It returns when it has ended. Errors: ErrNotFound; ErrNotModified if
// it does not run; ErrInvalid.
func (h *Host) Stop(ctx context.Context, ref string, opts StopOptions) error {
	c, err := h.find(ref)
	if err != nil {
		return err
	}
	if !c.alive() {
		return ErrNotModified
	}
	if err := h.stop(ctx, c, opts); err != nil {
		return err
	}
	h.tell(c, "stop")
	return nil
}

func (h *Host) stop(ctx context.Context, c *ctr, opts StopOptions) error {
	for _, name := range []string{c.rec.Spec.StopSignal, DefaultStopSignal} {
		if opts.Signal == "" {
			opts.Signal = name
		}
	}
	sig, err := parseSignal(opts.Signal)
	if err != nil {
		return err
	}
	timeout := DefaultStopTimeout
	for _, t := range []*int{c.rec.Spec.StopTimeout, opts.Timeout} {
		if t != nil {
			timeout = time.Duration(*t) * time.Second
		}
	}
	life := c.current()
	if err := h.dismiss(ctx, c); err != nil {
		return err
	}
	if err := h.signal(ctx, c, sig); err != nil {
		if errors.Is(err, ErrConflict) { // it has ended by itself
			return h.until(ctx, life.ended)
		}
		return err
	}
	if timeout >= 0 {
		late := time.NewTimer(timeout)
		defer late.Stop()
		select {
		case <-life.ended:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-h.closing:
			return ErrClosed
		case <-late.C:
			return h.killAndWait(ctx, c)
		}
	}
	return h.until(ctx, life.ended)
}

// until waits for something to happen.
func (h *Host) until(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-h.closing:
		return ErrClosed
	}
}

// current returns the container's present life.
func (c *ctr) current() *run {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.life
}

// killAndWait kills the container and waits for its end. One that has ended is
// no error.
func (h *Host) killAndWait(ctx context.Context, c *ctr) error {
	life := c.current()
	if !c.alive() {
		return nil
	}
	if err := h.dismiss(ctx, c); err != nil {
		return err
	}
	if err := h.signal(ctx, c, sigKill); err != nil && !errors.Is(err, ErrConflict) {
		return err
	}
	return h.until(ctx, life.ended)
}

// Restart stops the container, if it runs, and starts it. Errors: as of Stop and
// Start.
func (h *Host) Restart(ctx context.Context, ref string, opts StopOptions) error {
	c, err := h.find(ref)
	if err != nil {
		return err
	}
	if c.rec.Spec.AutoRemove && c.alive() {
		return conflict("container %s is removed when it stops (--rm), so it cannot be restarted", shortID(c.rec.ID))
	}
	if c.alive() {
		if err := h.stop(ctx, c, opts); err != nil {
			return err
		}
		h.tell(c, "stop")
	}
	if err := h.Start(ctx, c.rec.ID); err != nil && !errors.Is(err, ErrNotModified) {
		return err
	}
	h.tell(c, "restart")
	return nil
}

// Kill sends a signal to the container's first process, and if it is one that
// always ends it, returns when it has. After one that is to end it, it does not begin
// again by its restart policy. Errors: ErrNotFound; ErrConflict if it
// does not run; ErrInvalid.
func (h *Host) Kill(ctx context.Context, ref, signal string) error {
	c, err := h.findBegun(ctx, ref)
	if err != nil {
		return err
	}
	sig, err := parseSignal(signal)
	if err != nil {
		return err
	}
	life := c.current()
	_, state := c.now()
	if state.Alive() && c.endedBy(sig) {
		if err := h.dismiss(ctx, c); err != nil {
			return err
		}
	}
	err = h.signal(ctx, c, sig)
	switch {
	case errors.Is(err, ErrConflict) && state.Status == Restarting:
		return h.until(ctx, life.ended) // there was nothing to kill: it does not begin again
	case err == nil && sig == sigKill:
		return h.until(ctx, life.ended)
	}
	return err
}

// endedBy reports whether sig is one by which people end a program, and not one that
// they have it read its configuration by.
func (c *ctr) endedBy(sig syscall.Signal) bool {
	if own, err := parseSignal(c.rec.Spec.StopSignal); err == nil && own == sig {
		return true
	}
	return slices.Contains([]syscall.Signal{sigKill, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGABRT}, sig)
}

// signal sends sig. Errors: ErrConflict if the container does not run.
func (h *Host) signal(ctx context.Context, c *ctr, sig syscall.Signal) error {
	stopped := conflict("container %s is not running", c.rec.ID)
	if !c.alive() {
		return stopped
	}
	err := h.opts.Runtime.Kill(ctx, c.rec.ID, sig)
	switch {
	case errors.Is(err, container.ErrStatus), errors.Is(err, container.ErrNotFound):
		return stopped
	case err != nil:
		return err
	}
	if err := h.wake(ctx, c, sig); err != nil {
		return err
	}
	name := unix.SignalName(sig)
	h.tell(c, "kill", "signal", name)
	return nil
}

// wake lets a paused container go on, if the signal is one that stops it: it hears
// it only then. It is so for Docker's users.
func (h *Host) wake(ctx context.Context, c *ctr, sig syscall.Signal) error {
	stop := c.rec.Spec.StopSignal
	if own, err := parseSignal(stop); stop != "" && (err != nil || own != sig) && sig != sigKill {
		return nil
	}
	c.mu.Lock()
	paused := c.state.Paused
	c.mu.Unlock()
	if !paused {
		return nil
	}
	if err := h.opts.Runtime.Resume(ctx, c.rec.ID); err != nil && !errors.Is(err, container.ErrStatus) && !errors.Is(err, container.ErrNotFound) {
		return err
	}
	c.mu.Lock()
	c.state.Paused = false
	c.mu.Unlock()
	return nil
}
