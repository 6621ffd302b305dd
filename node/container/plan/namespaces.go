package plan

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
)

// namespaces are those of a container. What is in neither set is the node's.
type namespaces struct {
	flags   uint64 // CLONE_NEW* of the new ones
	joined  uint64 // CLONE_NEW* of those with a path, which belong to another container
	user    bool   // it has a user namespace, its own or another container's
	netPath string
	join    []Join
	offsets string // for /proc/<child>/timens_offsets; "": none
}

// Join is a namespace of another container to enter. The network's is not among
// them: see Create.NetNS.
type Join struct {
	Type int    `json:"type"` // CLONE_NEW*
	Path string `json:"path"`
}

var cloneFlags = map[specs.LinuxNamespaceType]uint64{
	specs.PIDNamespace:     unix.CLONE_NEWPID,
	specs.NetworkNamespace: unix.CLONE_NEWNET,
	specs.MountNamespace:   unix.CLONE_NEWNS,
	specs.IPCNamespace:     unix.CLONE_NEWIPC,
	specs.UTSNamespace:     unix.CLONE_NEWUTS,
	specs.UserNamespace:    unix.CLONE_NEWUSER,
	specs.CgroupNamespace:  unix.CLONE_NEWCGROUP,
	specs.TimeNamespace:    unix.CLONE_NEWTIME,
}

// namespacesOf reads Linux.Namespaces.
func namespacesOf(s *specs.Spec) (namespaces, error) {
	var ns namespaces
	for _, n := range s.Linux.Namespaces {
		flag, ok := cloneFlags[n.Type]
		switch {
		case !ok:
			return ns, unsupported("%s namespace", n.Type)
		case (ns.flags|ns.joined)&flag != 0:
			return ns, fmt.Errorf("namespace %s is listed twice", n.Type)
		case n.Path == "":
			ns.flags |= flag
			continue
		case !path.IsAbs(n.Path):
			return ns, fmt.Errorf("%s namespace: %q is not an absolute path", n.Type, n.Path)
		case n.Type == specs.NetworkNamespace:
			ns.netPath = n.Path
		default:
			ns.join = append(ns.join, Join{Type: int(flag), Path: n.Path})
		}
		ns.joined |= flag
	}
	ns.user = ns.has(unix.CLONE_NEWUSER)
	if ns.flags&unix.CLONE_NEWNS == 0 {
		return ns, unsupported("a container in the mount namespace of the node or of another container: it would have no root file system of its own")
	}
	if err := ns.checkHostname(s); err != nil {
		return ns, err
	}
	if err := ns.readOffsets(s.Linux.TimeOffsets); err != nil {
		return ns, err
	}
	return ns, ns.checkUsers(s)
}

// has reports whether the container's namespace of this type is not the node's.
func (ns namespaces) has(flag uint64) bool { return (ns.flags|ns.joined)&flag != 0 }

// foreign reports whether a namespace belongs to another user namespace than the
// container's, which then may change nothing in it.
func (ns namespaces) foreign(flag uint64) bool {
	if !ns.user || ns.flags&flag != 0 {
		return false
	}
	return ns.flags&unix.CLONE_NEWUSER != 0 || ns.joined&flag == 0
}

// checkHostname refuses names that would be the node's, or that the container may
// not set.
func (ns namespaces) checkHostname(s *specs.Spec) error {
	switch {
	case s.Hostname == "" && s.Domainname == "":
		return nil
	case !ns.has(unix.CLONE_NEWUTS):
		return fmt.Errorf("a hostname needs a UTS namespace: remove the hostname, or the use of the node's namespace")
	case ns.foreign(unix.CLONE_NEWUTS):
		return fmt.Errorf("a hostname in another container's UTS namespace needs its user namespace, too: remove the hostname, or use that")
	}
	return nil
}

// checkUsers refuses mappings that contradict the user namespace, and namespaces
// that do not go with it.
func (ns namespaces) checkUsers(s *specs.Spec) error {
	uids, gids := s.Linux.UIDMappings, s.Linux.GIDMappings
	switch {
	case !ns.user && len(uids)+len(gids) > 0:
		return fmt.Errorf("uid and gid mappings need a user namespace")
	case !ns.user:
		return nil
	case len(uids) > maxMappings || len(gids) > maxMappings:
		return unsupported("%d uid and %d gid mappings, more than %d", len(uids), len(gids), maxMappings)
	case ns.foreign(unix.CLONE_NEWPID) && ns.joined&unix.CLONE_NEWPID != 0:
		return unsupported("another container's pid namespace without its user namespace: no /proc could be mounted; use its user namespace, or the node's")
	case ns.foreign(unix.CLONE_NEWTIME) && ns.joined&unix.CLONE_NEWTIME != 0:
		return unsupported("another container's time namespace without its user namespace")
	case len(uids) == 0 || len(gids) == 0 || hostID(uids, 0) < 0 || hostID(gids, 0) < 0:
		return fmt.Errorf("uid and gid mappings of a user namespace must contain 0")
	}
	return inMappings(s, s.Process.User)
}

// maxMappings is how many lines the kernel takes (user_namespaces(7)).
const maxMappings = 340

// inMappings refuses a user that the container's user namespace does not have.
func inMappings(s *specs.Spec, u specs.User) error {
	uids, gids := s.Linux.UIDMappings, s.Linux.GIDMappings
	if hostID(uids, u.UID) < 0 || hostID(gids, u.GID) < 0 {
		return fmt.Errorf("process.user %d:%d is outside of the user namespace's mappings", u.UID, u.GID)
	}
	for _, g := range u.AdditionalGids {
		if hostID(gids, g) < 0 {
			return fmt.Errorf("group %d of process.user.additionalGids is outside of the user namespace's mappings", g)
		}
	}
	return nil
}

// readOffsets reads Linux.TimeOffsets.
func (ns *namespaces) readOffsets(offsets map[string]specs.LinuxTimeOffset) error {
	if len(offsets) == 0 {
		return nil
	}
	if ns.flags&unix.CLONE_NEWTIME == 0 {
		return fmt.Errorf("linux.timeOffsets need a time namespace of the container's own")
	}
	var b strings.Builder
	for _, clock := range slices.Sorted(maps.Keys(offsets)) {
		o := offsets[clock]
		if clock != "monotonic" && clock != "boottime" {
			return unsupported("linux.timeOffsets of clock %q, which is neither monotonic nor boottime", clock)
		}
		fmt.Fprintf(&b, "%s %d %d\n", clock, o.Secs, o.Nanosecs)
	}
	ns.offsets = b.String()
	return nil
}

// inside returns the namespaces of the container's first process that a further one
// enters itself.
func (ns namespaces) inside() int {
	return int((ns.flags | ns.joined&^unix.CLONE_NEWNET) &^ unix.CLONE_NEWPID)
}

// enter returns the namespaces that whoever forks a further process enters for the
// moment of the fork.
func (ns namespaces) enter() (kinds []int) {
	if ns.has(unix.CLONE_NEWPID) {
		kinds = append(kinds, unix.CLONE_NEWPID) // concerns children only
	}
	if ns.netPath != "" {
		kinds = append(kinds, unix.CLONE_NEWNET) // belongs to the node, not to the container's user namespace
	}
	return kinds
}

// shares says of a further process that it may share the memory of whoever forks it: nobody
// who does can enter a namespace of time.
func (ns namespaces) shares() bool { return !ns.has(unix.CLONE_NEWTIME) }

// hostID returns the number on the node of a number in the container, which is
// the number itself without mappings; -1 if it has none.
func hostID(maps []specs.LinuxIDMapping, id uint32) int {
	if len(maps) == 0 {
		return int(id)
	}
	for _, m := range maps {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return int(m.HostID) + int(id-m.ContainerID)
		}
	}
	return -1
}

// idMap returns mappings in the form of /proc/<pid>/uid_map.
func idMap(maps []specs.LinuxIDMapping) string {
	var b strings.Builder
	for _, m := range maps {
		fmt.Fprintf(&b, "%d %d %d\n", m.ContainerID, m.HostID, m.Size)
	}
	return b.String()
}

// sysctl is one that belongs to a namespace, by its file; a "*" at the end stands
// for anything.
type sysctl struct {
	file  string
	flag  uint64 // the namespace's
	since [2]int // version of the kernel from which on it does
}

// sysctls are those that a container may set.
func sysctls() []sysctl {
	list := []sysctl{
		{file: "fs/mqueue/*", flag: unix.CLONE_NEWIPC},
		{file: "net/*", flag: unix.CLONE_NEWNET},
		{file: "kernel/domainname", flag: unix.CLONE_NEWUTS},
		{file: "user/max_*", flag: unix.CLONE_NEWUSER},
		{file: "vm/memfd_noexec", flag: unix.CLONE_NEWPID, since: [2]int{6, 3}},
		{file: "kernel/pid_max", flag: unix.CLONE_NEWPID, since: [2]int{6, 14}},
	}
	for _, name := range []string{
		"auto_msgmni", "msgmax", "msgmnb", "msgmni", "msg_next_id", "sem", "sem_next_id", "shmall", "shmmax", "shmmni", "shm_next_id", "shm_rmid_forced",
	} {
		list = append(list, sysctl{file: "kernel/" + name, flag: unix.CLONE_NEWIPC})
	}
	return list
}

// owns returns an error if setting the sysctl would change the node.
func (ns namespaces) owns(name string, kernel [2]int) error {
	file := sysctlPath(name)
	for _, s := range sysctls() {
		prefix, wild := strings.CutSuffix(s.file, "*")
		if file != s.file && (!wild || !strings.HasPrefix(file, prefix) || strings.Contains(file, "..")) {
			continue
		}
		switch {
		case slices.Compare(kernel[:], s.since[:]) < 0:
			return fmt.Errorf("sysctl %s is in a namespace from Linux %d.%d on only, here it would change the node", name, s.since[0], s.since[1])
		case !ns.has(s.flag):
			return fmt.Errorf("sysctl %s needs a namespace of the container's own, it would change the node", name)
		}
		return nil
	}
	if file == "kernel/hostname" {
		return fmt.Errorf("sysctl %s: set hostname instead", name)
	}
	return fmt.Errorf("sysctl %s is not in a namespace, it would change the node", name)
}

// enterIDs makes the shim act as the container's root towards file systems, so
// that what it creates belongs there and overlay may write through the mapping.
// Its capabilities stay: they are needed to make mounts at all.
func (b *builder) enterIDs() {
	if !b.ns.user {
		return
	}
	p := b.parent
	p.Call(unix.SYS_PRCTL, call.Int(unix.PR_SET_SECUREBITS), call.Int(secbitNoSetuidFixup)).As("keep capabilities of file systems")
	p.Call(unix.SYS_SETFSGID, call.Int(hostID(b.spec.Linux.GIDMappings, 0)))
	p.Call(unix.SYS_SETFSUID, call.Int(hostID(b.spec.Linux.UIDMappings, 0)))
}

// secbitNoSetuidFixup is SECBIT_NO_SETUID_FIXUP of linux/securebits.h.
const secbitNoSetuidFixup = 1 << 2

func (b *builder) leaveIDs() {
	if !b.ns.user {
		return
	}
	p := b.parent
	p.Call(unix.SYS_SETFSUID, call.Int(0))
	p.Call(unix.SYS_SETFSGID, call.Int(0))
	p.Call(unix.SYS_PRCTL, call.Int(unix.PR_SET_SECUREBITS), call.Int(0)).As("let go of file systems' capabilities")
}

// network brings the loopback interface of a new network namespace up.
func (b *builder) network() error {
	if b.ns.flags&unix.CLONE_NEWNET == 0 {
		return nil
	}
	c := b.child
	s := c.Reg()
	ifreq := make([]byte, 40)
	copy(ifreq, "lo")
	ifreq[16] = unix.IFF_UP
	c.Call(unix.SYS_SOCKET, call.Int(unix.AF_INET), call.Int(unix.SOCK_DGRAM|unix.SOCK_CLOEXEC), call.Int(0)).To(s).As("open a socket to set the loopback interface up")
	c.Call(unix.SYS_IOCTL, call.Get(s), call.Int(unix.SIOCSIFFLAGS), call.Data(ifreq)).As("set the loopback interface up")
	c.Call(unix.SYS_CLOSE, call.Get(s))
	return nil
}
