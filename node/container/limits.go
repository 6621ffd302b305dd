package container

import (
	"errors"
	"fmt"
	"io/fs"
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
	"golang.org/x/sys/unix"

	"berth.internal/node/container/cgroup"
	"berth.internal/node/container/plan"
)

// hierarchies are the mounted ones, each with its top directory.
type hierarchies struct {
	v1      map[string]string // by controller; "" is version 2 beside the others
	unified string            // of version 2; "" if that is not mounted
	only2   bool              // version 2 has all controllers
	mounts  []plan.Cgroup
	memlock unix.Rlimit // of this process: see setDevices
}

const cgroupRoot = "/sys/fs/cgroup"

// findHierarchies finds what is mounted.
func findHierarchies() (hierarchies, error) {
	h := hierarchies{only2: cgroups.IsCgroup2UnifiedMode()}
	if h.only2 {
		h.unified = cgroupRoot
		h.mounts = []plan.Cgroup{{}}
		if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &h.memlock); err != nil {
			return h, fmt.Errorf("find cgroup hierarchies: %w", err)
		}
		return h, nil
	}
	m, err := cgroup1.NewManager(&cgroups.Cgroup{Path: "/", Resources: &cgroups.Resources{}}, nil)
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

// group returns the cgroup at a path below the top of each hierarchy, whether it
// is there or not.
func (h hierarchies) group(path string) cgroup.Group {
	var g cgroup.Group
	if h.unified != "" {
		g.Unified = filepath.Join(h.unified, path)
	}
	if h.only2 {
		g.Memory = g.Unified
		return g
	}
	for name, dir := range h.v1 {
		dir = filepath.Join(dir, path)
		switch name {
		case "memory":
			g.Memory = dir
		case "freezer":
			g.Freezer = dir
		}
		if name != "" && !slices.Contains(g.Dirs, dir) {
			g.Dirs = append(g.Dirs, dir)
		}
	}
	slices.Sort(g.Dirs)
	return g
}

// dir returns the directory of the cgroup at path that has the controller, "" if
// none is mounted that could have it.
func (h hierarchies) dir(path, controller string) string {
	if h.only2 {
		return filepath.Join(h.unified, path)
	}
	if top := h.v1[controller]; top != "" {
		return filepath.Join(top, path)
	}
	return ""
}

// make makes the cgroup at path with its limits.
func (h hierarchies) make(path string, list []setting, rules []*devices.Rule) error {
	// The library makes the directories, with what a cpuset takes from above; it puts
	// nobody into them yet.
	cfg := &cgroups.Cgroup{Path: "/" + path, Resources: &cgroups.Resources{}}
	var m cgroups.Manager
	var err error
	if h.only2 {
		m, err = cgroup2.NewManager(cfg, filepath.Join(h.unified, path))
	} else {
		paths := maps.Clone(h.v1)
		for name := range paths {
			paths[name] = filepath.Join(paths[name], path)
		}
		m, err = cgroup1.NewManager(cfg, paths)
	}
	if err == nil {
		err = m.Apply(-1)
	}
	if err == nil {
		err = h.setDevices(path, rules)
	}
	if err == nil {
		_, err = h.set(path, list)
	}
	if err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	return nil
}

// setDevices lets the cgroup use the devices that the rules allow, and no other.
func (h hierarchies) setDevices(path string, rules []*devices.Rule) error {
	set := cgroups.DevicesSetV1
	if h.only2 {
		set = cgroups.DevicesSetV2
		// Kernels before Linux 5.11 count programs as locked memory, so the library takes
		// that limit away from this process. Containers shall not inherit that.
		defer func() { _ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &h.memlock) }()
	}
	if err := set(h.dir(path, "devices"), &cgroups.Resources{Devices: rules}); err != nil {
		return fmt.Errorf("set device rules: %w", err)
	}
	return nil
}

// deviceRules translates the rules of a spec. Without any, those of Docker
// hold: a container that may make device nodes could read the node's disks.
func deviceRules(r *specs.LinuxResources) ([]*devices.Rule, error) {
	list := defaultDeviceRules()
	if r != nil && len(r.Devices) > 0 {
		list = r.Devices
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

// ids returns the names of the cgroups below the one at path.
func (h hierarchies) ids(path string) []string {
	var ids []string
	for _, top := range append(slices.Collect(maps.Values(h.v1)), h.unified) {
		entries, err := os.ReadDir(filepath.Join(top, path))
		if top == "" || err != nil {
			continue // no container was ever made, or this hierarchy is not there
		}
		for _, e := range entries {
			if e.IsDir() {
				ids = append(ids, e.Name())
			}
		}
	}
	return ids
}

// keepLimits gives a shim that was started while setDevices had changed them the
// limits that this process had before.
func (h hierarchies) keepLimits(pid int) {
	if h.only2 {
		_ = unix.Prlimit(pid, unix.RLIMIT_MEMLOCK, &h.memlock, nil) // it may be gone
	}
}

// removeEmpty removes the cgroup at path, if there is none below it.
func (h hierarchies) removeEmpty(path string) {
	for _, top := range append(slices.Collect(maps.Values(h.v1)), h.unified) {
		if top != "" {
			_ = os.Remove(filepath.Join(top, path)) // fails as long as there are containers
		}
	}
}

// cgroupFile is a symbolic link in the bundle of a container that has a cgroup of
// its caller's choice: its path.
const cgroupFile = "cgroup"

// cgroupPath returns where in the hierarchies the cgroup of a container is.
func (r *Runtime) cgroupPath(id string) string {
	if path, err := os.Readlink(r.path(id, cgroupFile)); err == nil {
		return path
	}
	return filepath.Join(r.cfg.CgroupParent, id)
}

// noteCgroup writes down where the cgroup of a container will be.
func (r *Runtime) noteCgroup(id, path string) error {
	if err := os.Mkdir(r.path(id), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	link := r.path(id, cgroupFile)
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(path, link)
}

// group returns the cgroup of a container, whether it is there or not.
func (r *Runtime) group(id string) cgroup.Group { return r.groups.group(r.cgroupPath(id)) }

// chooseCgroup checks a path that a caller chose, and returns it in its shortest
// form. Whatever is in that cgroup is killed with the container, so it must not
// be in use.
func (r *Runtime) chooseCgroup(path string) (string, error) {
	clean := strings.Trim(filepath.Clean("/"+path), "/")
	if clean == "" || len(clean) > 2048 || strings.ContainsAny(clean, "\x00\n") || slices.Contains(strings.Split(path, "/"), "..") {
		return "", fmt.Errorf("cgroup path %q is not one below the top", path)
	}
	if !filepath.IsAbs(path) {
		clean = filepath.Join(r.cfg.CgroupParent, clean)
	}
	pids, err := r.groups.group(clean).Pids()
	if err != nil {
		return "", fmt.Errorf("look into cgroup %s: %w", clean, err)
	}
	if len(pids) > 0 {
		return "", fmt.Errorf("cgroup %s is in use by process %d", clean, pids[0])
	}
	return clean, nil
}
