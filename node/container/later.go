package container

import "context"

// Resize sets the size of the container's terminal. Errors: ErrNotFound; ErrStatus
// if it is stopped or has none.
func (r *Runtime) Resize(ctx context.Context, id string, size TerminalSize) error {
	return ErrUnsupported
}

// Resize sets the size of the process's terminal. Errors: ErrStatus if it has none.
func (e *Exec) Resize(size TerminalSize) error { return ErrUnsupported }
