package plan

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
)

// binds makes the mounts whose source is on the node.
func (b *builder) binds() error {
	b.bound = map[int][]mounted{}
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
		b.bound[i] = []mounted{mount}
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
			b.mounts = append(b.mounts, bound...)
			b.sealCgroups(m, bound)
			continue
		}
		mount := mounted{dest: dest, dir: true, noSymlink: isPlain(dest)}
		switch {
		case dest == "/dev":
			mount.reg = b.dev
		case slices.Contains([]string{"proc", "sysfs", "tmpfs", "devpts", "mqueue"}, m.Type):
			o, err := parseOptions(m.Options, false)
			if err != nil {
				return fmt.Errorf("mount %s: %w", dest, err)
			}
			if len(m.Source) < 256 {
				o.source = m.Source
			}
			mount.reg = b.kernelMount(b.child, m.Type, dest, o)
		case m.Type == "cgroup" || m.Type == "cgroup2":
			o, err := parseOptions(m.Options, false)
			if err != nil {
				return fmt.Errorf("mount %s: %w", dest, err)
			}
			list := b.cgroups(b.child, dest, o)
			b.mounts = append(b.mounts, list...)
			b.sealCgroups(m, list)
			continue
		default:
			return unsupported("mount %s of type %q", dest, m.Type)
		}
		b.mounts = append(b.mounts, mount)
	}
	return nil
}

// isPlain reports whether a destination must not be a symbolic link: too much
// depends on what is there.
func isPlain(dest string) bool { return slices.Contains([]string{"/proc", "/sys", "/dev"}, dest) }

// kernelMount makes a file system of the kernel's in the program p.
func (b *builder) kernelMount(p *call.Program, fstype, dest string, o options) call.Reg {
	ctx := b.fsopenFrom(p, fstype, cmp.Or(o.source, fstype), dest)
	data := o.data
	if fstype != "proc" && fstype != "sysfs" {
		data = append(data, b.context()...)
	}
	for _, kv := range data {
		b.fsconfig(p, ctx, kv[0], kv[1], dest)
	}
	return b.spread(p, b.fsmount(p, ctx, int(o.set), dest), o, dest)
}

// spread says how mounts on a new file system are spread. Without being told they stay
// there.
func (b *builder) spread(p *call.Program, mount call.Reg, o options, dest string) call.Reg {
	if o.propagation != 0 && o.propagation != unix.MS_PRIVATE {
		p.Call(unix.SYS_MOUNT_SETATTR, call.Get(mount), call.Str(""), call.Int(unix.AT_EMPTY_PATH),
			mountAttr(0, 0, o.propagation), call.Int(sizeofMountAttr)).As("set the propagation of " + dest)
	}
	return mount
}

// cgroups mounts the node's hierarchies in the program p as they are from inside of
// its cgroup namespace: one alone, or several in a directory each.
func (b *builder) cgroups(p *call.Program, dest string, o options) []mounted {
	make1 := func(g Cgroup, dest string) mounted {
		if !b.ns.has(unix.CLONE_NEWCGROUP) && b.Cgroup != "" {
			return b.ownCgroup(g, dest, o)
		}
		fstype := "cgroup"
		if len(g.Controllers) == 0 {
			fstype = "cgroup2"
		}
		ctx := b.fsopen(p, fstype, dest)
		for _, c := range g.Controllers {
			key, value, _ := strings.Cut(c, "=")
			b.fsconfig(p, ctx, key, value, dest)
		}
		return mounted{reg: b.spread(p, b.fsmount(p, ctx, int(o.set), dest), o, dest), dest: dest, dir: true}
	}
	if len(b.Host.Cgroups) == 1 && b.Host.Cgroups[0].Name == "" {
		return []mounted{make1(b.Host.Cgroups[0], dest)}
	}
	dir := o
	dir.set &^= unix.MOUNT_ATTR_RDONLY
	dir.data = [][2]string{{"mode", "755"}, {"size", "64k"}}
	list := []mounted{{reg: b.kernelMount(p, "tmpfs", dest, dir), dest: dest, dir: true}}
	for _, g := range b.Host.Cgroups {
		if p == b.parent { // the child makes it when it attaches what goes there, but not below what the shim made
			p.Call(unix.SYS_MKDIRAT, call.Get(list[0].reg), call.Str(g.Name), call.Int(0o755)).As("make directory " + dest + "/" + g.Name)
		}
		list = append(list, make1(g, dest+"/"+g.Name))
	}
	return list
}

// ownCgroup makes a mount of what is the container's of a hierarchy: without a cgroup
// namespace of its own a new mount would show all of the node's.
func (b *builder) ownCgroup(g Cgroup, dest string, o options) mounted {
	p := b.parent
	dir := path.Join("/sys/fs/cgroup", g.Name, b.Cgroup)
	r := p.Reg()
	missing, there := p.Label(), p.Label()
	open := func(dir string) *call.Op {
		return p.Call(unix.SYS_OPEN_TREE, call.Int(unix.AT_FDCWD), call.Str(dir), call.Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)).To(r).As("open " + dir)
	}
	open(dir).On(missing, unix.ENOENT).Then(there)
	p.Place(missing)
	open(path.Join("/sys/fs/cgroup", g.Name)) // a hierarchy in which it is where its caller is
	p.Place(there)
	p.Call(unix.SYS_MOUNT_SETATTR, call.Get(r), call.Str(""), call.Int(unix.AT_EMPTY_PATH),
		mountAttr(o.set, o.clr, unix.MS_PRIVATE), call.Int(sizeofMountAttr)).As("set options of " + dir + " for " + dest)
	return mounted{reg: b.spread(p, r, o, dest), dest: dest, dir: true}
}

// sealCgroups makes the directory of several hierarchies read-only once they are in
// it, if m asks for that.
func (b *builder) sealCgroups(m specs.Mount, list []mounted) {
	if o, err := parseOptions(m.Options, false); err == nil && len(list) > 1 && o.set&unix.MOUNT_ATTR_RDONLY != 0 {
		b.seal = append(b.seal, list[0])
	}
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
	if len(what) > 200 {
		what = what[:200] + "…" // it goes with every part of the path
	}
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
