package container

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // device rules, which the library leaves out by default
	devices "github.com/opencontainers/cgroups/devices/config"
	cgroup1 "github.com/opencontainers/cgroups/fs"
	cgroup2 "github.com/opencontainers/cgroups/fs2"
	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container/cgroup"
	"berth.internal/node/container/plan"
)

// hierarchies are the mounted ones, and the cgroup in each that the containers
// are below.
type hierarchies struct {
	parent  string
	v1      map[string]string // directory of the parent by controller; "" is version 2 beside the others
	unified string            // directory of the parent in version 2; "" if that is not mounted
	only2   bool              // version 2 has all controllers
	mounts  []plan.Cgroup
}

const cgroupRoot = "/sys/fs/cgroup"

// findHierarchies finds what is mounted.
func findHierarchies(parent string) (hierarchies, error) {
	h := hierarchies{parent: parent, only2: cgroups.IsCgroup2UnifiedMode()}
	if h.only2 {
		h.unified = filepath.Join(cgroupRoot, parent)
		h.mounts = []plan.Cgroup{{}}
		return h, nil
	}
	m, err := cgroup1.NewManager(&cgroups.Cgroup{Path: "/" + parent, Resources: &cgroups.Resources{}}, nil)
	if err != nil {
		return h, fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	h.v1 = m.GetPaths()
	h.unified = h.v1[""]
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return h, fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	for _, m := range mounts {
		if filepath.Dir(m.Mountpoint) != cgroupRoot || m.Root != "/" {
			continue
		}
		g := plan.Cgroup{Name: filepath.Base(m.Mountpoint)}
		if m.FSType == "cgroup" {
			g.Controllers = controllers(m.VFSOptions)
		}
		h.mounts = append(h.mounts, g)
	}
	return h, nil
}

// controllers returns the options that mount a version 1 hierarchy again.
func controllers(options string) []string {
	var list []string
	for opt := range strings.SplitSeq(options, ",") {
		switch {
		case strings.HasPrefix(opt, "name="):
			list = append(list, "none", opt)
		case !slices.Contains([]string{"rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods"}, opt) &&
			!strings.HasPrefix(opt, "release_agent="):
			list = append(list, opt)
		}
	}
	return list
}

// group returns the cgroup of a container, whether it is there or not.
func (h hierarchies) group(id string) cgroup.Group {
	var g cgroup.Group
	if h.unified != "" {
		g.Unified = filepath.Join(h.unified, id)
	}
	if h.only2 {
		g.Memory = g.Unified
		return g
	}
	for name, dir := range h.v1 {
		dir = filepath.Join(dir, id)
		if name == "memory" {
			g.Memory = dir
		}
		if name != "" && !slices.Contains(g.Dirs, dir) {
			g.Dirs = append(g.Dirs, dir)
		}
	}
	slices.Sort(g.Dirs)
	return g
}

// make makes the cgroup of a container with its limits.
func (h hierarchies) make(id string, r *cgroups.Resources) error {
	cfg := &cgroups.Cgroup{Path: "/" + h.parent + "/" + id, Resources: r}
	var m cgroups.Manager
	var err error
	if h.only2 {
		m, err = cgroup2.NewManager(cfg, filepath.Join(h.unified, id))
	} else {
		paths := maps.Clone(h.v1)
		for name := range paths {
			paths[name] = filepath.Join(paths[name], id)
		}
		m, err = cgroup1.NewManager(cfg, paths)
	}
	if err == nil {
		err = m.Apply(-1) // nobody yet
	}
	if err == nil {
		err = m.Set(r)
	}
	if err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	return nil
}

// resources translates the limits of a spec. Errors: ErrUnsupported.
func resources(r *specs.LinuxResources) (*cgroups.Resources, error) {
	if r == nil {
		r = &specs.LinuxResources{}
	}
	out := &cgroups.Resources{}
	for name, there := range map[string]bool{
		"blockIO": r.BlockIO != nil, "hugepageLimits": len(r.HugepageLimits) > 0, "network": r.Network != nil,
		"rdma": len(r.Rdma) > 0, "unified": len(r.Unified) > 0,
	} {
		if there {
			return nil, fmt.Errorf("linux.resources.%s: %w", name, ErrUnsupported)
		}
	}
	if m := r.Memory; m != nil {
		if m.Kernel != nil || //nolint:staticcheck // deprecated limits are limits that are refused, too
			m.KernelTCP != nil || m.UseHierarchy != nil || m.CheckBeforeUpdate != nil || m.Swappiness != nil || m.DisableOOMKiller != nil && *m.DisableOOMKiller {
			return nil, fmt.Errorf("linux.resources.memory other than limit, reservation and swap: %w", ErrUnsupported)
		}
		out.Memory, out.MemoryReservation, out.MemorySwap = value(m.Limit), value(m.Reservation), value(m.Swap)
	}
	if c := r.CPU; c != nil {
		if c.Burst != nil || c.RealtimePeriod != nil || c.RealtimeRuntime != nil || c.Idle != nil {
			return nil, fmt.Errorf("linux.resources.cpu burst, idle and realtime: %w", ErrUnsupported)
		}
		out.CpuShares, out.CpuQuota, out.CpuPeriod = value(c.Shares), value(c.Quota), value(c.Period)
		out.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(out.CpuShares)
		out.CpusetCpus, out.CpusetMems = c.Cpus, c.Mems
	}
	if r.Pids != nil && r.Pids.Limit != nil {
		out.PidsLimit = r.Pids.Limit
	}
	rules, err := deviceRules(r.Devices)
	out.Devices = rules
	return out, err
}

// value returns what p points at, or zero.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// deviceRules translates the rules of a spec. Without any, those of Docker
// hold: a container that may make device nodes could read the node's disks.
func deviceRules(list []specs.LinuxDeviceCgroup) ([]*devices.Rule, error) {
	if len(list) == 0 {
		list = defaultDeviceRules()
	}
	var rules []*devices.Rule
	for _, d := range list {
		rule := &devices.Rule{
			Type: devices.WildcardDevice, Major: devices.Wildcard, Minor: devices.Wildcard,
			Permissions: devices.Permissions(d.Access), Allow: d.Allow,
		}
		switch d.Type {
		case "c":
			rule.Type = devices.CharDevice
		case "b":
			rule.Type = devices.BlockDevice
		case "", "a":
		default:
			return nil, fmt.Errorf("device rule for type %q, not a, b or c", d.Type)
		}
		if d.Major != nil {
			rule.Major = *d.Major
		}
		if d.Minor != nil {
			rule.Minor = *d.Minor
		}
		if !rule.Permissions.IsValid() {
			return nil, errors.New("device rule with access " + d.Access + ", not of r, w and m")
		}
		rules = append(rules, rule)
	}
	return rules, nil
}

// removeParent removes the cgroups that the containers were below, if none is
// left.
func (h hierarchies) removeParent() {
	for _, dir := range append(slices.Collect(maps.Values(h.v1)), h.unified) {
		_ = os.Remove(dir) // fails as long as there are containers
	}
}
