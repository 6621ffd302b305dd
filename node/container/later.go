package container

import "context"

// Resize sets the size of the container's terminal. Errors: ErrNotFound; ErrStatus
// if it is stopped or has none.
func (r *Runtime) Resize(ctx context.Context, id string, size TerminalSize) error {
	return ErrUnsupported
}

// Resize sets the size of the process's terminal. Errors: ErrStatus if it has none.
func (e *Exec) Resize(size TerminalSize) error { return ErrUnsupported }

// WatchOOM calls killed whenever the kernel killed a process of the container because
// a memory limit was reached, until the container has stopped or ctx ends. Errors:
// ErrNotFound.
func (r *Runtime) WatchOOM(ctx context.Context, id string, killed func()) error {
	return ErrUnsupported
}
