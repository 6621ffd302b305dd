package plan

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
)

// namespaces are those of a container.
type namespaces struct {
	flags   uint64 // CLONE_NEW* of the new ones
	user    bool
	netPath string
}

var cloneFlags = map[specs.LinuxNamespaceType]uint64{
	specs.PIDNamespace:     unix.CLONE_NEWPID,
	specs.NetworkNamespace: unix.CLONE_NEWNET,
	specs.MountNamespace:   unix.CLONE_NEWNS,
	specs.IPCNamespace:     unix.CLONE_NEWIPC,
	specs.UTSNamespace:     unix.CLONE_NEWUTS,
	specs.UserNamespace:    unix.CLONE_NEWUSER,
	specs.CgroupNamespace:  unix.CLONE_NEWCGROUP,
}

// namespacesOf reads Linux.Namespaces.
func namespacesOf(s *specs.Spec) (namespaces, error) {
	var ns namespaces
	seen := map[specs.LinuxNamespaceType]bool{}
	for _, n := range s.Linux.Namespaces {
		flag, ok := cloneFlags[n.Type]
		switch {
		case !ok:
			return ns, unsupported("%s namespace", n.Type)
		case seen[n.Type]:
			return ns, fmt.Errorf("namespace %s is listed twice", n.Type)
		case n.Path != "" && n.Type != specs.NetworkNamespace:
			return ns, unsupported("%s namespace of another container (%s)", n.Type, n.Path)
		case n.Path != "":
			ns.netPath = n.Path
		default:
			ns.flags |= flag
		}
		seen[n.Type] = true
	}
	ns.user = seen[specs.UserNamespace]
	if !seen[specs.MountNamespace] || !seen[specs.CgroupNamespace] {
		return ns, unsupported("a container in the node's mount or cgroup namespace")
	}
	if !seen[specs.UTSNamespace] && (s.Hostname != "" || s.Domainname != "") {
		return ns, fmt.Errorf("a hostname needs a UTS namespace: remove the hostname, or the use of the node's namespace")
	}
	if !ns.user {
		if len(s.Linux.UIDMappings)+len(s.Linux.GIDMappings) > 0 {
			return ns, fmt.Errorf("uid and gid mappings need a user namespace")
		}
		return ns, nil
	}
	for _, t := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.NetworkNamespace, specs.IPCNamespace} {
		if !seen[t] {
			return ns, unsupported("the node's %s namespace with a user namespace of its own: use the node's user namespace, too", t)
		}
	}
	if hostID(s.Linux.UIDMappings, 0) < 0 || hostID(s.Linux.GIDMappings, 0) < 0 {
		return ns, fmt.Errorf("uid and gid mappings of a user namespace must contain 0")
	}
	if hostID(s.Linux.UIDMappings, s.Process.User.UID) < 0 || hostID(s.Linux.GIDMappings, s.Process.User.GID) < 0 {
		return ns, fmt.Errorf("process.user %d:%d is outside of the user namespace's mappings", s.Process.User.UID, s.Process.User.GID)
	}
	return ns, nil
}

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

// Sysctls that belong to a namespace, by the namespace's flag; a "*" at the end
// stands for anything.
var sysctls = map[uint64][]string{
	unix.CLONE_NEWIPC: {
		"kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem", "kernel/shmall", "kernel/shmmax",
		"kernel/shmmni", "kernel/shm_rmid_forced", "fs/mqueue/*",
	},
	unix.CLONE_NEWNET: {"net/*"},
	unix.CLONE_NEWUTS: {"kernel/domainname"},
}

// owns returns an error if setting the sysctl would change the node.
func (ns namespaces) owns(name string) error {
	file := sysctlPath(name)
	for flag, list := range sysctls {
		if slices.ContainsFunc(list, func(s string) bool {
			prefix, wild := strings.CutSuffix(s, "*")
			return file == s || wild && strings.HasPrefix(file, prefix) && !strings.Contains(file, "..")
		}) {
			if ns.flags&flag == 0 && (flag != unix.CLONE_NEWNET || ns.netPath == "") {
				return fmt.Errorf("sysctl %s needs a namespace of the container's own, it would change the node", name)
			}
			return nil
		}
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
