package plan

import (
	"encoding/binary"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
)

// mountAttr is struct mount_attr without a user namespace.
func mountAttr(set, clr, propagation uint64) call.Arg {
	return call.Data(attrBytes(set, clr, propagation))
}

// idMapped is struct mount_attr that maps ids through the user namespace in r.
func idMapped(set uint64, r call.Reg) call.Arg {
	return call.Patched(attrBytes(set|unix.MOUNT_ATTR_IDMAP, 0, 0), 24, r)
}

func attrBytes(set, clr, propagation uint64) []byte {
	var b []byte
	for _, v := range []uint64{set, clr, propagation, 0} {
		b = binary.NativeEndian.AppendUint64(b, v)
	}
	return b
}

// openHow is struct open_how with mode 0.
func openHow(flags, resolve uint64) call.Arg {
	var b []byte
	for _, v := range []uint64{flags, 0, resolve} {
		b = binary.NativeEndian.AppendUint64(b, v)
	}
	return call.Data(b)
}

// Sizes of struct open_how and struct mount_attr.
const (
	sizeofOpenHow   = 24
	sizeofMountAttr = unix.MOUNT_ATTR_SIZE_VER0
)

const rootAttrs = 0 // a root file system may have set-user-id programs and devices of its own

// rootfs makes the root file system.
func (b *builder) rootfs() error {
	fs := b.Rootfs
	var root call.Reg
	switch {
	case len(fs.Lowers) == 0 && (b.spec.Root == nil || !filepath.IsAbs(b.spec.Root.Path)):
		return fmt.Errorf("a container needs a rootfs, or root.path as an absolute path")
	case len(fs.Lowers) == 0:
		root = b.rootTree(b.spec.Root.Path, b.Detached != nil, b.Detached == nil)
	case len(fs.Lowers) == 1 && fs.Upper == "":
		root = b.rootTree(fs.Lowers[0], false, true)
	default:
		root = b.overlay(fs)
	}
	if fs.Upper == "" && len(fs.Lowers) > 0 {
		b.parent.Call(unix.SYS_MOUNT_SETATTR, call.Get(root), call.Str(""), call.Int(unix.AT_EMPTY_PATH),
			mountAttr(unix.MOUNT_ATTR_RDONLY, 0, 0), call.Int(sizeofMountAttr)).As("make the layers read-only")
	}
	b.root = b.give(root)
	return nil
}

// rootTree is tree for what becomes the root directory. What is shared with the node
// cannot be that, and would tell the node of all that is mounted in the container.
func (b *builder) rootTree(path string, recursive, mapped bool) call.Reg {
	r := b.tree(path, recursive, mapped)
	propagation := uint64(unix.MS_PRIVATE)
	if propagations[b.spec.Linux.RootfsPropagation] == unix.MS_SLAVE {
		propagation = unix.MS_SLAVE
	}
	b.parent.Call(unix.SYS_MOUNT_SETATTR, call.Get(r), call.Str(""), call.Int(unix.AT_EMPTY_PATH|unix.AT_RECURSIVE), mountAttr(0, 0, propagation),
		call.Int(sizeofMountAttr)).As("set the propagation of " + path)
	return r
}

// tree makes a mount of a directory or file of the node, if mapped with the
// container's ids, if it has its own.
func (b *builder) tree(path string, recursive, mapped bool) call.Reg {
	r := b.parent.Reg()
	flags := unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	b.parent.Call(unix.SYS_OPEN_TREE, call.Int(unix.AT_FDCWD), call.Str(path), call.Int(flags)).To(r).As("open " + path)
	if b.ns.user && mapped {
		b.mapIDs(r, UserNS, path, recursive)
	}
	return r
}

// mapIDs makes the mount in r show files of user 0 as files of the container's
// user 0, and so on.
func (b *builder) mapIDs(r, users call.Reg, path string, recursive bool) *call.Op {
	flags := unix.AT_EMPTY_PATH
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return b.parent.Call(unix.SYS_MOUNT_SETATTR, call.Get(r), call.Str(""), call.Int(flags), idMapped(0, users), call.Int(sizeofMountAttr)).
		As(mapping(path))
}

func mapping(path string) string {
	return "map user ids of " + path + " (its file system must support idmapped mounts)"
}

const theRoot = "the root file system"

// overlay makes an overlay of the layers.
func (b *builder) overlay(fs Rootfs) call.Reg {
	p := b.parent
	var lowers []call.Reg // the top one first
	for _, lower := range slices.Backward(fs.Lowers) {
		lowers = append(lowers, b.tree(lower, false, true))
	}
	var top string
	var upper call.Reg
	layers := lowers
	if fs.Upper != "" {
		// Upper and work must be on one mount, so it is made of a directory that holds
		// both.
		top = commonDir(fs.Upper, fs.Work)
		upper = b.tree(top, false, true)
		layers = append(layers, upper)
	}
	below := func(dir string) string {
		return "./" + strings.TrimPrefix(strings.TrimPrefix(filepath.Clean(dir), top), "/")
	}
	var root call.Reg
	if b.Host.OverlayByName {
		root = b.overlayByName(lowers, upper, fs.Upper != "", below(fs.Upper), below(fs.Work))
	} else {
		ctx := b.fsopen(p, "overlay", theRoot)
		set := func(key string, fd call.Reg, what string) {
			p.Call(unix.SYS_FSCONFIG, call.Get(ctx), call.Int(unix.FSCONFIG_SET_FD), call.Str(key), call.Int(0), call.Get(fd)).
				As("add " + what + " to the overlay")
		}
		for i, fd := range lowers {
			set("lowerdir+", fd, fs.Lowers[len(fs.Lowers)-1-i])
		}
		if fs.Upper != "" {
			for _, dir := range []struct{ key, path string }{{"upperdir", fs.Upper}, {"workdir", fs.Work}} {
				fd := p.Reg()
				p.Call(unix.SYS_OPENAT2, call.Get(upper), call.Str(below(dir.path)),
					openHow(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS), call.Int(sizeofOpenHow)).
					To(fd).As("open " + dir.path)
				set(dir.key, fd, dir.path)
				layers = append(layers, fd)
			}
		}
		root = b.overlayMount(ctx)
	}
	for _, fd := range layers {
		p.Call(unix.SYS_CLOSE, call.Get(fd))
	}
	return root
}

// overlayMount sets what is the same for every overlay and mounts it.
func (b *builder) overlayMount(ctx call.Reg) call.Reg {
	// Plain layers, whatever the kernel's defaults are: what is in upper can be read
	// without knowing the layers below.
	for _, opt := range []string{"index", "metacopy", "redirect_dir"} {
		b.fsconfig(b.parent, ctx, opt, "off", theRoot)
	}
	for _, kv := range b.context() {
		b.fsconfig(b.parent, ctx, kv[0], kv[1], theRoot)
	}
	return b.fsmount(b.parent, ctx, rootAttrs, theRoot)
}

// overlayByName gives the layers names, in a mount namespace that exists as long
// as this takes and for this thread only, so that nothing is mounted on the node.
func (b *builder) overlayByName(lowers []call.Reg, upper call.Reg, writable bool, upperDir, workDir string) call.Reg {
	p := b.parent
	what := "name the layers"
	own := p.Reg()
	p.Call(unix.SYS_OPENAT, call.Int(unix.AT_FDCWD), call.Str("/proc/thread-self/ns/mnt"), call.Int(unix.O_RDONLY|unix.O_CLOEXEC)).To(own).As(what)
	p.Call(unix.SYS_UNSHARE, call.Int(unix.CLONE_NEWNS)).As("make a mount namespace for the layers")
	p.Call(unix.SYS_MOUNT_SETATTR, call.Int(unix.AT_FDCWD), call.Str("/"), call.Int(unix.AT_RECURSIVE),
		mountAttr(0, 0, unix.MS_PRIVATE), call.Int(sizeofMountAttr)).As(what)
	dir := b.fsmount(p, b.fsopen(p, "tmpfs", what), 0, what)
	p.Call(unix.SYS_MOVE_MOUNT, call.Get(dir), call.Str(""), call.Int(unix.AT_FDCWD), call.Str("/proc"), call.Int(unix.MOVE_MOUNT_F_EMPTY_PATH)).As(what)
	p.Call(unix.SYS_FCHDIR, call.Get(dir)).As(what)
	name := func(fd call.Reg, as string) {
		p.Call(unix.SYS_MKDIRAT, call.Get(dir), call.Str(as), call.Int(0o755)).As(what)
		p.Call(unix.SYS_MOVE_MOUNT, call.Get(fd), call.Str(""), call.Get(dir), call.Str(as), call.Int(unix.MOVE_MOUNT_F_EMPTY_PATH)).As(what)
	}
	var names []string
	for i, fd := range lowers {
		names = append(names, strconv.Itoa(i))
		name(fd, names[i])
	}
	ctx := b.fsopen(p, "overlay", theRoot)
	b.fsconfig(p, ctx, "lowerdir", strings.Join(names, ":"), theRoot)
	if writable {
		name(upper, "rw")
		b.fsconfig(p, ctx, "upperdir", "rw/"+upperDir, theRoot)
		b.fsconfig(p, ctx, "workdir", "rw/"+workDir, theRoot)
	}
	root := b.overlayMount(ctx)
	p.Call(unix.SYS_SETNS, call.Get(own), call.Int(unix.CLONE_NEWNS)).As("return to the node's mount namespace")
	p.Call(unix.SYS_CLOSE, call.Get(own))
	p.Call(unix.SYS_CLOSE, call.Get(dir))
	return root
}

// commonDir returns the deepest directory that holds both, neither of them
// itself.
func commonDir(a, b string) string {
	a, b = filepath.Dir(filepath.Clean(a)), filepath.Dir(filepath.Clean(b))
	for a != b {
		if len(a) > len(b) {
			a = filepath.Dir(a)
		} else {
			b = filepath.Dir(b)
		}
	}
	return a
}

// fsopen, fsconfig and fsmount make a file system by the mount API, attached
// nowhere.
func (b *builder) fsopen(p *call.Program, fstype, what string) call.Reg {
	return b.fsopenFrom(p, fstype, fstype, what)
}

// fsopenFrom is fsopen with a source of its own, which for these file systems is a
// name only.
func (b *builder) fsopenFrom(p *call.Program, fstype, source, what string) call.Reg {
	ctx := p.Reg()
	p.Call(unix.SYS_FSOPEN, call.Str(fstype), call.Int(unix.FSOPEN_CLOEXEC)).To(ctx).As("make " + what + " (" + fstype + ")")
	b.fsconfig(p, ctx, "source", source, what) // what df and mount show
	return ctx
}

// fsconfig sets an option, without a value if that is empty.
func (b *builder) fsconfig(p *call.Program, ctx call.Reg, key, value, what string) {
	as := "set option " + key + "=" + value + " of " + what
	if value == "" {
		p.Call(unix.SYS_FSCONFIG, call.Get(ctx), call.Int(unix.FSCONFIG_SET_FLAG), call.Str(key), call.Int(0), call.Int(0)).As(as)
		return
	}
	p.Call(unix.SYS_FSCONFIG, call.Get(ctx), call.Int(unix.FSCONFIG_SET_STRING), call.Str(key), call.Str(value), call.Int(0)).As(as)
}

func (b *builder) fsmount(p *call.Program, ctx call.Reg, attrs int, what string) call.Reg {
	mount := p.Reg()
	p.Call(unix.SYS_FSCONFIG, call.Get(ctx), call.Int(unix.FSCONFIG_CMD_CREATE), call.Int(0), call.Int(0), call.Int(0)).As("make " + what)
	p.Call(unix.SYS_FSMOUNT, call.Get(ctx), call.Int(unix.FSMOUNT_CLOEXEC), call.Int(attrs)).To(mount).As("mount " + what)
	p.Call(unix.SYS_CLOSE, call.Get(ctx))
	return mount
}

// spreadRoot sets linux.rootfsPropagation, as runc does: with all that is mounted
// below if it begins with an "r".
func (b *builder) spreadRoot() {
	name := b.spec.Linux.RootfsPropagation
	flag := propagations[name]
	if flag == 0 || flag == unix.MS_PRIVATE {
		return
	}
	deep := 0
	if strings.HasPrefix(name, "r") {
		deep = unix.AT_RECURSIVE
	}
	b.child.Call(unix.SYS_MOUNT_SETATTR, call.Get(b.root), call.Str(""), call.Int(unix.AT_EMPTY_PATH|deep), mountAttr(0, 0, flag), call.Int(sizeofMountAttr)).
		As("set linux.rootfsPropagation to " + name)
}
