package oci

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container"
)

// Start executes the program of a created container and returns when it runs.
// Errors: ErrNotFound; ErrStatus if it is not created; ErrNoCommand;
// ErrNotExecutable. After a failure of a hook the container is stopped.
func (r *Runtime) Start(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	release, err := r.lock(id)
	if err != nil {
		return err
	}
	defer release()
	rec, err := r.read(id)
	if err != nil {
		return err
	}
	return r.start(ctx, rec)
}

// start is Start for who has the container's lock.
func (r *Runtime) start(ctx context.Context, rec *record) error {
	s, err := r.stateOf(rec)
	switch {
	case err != nil:
		return err
	case s.Status == StatusStopped:
		return fmt.Errorf("%w: cannot start a container that has stopped", ErrStatus)
	case s.Status != StatusCreated:
		return fmt.Errorf("%w: cannot start a container that is %s", ErrStatus, s.Status)
	case rec.Spec.Process == nil:
		return errors.New("cannot start a container without process in its config.json")
	}
	if err := r.startHooks(ctx, rec); err != nil {
		return r.stop(rec, err)
	}
	if err := r.release(rec); err != nil {
		return err
	}
	if err := r.runtimeHooks(ctx, rec, "poststart", hooksOf(rec.Spec).Poststart, StatusRunning); err != nil {
		return r.stop(rec, err)
	}
	return nil
}

func hooksOf(s *specs.Spec) *specs.Hooks {
	if s.Hooks == nil {
		return new(specs.Hooks)
	}
	return s.Hooks
}

// stop ends a container of which a hook has failed.
func (r *Runtime) stop(rec *record, cause error) error {
	p, err := rec.open()
	if err != nil || p == nil {
		return errors.Join(cause, err)
	}
	defer p.Close()
	if err := unix.PidfdSendSignal(int(p.Fd()), unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return errors.Join(cause, err)
	}
	awaitEnd(p)
	return cause
}

// release lets the container's first process execute its program.
func (r *Runtime) release(rec *record) error {
	reports, err := openFIFO(r.path(rec.ID, reportFile), unix.O_RDONLY|unix.O_NONBLOCK) // the process has it open
	if err != nil {
		return err
	}
	defer reports.Close()
	start, err := openFIFO(r.path(rec.ID, goFile), unix.O_WRONLY|unix.O_NONBLOCK)
	if err != nil {
		return fmt.Errorf("the container's first process does not wait: %w", err)
	}
	defer start.Close()
	if err := unix.SetNonblock(int(reports.Fd()), false); err != nil {
		return err
	}
	// From here on it is not a created container any more, whatever comes.
	if err := os.Remove(r.path(rec.ID, goFile)); err != nil {
		return err
	}
	if _, err := start.Write([]byte{0}); err != nil {
		return err
	}
	err = container.AwaitExec(reports, rec.Spec.Process.Args[0])
	_ = os.Remove(r.path(rec.ID, reportFile)) // delete does, else
	return err
}
