package plan

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
)

// foreignMounts makes the file systems of namespaces that belong to another user
// namespace than the container's: the kernel would refuse them to the child. What
// is in there belongs to the node, or to another container, all the same.
func (b *builder) foreignMounts() error {
	for i, m := range b.spec.Mounts {
		var flag uint64
		ns := NetNS
		switch m.Type {
		case "sysfs":
			flag = unix.CLONE_NEWNET
		case "mqueue":
			flag, ns = unix.CLONE_NEWIPC, IPCNS
		case "proc":
			flag = unix.CLONE_NEWPID
		case "cgroup", "cgroup2":
			flag, ns = unix.CLONE_NEWCGROUP, CgroupNS
		default:
			continue
		}
		ownCgroup := flag == unix.CLONE_NEWCGROUP && !b.ns.has(flag) && b.Cgroup != ""
		if _, bound := b.bound[i]; bound || !b.ns.foreign(flag) && !ownCgroup {
			continue
		}
		leave := func() {}
		if b.ns.joined&flag != 0 {
			leave = b.visit(flag, ns)
		}
		list, err := b.foreignMount(m)
		if err != nil {
			return err
		}
		leave()
		for j := range list {
			list[j].reg = b.give(list[j].reg)
		}
		b.bound[i] = list
	}
	return nil
}

// foreignMount makes the mounts of one entry in the shim.
func (b *builder) foreignMount(m specs.Mount) ([]mounted, error) {
	dest := destination(m)
	o, err := parseOptions(m.Options, false)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", dest, err)
	}
	switch m.Type {
	case "cgroup", "cgroup2":
		return b.cgroups(b.parent, m.Type, dest, o), nil
	case "sysfs": // of the node's, nothing is for a container to write
		o.set |= unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	}
	return []mounted{{reg: b.kernelMount(b.parent, m.Type, dest, o), dest: dest, dir: true, noSymlink: isPlain(dest)}}, nil
}

// visit takes the shim's thread into another container's namespace, and returns
// what takes it back.
func (b *builder) visit(flag uint64, ns call.Reg) (leave func()) {
	p := b.parent
	name := map[uint64]string{unix.CLONE_NEWNET: "net", unix.CLONE_NEWIPC: "ipc", unix.CLONE_NEWCGROUP: "cgroup"}[flag]
	own := p.Reg()
	p.Call(unix.SYS_OPENAT, call.Int(unix.AT_FDCWD), call.Str("/proc/thread-self/ns/"+name), call.Int(unix.O_RDONLY|unix.O_CLOEXEC)).To(own)
	p.Call(unix.SYS_SETNS, call.Get(ns), call.Int(int(flag))).As("enter the other container's " + name + " namespace")
	return func() {
		p.Call(unix.SYS_SETNS, call.Get(own), call.Int(int(flag))).As("return to the node's " + name + " namespace")
		p.Call(unix.SYS_CLOSE, call.Get(own))
	}
}

// giveTime gives the child what it needs to enter its time namespace: of another
// container's a descriptor, of its own the file that takes the offsets. It cannot
// open that itself, because nobody may look into it.
func (b *builder) giveTime() {
	switch {
	case b.ns.joined&unix.CLONE_NEWTIME != 0:
		r := b.parent.Reg()
		b.parent.Call(unix.SYS_FCNTL, call.Get(TimeNS), call.Int(unix.F_DUPFD_CLOEXEC), call.Int(0)).To(r).As("give the container its time namespace")
		b.time = b.give(r)
	case b.ns.offsets != "":
		r := b.parent.Reg()
		b.parent.Call(unix.SYS_OPENAT, call.Get(Proc), call.Str("timens_offsets"), call.Int(unix.O_WRONLY|unix.O_CLOEXEC), call.Int(0)).To(r).
			As("open timens_offsets of the container's first process")
		b.time = b.give(r)
	}
}

// enterTime enters the time namespace, unless the child is born in it.
func (b *builder) enterTime() {
	c := b.child
	switch {
	case b.ns.joined&unix.CLONE_NEWTIME != 0:
		c.Call(unix.SYS_SETNS, call.Get(b.time), call.Int(unix.CLONE_NEWTIME)).As("enter the other container's time namespace")
		c.Call(unix.SYS_CLOSE, call.Get(b.time))
	case b.ns.offsets != "":
		c.Call(unix.SYS_UNSHARE, call.Int(unix.CLONE_NEWTIME)).As("make the time namespace")
		c.Call(unix.SYS_WRITE, call.Get(b.time), call.Str(b.ns.offsets), call.Int(len(b.ns.offsets))).As("set linux.timeOffsets")
		c.Call(unix.SYS_CLOSE, call.Get(b.time))
		own := c.Reg()
		c.Call(unix.SYS_OPENAT, call.Int(unix.AT_FDCWD), call.Str("/proc/thread-self/ns/time_for_children"), call.Int(unix.O_RDONLY|unix.O_CLOEXEC), call.Int(0)).To(own).
			As("open the time namespace")
		c.Call(unix.SYS_SETNS, call.Get(own), call.Int(unix.CLONE_NEWTIME)).As("enter the time namespace")
		c.Call(unix.SYS_CLOSE, call.Get(own))
	}
}
