package image

import (
	"archive/tar"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const xattrHeader = "SCHILY.xattr."

// checkHeader refuses what no file of a layer can be.
func checkHeader(hdr *tar.Header) error {
	const maxID = 1<<32 - 2 // the one above means "unchanged" to chown
	if hdr.Uid < 0 || hdr.Gid < 0 || int64(hdr.Uid) > maxID || int64(hdr.Gid) > maxID {
		return refuse("owner %d:%d is out of range", hdr.Uid, hdr.Gid)
	}
	if hdr.Devmajor < 0 || hdr.Devminor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor >= 1<<20 {
		return refuse("device %d:%d is out of range", hdr.Devmajor, hdr.Devminor)
	}
	for key := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrHeader)
		if !ok || ignoredXattr(name) {
			continue
		}
		if !acceptedXattr(name) {
			return refuse("extended attribute %.200q is not supported", name)
		}
		if hdr.Typeflag != tar.TypeReg && hdr.Typeflag != tar.TypeDir {
			return refuse("extended attribute %.200q on what is neither file nor directory", name)
		}
	}
	return nil
}

// acceptedXattr says which extended attributes are the image's to set. Those
// that overlayfs reads, trusted.overlay.* and user.overlay.*, are not: they
// could graft other trees.
func acceptedXattr(name string) bool {
	return name == "security.capability" ||
		strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.")
}

// ignoredXattr says which are labels of the machine that built the image, and
// mean nothing here.
func ignoredXattr(name string) bool {
	switch name {
	case "security.selinux", "security.ima", "security.evm", "security.apparmor", "security.SMACK64":
		return true
	}
	return false
}

// chattr gives the file or directory fd the owner, mode and extended attributes
// of hdr, in the order in which none undoes another: chown clears
// set-user-id bits and capabilities.
func chattr(fd int, hdr *tar.Header) error {
	if err := unix.Fchown(fd, hdr.Uid, hdr.Gid); err != nil {
		return wrap("chown", err)
	}
	if err := unix.Fchmod(fd, mode(hdr)); err != nil {
		return wrap("chmod", err)
	}
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrHeader)
		if !ok || !acceptedXattr(name) {
			continue
		}
		if err := unix.Fsetxattr(fd, name, []byte(value), 0); err != nil {
			return wrap("set extended attribute "+name, err)
		}
	}
	return nil
}

func mode(hdr *tar.Header) uint32 { return uint32(hdr.Mode & 0o7777) }

func device(hdr *tar.Header) int {
	return int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor)))
}

// setOpaque hides all that layers below have in the directory fd.
func setOpaque(fd int) error {
	return wrap("mark as opaque", unix.Fsetxattr(fd, "trusted.overlay.opaque", []byte("y"), 0))
}

func lstat(n node) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(n.parent, n.base, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

func isWhiteout(st unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

func setTime(parent int, base string, t time.Time) error {
	ts := unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
	return wrap("set time", unix.UtimesNanoAt(parent, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
}

// wrap names the operation that failed.
func wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", op, err)
}

func procPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// dirCache opens directories beneath root without following a link, and keeps
// the last few open: tars come directory by directory.
type dirCache struct {
	root int
	dirs [16]struct {
		path string // empty: free
		fd   int
	}
	next int
}

// get returns a descriptor of the directory at path; the root's for "". It stays
// open until 16 others have been asked for, or forget.
func (c *dirCache) get(path string) (int, error) {
	if path == "" {
		return c.root, nil
	}
	for i := range c.dirs {
		if c.dirs[i].path == path {
			return c.dirs[i].fd, nil
		}
	}
	fd, err := c.open(path)
	if err != nil {
		return -1, err
	}
	d := &c.dirs[c.next]
	if d.path != "" {
		unix.Close(d.fd)
	}
	d.path, d.fd = path, fd
	c.next = (c.next + 1) % len(c.dirs)
	return fd, nil
}

// open returns a new descriptor of the directory at path. Errors: ENOENT,
// ENOTDIR, ELOOP if there is a link on the way.
func (c *dirCache) open(path string) (int, error) {
	if path == "" {
		path = "."
	}
	for {
		fd, err := unix.Openat2(c.root, path, &unix.OpenHow{
			Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
		})
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		return fd, err
	}
}

// forget closes what is open at path and below.
func (c *dirCache) forget(path string) {
	for i := range c.dirs {
		if d := &c.dirs[i]; d.path == path || strings.HasPrefix(d.path, path+"/") {
			unix.Close(d.fd)
			d.path = ""
		}
	}
}

func (c *dirCache) close() {
	for i := range c.dirs {
		if d := &c.dirs[i]; d.path != "" {
			unix.Close(d.fd)
			d.path = ""
		}
	}
}
