package container

import (
	"context"
	"syscall"
)

// Runtime makes containers and finds those that were made before. Its methods
// can be called from several goroutines.
type Runtime struct {
	cfg Config
}

// Open prepares the directories of cfg and the program of the shims.
func Open(cfg Config) (*Runtime, error) { return &Runtime{cfg: cfg}, nil }

// Close releases what Open took. Containers run on.
func (r *Runtime) Close() error { return nil }

// Create builds b up to the point where only its program is missing, and starts
// its shim. Errors: ErrExists; ErrUnsupported. After an error nothing is left.
func (r *Runtime) Create(ctx context.Context, b Bundle) error { panic("not built yet") }

// Start executes the program of a created container and returns when it runs.
// Errors: ErrNotFound; ErrStatus if it was started before; ErrNoCommand and
// ErrNotExecutable, after which the container is stopped with exit code 127 or
// 126.
func (r *Runtime) Start(ctx context.Context, id string) error { panic("not built yet") }

// State returns what is known of a container. Errors: ErrNotFound.
func (r *Runtime) State(ctx context.Context, id string) (State, error) { panic("not built yet") }

// Wait returns when the container has stopped, at once if it has already.
// Errors: ErrNotFound.
func (r *Runtime) Wait(ctx context.Context, id string) (State, error) { panic("not built yet") }

// Kill sends sig to the container's first process. Errors: ErrNotFound;
// ErrStatus if it is stopped.
func (r *Runtime) Kill(ctx context.Context, id string, sig syscall.Signal) error {
	panic("not built yet")
}

// Attach connects to the streams of a container that is not stopped. Before
// Start, no byte of output is missed. The log has everything in any case.
// Errors: ErrNotFound; ErrStatus, also for Stdin if the container has none or
// its only input was taken (StdinOnce).
func (r *Runtime) Attach(ctx context.Context, id string, opts AttachOptions) (*Streams, error) {
	panic("not built yet")
}

// Exec runs a further process in a running container and returns when it runs.
// Errors: ErrNotFound; ErrStatus; ErrNoCommand; ErrNotExecutable;
// ErrUnsupported.
func (r *Runtime) Exec(ctx context.Context, id string, spec ExecSpec) (*Exec, error) {
	panic("not built yet")
}

// Exec is a process started by Runtime.Exec.
type Exec struct {
	Streams
	Pid int // on the node
}

// Wait returns the exit code, 128 + n if signal n ended it. The process goes on
// if ctx ends. Call it once.
func (e *Exec) Wait(ctx context.Context) (int, error) { panic("not built yet") }

// Delete removes a container that is stopped, or created and never started, with
// all that the Runtime made for it: processes, cgroup, socket, bundle. What the
// Bundle named (Rootfs, Log) stays. A container that is not there is no error.
// Errors: ErrStatus if it is running.
func (r *Runtime) Delete(ctx context.Context, id string) error { panic("not built yet") }

// List returns the state of all containers, also of those that an earlier
// Runtime made, in the order of their ids.
func (r *Runtime) List(ctx context.Context) ([]State, error) { panic("not built yet") }
