package plan

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
)

// Engine is the plan of what runc or crun make a container from: the mounts that
// need the node's privileges, and the config that names them. What those tools can
// do they do themselves.
type Engine struct {
	Flags   uint64 // CLONE_NEW* of the namespaces that the container will have
	UIDMap  string // of the user namespace in which the mounts are mapped; "": none
	GIDMap  string
	Prepare *call.Program
	Send    []call.Reg    // of Prepare: the root file system, and then the binds: EngineRoot, EngineBind
	Child   *call.Program // of a process whose user namespace that is
	Config  *specs.Spec
}

// EngineRoot is the name of the root file system below the directory of all parts.
const EngineRoot = "rootfs"

// EngineBind is the name of a bind, counted from 0.
func EngineBind(i int) string { return "mount" + strconv.Itoa(i) }

// engineVersion is the version of the specification that the config says it is in:
// crun before 1.9 refuses later ones, and nothing in it is newer.
const engineVersion = "1.0.2"

// ForEngine makes the plan. base is the directory in which the parts will be for
// those tools. Errors: ErrUnsupported.
func ForEngine(in Input, base string) (*Engine, error) {
	if err := check(in); err != nil {
		return nil, err
	}
	if err := checkEngine(in); err != nil {
		return nil, err
	}
	ns, err := namespacesOf(in.Spec)
	if err != nil {
		return nil, err
	}
	switch {
	case len(ns.join) > 0:
		return nil, unsupported("namespaces of another container with runc or crun")
	case ns.flags&unix.CLONE_NEWTIME != 0:
		return nil, unsupported("a time namespace with runc or crun")
	case ns.user && in.Spec.Domainname != "": // runc before 1.2 does not know it, and the sysctl is not the container's to write
		return nil, unsupported("a domain name with runc or crun in a user namespace")
	}
	b := &builder{Input: in, ns: ns, spec: in.Spec, parent: call.New(parentRegs), child: call.New(childRegs)}
	spec, linux := *in.Spec, *in.Spec.Linux
	spec.Linux = &linux
	spec.Version = engineVersion
	spec.Root = &specs.Root{Path: path.Join(base, EngineRoot), Readonly: in.Spec.Root != nil && in.Spec.Root.Readonly}
	spec.Mounts = slices.Clone(in.Spec.Mounts)
	if linux.Resources != nil {
		// The cgroup is there already, with limits that may have been changed since.
		linux.Resources = &specs.LinuxResources{Devices: linux.Resources.Devices}
	}
	if err := b.engineParts(spec.Mounts, base); err != nil {
		return nil, err
	}
	wait(b.child, Sync)
	if err := errors.Join(b.parent.Check(), b.child.Check()); err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	e := &Engine{Flags: ns.flags, Prepare: b.parent, Send: b.send, Child: b.child, Config: &spec}
	if ns.user {
		e.UIDMap, e.GIDMap = idMap(linux.UIDMappings), idMap(linux.GIDMappings)
	}
	if spec.Domainname != "" {
		linux.Sysctl = withSysctl(linux.Sysctl, "kernel.domainname", spec.Domainname)
		spec.Domainname = ""
	}
	return e, nil
}

// checkEngine refuses what is not made this way, or what the oldest versions of the
// tools would leave out.
func checkEngine(in Input) error {
	if err := CheckEngineProcess(in.Spec.Process); err != nil {
		return err
	}
	l := in.Spec.Linux
	for _, a := range []asked{
		{"linux.personality", l.Personality != nil},
		{"linux.memoryPolicy", l.MemoryPolicy != nil},
		{"linux.rootfsPropagation " + l.RootfsPropagation, l.RootfsPropagation != "" && propagations[l.RootfsPropagation] != unix.MS_PRIVATE},
	} {
		if a.there {
			return unsupported("%s with runc or crun", a.name)
		}
	}
	for _, m := range in.Spec.Mounts {
		if !isBind(m.Type, m.Options) {
			continue
		}
		for _, o := range m.Options { // the tools are in a mount namespace of their own
			if p := propagations[o]; p != 0 && p != unix.MS_PRIVATE {
				return unsupported("mount option %q of %s with runc or crun", o, m.Destination)
			}
		}
	}
	return nil
}

// CheckEngineProcess refuses what runc or crun would leave out of a process. Errors:
// ErrUnsupported.
func CheckEngineProcess(p *specs.Process) error {
	for _, a := range []asked{
		{"process.scheduler", p.Scheduler != nil},
		{"process.ioPriority", p.IOPriority != nil},
		{"process.execCPUAffinity", p.ExecCPUAffinity != nil},
	} {
		if a.there {
			return unsupported("%s with runc or crun", a.name)
		}
	}
	return nil
}

func withSysctl(all map[string]string, name, value string) map[string]string {
	out := map[string]string{name: value}
	maps.Copy(out, all)
	return out
}

// engineParts makes the root file system and the binds, and changes the sources of
// the latter to where they will be.
func (b *builder) engineParts(mounts []specs.Mount, base string) error {
	b.enterIDs()
	if err := b.rootfs(); err != nil {
		return err
	}
	for i, m := range mounts {
		if !isBind(m.Type, m.Options) {
			continue
		}
		if len(m.UIDMappings)+len(m.GIDMappings) > 0 {
			return unsupported("mount %s: id mappings of its own; use the option idmap for the container's", m.Destination)
		}
		if _, err := b.bind(m); err != nil {
			return fmt.Errorf("mount %s: %w", m.Destination, err)
		}
		mounts[i].Source = path.Join(base, EngineBind(len(b.send)-2))
		mounts[i].Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "idmap" || o == "ridmap" })
	}
	b.leaveIDs()
	return nil
}
