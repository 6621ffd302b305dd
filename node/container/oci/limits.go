package oci

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container"
)

// change locks a container and returns it, as it is, with its cgroup.
func (r *Runtime) change(id string) (rec *record, s *State, group container.Cgroup, release func(), err error) {
	if err := checkID(id); err != nil {
		return nil, nil, group, nil, err
	}
	if release, err = r.lock(id); err != nil {
		return nil, nil, group, nil, err
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	if rec, err = r.read(id); err != nil {
		return nil, nil, group, nil, err
	}
	if s, err = r.stateOf(rec); err != nil {
		return nil, nil, group, nil, err
	}
	group, err = container.CgroupAt(rec.Cgroup)
	return rec, s, group, release, err
}

// Pause freezes all processes of a container. Errors: ErrNotFound; ErrStatus if it
// does not run, or is paused.
func (r *Runtime) Pause(ctx context.Context, id string) error {
	_, s, group, release, err := r.change(id)
	if err != nil {
		return err
	}
	defer release()
	if s.Status != StatusRunning && s.Status != StatusCreated {
		return fmt.Errorf("%w: container is %s, not running or created", ErrStatus, s.Status)
	}
	if err := group.Freeze(ctx); err != nil {
		return errors.Join(err, group.Thaw())
	}
	return nil
}

// Resume lets a paused container go on. Errors: ErrNotFound; ErrStatus if it is not
// paused.
func (r *Runtime) Resume(id string) error {
	_, s, group, release, err := r.change(id)
	if err != nil {
		return err
	}
	defer release()
	if s.Status != StatusPaused {
		return fmt.Errorf("%w: container not paused", ErrStatus)
	}
	return group.Thaw()
}

// Update changes the limits that limits has; others stay. After an error none is
// changed. Errors: ErrNotFound; ErrStatus if it is stopped; ErrUnsupported.
func (r *Runtime) Update(id string, limits *specs.LinuxResources) error {
	rec, s, group, release, err := r.change(id)
	if err != nil {
		return err
	}
	defer release()
	if s.Status == StatusStopped {
		return fmt.Errorf("%w: container not running", ErrStatus)
	}
	whole, undo, err := group.Update(rec.Spec.Linux.Resources, limits)
	if err != nil {
		return err
	}
	rec.Spec.Linux.Resources = whole
	if err := r.write(rec); err != nil {
		return errors.Join(err, undo())
	}
	return nil
}

// Stats returns what a container has used. Errors: ErrNotFound; ErrStatus if it is
// stopped.
func (r *Runtime) Stats(id string) (container.Stats, error) {
	rec, err := r.read(id)
	if err != nil {
		return container.Stats{}, err
	}
	s, err := r.stateOf(rec)
	if err != nil {
		return container.Stats{}, err
	}
	if s.Status == StatusStopped {
		return container.Stats{}, fmt.Errorf("%w: container is stopped", ErrStatus)
	}
	group, err := container.CgroupAt(rec.Cgroup)
	if err != nil {
		return container.Stats{}, err
	}
	return group.Stats(), nil
}
