package host

import (
	"errors"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/internal/lazyregexp"
)

// splitComma yields the parts of a list.
func splitComma(list string) iter.Seq[string] { return strings.SplitSeq(list, ",") }

// cutNumber reads "N" or "N-M"; what is no number is -1.
func cutNumber(s string) (first, last int, ranged bool) {
	a, b, ranged := strings.Cut(s, "-")
	number := func(s string) int {
		n, err := strconv.ParseUint(s, 10, 31)
		if err != nil {
			return -1
		}
		return int(n)
	}
	first = number(a)
	if ranged {
		last = number(b)
		if last < 0 {
			first = -1
		}
	}
	return first, last, ranged
}

// addDevices gives the container the node's devices that it asks for: all of them
// if it is privileged.
func addDevices(s *specs.Spec, spec Spec) error {
	devices := spec.Devices
	if spec.Security.Privileged {
		devices = append([]Device{{Source: "/dev", Target: "/dev", Access: allAccess}}, devices...)
		s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: allAccess}}
	}
	for _, d := range devices {
		if err := addDevice(s, d, spec.Security.Privileged); err != nil {
			return err
		}
	}
	for _, rule := range spec.DeviceRules {
		r, err := parseDeviceRule(rule)
		if err != nil {
			return err
		}
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, r)
	}
	return nil
}

const allAccess = "rwm"

// addDevice gives the container a device, or all that are below a directory.
// There, what is not to be read now is left out.
func addDevice(s *specs.Spec, d Device, allowed bool) error {
	var st unix.Stat_t
	if err := unix.Stat(d.Source, &st); err != nil {
		return invalid("error gathering device information while adding custom device %q: %v", d.Source, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		dev, ok := deviceOf(d.Target, st)
		if !ok {
			return invalid("error gathering device information while adding custom device %q: not a device node", d.Source)
		}
		giveDevice(s, dev, d.Access, allowed)
		return nil
	}
	return filepath.WalkDir(d.Source, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
			return nil // gone meanwhile
		case err != nil:
			return err
		case entry.IsDir() && path != d.Source && slices.Contains(notDevices(), path):
			return fs.SkipDir
		case entry.Type()&fs.ModeDevice == 0:
			return nil
		}
		if unix.Lstat(path, &st) != nil {
			return nil // gone meanwhile
		}
		if dev, ok := deviceOf(d.Target+strings.TrimPrefix(path, d.Source), st); ok {
			giveDevice(s, dev, d.Access, allowed)
		}
		return nil
	})
}

// notDevices are directories of /dev that hold something of the node's that a
// container has of its own, and /dev/console, which is its terminal.
func notDevices() []string {
	return []string{"/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd", "/dev/hugepages", "/dev/.lxc", "/dev/.lxd-mounts", "/dev/.udev"}
}

// deviceOf describes a device node.
func deviceOf(target string, st unix.Stat_t) (specs.LinuxDevice, bool) {
	kinds := map[uint32]string{unix.S_IFCHR: "c", unix.S_IFBLK: "b"}
	kind, ok := kinds[st.Mode&unix.S_IFMT]
	mode := fs.FileMode(st.Mode & 0o777)
	return specs.LinuxDevice{
		Path: target, Type: kind, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)), FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
	}, ok
}

// giveDevice adds the node and, unless everything is allowed, the rule for it.
func giveDevice(s *specs.Spec, dev specs.LinuxDevice, access string, allowed bool) {
	if dev.Path == "/dev/console" || dev.Path == "/dev/ptmx" {
		return // the container's own
	}
	// Its owner on the node means somebody else in a user namespace.
	if len(s.Linux.UIDMappings) > 0 {
		dev.UID, dev.GID = nil, nil
	}
	s.Linux.Devices = append(s.Linux.Devices, dev)
	if !allowed {
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: dev.Type, Major: &dev.Major, Minor: &dev.Minor, Access: access,
		})
	}
}

var deviceRuleGrammar = lazyregexp.New(`^([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})$`)

// parseDeviceRule reads "c 1:3 rwm"; a, and * for a number, mean any.
func parseDeviceRule(rule string) (specs.LinuxDeviceCgroup, error) {
	m := deviceRuleGrammar().FindStringSubmatch(rule)
	if m == nil {
		return specs.LinuxDeviceCgroup{}, invalid("invalid device cgroup rule format: '%s'", rule)
	}
	r := specs.LinuxDeviceCgroup{Allow: true, Type: m[1], Access: m[4]}
	for i, to := range []**int64{&r.Major, &r.Minor} {
		if m[2+i] == "*" {
			continue
		}
		n, err := strconv.ParseInt(m[2+i], 10, 32)
		if err != nil {
			return r, invalid("invalid device cgroup rule format: '%s': %s is too large", rule, m[2+i])
		}
		*to = &n
	}
	return r, nil
}

// checkDevices reports what no device can be given by.
func checkDevices(devices []Device, rules []string) error {
	for _, d := range devices {
		_, err := os.Stat(d.Source)
		switch {
		case !filepath.IsAbs(d.Source):
			return invalid("invalid device %q: its path on the node must be absolute", d.Source)
		case err != nil:
			return invalid("error gathering device information while adding custom device %q: %v", d.Source, err)
		case !strings.HasPrefix(filepath.Clean(d.Target), "/dev/") && filepath.Clean(d.Target) != "/dev":
			return invalid("invalid device target %q: devices are below /dev", d.Target)
		case d.Access == "" || strings.Trim(d.Access, allAccess) != "" || len(d.Access) > len(allAccess):
			return invalid("invalid device mode %q of %s: it is of r, w and m", d.Access, d.Source)
		}
	}
	for _, rule := range rules {
		if _, err := parseDeviceRule(rule); err != nil {
			return err
		}
	}
	return nil
}
