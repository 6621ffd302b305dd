// Package tree makes a mount of a directory with all that is mounted below it, the
// ids of each part mapped if its file system can do that. The kernel itself maps all
// mounts of a tree or none, and only before they are attached anywhere; so one FUSE
// file system below /tmp would keep /tmp out of every container with users of its own.
package tree

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// part is a mount on its way into a tree, attached nowhere yet.
type part struct {
	fd   int
	path string // its place below the first part
}

// Map returns a descriptor of a mount that is attached nowhere: of the file or directory
// that source is a descriptor of, its ids mapped through the user namespace users, with
// all that is mounted below. What cannot be mapped there, or is of the kernel's, keeps its owners, who have no
// number in that namespace: there they are nobody, and it gains no right by it. What the
// kernel copies of a tree is copied here: nothing that is unbindable, and changes on the
// node as they would reach a slave.
//
// It is for the thread that calls it to be in the mount namespace of source.
func Map(source, users int) (int, error) {
	const tries = 100
	for try := 1; ; try++ {
		tree, err := mapOnce(source, users)
		if err == nil || try == tries || !errors.Is(err, errChanged) {
			return tree, err
		}
	}
}

// errChanged says that what is mounted is not what it was a moment ago. For the
// shim's program it is the error of a call.
var errChanged = fmt.Errorf("mounts have changed while they were looked at: %w", unix.EAGAIN)

func mapOnce(source, users int) (int, error) {
	parts, err := open(source, users)
	if err != nil {
		return -1, err
	}
	if len(parts) == 1 {
		return parts[0].fd, nil
	}
	defer closeAll(parts)
	return join(parts)
}

// open opens all parts, the top one first and each before those below it.
func open(source, users int) (parts []part, err error) {
	defer func() {
		if err != nil {
			closeAll(parts)
		}
	}()
	table, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	id, err := mountID(source)
	if err != nil {
		return nil, err
	}
	dir, err := os.Readlink("/proc/thread-self/fd/" + strconv.Itoa(source))
	if err != nil {
		return nil, err
	}
	mounts := parse(string(table))
	top, err := clone(source, users, slices.ContainsFunc(mounts, func(m mount) bool { return m.id == id && ofKernel[m.kind] }))
	if err != nil {
		return nil, err
	}
	parts = []part{{fd: top}}
	for _, m := range below(mounts, id, dir) {
		path := strings.TrimPrefix(strings.TrimPrefix(m.point, dir), "/")
		fd, err := openPart(source, path, m.id, users)
		if err != nil {
			return parts, fmt.Errorf("%s: %w", m.point, err)
		}
		parts = append(parts, part{fd: fd, path: path})
	}
	return parts, nil
}

// ofKernel are file systems that show what the kernel has. None can have mapped ids, and
// who binds one (a monitoring agent its /proc) wants to read: owners do not matter.
var ofKernel = map[string]bool{
	"proc": true, "sysfs": true, "cgroup": true, "cgroup2": true, "debugfs": true, "tracefs": true, "securityfs": true,
}

// openPart opens the mount that is at path below source, and has the number id.
func openPart(source int, path string, id, users int) (int, error) {
	at, err := walk(source, path)
	if err != nil {
		return -1, errors.Join(err, errChanged)
	}
	defer unix.Close(at)
	switch found, err := mountID(at); {
	case err != nil:
		return -1, err
	case found != id:
		return -1, errChanged
	}
	fd, err := clone(at, users, true)
	if errors.Is(err, unix.EINVAL) { // it is attached nowhere any more, or unbindable by now
		err = errors.Join(err, errChanged)
	}
	return fd, err
}

// walk opens what is at path below dir, without following links: no mount is on one.
func walk(dir int, path string) (int, error) {
	return unix.Openat2(dir, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
}

// clone makes a mount of what fd is a descriptor of and maps its ids; anyway says that
// it may also be left as it is.
func clone(fd, users int, anyway bool) (int, error) {
	tree, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, err
	}
	// As a slave, so that the node is not told of what is attached to it.
	err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: unix.MS_SLAVE})
	if err == nil {
		err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users)})
		if anyway && (err == unix.EINVAL || err == unix.EPERM) { // EPERM: it has mapped ids already
			err = nil
		}
	}
	if err != nil {
		_ = unix.Close(tree)
		return -1, err
	}
	return tree, nil
}

// mountID returns the number of the mount that fd is a descriptor of. The file system
// is not asked, which may be one that nobody answers for.
func mountID(fd int) (int, error) {
	info, err := os.ReadFile("/proc/thread-self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(info)) {
		if id, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strconv.Atoi(strings.TrimSpace(id))
		}
	}
	return 0, errors.New("the kernel does not say of what mount a descriptor is")
}

// join attaches the parts to the first one and returns a mount of all. Before Linux 6.15
// nothing can be attached to what is attached nowhere itself, so it is done in a mount
// namespace that exists as long as this takes, and on a thread that ends with it.
func join(parts []part) (tree int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		tree, err = joinHere(parts)
	}()
	<-done
	return tree, err
}

func joinHere(parts []part) (int, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return -1, err
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		return -1, err
	}
	top := parts[0].fd
	// A directory on every node; that it is covered ends with this namespace.
	if err := unix.MoveMount(top, "", unix.AT_FDCWD, "/proc", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return -1, err
	}
	for _, p := range parts[1:] {
		at, err := walk(top, p.path)
		if err != nil { // a part that it is on was a slave, and went as it did on the node
			return -1, errors.Join(err, errChanged)
		}
		err = unix.MoveMount(p.fd, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
		_ = unix.Close(at)
		if err != nil {
			return -1, err
		}
	}
	return unix.OpenTree(top, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
}

func closeAll(parts []part) {
	for _, p := range parts {
		_ = unix.Close(p.fd)
	}
}
