package plan

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// asked is a part of a spec that is refused if it is there.
type asked struct {
	name  string
	there bool
}

// check refuses what the plan would leave out.
func check(in Input) error {
	s := in.Spec
	switch {
	case s == nil || s.Process == nil || s.Linux == nil:
		return fmt.Errorf("a container needs a spec with process and linux")
	case in.Rootfs.Upper != "" && in.Rootfs.Work == "":
		return fmt.Errorf("rootfs has an upper directory and no work directory")
	case in.Host.OverlayByName && strings.ContainsAny(in.Rootfs.Upper+in.Rootfs.Work, `,:\\`):
		return unsupported("a comma, colon or backslash in the paths %s and %s on this kernel", in.Rootfs.Upper, in.Rootfs.Work)
	}
	for _, dir := range slices.Concat(in.Rootfs.Lowers, []string{in.Rootfs.Upper, in.Rootfs.Work}) {
		if dir != "" && !path.IsAbs(dir) {
			return fmt.Errorf("rootfs: %q is not an absolute path", dir)
		}
	}
	if err := checkCounts(s); err != nil {
		return err
	}
	l := s.Linux
	for _, a := range []asked{
		{"hooks", in.Detached == nil && s.Hooks != nil && hooks(s.Hooks) > 0},
		{"linux.intelRdt", l.IntelRdt != nil},
		{"linux.netDevices", len(l.NetDevices) > 0 && (in.Detached == nil || !in.Detached.Pause)}, // they are moved by who pauses it
		{"linux.rootfsPropagation " + l.RootfsPropagation, l.RootfsPropagation != "" && propagations[l.RootfsPropagation] == 0},
		{"windows", s.Windows != nil},
		{"solaris", s.Solaris != nil},
		{"freebsd", s.FreeBSD != nil},
		{"zos", s.ZOS != nil},
		{"vm", s.VM != nil},
	} {
		if a.there {
			return unsupported("%s", a.name)
		}
	}
	if err := checkMountLabel(in.Host, l.MountLabel); err != nil {
		return err
	}
	if err := needTerminal(s.Process, in.Terminal, s.Mounts); err != nil {
		return err
	}
	if err := checkProcess(s.Process); err != nil {
		return err
	}
	if err := checkNetDevices(l); err != nil {
		return err
	}
	return checkPaths(s)
}

// checkNetDevices refuses network devices that could not be moved, by their names.
func checkNetDevices(l *specs.Linux) error {
	own := slices.ContainsFunc(l.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace })
	if len(l.NetDevices) > 0 && !own {
		return fmt.Errorf("linux.netDevices need a network namespace of the container's own: remove them, or the use of the node's namespace")
	}
	from := map[string]string{} // which device has a name inside
	for _, name := range slices.Sorted(maps.Keys(l.NetDevices)) {
		as := cmp.Or(l.NetDevices[name].Name, name)
		template := strings.Contains(as, "%") // the kernel puts the first free number for "%d"
		switch {
		case !isDeviceName(name):
			return fmt.Errorf("linux.netDevices: %q is no name of a network device", name)
		case !isDeviceName(as), template && (strings.Count(as, "%") > 1 || !strings.Contains(as, "%d")):
			return fmt.Errorf("linux.netDevices: %q is no name for network device %s", as, name)
		case !template && from[as] != "":
			return fmt.Errorf("linux.netDevices: %s and %s would both be %s", from[as], name, as)
		}
		from[as] = name
	}
	return nil
}

// isDeviceName reports whether the kernel takes the name for a network device. To it the
// byte 0xa0 is a space, too.
func isDeviceName(name string) bool {
	return name != "" && len(name) < unix.IFNAMSIZ && name != "." && name != ".." && !strings.ContainsAny(name, "/: \t\n\v\f\r\x00") && !strings.Contains(name, "\xa0")
}

const (
	maxPath = 4095    // as the kernel has it
	maxWalk = 4 << 20 // bytes of all directories that may have to be made, each by its path
)

// checkPaths refuses paths that the kernel would read only in part, and so many,
// long and deep ones that the plan to make them would be without end.
func checkPaths(s *specs.Spec) error {
	list := []string{s.Process.Cwd}
	for _, m := range s.Mounts {
		list = append(list, "/"+m.Destination)
	}
	walk := 0
	for _, p := range list {
		walk += len(p) * strings.Count(path.Clean(p), "/") / 2
	}
	for _, m := range s.Mounts {
		list = append(list, m.Source)
	}
	for _, d := range s.Linux.Devices {
		list = append(list, d.Path)
	}
	list = slices.Concat(list, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths, []string{s.Hostname, s.Domainname})
	for _, p := range list {
		if len(p) > maxPath {
			return fmt.Errorf("%.60s…: %w", p, unix.ENAMETOOLONG)
		}
		if strings.ContainsRune(p, 0) {
			return fmt.Errorf("%.60q contains a zero byte", p)
		}
	}
	if walk > maxWalk {
		return fmt.Errorf("working directory and mounts: too many long paths (%d bytes)", walk)
	}
	return nil
}

// hooks counts hooks: an empty struct is none.
func hooks(h *specs.Hooks) int {
	return len(h.CreateRuntime) + len(h.CreateContainer) + len(h.StartContainer) + len(h.Poststart) + len(h.Poststop) +
		len(h.Prestart) //nolint:staticcheck // deprecated hooks are hooks that are refused, too
}

// checkProcess refuses what process would leave out, and strings that the kernel
// would read only in part.
func checkProcess(p *specs.Process) error {
	if p.CommandLine != "" {
		return unsupported("process.commandLine")
	}
	// For the kernel this number means "as before", which is root.
	for _, id := range append([]uint32{p.User.UID, p.User.GID}, p.User.AdditionalGids...) {
		if id == math.MaxUint32 {
			return fmt.Errorf("process.user: %d is nobody's number", id)
		}
	}
	if err := checkRlimits(p.Rlimits); err != nil {
		return err
	}
	if score := p.OOMScoreAdj; score != nil && (*score < -1000 || *score > 1000) {
		return fmt.Errorf("process.oomScoreAdj %d is not from -1000 to 1000", *score)
	}
	if len(p.User.AdditionalGids) > maxGroups {
		return unsupported("%d supplementary groups, more than %d", len(p.User.AdditionalGids), maxGroups)
	}
	if _, err := affinityOf(p, nil); err != nil {
		return err
	}
	if len(p.Args) == 0 {
		return fmt.Errorf("process.args is empty")
	}
	if !path.IsAbs(p.Cwd) {
		return fmt.Errorf("process.cwd %q is not an absolute path", p.Cwd)
	}
	for _, s := range slices.Concat(p.Args, p.Env, []string{p.Cwd}) {
		if strings.ContainsRune(s, 0) {
			return fmt.Errorf("process: %q contains a zero byte", s)
		}
	}
	return nil
}

// maxGroups is NGROUPS_MAX.
const maxGroups = 65536

// checkCounts refuses lists that are longer than anybody needs, each of whose entries
// costs system calls.
func checkCounts(s *specs.Spec) error {
	for _, list := range []struct {
		name     string
		have, at int
	}{
		{"mounts", len(s.Mounts), 500},
		{"linux.devices", len(s.Linux.Devices), 1000},
		{"linux.maskedPaths", len(s.Linux.MaskedPaths), 500},
		{"linux.readonlyPaths", len(s.Linux.ReadonlyPaths), 500},
		{"linux.sysctl", len(s.Linux.Sysctl), 500},
	} {
		if list.have > list.at {
			return unsupported("%d %s, more than %d", list.have, list.name, list.at)
		}
	}
	return nil
}

// checkRlimits refuses limits that are none.
func checkRlimits(list []specs.POSIXRlimit) error {
	seen := map[string]bool{}
	for _, l := range list {
		if _, ok := rlimits[l.Type]; !ok {
			return fmt.Errorf("unknown rlimit %q", l.Type)
		}
		if seen[l.Type] {
			return fmt.Errorf("rlimit %s is listed twice", l.Type)
		}
		if l.Soft > l.Hard {
			return fmt.Errorf("rlimit %s: the soft limit %d is above the hard limit %d", l.Type, l.Soft, l.Hard)
		}
		seen[l.Type] = true
	}
	return nil
}
