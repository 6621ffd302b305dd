package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/internal/durable"
)

// Update changes the limits that limits has; others stay. Zero is no limit to be
// set, -1 takes one of memory, swap, pids or cpu.quota away. Device rules are
// exchanged as a whole. After an error none is changed. Errors: ErrNotFound;
// ErrStatus if it is stopped; ErrUnsupported; ErrInvalid.
func (r *Runtime) Update(ctx context.Context, id string, limits *specs.LinuxResources) error {
	if err := r.update(ctx, id, limits); err != nil {
		return fmt.Errorf("update container %s: %w", id, err)
	}
	return nil
}

func (r *Runtime) update(ctx context.Context, id string, change *specs.LinuxResources) error {
	s, release, err := r.changeOf(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	if s.Status == StatusStopped {
		return fmt.Errorf("%w: it is stopped", ErrStatus)
	}
	rec, err := r.readRecord(id)
	if err != nil || change == nil {
		return err
	}
	whole, undo, err := r.groups.update(r.cgroupPath(id), rec.Spec.Linux.Resources, change)
	if err != nil {
		return err
	}
	rec.Spec.Linux.Resources = whole
	if err := r.writeRecord(rec); err != nil {
		return errors.Join(err, undo())
	}
	return nil
}

// update changes the limits before of the cgroup at path, and returns all that hold
// then, and what undoes it.
func (h hierarchies) update(path string, before, change *specs.LinuxResources) (whole *specs.LinuxResources, undo func() error, err error) {
	change = withSwap(before, change)
	whole = merge(before, change)
	list, err := settings(h.only2, change, whole)
	if err != nil {
		return nil, nil, err
	}
	if err := h.fits(path, change.Memory); err != nil {
		return nil, nil, err
	}
	was, err := h.set(path, list)
	if err != nil {
		return nil, nil, err
	}
	if err := h.exchangeRules(path, before, change); err != nil {
		return nil, nil, errors.Join(err, h.restore(path, was))
	}
	return whole, func() error {
		return errors.Join(h.restoreRules(path, before, change), h.restore(path, was))
	}, nil
}

// withSwap takes the limit of memory and swap away with that of memory: the kernel
// takes none below what memory alone may be.
func withSwap(before, change *specs.LinuxResources) *specs.LinuxResources {
	m := change.Memory
	if m == nil || value(m.Limit) != -1 || value(m.Swap) != 0 || before == nil || before.Memory == nil || value(before.Memory.Swap) <= 0 {
		return change
	}
	with, memory := *change, *m
	memory.Swap, with.Memory = new(int64(-1)), &memory
	return &with
}

// exchangeRules sets the device rules of change, if it has any; after an error those
// of before.
func (h hierarchies) exchangeRules(path string, before, change *specs.LinuxResources) error {
	if len(change.Devices) == 0 {
		return nil
	}
	rules, err := deviceRules(change)
	if err != nil {
		return err
	}
	if err := h.setDevices(path, rules); err != nil {
		return errors.Join(err, h.restoreRules(path, before, change))
	}
	return nil
}

// restoreRules sets the device rules of before, if change has others.
func (h hierarchies) restoreRules(path string, before, change *specs.LinuxResources) error {
	if len(change.Devices) == 0 {
		return nil
	}
	rules, err := deviceRules(before)
	if err != nil {
		return err
	}
	return h.setDevices(path, rules)
}

// writeRecord writes the record of a container again.
func (r *Runtime) writeRecord(rec *record) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return durable.WriteFile(r.path(rec.ID, bundleFile), data, 0o600)
}

// fits returns an error if a new limit of memory is below what the container uses
// and the kernel could not take away without killing: version 2 would. (Version 1
// refuses by itself.)
func (h hierarchies) fits(path string, m *specs.LinuxMemory) error {
	limit := uint64(0)
	if m != nil {
		limit = uint64(max(value(m.Limit), 0))
	}
	if limit == 0 || !h.only2 && !value(m.CheckBeforeUpdate) {
		return nil
	}
	dir := h.dir(path, "memory")
	used := readNumber(filepath.Join(dir, h.byVersion("memory.usage_in_bytes", "memory.current")))
	if value(m.CheckBeforeUpdate) {
		if limit <= used {
			return invalid{fmt.Errorf("linux.resources.memory.limit of %d bytes is not more than the container uses, %d", limit, used)}
		}
		return nil
	}
	stat, err := os.ReadFile(filepath.Join(dir, "memory.stat"))
	if err != nil {
		return fmt.Errorf("look how much memory is in use: %w", err)
	}
	d := parseKeyed(stat)
	if kept := used - min(used, d["active_file"]+d["inactive_file"]+d["slab_reclaimable"]); limit < kept {
		return invalid{fmt.Errorf("linux.resources.memory.limit of %d bytes is less than the container uses, %d without caches: the kernel would kill it", limit, kept)}
	}
	return nil
}

// byVersion returns the name of a file.
func (h hierarchies) byVersion(v1, v2 string) string {
	if h.only2 {
		return v2
	}
	return v1
}

// merge returns what holds once change is set over before, neither of which it
// alters.
func merge(before, change *specs.LinuxResources) *specs.LinuxResources {
	m := new(specs.LinuxResources)
	if before != nil {
		*m = *before
	}
	if len(change.Devices) > 0 {
		m.Devices = change.Devices
	}
	m.Memory = mergeMemory(m.Memory, change.Memory)
	m.CPU = overlay(m.CPU, change.CPU)
	m.Pids = overlay(m.Pids, change.Pids)
	m.BlockIO = mergeBlockIO(m.BlockIO, change.BlockIO)
	m.HugepageLimits = mergeBy(m.HugepageLimits, change.HugepageLimits, func(l specs.LinuxHugepageLimit) string { return l.Pagesize })
	if n := change.Network; n != nil {
		merged := overlay(m.Network, n)
		if m.Network != nil {
			merged.Priorities = mergeBy(m.Network.Priorities, n.Priorities, func(p specs.LinuxInterfacePriority) string { return p.Name })
		}
		m.Network = merged
	}
	m.Rdma = mergeMap(m.Rdma, change.Rdma)
	m.Unified = mergeMap(m.Unified, change.Unified)
	return m
}

// overlay returns a copy of before with the fields that change has set.
func overlay[T any](before, change *T) *T {
	if change == nil {
		return before
	}
	m := new(T)
	if before != nil {
		*m = *before
	}
	to, from := reflect.ValueOf(m).Elem(), reflect.ValueOf(change).Elem()
	for i := range to.NumField() {
		if set := from.Field(i); !set.IsZero() {
			to.Field(i).Set(set)
		}
	}
	return m
}

func mergeMemory(before, change *specs.LinuxMemory) *specs.LinuxMemory {
	m := overlay(before, change)
	if change == nil {
		return m
	}
	m.CheckBeforeUpdate = nil
	if before != nil { // zero is no limit
		for _, f := range []struct{ of, was **int64 }{{&m.Limit, &before.Limit}, {&m.Swap, &before.Swap}, {&m.Reservation, &before.Reservation}} {
			if value(*f.of) == 0 {
				*f.of = *f.was
			}
		}
	}
	if value(change.Limit) == -1 && value(change.Swap) == 0 && value(m.Swap) > 0 {
		m.Swap = new(int64(-1)) // memory without limit and swap with one is no sum
	}
	return m
}

func mergeBlockIO(before, change *specs.LinuxBlockIO) *specs.LinuxBlockIO {
	if before == nil || change == nil {
		return overlay(before, change)
	}
	m := *before
	if change.Weight != nil {
		m.Weight = change.Weight
	}
	throttle := func(d specs.LinuxThrottleDevice) [2]int64 { return [2]int64{d.Major, d.Minor} }
	m.WeightDevice = mergeBy(m.WeightDevice, change.WeightDevice, func(d specs.LinuxWeightDevice) [2]int64 { return [2]int64{d.Major, d.Minor} })
	m.ThrottleReadBpsDevice = mergeBy(m.ThrottleReadBpsDevice, change.ThrottleReadBpsDevice, throttle)
	m.ThrottleWriteBpsDevice = mergeBy(m.ThrottleWriteBpsDevice, change.ThrottleWriteBpsDevice, throttle)
	m.ThrottleReadIOPSDevice = mergeBy(m.ThrottleReadIOPSDevice, change.ThrottleReadIOPSDevice, throttle)
	m.ThrottleWriteIOPSDevice = mergeBy(m.ThrottleWriteIOPSDevice, change.ThrottleWriteIOPSDevice, throttle)
	return &m
}

// mergeBy returns before with the elements of change in place of those with the
// same key.
func mergeBy[T any, K comparable](before, change []T, key func(T) K) []T {
	m := slices.Clone(before)
	for _, c := range change {
		if i := slices.IndexFunc(m, func(e T) bool { return key(e) == key(c) }); i >= 0 {
			m[i] = c
		} else {
			m = append(m, c)
		}
	}
	return m
}

func mergeMap[V any](before, change map[string]V) map[string]V {
	if len(change) == 0 {
		return before
	}
	m := maps.Clone(before)
	if m == nil {
		m = map[string]V{}
	}
	maps.Copy(m, change)
	return m
}
