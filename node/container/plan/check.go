package plan

import (
	"fmt"
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
	case len(s.Mounts) > 500:
		return unsupported("%d mounts, more than 500", len(s.Mounts))
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
	l := s.Linux
	for _, a := range []asked{
		{"hooks", in.Detached == nil && s.Hooks != nil && hooks(s.Hooks) > 0},
		{"linux.intelRdt", l.IntelRdt != nil},
		{"linux.memoryPolicy", l.MemoryPolicy != nil},
		{"linux.netDevices", len(l.NetDevices) > 0},
		{"linux.personality", l.Personality != nil},
		{"linux.rootfsPropagation " + l.RootfsPropagation, !slices.Contains([]string{"", "private", "rprivate"}, l.RootfsPropagation)},
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
	return checkPaths(s)
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
		list = append(list, m.Destination)
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
	for _, a := range []asked{
		{"process.scheduler", p.Scheduler != nil},
		{"process.ioPriority", p.IOPriority != nil},
		{"process.execCPUAffinity", p.ExecCPUAffinity != nil},
	} {
		if a.there {
			return unsupported("%s", a.name)
		}
	}
	// For the kernel this number means "as before", which is root.
	for _, id := range append([]uint32{p.User.UID, p.User.GID}, p.User.AdditionalGids...) {
		if id == math.MaxUint32 {
			return fmt.Errorf("process.user: %d is nobody's number", id)
		}
	}
	for _, l := range p.Rlimits {
		if _, ok := rlimits[l.Type]; !ok {
			return fmt.Errorf("unknown rlimit %q", l.Type)
		}
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
