package plan

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
)

// binds makes the mounts whose source is on the node, and the /sys of a network
// namespace that the container does not own.
func (b *builder) binds() error {
	b.bound = map[int]mounted{}
	for i, m := range b.spec.Mounts {
		if !isBind(m.Type, m.Options) {
			continue
		}
		if len(m.UIDMappings)+len(m.GIDMappings) > 0 {
			return unsupported("mount %s: id mappings of its own; use the option idmap for the container's", m.Destination)
		}
		mount, err := b.bind(m)
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Destination, err)
		}
		b.bound[i] = mount
	}
	if b.ns.user && b.ns.netPath != "" {
		own := b.parent.Reg()
		b.parent.Call(unix.SYS_OPENAT, call.Int(unix.AT_FDCWD), call.Str("/proc/thread-self/ns/net"), call.Int(unix.O_RDONLY|unix.O_CLOEXEC)).To(own)
		b.parent.Call(unix.SYS_SETNS, call.Get(NetNS), call.Int(unix.CLONE_NEWNET)).As("enter network namespace " + b.ns.netPath)
		sys := b.fsmount(b.parent, b.fsopen(b.parent, "sysfs", "/sys"), unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC, "/sys")
		b.parent.Call(unix.SYS_SETNS, call.Get(own), call.Int(unix.CLONE_NEWNET)).As("return to the node's network namespace")
		b.sys = b.give(sys)
	}
	return nil
}

func (b *builder) bind(m specs.Mount) (mounted, error) {
	o, err := parseOptions(m.Options, true)
	if err != nil {
		return mounted{}, err
	}
	if !path.IsAbs(m.Source) {
		return mounted{}, fmt.Errorf("source %q is not an absolute path", m.Source)
	}
	dir, err := b.Host.Dir(m.Source)
	if err != nil {
		return mounted{}, err
	}
	p := b.parent
	flags := unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC
	if o.recursive {
		flags |= unix.AT_RECURSIVE
	}
	r := p.Reg()
	p.Call(unix.SYS_OPEN_TREE, call.Int(unix.AT_FDCWD), call.Str(m.Source), call.Int(flags)).To(r).As("open " + m.Source)
	if o.idmap && b.ns.user {
		b.mapIDs(r, m.Source, o.recursive)
	}
	if o.propagation == 0 {
		o.propagation = unix.MS_PRIVATE
	}
	what := "set options of " + m.Source + " for " + m.Destination
	p.Call(unix.SYS_MOUNT_SETATTR, call.Get(r), call.Str(""), call.Int(unix.AT_EMPTY_PATH|unix.AT_RECURSIVE),
		mountAttr(o.rset, 0, o.propagation), call.Int(sizeofMountAttr)).As(what)
	if o.set|o.clr != 0 {
		p.Call(unix.SYS_MOUNT_SETATTR, call.Get(r), call.Str(""), call.Int(unix.AT_EMPTY_PATH),
			mountAttr(o.set, o.clr&^o.rset, 0), call.Int(sizeofMountAttr)).As(what)
	}
	return mounted{reg: b.give(r), dest: path.Clean(m.Destination), dir: dir}, nil
}

// kernelMounts makes the mounts that belong to the container's namespaces, and
// puts all into the spec's order.
func (b *builder) kernelMounts() error {
	for i, m := range b.spec.Mounts {
		dest := path.Clean(m.Destination)
		if !path.IsAbs(dest) || dest == "/" {
			return fmt.Errorf("mount destination %q is not an absolute path below /", m.Destination)
		}
		if bound, ok := b.bound[i]; ok {
			b.mounts = append(b.mounts, bound)
			continue
		}
		mount := mounted{dest: dest, dir: true, noSymlink: slices.Contains([]string{"/proc", "/sys", "/dev"}, dest)}
		switch {
		case dest == "/dev":
			mount.reg = b.dev
		case dest == "/sys" && b.sys != 0:
			mount.reg = b.sys
		case slices.Contains([]string{"proc", "sysfs", "tmpfs", "devpts", "mqueue"}, m.Type):
			o, err := parseOptions(m.Options, false)
			if err != nil {
				return fmt.Errorf("mount %s: %w", dest, err)
			}
			mount.reg = b.kernelMount(m.Type, dest, o)
		case m.Type == "cgroup" || m.Type == "cgroup2":
			if err := b.cgroups(m, mount); err != nil {
				return err
			}
			continue
		default:
			return unsupported("mount %s of type %q", dest, m.Type)
		}
		b.mounts = append(b.mounts, mount)
	}
	return nil
}

func (b *builder) kernelMount(fstype, dest string, o options) call.Reg {
	ctx := b.fsopen(b.child, fstype, dest)
	data := o.data
	if fstype != "proc" && fstype != "sysfs" {
		data = append(data, b.context()...)
	}
	for _, kv := range data {
		b.fsconfig(b.child, ctx, kv[0], kv[1], dest)
	}
	return b.fsmount(b.child, ctx, int(o.set), dest)
}

// cgroups mounts the node's hierarchies as they are from inside of the cgroup
// namespace: one alone, or several in a directory each.
func (b *builder) cgroups(m specs.Mount, mount mounted) error {
	o, err := parseOptions(m.Options, false)
	if err != nil {
		return fmt.Errorf("mount %s: %w", mount.dest, err)
	}
	make1 := func(g Cgroup, dest string) call.Reg {
		fstype := "cgroup"
		if len(g.Controllers) == 0 {
			fstype = "cgroup2"
		}
		ctx := b.fsopen(b.child, fstype, dest)
		for _, c := range g.Controllers {
			key, value, _ := strings.Cut(c, "=")
			b.fsconfig(b.child, ctx, key, value, dest)
		}
		return b.fsmount(b.child, ctx, int(o.set), dest)
	}
	if len(b.Host.Cgroups) == 1 && b.Host.Cgroups[0].Name == "" {
		mount.reg = make1(b.Host.Cgroups[0], mount.dest)
		b.mounts = append(b.mounts, mount)
		return nil
	}
	dir := o
	dir.set &^= unix.MOUNT_ATTR_RDONLY
	dir.data = [][2]string{{"mode", "755"}, {"size", "64k"}}
	mount.reg = b.kernelMount("tmpfs", mount.dest, dir)
	b.mounts = append(b.mounts, mount)
	for _, g := range b.Host.Cgroups {
		dest := mount.dest + "/" + g.Name
		b.mounts = append(b.mounts, mounted{reg: make1(g, dest), dest: dest, dir: true})
	}
	if o.set&unix.MOUNT_ATTR_RDONLY != 0 {
		b.seal = append(b.seal, mount)
	}
	return nil
}

// attach puts a mount into its place below the root directory, which it makes if
// it is not there.
func (b *builder) attach(m mounted) {
	c := b.child
	what := "mount on " + m.dest
	resolve := uint64(unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS)
	if m.noSymlink {
		resolve |= unix.RESOLVE_NO_SYMLINKS
		what += " (which must not be a symbolic link)"
	}
	open := func() *call.Op {
		return c.Call(unix.SYS_OPENAT2, call.Get(b.root), call.Str(m.dest[1:]), openHow(unix.O_PATH|unix.O_CLOEXEC, resolve), call.Int(sizeofOpenHow)).
			To(b.at).As(what)
	}
	there, missing := c.Label(), c.Label()
	open().On(missing, unix.ENOENT).Then(there)
	c.Place(missing)
	if m.dir {
		b.makeDir(m.dest)
	} else {
		b.makeDir(path.Dir(m.dest))
		c.Call(unix.SYS_MKNODAT, call.Get(b.at), call.Str(path.Base(m.dest)), call.Int(unix.S_IFREG|0o644), call.Int(0)).On(call.Next, unix.EEXIST).As(what)
	}
	c.Call(unix.SYS_CLOSE, call.Get(b.at))
	open()
	c.Place(there)
	c.Call(unix.SYS_MOVE_MOUNT, call.Get(m.reg), call.Str(""), call.Get(b.at), call.Str(""),
		call.Int(unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)).As(what)
	c.Call(unix.SYS_CLOSE, call.Get(b.at))
}

// makeDir leaves a descriptor of the directory at dest, below the root
// directory, in the register b.at. What is missing of it is made.
func (b *builder) makeDir(dest string) {
	c := b.child
	dest = path.Clean(dest)
	what := "make directory " + dest
	open := func(dir string, r call.Reg) *call.Op {
		if dir == "" {
			dir = "."
		}
		return c.Call(unix.SYS_OPENAT2, call.Get(b.root), call.Str(dir),
			openHow(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS), call.Int(sizeofOpenHow)).To(r).As(what)
	}
	done, missing := c.Label(), c.Label()
	rel := dest[1:]
	open(rel, b.at).On(missing, unix.ENOENT).Then(done)
	c.Place(missing)
	open("", b.at)
	for i := 0; i < len(rel); {
		n := strings.IndexByte(rel[i:], '/')
		if n < 0 {
			n = len(rel) - i
		}
		// Each part is made in a directory that is already open, so a link in place of
		// one can lead to nowhere but into the root directory again.
		c.Call(unix.SYS_MKDIRAT, call.Get(b.at), call.Str(rel[i:i+n]), call.Int(0o755)).On(call.Next, unix.EEXIST).As(what)
		open(rel[:i+n], b.next)
		c.Call(unix.SYS_DUP3, call.Get(b.next), call.Get(b.at), call.Int(unix.O_CLOEXEC))
		c.Call(unix.SYS_CLOSE, call.Get(b.next))
		i += n + 1
	}
	c.Place(done)
}
