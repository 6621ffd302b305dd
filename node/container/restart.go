package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"berth.internal/node/container/shim"
)

// check returns an error if r is not a policy.
func (r Restart) check() error {
	switch {
	case r.Policy != RestartNo && r.Policy != RestartAlways && r.Policy != RestartUnlessStopped && r.Policy != RestartOnFailure:
		return fmt.Errorf("restart policy %q: %w", r.Policy, ErrUnsupported)
	case r.Max < 0:
		return fmt.Errorf("restart policy with a maximum of %d restarts", r.Max)
	case r.Max > 0 && r.Policy != RestartOnFailure:
		return fmt.Errorf("restart policy %q has no maximum, only %s has", r.Policy, RestartOnFailure)
	}
	return nil
}

// WaitRun returns when that run of the container is over: it is stopped, restarting,
// or in a later run. Errors: ErrNotFound.
func (r *Runtime) WaitRun(ctx context.Context, id string, run int) (State, error) {
	return r.state(ctx, id, shim.Request{Method: shim.MethodWait, Run: max(run, 1)})
}

// SetRestart changes when the container begins again. One that is between two runs
// and would not begin again is stopped. Errors: ErrNotFound; ErrStatus if it is
// stopped; ErrUnsupported if it was made by another berth without a policy, and
// must be restarted first.
func (r *Runtime) SetRestart(ctx context.Context, id string, restart Restart) error {
	if err := r.setRestart(ctx, id, restart); err != nil {
		return fmt.Errorf("set restart policy of container %s: %w", id, err)
	}
	return nil
}

func (r *Runtime) setRestart(ctx context.Context, id string, restart Restart) error {
	if err := restart.check(); err != nil {
		return err
	}
	if restart.Policy != RestartNo {
		if err := r.ensurePlan(id); err != nil {
			return err
		}
	}
	c, err := r.dial(ctx, id)
	if err != nil {
		return err
	}
	defer closeConn(c)
	_, _, err = exchange(ctx, c, shim.Request{
		Method: shim.MethodRestart, Restart: &shim.Restart{Policy: string(restart.Policy), Max: restart.Max},
	}, nil)
	if restart.Policy == RestartNo && errors.Is(err, ErrUnsupported) {
		return nil // a shim that does not know of restarts makes none
	}
	return r.orStopped(ctx, id, err)
}

// ensurePlan writes what the container is begun again from, if it is not there. A
// shim of another berth might not understand it in full.
func (r *Runtime) ensurePlan(id string) error {
	r.plans.Lock() // one writer of a file at a time
	defer r.plans.Unlock()
	rec, err := r.readRecord(id)
	if err != nil {
		return err
	}
	path := r.path(id, shim.PlanFile)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if rec.Program != r.program {
		return fmt.Errorf("it was made by another version of berth, and without a policy: restart the container: %w", ErrUnsupported)
	}
	req, programs, err := r.request(rec.bundle(), rec.Seccomp, "")
	if err != nil {
		return err
	}
	req.Cgroup = r.group(id)
	return shim.WritePlan(path, req, programs)
}

// endRestarts stops a container that is between two runs.
func (r *Runtime) endRestarts(ctx context.Context, id string) error {
	err := r.setRestart(ctx, id, Restart{})
	if err != nil && !errors.Is(err, ErrStatus) {
		return err
	}
	s, err := r.State(ctx, id)
	if err == nil && s.Status != StatusStopped {
		err = fmt.Errorf("%w: it is %s", ErrStatus, s.Status) // the next run has just begun
	}
	return err
}

// readLast reads what a shim wrote down when it announced a restart.
func (r *Runtime) readLast(id string) (*shim.State, bool) {
	data, err := os.ReadFile(r.path(id, shim.LastFile))
	if err != nil {
		return nil, false
	}
	s := new(shim.State)
	if err := json.Unmarshal(data, s); err != nil {
		return nil, false
	}
	return s, true
}
