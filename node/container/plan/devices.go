package plan

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
)

// defaultDevices are there in every container (runtime-spec config-linux.md,
// "Default Devices"), but for /dev/console, which comes with a terminal.
func defaultDevices() []specs.LinuxDevice {
	mode := new(fs.FileMode(0o666))
	return []specs.LinuxDevice{
		{Path: "/dev/null", Type: "c", Major: 1, Minor: 3, FileMode: mode},
		{Path: "/dev/zero", Type: "c", Major: 1, Minor: 5, FileMode: mode},
		{Path: "/dev/full", Type: "c", Major: 1, Minor: 7, FileMode: mode},
		{Path: "/dev/random", Type: "c", Major: 1, Minor: 8, FileMode: mode},
		{Path: "/dev/urandom", Type: "c", Major: 1, Minor: 9, FileMode: mode},
		{Path: "/dev/tty", Type: "c", Major: 5, Minor: 0, FileMode: mode},
	}
}

// devLinks are the symbolic links of /dev ("Dev symbolic links").
func devLinks() [][2]string {
	return [][2]string{
		{"fd", "/proc/self/fd"},
		{"stdin", "/proc/self/fd/0"},
		{"stdout", "/proc/self/fd/1"},
		{"stderr", "/proc/self/fd/2"},
		{"core", "/proc/kcore"},
		{"ptmx", "pts/ptmx"},
	}
}

// capMknod is CAP_MKNOD of linux/capability.h.
const capMknod = 27

// device is one of the container's: its name below /dev, and what it is.
type device struct {
	name string
	specs.LinuxDevice
}

// deviceList returns the devices of the spec and the default ones. Of one that is
// there twice the first counts, so of a default device the spec's own definition.
func (b *builder) deviceList() ([]device, error) {
	var list []device
	seen := map[string]bool{}
	for _, d := range slices.Concat(b.spec.Linux.Devices, defaultDevices()) {
		name, ok := strings.CutPrefix(path.Clean(d.Path), "/dev/")
		if !ok {
			return nil, unsupported("device %s outside of /dev, where nothing keeps an image's programs from it", d.Path)
		}
		if deviceTypes[d.Type] == 0 {
			return nil, fmt.Errorf("device %s has type %q, not c, u, b or p", d.Path, d.Type)
		}
		if !seen[name] {
			list = append(list, device{name, d})
		}
		seen[name] = true
	}
	return list, nil
}

var deviceTypes = map[string]uint32{"c": unix.S_IFCHR, "u": unix.S_IFCHR, "b": unix.S_IFBLK, "p": unix.S_IFIFO}

// devices makes a file system for /dev with all that is in it. The node makes it, so
// its devices work in a user namespace, where the container itself can neither make
// nor change any.
//
// A container that has another file system at /dev, or none, gets from this one what
// it needs: if it has none, each device as a mount of its own. So it is with devices
// that the node may not make itself: they are the node's own.
func (b *builder) devices() error {
	list, err := b.deviceList()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(b.spec.Mounts, func(m specs.Mount) bool { return destination(m) == "/dev" })
	o := options{set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, data: [][2]string{{"mode", "755"}}}
	switch {
	case i < 0:
		b.devKind = devNone
	case isBind(b.spec.Mounts[i].Type, b.spec.Mounts[i].Options):
		b.devKind = devBound
	case b.spec.Mounts[i].Type != "tmpfs":
		return unsupported("a file system of type %q at /dev", b.spec.Mounts[i].Type)
	default:
		if o, err = parseOptions(b.spec.Mounts[i].Options, false); err != nil {
			return fmt.Errorf("mount /dev: %w", err)
		}
	}
	make := b.Host.NoCaps&(1<<capMknod) == 0
	if !make && b.devKind == devNone && slices.ContainsFunc(list, func(d device) bool { return d.Type == "p" }) {
		return unsupported("a named pipe among the devices of a container without a tmpfs at /dev, on a node that may not make devices")
	}
	dev := b.devTmpfs(o)
	if err := b.fillDev(dev, list, make); err != nil {
		return err
	}
	node := func(name string) (dir call.Reg, file string) { return dev, name }
	if !make {
		node = func(name string) (call.Reg, string) { return 0, "/dev/" + name }
	}
	// Streams that nobody asked for are the container's own /dev/null: of the node's,
	// a root without users of its own could change the mode, for all.
	b.null = b.parent.Reg()
	dir, file := node("null")
	b.parent.Call(unix.SYS_OPENAT, at(dir), call.Str(file), call.Int(unix.O_RDWR|unix.O_CLOEXEC), call.Int(0)).To(b.null).As("open /dev/null")
	b.nullHere = b.give(b.null)
	if b.devKind == devOwn {
		b.dev = b.give(dev)
		if make {
			return nil
		}
	}
	if make {
		// Before Linux 6.15 nothing can be cloned of what is attached nowhere.
		defer b.attachedFor(dev)()
	}
	b.cloneDevices(list, node, make)
	return nil
}

// Kinds of /dev.
const (
	devOwn   = iota // a tmpfs, made by the shim
	devBound        // something of the node's or of a volume's
	devNone         // what the image has
)

// at is a directory for openat: the register, or none for an absolute path.
func at(dir call.Reg) call.Arg {
	if dir == 0 {
		return call.Int(unix.AT_FDCWD)
	}
	return call.Get(dir)
}

// devTmpfs makes the file system.
func (b *builder) devTmpfs(o options) call.Reg {
	p := b.parent
	ctx := b.fsopen(p, "tmpfs", "/dev")
	for _, kv := range append(o.data, b.context()...) {
		b.fsconfig(p, ctx, kv[0], kv[1], "/dev")
	}
	return b.spread(p, b.fsmount(p, ctx, int(o.set&^unix.MOUNT_ATTR_RDONLY), "/dev"), o, "/dev")
}

// fillDev makes the devices in the file system, or files for them if they cannot be
// made, and what belongs beside them.
func (b *builder) fillDev(dev call.Reg, list []device, make bool) error {
	p := b.parent
	made := map[string]bool{}
	for _, d := range list {
		for i, c := range d.name {
			if dir := d.name[:i]; c == '/' && !made[dir] {
				made[dir] = true
				p.Call(unix.SYS_MKDIRAT, call.Get(dev), call.Str(dir), call.Int(0o755)).As("make /dev/" + dir)
			}
		}
		made[d.name] = true
		if !make && d.Type != "p" {
			p.Call(unix.SYS_MKNODAT, call.Get(dev), call.Str(d.name), call.Int(unix.S_IFREG), call.Int(0)).As("make a file for device " + d.Path)
			continue
		}
		if err := b.makeDevice(dev, d); err != nil {
			return err
		}
	}
	if b.Terminal != nil && !made["console"] {
		p.Call(unix.SYS_MKNODAT, call.Get(dev), call.Str("console"), call.Int(unix.S_IFREG|0o600), call.Int(0)).As("make /dev/console")
	}
	for _, l := range devLinks() {
		p.Call(unix.SYS_SYMLINKAT, call.Str(l[1]), call.Get(dev), call.Str(l[0])).On(call.Next, unix.EEXIST).As("make /dev/" + l[0])
	}
	return nil
}

// makeDevice makes one device below the directory dev.
func (b *builder) makeDevice(dev call.Reg, d device) error {
	mode := uint32(0o666)
	if d.FileMode != nil {
		mode = uint32(d.FileMode.Perm())
	}
	number := unix.Mkdev(uint32(d.Major), uint32(d.Minor))
	b.parent.Call(unix.SYS_MKNODAT, call.Get(dev), call.Str(d.name), call.Int(int(deviceTypes[d.Type]|mode)), call.Int(int(number))).As("make device " + d.Path)
	if d.UID == nil && d.GID == nil {
		return nil
	}
	uid, gid := hostID(b.spec.Linux.UIDMappings, 0), hostID(b.spec.Linux.GIDMappings, 0)
	if d.UID != nil {
		uid = hostID(b.spec.Linux.UIDMappings, *d.UID)
	}
	if d.GID != nil {
		gid = hostID(b.spec.Linux.GIDMappings, *d.GID)
	}
	if uid < 0 || gid < 0 {
		return fmt.Errorf("the owner of device %s is outside of the user namespace's mappings", d.Path)
	}
	b.parent.Call(unix.SYS_FCHOWNAT, call.Get(dev), call.Str(d.name), call.Int(uid), call.Int(gid), call.Int(unix.AT_SYMLINK_NOFOLLOW)).
		As("set the owner of device " + d.Path)
	return nil
}

// attachedFor attaches the mount in a mount namespace of this thread's own, until the
// function that it returns is called.
func (b *builder) attachedFor(mount call.Reg) (leave func()) {
	p := b.parent
	own := p.Reg()
	what := "make a mount namespace for devices"
	p.Call(unix.SYS_OPENAT, call.Int(unix.AT_FDCWD), call.Str("/proc/thread-self/ns/mnt"), call.Int(unix.O_RDONLY|unix.O_CLOEXEC)).To(own).As(what)
	p.Call(unix.SYS_UNSHARE, call.Int(unix.CLONE_NEWNS)).As(what)
	p.Call(unix.SYS_MOUNT_SETATTR, call.Int(unix.AT_FDCWD), call.Str("/"), call.Int(unix.AT_RECURSIVE),
		mountAttr(0, 0, unix.MS_PRIVATE), call.Int(sizeofMountAttr)).As(what)
	p.Call(unix.SYS_MOVE_MOUNT, call.Get(mount), call.Str(""), call.Int(unix.AT_FDCWD), call.Str("/proc"), call.Int(unix.MOVE_MOUNT_F_EMPTY_PATH)).As(what)
	return func() {
		p.Call(unix.SYS_SETNS, call.Get(own), call.Int(unix.CLONE_NEWNS)).As("return to the node's mount namespace")
		p.Call(unix.SYS_CLOSE, call.Get(own))
	}
}

// cloneDevices makes mounts of devices that go to their places one by one, and of
// /dev/null for each path that is masked.
func (b *builder) cloneDevices(list []device, node func(name string) (call.Reg, string), make bool) {
	clone := func(name string) call.Reg {
		r := b.parent.Reg()
		dir, file := node(name)
		b.parent.Call(unix.SYS_OPEN_TREE, at(dir), call.Str(file), call.Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)).To(r).
			As("take device /dev/" + name)
		return b.give(r)
	}
	for _, d := range list {
		if b.devKind == devNone || b.devKind == devOwn && !make && d.Type != "p" {
			b.nodes = append(b.nodes, mounted{reg: clone(d.name), dest: "/dev/" + d.name})
		}
	}
	for range b.spec.Linux.MaskedPaths {
		b.nulls = append(b.nulls, clone("null"))
	}
}

// attachDevices puts devices that are mounts of their own to their places, and beside
// them what programs expect there.
func (b *builder) attachDevices() {
	for _, d := range b.nodes {
		b.attach(d)
	}
	if b.devKind != devNone {
		return
	}
	b.makeDir("/dev")
	for _, l := range devLinks() {
		b.child.Call(unix.SYS_SYMLINKAT, call.Str(l[1]), call.Get(b.at), call.Str(l[0])).On(call.Next, unix.EEXIST, unix.EROFS).As("make /dev/" + l[0])
	}
	b.child.Call(unix.SYS_CLOSE, call.Get(b.at))
}
