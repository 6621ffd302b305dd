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

// destination returns where a mount goes. One that is no absolute path begins at the
// root directory all the same (runtime-spec config.md, "Mounts").
func destination(m specs.Mount) string { return path.Clean("/" + m.Destination) }

// binds makes the mounts whose source is on the node.
func (b *builder) binds() error {
	b.bound = map[int][]mounted{}
	for i, m := range b.spec.Mounts {
		if !isBind(m.Type, m.Options) {
			if len(m.UIDMappings)+len(m.GIDMappings) > 0 {
				return unsupported("mount %s: id mappings of a file system that is not bound", m.Destination)
			}
			continue
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
	switch users, mapped := b.usersOf(m, o); {
	case mapped && o.recursive && o.ridmap && len(m.UIDMappings) == 0 && o.propagation != unix.MS_SHARED:
		b.mapTree(r, users, m.Source)
	case mapped:
		b.refuse(b.mapIDs(r, users, m.Source, o.ridmap), m.Source)
	}
	b.setOptions(r, o, "set options of "+m.Source+" for "+m.Destination)
	return mounted{reg: b.give(r), dest: destination(m), dir: dir}, nil
}

// mapTree is mapIDs for a mount with all below it, of which what cannot be mapped keeps
// the owners that it has (see tree.Map). That is for a bind that gets the container's own mapping: one
// with mappings in the spec must have them everywhere, and one that is shared has to be
// the kernel's copy, since whatever is attached to it is attached on the node, too.
func (b *builder) mapTree(r, users call.Reg, path string) {
	p := b.parent
	parts, mapped := p.Label(), p.Label()
	// EPERM: something has mapped ids already, or belongs to another user namespace.
	b.mapIDs(r, users, path, true).On(parts, unix.EINVAL, unix.EPERM).Then(mapped)
	p.Place(parts)
	p.Call(unix.SYS_CLOSE, call.Get(r))
	source := p.Reg()
	p.Call(unix.SYS_OPENAT, call.Int(unix.AT_FDCWD), call.Str(path), call.Int(unix.O_PATH|unix.O_CLOEXEC), call.Int(0)).To(source).As("open " + path)
	b.refuse(p.Tree(source, users).To(r).As(mapping(path)), path)
	p.Call(unix.SYS_CLOSE, call.Get(source))
	p.Place(mapped)
}

// refuse makes an error of its own of what the kernel says of a file system that cannot
// have mapped ids: that something is invalid.
func (b *builder) refuse(mapIDs *call.Op, path string) {
	p := b.parent
	unable, mapped := p.Label(), p.Label()
	mapIDs.On(unable, unix.EINVAL).Then(mapped)
	p.Place(unable)
	p.Fail(unix.EOPNOTSUPP).As(mapping(path))
	p.Place(mapped)
}

// setOptions sets the options of a bind: of the mounts below, then of itself.
// Mounts below one that is only shared stay what they are, as with runc; below any
// other none may tell the node of what is mounted there.
func (b *builder) setOptions(r call.Reg, o options, what string) {
	attr := func(flags int, set, clr, propagation uint64) {
		if set|clr|propagation != 0 {
			b.parent.Call(unix.SYS_MOUNT_SETATTR, call.Get(r), call.Str(""), call.Int(unix.AT_EMPTY_PATH|flags),
				mountAttr(set, clr, propagation), call.Int(sizeofMountAttr)).As(what)
		}
	}
	below, itself := o.propagation, uint64(0)
	switch {
	case o.propagation == 0:
		below = unix.MS_PRIVATE
	case o.propagation == unix.MS_SHARED && !o.deep:
		below, itself = 0, unix.MS_SHARED
	case o.propagation == unix.MS_UNBINDABLE && !o.deep:
		below, itself = unix.MS_PRIVATE, unix.MS_UNBINDABLE
	}
	attr(unix.AT_RECURSIVE, o.rset, o.rclr, below)
	attr(0, o.set, o.clr&^o.rset, itself)
}

// idMaps are mappings of a mount's own, as for /proc/<pid>/uid_map.
type idMaps struct{ uids, gids string }

// maxUsers is how many different mappings the mounts of a container can have.
const maxUsers = 64

// mountUsers returns the different mappings of mounts.
func mountUsers(s *specs.Spec) (list []idMaps, err error) {
	for _, m := range s.Mounts {
		if len(m.UIDMappings)+len(m.GIDMappings) == 0 {
			continue
		}
		if len(m.UIDMappings) == 0 || len(m.GIDMappings) == 0 {
			return nil, fmt.Errorf("mount %s has uidMappings or gidMappings, not both", m.Destination)
		}
		if len(m.UIDMappings) > maxMappings || len(m.GIDMappings) > maxMappings {
			return nil, unsupported("mount %s: more than %d id mappings", m.Destination, maxMappings)
		}
		if maps := (idMaps{idMap(m.UIDMappings), idMap(m.GIDMappings)}); !slices.Contains(list, maps) {
			list = append(list, maps)
		}
	}
	if len(list) > maxUsers {
		return nil, unsupported("%d different id mappings of mounts, more than %d", len(list), maxUsers)
	}
	return list, nil
}

// usersOf returns the register of the user namespace whose mappings a bind has, and
// whether it has any: those of its own, or the container's if it asks for that.
func (b *builder) usersOf(m specs.Mount, o options) (users call.Reg, mapped bool) {
	if len(m.UIDMappings) > 0 {
		return parentRegs + call.Reg(slices.Index(b.users, idMaps{idMap(m.UIDMappings), idMap(m.GIDMappings)})), true
	}
	return UserNS, o.idmap && b.ns.user
}

// kernelMounts makes the mounts that belong to the container's namespaces, and
// puts all into the spec's order.
func (b *builder) kernelMounts() error {
	for i, m := range b.spec.Mounts {
		dest := destination(m)
		if dest == "/" {
			return fmt.Errorf("mount destination %q is not a path below /", m.Destination)
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
			b.sealLater(mount, m)
		case slices.Contains([]string{"proc", "sysfs", "tmpfs", "devpts", "mqueue"}, m.Type):
			o, err := parseOptions(m.Options, false)
			if err != nil {
				return fmt.Errorf("mount %s: %w", dest, err)
			}
			if len(m.Source) < 256 {
				o.source = m.Source
			}
			if o.copyUp && (m.Type != "tmpfs" || b.Host.OverlayByName) {
				return unsupported("mount %s: option tmpcopyup of a %s on this kernel", dest, m.Type)
			}
			if m.Type == "tmpfs" {
				o.set &^= unix.MOUNT_ATTR_RDONLY // not until all is in it that goes there
				mount.like, mount.copyUp, mount.attrs = !o.mode, o.copyUp, o.set
			}
			mount.reg = b.kernelMount(b.child, m.Type, dest, o)
			if m.Type == "tmpfs" {
				b.sealLater(mount, m)
			}
		case m.Type == "cgroup" || m.Type == "cgroup2":
			o, err := parseOptions(m.Options, false)
			if err != nil {
				return fmt.Errorf("mount %s: %w", dest, err)
			}
			list := b.cgroups(b.child, m.Type, dest, o)
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
// its cgroup namespace: one alone, which "cgroup2" is in any case, or several in a
// directory each.
func (b *builder) cgroups(p *call.Program, fstype, dest string, o options) []mounted {
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
	switch {
	case fstype == "cgroup2":
		return []mounted{make1(Cgroup{}, dest)}
	case len(b.Host.Cgroups) == 1 && b.Host.Cgroups[0].Name == "":
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
	if len(list) > 1 {
		b.sealLater(list[0], m)
	}
}

// sealLater makes a mount read-only once all is mounted, if m asks for that: there may
// be directories to make in it.
func (b *builder) sealLater(mount mounted, m specs.Mount) {
	if o, err := parseOptions(m.Options, false); err == nil && o.set&unix.MOUNT_ATTR_RDONLY != 0 {
		b.seal = append(b.seal, mount)
	}
}

// attach puts a mount into its place below the root directory, which it makes if
// it is not there.
func (b *builder) attach(m mounted) {
	c := b.child
	what, flags := "mount a file on "+m.dest, uint64(unix.O_PATH|unix.O_CLOEXEC)
	if m.dir {
		what, flags = "mount a directory on "+m.dest, flags|unix.O_DIRECTORY
	}
	resolve := uint64(unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS)
	if m.noSymlink {
		resolve |= unix.RESOLVE_NO_SYMLINKS
		what += " (which must not be a symbolic link)"
	}
	open := func() *call.Op {
		return c.Call(unix.SYS_OPENAT2, call.Get(b.root), call.Str(m.dest[1:]), openHow(flags, resolve), call.Int(sizeofOpenHow)).
			To(b.at).As(what)
	}
	there, missing, ready := c.Label(), c.Label(), c.Label()
	open().On(missing, unix.ENOENT).Then(there)
	c.Place(missing)
	if m.dir {
		b.makeDir(m.dest)
	} else {
		b.makeDir(path.Dir(m.dest))
		c.Call(unix.SYS_MKNODAT, call.Get(b.at), call.Str(path.Base(m.dest)), call.Int(unix.S_IFREG|0o644), call.Int(0)).On(call.Next, unix.EEXIST).As(what)
	}
	c.Call(unix.SYS_CLOSE, call.Get(b.at))
	open().Then(ready)
	c.Place(there)
	b.resemble(m)
	c.Place(ready)
	b.renew(m)
	move := c.Call(unix.SYS_MOVE_MOUNT, call.Get(m.reg), call.Str(""), call.Get(b.at), call.Str(""),
		call.Int(unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)).As(what)
	if !m.dir { // of a directory, of which the kernel says only that it is invalid
		directory, mounted := c.Label(), c.Label()
		move.On(directory, unix.EINVAL).Then(mounted)
		c.Place(directory)
		c.Fail(unix.EISDIR).As(what)
		c.Place(mounted)
	}
	c.Call(unix.SYS_CLOSE, call.Get(b.at))
}

// resemble gives the file system of a mount what the directory below it has, which is
// open in b.at: its mode, and if that is asked for, all that is in it. That is not
// copied: an overlay takes what is written.
func (b *builder) resemble(m mounted) {
	c := b.child
	if m.copyUp {
		b.copyUp(m)
	}
	if m.like {
		mode := c.Reg()
		what := "set the mode of " + m.dest
		c.Mode(b.at).To(mode).As(what)
		c.Call(unix.SYS_FCHMODAT, call.Get(m.reg), call.Str("."), call.Get(mode)).As(what)
	}
}

// copyUp makes an overlay of the directory open in b.at, with the tmpfs in the
// mount's register above it, and puts it into that register.
func (b *builder) copyUp(m mounted) {
	c := b.child
	what := "tmpcopyup of " + m.dest
	dirs := map[string]call.Reg{"upper": c.Reg(), "work": c.Reg()}
	for _, name := range []string{"upper", "work"} {
		c.Call(unix.SYS_MKDIRAT, call.Get(m.reg), call.Str(name), call.Int(0o755)).As(what)
		c.Call(unix.SYS_OPENAT2, call.Get(m.reg), call.Str(name), openHow(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS),
			call.Int(sizeofOpenHow)).To(dirs[name]).As(what)
	}
	ctx := b.fsopen(c, "overlay", what)
	for _, fd := range []struct {
		key string
		reg call.Reg
	}{{"lowerdir+", b.at}, {"upperdir", dirs["upper"]}, {"workdir", dirs["work"]}} {
		c.Call(unix.SYS_FSCONFIG, call.Get(ctx), call.Int(unix.FSCONFIG_SET_FD), call.Str(fd.key), call.Int(0), call.Get(fd.reg)).As(what)
	}
	if b.ns.user {
		b.fsconfig(c, ctx, "userxattr", "", what)
	}
	for _, kv := range b.context() {
		b.fsconfig(c, ctx, kv[0], kv[1], what)
	}
	over := b.fsmount(c, ctx, int(m.attrs), what)
	c.Call(unix.SYS_DUP3, call.Get(over), call.Get(m.reg), call.Int(unix.O_CLOEXEC)).As(what)
	for _, r := range []call.Reg{over, dirs["upper"], dirs["work"]} {
		c.Call(unix.SYS_CLOSE, call.Get(r))
	}
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

// renew puts a copy of a mount in its place: /proc/self/mountinfo
// has mounts in the order in which they were made, and others' engines read there the
// order of the spec. Before Linux 6.15 there are no such copies.
func (b *builder) renew(m mounted) {
	if b.Detached == nil {
		return
	}
	c := b.child
	old := c.Label()
	c.Call(unix.SYS_OPEN_TREE, call.Get(m.reg), call.Str(""),
		call.Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)).To(b.next).On(old, 0)
	c.Call(unix.SYS_DUP3, call.Get(b.next), call.Get(m.reg), call.Int(unix.O_CLOEXEC)).As("renew the mount for " + m.dest)
	c.Call(unix.SYS_CLOSE, call.Get(b.next))
	c.Place(old)
}
