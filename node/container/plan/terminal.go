package plan

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
)

// Terminal is the size of a terminal in characters.
type Terminal struct {
	Rows, Columns uint16
}

// devptsOf returns which of the mounts has the container's terminals, -1 if none.
func devptsOf(mounts []specs.Mount) int {
	return slices.IndexFunc(mounts, func(m specs.Mount) bool {
		return m.Type == "devpts" && destination(m) == "/dev/pts"
	})
}

// needTerminal returns an error if a process that asks for a terminal gets none,
// or one that does not gets one.
func needTerminal(proc *specs.Process, t *Terminal, mounts []specs.Mount) error {
	switch {
	case proc.Terminal != (t != nil):
		return fmt.Errorf("process.terminal is %t, and a terminal is given: %t", proc.Terminal, t != nil)
	case t != nil && devptsOf(mounts) < 0:
		return unsupported("a terminal in a container without a devpts at /dev/pts")
	}
	return nil
}

// terminals makes the file system of the container's terminals. The shim makes
// it, and keeps a descriptor: a terminal is opened through that, so that nobody
// has to find /dev/ptmx in a place where the container can put something else.
func (b *builder) terminals() error {
	i := devptsOf(b.spec.Mounts)
	if i < 0 {
		return nil
	}
	o, err := parseOptions(b.spec.Mounts[i].Options, false)
	if err != nil {
		return fmt.Errorf("mount /dev/pts: %w", err)
	}
	p := b.parent
	pts := b.spread(p, b.fsmount(p, b.openDevpts(o), int(o.set), "/dev/pts"), o, "/dev/pts")
	l := b.spec.Linux
	p.Call(unix.SYS_FCHOWNAT, call.Get(pts), call.Str("ptmx"), call.Int(hostID(l.UIDMappings, 0)), call.Int(hostID(l.GIDMappings, 0)), call.Int(0)).
		As("give /dev/ptmx to the container's root")
	b.devpts, b.bound[i] = pts, []mounted{{reg: b.give(pts), dest: "/dev/pts", dir: true}}
	if b.Terminal != nil {
		b.master, b.peer = openTerminal(p, pts, *b.Terminal, hostID(l.UIDMappings, b.spec.Process.User.UID))
		b.terminal = b.give(b.peer)
	}
	return nil
}

// openDevpts configures the file system. It is begun in the child's mount namespace:
// by that the kernel knows whose terminals may use up those that it keeps back
// for the node itself (kernel.pty.reserve).
func (b *builder) openDevpts(o options) call.Reg {
	p := b.parent
	what := "enter the container's mount namespace"
	own := p.Reg()
	p.Call(unix.SYS_OPENAT, call.Int(unix.AT_FDCWD), call.Str("/proc/thread-self/ns/mnt"), call.Int(unix.O_RDONLY|unix.O_CLOEXEC)).To(own).As(what)
	p.Call(unix.SYS_UNSHARE, call.Int(unix.CLONE_FS)).As(what)
	p.Call(unix.SYS_SETNS, call.Get(ChildFD), call.Int(unix.CLONE_NEWNS)).As(what)
	ctx := p.Reg()
	p.Call(unix.SYS_FSOPEN, call.Str("devpts"), call.Int(unix.FSOPEN_CLOEXEC)).To(ctx).As("make /dev/pts (devpts)")
	p.Call(unix.SYS_SETNS, call.Get(own), call.Int(unix.CLONE_NEWNS)).As("return to the node's mount namespace")
	p.Call(unix.SYS_CLOSE, call.Get(own))
	b.fsconfig(p, ctx, "source", "devpts", "/dev/pts")
	for _, kv := range append(o.data, b.context()...) {
		maps := map[string][]specs.LinuxIDMapping{"uid": b.spec.Linux.UIDMappings, "gid": b.spec.Linux.GIDMappings}[kv[0]]
		if n, err := strconv.ParseUint(kv[1], 10, 32); maps != nil && err == nil {
			id := hostID(maps, uint32(n))
			if id < 0 {
				continue // as little a number in the container as one on the node
			}
			kv[1] = strconv.Itoa(id)
			if b.Host.SignedIDs {
				// Without a sign it is written as the number that overflows to it.
				kv[1] = strconv.FormatUint(uint64(int64(int32(uint32(id)))), 10)
			}
		}
		b.fsconfig(p, ctx, kv[0], kv[1], "/dev/pts")
	}
	return ctx
}

// openTerminal opens a terminal of the file system in pts, for a process of the
// user uid (a number on the node): the master and its peer. Whatever the container
// has mounted below pts is not entered.
func openTerminal(p *call.Program, pts call.Reg, t Terminal, uid int) (master, peer call.Reg) {
	master, peer = p.Reg(), p.Reg()
	what := "open a terminal"
	p.Call(unix.SYS_OPENAT2, call.Get(pts), call.Str("ptmx"),
		openHow(unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV|unix.RESOLVE_NO_SYMLINKS),
		call.Int(sizeofOpenHow)).To(master).As(what)
	p.Call(unix.SYS_IOCTL, call.Get(master), call.Int(unix.TIOCSPTLCK), call.Data(make([]byte, 4))).As(what)
	p.Call(unix.SYS_IOCTL, call.Get(master), call.Int(unix.TIOCGPTPEER), call.Int(unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)).To(peer).As(what)
	p.Call(unix.SYS_FCHOWN, call.Get(peer), call.Int(uid), call.Int(-1)).As("give the terminal to the process's user")
	size := binary.NativeEndian.AppendUint16(nil, t.Rows)
	size = binary.NativeEndian.AppendUint16(size, t.Columns)
	p.Call(unix.SYS_IOCTL, call.Get(peer), call.Int(unix.TIOCSWINSZ), call.Data(append(size, 0, 0, 0, 0))).As("set the size of the terminal")
	return master, peer
}

// console puts the container's terminal at /dev/console: in a file that was made
// for it in the file system of /dev, of which the container's image knows nothing.
func (b *builder) console() {
	if b.terminal == 0 || b.devKind == devBound {
		return // of a /dev that is the node's the console is, too
	}
	c := b.child
	what := "mount the terminal on /dev/console"
	c.Call(unix.SYS_OPEN_TREE, call.Get(b.terminal), call.Str(""),
		call.Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)).To(b.next).As(what)
	if b.devKind == devOwn {
		c.Call(unix.SYS_MOVE_MOUNT, call.Get(b.next), call.Str(""), call.Get(b.dev), call.Str("console"), call.Int(unix.MOVE_MOUNT_F_EMPTY_PATH)).As(what)
		c.Call(unix.SYS_CLOSE, call.Get(b.next))
		return
	}
	terminal := c.Reg()
	c.Call(unix.SYS_FCNTL, call.Get(b.next), call.Int(unix.F_DUPFD_CLOEXEC), call.Int(0)).To(terminal).As(what)
	c.Call(unix.SYS_CLOSE, call.Get(b.next))
	b.attach(mounted{reg: terminal, dest: "/dev/console"}) // making the file uses b.next
}
