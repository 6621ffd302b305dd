package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// untar unpacks the tar r as an overlayfs lower directory into the empty
// directory root. It trusts nothing in it: every entry is made relative to a
// descriptor of its parent, which was reached from root's without following a
// link.
//
// Of duplicate entries the last wins. A missing parent is made, owned by root
// with mode 0755 and the time 0, so that the same layer is the same tree on
// every node; so is the root, if the tar has no entry for it.
//
// Errors: ErrInvalid for what is wrong with the tar, naming the entry. When r
// fails, its own error counts, not what untar makes of it.
func untar(ctx context.Context, root *os.File, r io.Reader, limits Limits) (layerInfo, error) {
	u := &unpacker{
		root: root, limits: limits, dirs: dirCache{root: int(root.Fd())},
		times: map[string]time.Time{"": time.Unix(0, 0)}, buf: make([]byte, 256<<10),
	}
	defer u.dirs.close()
	if err := chattr(u.dirs.root, &tar.Header{Mode: 0o755}); err != nil {
		return layerInfo{}, err
	}
	tr := tar.NewReader(r)
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return layerInfo{}, fmt.Errorf("%w: after entry %d: %w", ErrInvalid, u.info.Entries, err)
		}
		if err := ctx.Err(); err != nil {
			return layerInfo{}, err
		}
		err = u.entry(hdr, tr)
		if errors.Is(err, errRefused) || impossible(err) {
			err = fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		if err != nil {
			return layerInfo{}, fmt.Errorf("entry %.200q: %w", hdr.Name, err)
		}
	}
	// What follows the end mark is part of the DiffID too.
	if _, err := io.CopyBuffer(io.Discard, r, u.buf); err != nil {
		return layerInfo{}, fmt.Errorf("%w: after entry %d: %w", ErrInvalid, u.info.Entries, err)
	}
	return u.info, u.setTimes()
}

// impossible says whether the kernel refused what an entry asks for because it
// makes no sense in any directory: a link into a tree that it replaces, a target
// or attribute that is too long.
func impossible(err error) bool {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return false
	}
	switch errno {
	case unix.ENOENT, unix.EEXIST, unix.ENOTDIR, unix.EISDIR, unix.ELOOP, unix.ENAMETOOLONG, unix.EMLINK, unix.EINVAL, unix.E2BIG, unix.ERANGE:
		return true
	}
	return false
}

// maxDirNames bounds the memory that the paths of all directories of a layer
// take, in bytes: enough for millions of the usual length.
const maxDirNames = 256 << 20

type unpacker struct {
	root   *os.File
	limits Limits
	dirs   dirCache
	times  map[string]time.Time // of directories, set when nothing is made in them any more
	names  int                  // bytes of the keys of times
	buf    []byte
	info   layerInfo
}

// node is where an entry goes: the name base in the directory dir, open as
// parent.
type node struct {
	path, dir, base string
	parent          int
}

// entry unpacks one entry, whose content r is.
func (u *unpacker) entry(hdr *tar.Header, r io.Reader) error {
	u.info.Entries++
	if u.info.Entries > u.limits.Entries {
		return refuse("more than %d entries", u.limits.Entries)
	}
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil // git archive's comment
	}
	name, err := entryName(hdr.Name, u.limits.Depth)
	if err != nil {
		return err
	}
	if err := checkHeader(hdr); err != nil {
		return err
	}
	if name == "" {
		if hdr.Typeflag != tar.TypeDir {
			return refuse("the root is not a directory")
		}
		u.times[""] = hdr.ModTime
		return chattr(u.dirs.root, hdr)
	}
	n := node{path: name}
	if n.dir, n.base, err = splitName(name); err != nil {
		return err
	}
	if n.parent, err = u.parent(n.dir); err != nil {
		return err
	}
	if strings.HasPrefix(n.base, whiteoutPrefix) {
		return u.whiteout(n)
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
		return u.directory(n, hdr)
	case tar.TypeReg, tar.TypeGNUSparse:
		return u.file(n, hdr, r)
	case tar.TypeLink:
		return u.link(n, hdr)
	case tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return u.special(n, hdr)
	}
	return refuse("entry of unknown type %q", hdr.Typeflag)
}

// directory makes n, or changes the directory that it is.
func (u *unpacker) directory(n node, hdr *tar.Header) error {
	opaque := false
	if err := unix.Mkdirat(n.parent, n.base, 0o700); err == unix.EEXIST {
		st, err := lstat(n)
		if err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			// What the whiteout hid must not show through the new directory.
			opaque = isWhiteout(st)
			if err := unix.Unlinkat(n.parent, n.base, 0); err != nil {
				return wrap("replace", err)
			}
			if err := unix.Mkdirat(n.parent, n.base, 0o700); err != nil {
				return wrap("mkdir", err)
			}
		}
	} else if err != nil {
		return wrap("mkdir", err)
	}
	u.times[n.path] = hdr.ModTime
	if u.names += len(n.path); u.names > maxDirNames {
		return refuse("paths of directories of more than %d bytes together", maxDirNames)
	}
	fd, err := unix.Openat(n.parent, n.base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return wrap("open", err)
	}
	defer unix.Close(fd)
	if opaque {
		if err := setOpaque(fd); err != nil {
			return err
		}
	}
	return chattr(fd, hdr)
}

// file makes the regular file n.
func (u *unpacker) file(n node, hdr *tar.Header, r io.Reader) error {
	u.info.Size += hdr.Size
	if u.info.Size > u.limits.Bytes {
		return refuse("files of more than %d bytes", u.limits.Bytes)
	}
	var fd int
	if err := u.create(n, func() (err error) {
		fd, err = unix.Openat(n.parent, n.base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	}); err != nil {
		return err
	}
	err := u.fill(fd, hdr, r)
	if cerr := unix.Close(fd); err == nil && cerr != nil {
		err = wrap("close", cerr)
	}
	if err != nil {
		return err
	}
	return setTime(n.parent, n.base, hdr.ModTime)
}

func (u *unpacker) fill(fd int, hdr *tar.Header, r io.Reader) error {
	for left := hdr.Size; left > 0; {
		n, err := io.ReadFull(r, u.buf[:min(left, int64(len(u.buf)))])
		if err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		left -= int64(n)
		for b := u.buf[:n]; len(b) > 0; {
			n, err := unix.Write(fd, b)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return wrap("write", err)
			}
			b = b[n:]
		}
	}
	return chattr(fd, hdr)
}

// link makes n a second name of another file of this layer. A file of a layer
// below cannot be meant: builders copy it up first.
func (u *unpacker) link(n node, hdr *tar.Header) error {
	name, err := entryName(hdr.Linkname, u.limits.Depth)
	if err != nil {
		return fmt.Errorf("hard link to %.200q: %w", hdr.Linkname, err)
	}
	if name == n.path {
		return nil // already is
	}
	dir, base, err := splitName(name)
	if err != nil {
		return fmt.Errorf("hard link to %.200q: %w", hdr.Linkname, err)
	}
	target := node{path: name, dir: dir, base: base}
	// Not through the cache: it could close n.parent to make room.
	if target.parent, err = u.dirs.open(dir); err == nil {
		defer unix.Close(target.parent)
		var st unix.Stat_t
		if st, err = lstat(target); err == nil && (isWhiteout(st) || st.Mode&unix.S_IFMT == unix.S_IFDIR) {
			return refuse("hard link to %.200q, which is no file", hdr.Linkname)
		}
	}
	if err != nil {
		return refuse("hard link to %.200q, which is not in this layer: %w", hdr.Linkname, err)
	}
	return u.create(n, func() error {
		return unix.Linkat(target.parent, target.base, n.parent, n.base, 0)
	})
}

// special makes what has no content: symbolic link, device or pipe.
func (u *unpacker) special(n node, hdr *tar.Header) error {
	if err := u.create(n, func() error {
		switch hdr.Typeflag {
		case tar.TypeSymlink:
			return unix.Symlinkat(hdr.Linkname, n.parent, n.base)
		case tar.TypeChar:
			return unix.Mknodat(n.parent, n.base, unix.S_IFCHR|0o600, device(hdr))
		case tar.TypeBlock:
			return unix.Mknodat(n.parent, n.base, unix.S_IFBLK|0o600, device(hdr))
		}
		return unix.Mknodat(n.parent, n.base, unix.S_IFIFO|0o600, 0)
	}); err != nil {
		return err
	}
	if err := unix.Fchownat(n.parent, n.base, hdr.Uid, hdr.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return wrap("chown", err)
	}
	if hdr.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(n.parent, n.base, mode(hdr), 0); err != nil {
			return wrap("chmod", err)
		}
	}
	return setTime(n.parent, n.base, hdr.ModTime)
}

// whiteout makes n, whose name begins with .wh., what overlayfs takes for it: a
// character device 0:0 in the place of what is gone, or a mark on the directory
// whose whole former content is gone. It hides what is below this layer, not
// what is in it.
func (u *unpacker) whiteout(n node) error {
	if n.base == whiteoutOpaque {
		fd, err := u.dirs.open(n.dir)
		if err != nil {
			return wrap("open", err)
		}
		defer unix.Close(fd)
		return setOpaque(fd)
	}
	if strings.HasPrefix(n.base, whiteoutMeta) {
		return refuse("aufs's own file")
	}
	n.path = strings.TrimSuffix(n.path, n.base)
	n.base = strings.TrimPrefix(n.base, whiteoutPrefix)
	n.path += n.base
	if n.base == "" || n.base == "." || n.base == ".." {
		return refuse("whiteout of nothing")
	}
	err := unix.Mknodat(n.parent, n.base, unix.S_IFCHR, 0)
	if !errors.Is(err, unix.EEXIST) {
		return wrap("make whiteout", err)
	}
	st, err := lstat(n)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	fd, err := u.dirs.open(n.path)
	if err != nil {
		return wrap("open", err)
	}
	defer unix.Close(fd)
	return setOpaque(fd)
}

// create runs mk, which makes n, and where something is in its place removes
// that first.
func (u *unpacker) create(n node, mk func() error) error {
	err := mk()
	if errors.Is(err, unix.EEXIST) {
		if err := u.remove(n); err != nil {
			return wrap("replace", err)
		}
		err = mk()
	}
	return wrap("create", err)
}

func (u *unpacker) remove(n node) error {
	err := unix.Unlinkat(n.parent, n.base, 0)
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	root, err := os.OpenRoot(procPath(u.root))
	if err != nil {
		return err
	}
	defer root.Close()
	u.dirs.forget(n.path)
	return root.RemoveAll(n.path)
}

// parent returns a descriptor of the directory at path dir, which it makes
// where it is missing. The next call may close it.
func (u *unpacker) parent(dir string) (int, error) {
	fd, err := u.dirs.get(dir)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		if err = u.makeParents(dir); err == nil {
			fd, err = u.dirs.get(dir)
		}
	}
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EXDEV):
		return -1, refuse("a parent is a symbolic link")
	case errors.Is(err, unix.ENOTDIR):
		return -1, refuse("a parent is not a directory")
	}
	return -1, wrap("open parent", err)
}

// makeParents makes the directories of path dir that are missing or gone.
func (u *unpacker) makeParents(dir string) error {
	for i := 0; i <= len(dir); i++ {
		if i < len(dir) && dir[i] != '/' {
			continue
		}
		n := node{path: dir[:i]}
		n.dir, n.base, _ = splitName(n.path)
		var err error
		if n.parent, err = u.dirs.get(n.dir); err != nil {
			return err
		}
		st, err := lstat(n)
		if err == nil && !isWhiteout(st) {
			continue
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
		if err := u.directory(n, &tar.Header{Mode: 0o755, ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
	}
	return nil
}

// setTimes sets the times of all directories. What was a directory once and is
// none any more has its own already.
func (u *unpacker) setTimes() error {
	for path, t := range u.times {
		fd, err := u.dirs.open(path)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue
		}
		if err != nil {
			return fmt.Errorf("directory %.200q: %w", path, err)
		}
		err = setTime(fd, ".", t)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("directory %.200q: %w", path, err)
		}
	}
	return nil
}
