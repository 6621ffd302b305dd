package container

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"berth.internal/node/container/cgroup"
)

// freezeLimit is how long the kernel may take to freeze processes: one that waits
// for a disk is frozen when it has got its answer.
const freezeLimit = 10 * time.Second

// Pause freezes all processes of the container. Errors: ErrNotFound; ErrStatus if it
// does not run, or is paused.
func (r *Runtime) Pause(ctx context.Context, id string) error {
	if err := r.pause(ctx, id); err != nil {
		return fmt.Errorf("pause container %s: %w", id, err)
	}
	return nil
}

func (r *Runtime) pause(ctx context.Context, id string) error {
	s, release, err := r.changeOf(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	switch {
	case s.Status != StatusRunning:
		return fmt.Errorf("%w: it is %s", ErrStatus, s.Status)
	case s.Paused:
		return fmt.Errorf("%w: it is paused", ErrStatus)
	}
	group := r.group(id)
	err = freeze(ctx, group)
	if err == nil {
		// It may have ended meanwhile. What begins in a frozen cgroup would never begin.
		ctx, cancel := context.WithTimeout(ctx, freezeLimit)
		defer cancel()
		if s, err = r.State(ctx, id); err == nil && s.Status != StatusRunning {
			err = fmt.Errorf("%w: it is %s", ErrStatus, s.Status)
		}
	}
	if err != nil {
		return errors.Join(err, group.Thaw())
	}
	return nil
}

// Resume lets a paused container go on. Errors: ErrNotFound; ErrStatus if it is not
// paused.
func (r *Runtime) Resume(ctx context.Context, id string) error {
	if err := r.resume(ctx, id); err != nil {
		return fmt.Errorf("resume container %s: %w", id, err)
	}
	return nil
}

func (r *Runtime) resume(ctx context.Context, id string) error {
	s, release, err := r.changeOf(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	if !s.Paused {
		return fmt.Errorf("%w: it is %s, not paused", ErrStatus, s.Status)
	}
	group := r.group(id)
	if err := group.Thaw(); err != nil {
		return err
	}
	if group.Frozen() {
		return errors.New("its cgroup is frozen by one above it")
	}
	return nil
}

// freeze freezes the group and returns when all its processes are. Version 2 is
// preferred, also beside version 1: there a frozen process can be killed.
func freeze(ctx context.Context, g cgroup.Group) error {
	ctx, cancel := context.WithTimeout(ctx, freezeLimit)
	defer cancel()
	file, word, frozen := filepath.Join(g.Unified, "cgroup.freeze"), "1", g.FrozenUnified
	if g.Unified == "" || unix.Access(file, unix.F_OK) != nil {
		if g.Freezer == "" {
			return fmt.Errorf("this node has no cgroup freezer: %w", ErrUnsupported)
		}
		file, word, frozen = filepath.Join(g.Freezer, "freezer.state"), "FROZEN", g.FrozenV1
	}
	wait := 100 * time.Microsecond
	for {
		// Version 1 misses processes that are forked meanwhile, unless it is told again.
		if err := cgroup.Write(file, word); err != nil {
			return fmt.Errorf("freeze: %w", err)
		}
		if frozen() {
			return nil
		}
		select {
		case <-time.After(wait):
			wait = min(2*wait, 10*time.Millisecond)
		case <-ctx.Done():
			return fmt.Errorf("freeze: its processes did not stop: %w", ctx.Err())
		}
	}
}
