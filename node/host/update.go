package host

import (
	"context"
	"errors"
	"reflect"

	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container"
)

// Update changes a container's limits and its restart policy by what change does to
// its spec; nothing else of the spec may be changed. What is changed holds at once
// and after the next start. Errors: ErrNotFound; ErrConflict if it is being removed, or
// shall be when it exits and could then not begin again; ErrInvalid; ErrUnsupported.
func (h *Host) Update(ctx context.Context, ref string, change func(*Spec) error) error {
	c, release, err := h.hold(ref)
	if err != nil {
		return err
	}
	defer release()
	rec, state := c.now()
	old := rec
	if err := change(&rec.Spec); err != nil {
		return err
	}
	if err := errors.Join(rec.Spec.Resources.check(), checkRestart(rec.Spec.Restart, false), rec.Spec.checkOptions()); err != nil {
		return err
	}
	if rec.Spec.AutoRemove && rec.Spec.Restart.Policy != RestartNo {
		return conflict("Restart policy cannot be updated because AutoRemove is enabled for the container")
	}
	changed, err := difference(old.Spec.Resources, rec.Spec.Resources)
	if err != nil {
		return err
	}
	// Once begun it is done to the end, whether the client waits or not.
	ctx = context.WithoutCancel(ctx)
	if changed != nil && state.Alive() {
		if err := gone(h.opts.Runtime.Update(ctx, rec.ID, changed)); err != nil {
			return c.runtimeError(err)
		}
	}
	policy := rec.Spec.Restart
	rec.Spec.Restart = old.Spec.Restart
	if err := c.save(rec); err != nil {
		return err
	}
	c.mu.Lock()
	watched := c.watched
	c.mu.Unlock()
	if !watched && state.Alive() {
		h.watchMemory(c) // if there is a limit now
	}
	if policy != old.Spec.Restart {
		if err := h.changeRestart(ctx, c, policy); err != nil {
			return err
		}
	}
	h.tell(c, "update")
	return nil
}

// gone makes nothing of the failure to change what has just ended: it is changed
// for its next start.
func gone(err error) error {
	if errors.Is(err, container.ErrStatus) || errors.Is(err, container.ErrNotFound) {
		return nil
	}
	return err
}

// difference returns the kinds of limits that are not as before, nil if
// there are none. A limit that is gone becomes one that holds nothing up.
func difference(from, to Resources) (*specs.LinuxResources, error) {
	none := &specs.LinuxResources{}
	want, err := limits(none, to)
	if err != nil {
		return nil, err
	}
	have, err := limits(none, from)
	if err != nil {
		have = &specs.LinuxResources{} // of a device that is gone
	}
	var out specs.LinuxResources
	if same(have.Memory, want.Memory) && same(have.CPU, want.CPU) && same(have.Pids, want.Pids) && same(have.BlockIO, want.BlockIO) {
		return nil, nil
	}
	if !same(have.Memory, want.Memory) {
		out.Memory = want.Memory
		if out.Memory == nil {
			out.Memory = &specs.LinuxMemory{Limit: new(int64(-1)), Swap: new(int64(-1)), Reservation: new(int64(-1))}
		}
	}
	if !same(have.CPU, want.CPU) {
		out.CPU = want.CPU
		if out.CPU == nil {
			out.CPU = &specs.LinuxCPU{}
		}
		if have.CPU != nil {
			cpu := *out.CPU
			if cpu.Quota == nil && have.CPU.Quota != nil {
				cpu.Quota = new(int64(-1))
			}
			if cpu.Shares == nil && have.CPU.Shares != nil {
				cpu.Shares = new(uint64(1024))
			}
			out.CPU = &cpu
		}
	}
	if !same(have.Pids, want.Pids) {
		out.Pids = want.Pids
		if out.Pids == nil {
			out.Pids = &specs.LinuxPids{Limit: new(int64(-1))}
		}
	}
	if !same(have.BlockIO, want.BlockIO) {
		out.BlockIO = want.BlockIO
		if out.BlockIO == nil {
			out.BlockIO = &specs.LinuxBlockIO{Weight: new(uint16(500))}
		}
	}
	return &out, nil
}

// same reports whether two kinds of limits are equal in what they point at.
func same[T any](a, b *T) bool { return reflect.DeepEqual(a, b) }
