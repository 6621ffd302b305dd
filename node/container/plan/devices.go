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

// devices makes the file system of /dev with all that is in it. The node makes
// it, so its devices work in a user namespace, where the container itself can
// neither make nor change any.
func (b *builder) devices() error {
	i := slices.IndexFunc(b.spec.Mounts, func(m specs.Mount) bool { return path.Clean(m.Destination) == "/dev" })
	if i < 0 || b.spec.Mounts[i].Type != "tmpfs" {
		return unsupported("a container without a tmpfs at /dev")
	}
	o, err := parseOptions(b.spec.Mounts[i].Options, false)
	if err != nil {
		return fmt.Errorf("mount /dev: %w", err)
	}
	p := b.parent
	ctx := b.fsopen(p, "tmpfs", "/dev")
	for _, kv := range append(o.data, b.context()...) {
		b.fsconfig(p, ctx, kv[0], kv[1], "/dev")
	}
	dev := b.spread(p, b.fsmount(p, ctx, int(o.set&^unix.MOUNT_ATTR_RDONLY), "/dev"), o, "/dev")
	made := map[string]bool{}
	for _, d := range slices.Concat(b.spec.Linux.Devices, defaultDevices()) {
		name, ok := strings.CutPrefix(path.Clean(d.Path), "/dev/")
		if !ok {
			return unsupported("device %s outside of /dev", d.Path)
		}
		if made[name] {
			continue // of a default device the spec's own definition counts
		}
		made[name] = true
		if err := b.device(dev, name, d, made); err != nil {
			return err
		}
	}
	if b.Terminal != nil && !made["console"] {
		p.Call(unix.SYS_MKNODAT, call.Get(dev), call.Str("console"), call.Int(unix.S_IFREG|0o600), call.Int(0)).As("make /dev/console")
	}
	for _, l := range devLinks() {
		p.Call(unix.SYS_SYMLINKAT, call.Str(l[1]), call.Get(dev), call.Str(l[0])).On(call.Next, unix.EEXIST).As("make /dev/" + l[0])
	}
	b.dev = b.give(dev)
	// Streams that nobody asked for are the container's own /dev/null: of the node's,
	// a root without users of its own could change the mode, for all.
	b.null = p.Reg()
	p.Call(unix.SYS_OPENAT, call.Get(dev), call.Str("null"), call.Int(unix.O_RDWR|unix.O_CLOEXEC), call.Int(0)).To(b.null).As("open /dev/null")
	b.nullHere = b.give(b.null)
	return nil
}

// device makes one device below the directory dev.
func (b *builder) device(dev call.Reg, name string, d specs.LinuxDevice, made map[string]bool) error {
	types := map[string]uint32{"c": unix.S_IFCHR, "u": unix.S_IFCHR, "b": unix.S_IFBLK, "p": unix.S_IFIFO}
	kind, ok := types[d.Type]
	if !ok {
		return fmt.Errorf("device %s has type %q, not c, u, b or p", d.Path, d.Type)
	}
	mode := uint32(0o666)
	if d.FileMode != nil {
		mode = uint32(d.FileMode.Perm())
	}
	for i, c := range name {
		if dir := name[:i]; c == '/' && !made[dir] {
			made[dir] = true
			b.parent.Call(unix.SYS_MKDIRAT, call.Get(dev), call.Str(dir), call.Int(0o755)).As("make /dev/" + dir)
		}
	}
	number := unix.Mkdev(uint32(d.Major), uint32(d.Minor))
	b.parent.Call(unix.SYS_MKNODAT, call.Get(dev), call.Str(name), call.Int(int(kind|mode)), call.Int(int(number))).As("make device " + d.Path)
	if d.UID == nil && d.GID == nil {
		return nil
	}
	uid, gid := 0, 0
	if d.UID != nil {
		uid = hostID(b.spec.Linux.UIDMappings, *d.UID)
	}
	if d.GID != nil {
		gid = hostID(b.spec.Linux.GIDMappings, *d.GID)
	}
	b.parent.Call(unix.SYS_FCHOWNAT, call.Get(dev), call.Str(name), call.Int(uid), call.Int(gid), call.Int(unix.AT_SYMLINK_NOFOLLOW)).
		As("set the owner of device " + d.Path)
	return nil
}
