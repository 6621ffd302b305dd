package plan

import (
	"path"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
)

// find opens the path inside of the container into b.at. flags are further ones
// of open.
func (b *builder) find(p string, flags uint64, what string) *call.Op {
	return b.child.Call(unix.SYS_OPENAT2, call.Get(b.root), call.Str("."+path.Clean("/"+p)),
		openHow(unix.O_PATH|unix.O_CLOEXEC|flags, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS), call.Int(sizeofOpenHow)).
		To(b.at).As(what)
}

// cover mounts what is in the register from on what is open in b.at.
func (b *builder) cover(from call.Reg, what string) {
	b.child.Call(unix.SYS_MOVE_MOUNT, call.Get(from), call.Str(""), call.Get(b.at), call.Str(""),
		call.Int(unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)).As(what)
}

// readonlyPaths mounts the paths on themselves, read-only with all below, and
// makes read-only what had to be written to until now.
func (b *builder) readonlyPaths() {
	c := b.child
	for _, m := range b.seal {
		c.Call(unix.SYS_MOUNT_SETATTR, call.Get(m.reg), call.Str(""), call.Int(unix.AT_EMPTY_PATH), mountAttr(unix.MOUNT_ATTR_RDONLY, 0, 0),
			call.Int(sizeofMountAttr)).As("make " + m.dest + " read-only")
	}
	for _, p := range distinct(b.spec.Linux.ReadonlyPaths) {
		what := "make " + p + " read-only"
		skip := c.Label()
		b.find(p, 0, what).On(skip, unix.ENOENT, unix.ENOTDIR)
		c.Call(unix.SYS_OPEN_TREE, call.Get(b.at), call.Str(""),
			call.Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)).To(b.next).As(what)
		c.Call(unix.SYS_MOUNT_SETATTR, call.Get(b.next), call.Str(""), call.Int(unix.AT_EMPTY_PATH|unix.AT_RECURSIVE),
			mountAttr(unix.MOUNT_ATTR_RDONLY, 0, 0), call.Int(sizeofMountAttr)).As(what)
		b.cover(b.next, what)
		c.Call(unix.SYS_CLOSE, call.Get(b.next))
		c.Call(unix.SYS_CLOSE, call.Get(b.at))
		c.Place(skip)
	}
}

// maskedPaths covers files with /dev/null and directories with an empty read-only
// file system, one for all. The null device is the one that was made for this
// container, of which its image knows nothing.
func (b *builder) maskedPaths() {
	paths := distinct(b.spec.Linux.MaskedPaths)
	if len(paths) == 0 {
		return
	}
	c := b.child
	ctx := b.fsopen(c, "tmpfs", "masks of directories")
	b.fsconfig(c, ctx, "nr_inodes", "1", "masks of directories")
	empty := b.fsmount(c, ctx, unix.MOUNT_ATTR_RDONLY, "masks of directories")
	for i, p := range paths {
		what := "mask " + p
		skip, file, cover := c.Label(), c.Label(), c.Label()
		b.find(p, unix.O_DIRECTORY, what).On(skip, unix.ENOENT).On(file, unix.ENOTDIR)
		// Before Linux 6.15 nothing can be cloned of what is attached nowhere: the first
		// one is the file system itself.
		c.Call(unix.SYS_OPEN_TREE, call.Get(empty), call.Str(""), call.Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)).
			To(b.next).On(call.Next, unix.EINVAL).Then(cover).As(what)
		c.Call(unix.SYS_FCNTL, call.Get(empty), call.Int(unix.F_DUPFD_CLOEXEC), call.Int(0)).To(b.next).Then(cover).As(what)
		c.Place(file)
		b.find(p, 0, what).On(skip, unix.ENOENT, unix.ENOTDIR)
		if b.nulls == nil {
			c.Call(unix.SYS_OPEN_TREE, call.Get(b.dev), call.Str("null"),
				call.Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)).To(b.next).As(what)
		} else {
			c.Call(unix.SYS_FCNTL, call.Get(b.nulls[i]), call.Int(unix.F_DUPFD_CLOEXEC), call.Int(0)).To(b.next).As(what)
		}
		c.Place(cover)
		b.cover(b.next, what)
		c.Call(unix.SYS_CLOSE, call.Get(b.next))
		c.Call(unix.SYS_CLOSE, call.Get(b.at))
		c.Place(skip)
	}
}

// distinct returns the paths, each of them once.
func distinct(paths []string) []string {
	var list []string
	seen := map[string]bool{}
	for _, p := range paths {
		if clean := path.Clean("/" + p); !seen[clean] {
			seen[clean] = true
			list = append(list, p)
		}
	}
	return list
}

// limits does what only the node may do to the child: rlimits can be raised,
// and the stdio's pipes given to the process's user, so that it can open
// /dev/stdout again.
func (b *builder) limits() error {
	l := b.spec.Linux
	pipe := [3]bool{b.Stdin, true, true}
	if b.Terminal != nil {
		pipe = [3]bool{}
	}
	if b.Detached != nil {
		pipe = b.Detached.Pipe
	}
	giveStdio(b.parent, b.spec.Process, l.UIDMappings, l.GIDMappings, pipe)
	return resources(b.parent, call.Get(Child), b.spec.Process)
}

// giveStdio makes pipes belong to the process's user, who may open them anew by
// /dev/stdout.
func giveStdio(p *call.Program, proc *specs.Process, uids, gids []specs.LinuxIDMapping, pipe [3]bool) {
	uid, gid := hostID(uids, proc.User.UID), hostID(gids, proc.User.GID)
	for i, fd := range []call.Reg{Stdin, Stdout, Stderr} {
		if pipe[i] {
			p.Call(unix.SYS_FCHOWN, call.Get(fd), call.Int(uid), call.Int(gid)).As("give stdio to the process's user")
		}
	}
}

// resources sets what only the node may give to the process who: itself, by 0, before it has
// the container's capabilities, or another one.
func resources(p *call.Program, who call.Arg, proc *specs.Process) error {
	for _, l := range proc.Rlimits {
		if lowersFiles(l) {
			if l.Hard < buildFiles {
				continue
			}
			l.Soft = l.Hard
		}
		setRlimit(p, who, l)
	}
	return schedule(p, who, proc)
}

// buildFiles is how many descriptors a process may have open while it is built.
const buildFiles = 4096

// lowersFiles reports whether a limit would be too low for what a process has open
// until it executes its command.
func lowersFiles(l specs.POSIXRlimit) bool { return l.Type == "RLIMIT_NOFILE" && l.Soft < buildFiles }

// lowerFiles sets such a limit by the process itself.
func lowerFiles(c *call.Program, proc *specs.Process) {
	for _, l := range proc.Rlimits {
		if lowersFiles(l) {
			setRlimit(c, call.Int(0), l)
		}
	}
}

func setRlimit(p *call.Program, who call.Arg, l specs.POSIXRlimit) {
	p.Call(unix.SYS_PRLIMIT64, who, call.Int(rlimits[l.Type]), rlimit(l), call.Int(0)).
		Warn(unix.EPERM).As("set " + l.Type + " (raising it needs CAP_SYS_RESOURCE)")
}
