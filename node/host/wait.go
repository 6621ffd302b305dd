package host

import "context"

// Until is what to wait for, in Docker's words.
type Until string

// What can be waited for.
const (
	NotRunning Until = "not-running" // at once, if it does not run; it begins again by its restart policy first
	NextExit   Until = "next-exit"   // of a run, also of a container that is yet to be started
	Removed    Until = "removed"
)

// Exit is how a container ended.
type Exit struct {
	Code  int
	Error string // why it could not be started
}

// Wait begins to wait: what happens after it returned is not missed. The
// function it returns waits to the end. Errors: ErrNotFound; ErrInvalid. Of the
// function: ErrClosed, ctx's.
func (h *Host) Wait(ref string, until Until) (func(context.Context) (Exit, error), error) {
	c, err := h.find(ref)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	run := c.run
	now := Exit{Code: c.state.ExitCode, Error: c.state.Error}
	if until == NotRunning {
		run = c.life
	}
	switch {
	case until == NotRunning && !c.state.Alive():
		return func(context.Context) (Exit, error) { return now, nil }, nil
	case until == NotRunning || until == NextExit:
		return func(ctx context.Context) (Exit, error) {
			select {
			case <-run.ended:
				return run.exit, nil
			case <-c.gone:
				return c.last(), nil
			case <-ctx.Done():
				return Exit{}, ctx.Err()
			case <-h.closing:
				return Exit{}, ErrClosed
			}
		}, nil
	case until == Removed:
		return func(ctx context.Context) (Exit, error) {
			if err := h.until(ctx, c.gone); err != nil {
				return Exit{}, err
			}
			return Exit{Code: c.last().Code}, nil // who started it was told the error
		}, nil
	}
	return nil, invalid("invalid condition: %q", until)
}

// last returns how the container ended last.
func (c *ctr) last() Exit {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Exit{Code: c.state.ExitCode, Error: c.state.Error}
}
