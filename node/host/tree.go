package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links one lookup follows, as in the kernel.
const maxLinks = 40

// tree is the root of a container as overlayfs would show it, read without
// mounting it: the directories of its layers, uppermost first.
type tree []string

// open opens the regular file at name as a process inside the container would
// find it. Symbolic links, also absolute ones, are followed within the tree; no
// layer can lead out of it, since every step is taken beneath an open directory.
// Errors: fs.ErrNotExist.
func (t tree) open(name string) (*os.File, error) {
	todo := strings.Split(name, "/")
	var at []string // directories passed, free of links
	for links := 0; len(todo) > 0; {
		step := todo[0]
		todo = todo[1:]
		switch step {
		case "", ".":
			continue
		case "..":
			at = at[:max(len(at)-1, 0)]
			continue
		}
		full := path.Join(path.Join(at...), step)
		f, target, err := t.lookup(full)
		switch {
		case err != nil:
			return nil, fmt.Errorf("look up %s in the container's root: %w", name, err)
		case f != nil && len(strings.Trim(path.Join(todo...), "/.")) == 0:
			return f, nil
		case f != nil:
			return nil, errors.Join(fmt.Errorf("look up %s in the container's root: %s is a file", name, full), f.Close())
		case target != "":
			if links++; links > maxLinks {
				return nil, fmt.Errorf("look up %s in the container's root: too many links", name)
			}
			if path.IsAbs(target) {
				at = nil
			}
			todo = append(strings.Split(target, "/"), todo...)
		default:
			at = append(at, step)
		}
	}
	return nil, fmt.Errorf("look up %s in the container's root: it is a directory", name)
}

// lookup finds full, whose parent directories are no links, in the uppermost
// layer that says something about it. It returns an open regular file, or the
// target of a link, or nothing for a directory.
func (t tree) lookup(full string) (f *os.File, target string, err error) {
	for _, layer := range t {
		f, target, hidden, err := lookupIn(layer, full)
		if err == nil || hidden || !errors.Is(err, fs.ErrNotExist) {
			return f, target, err
		}
	}
	return nil, "", fs.ErrNotExist
}

// lookupIn finds full in one layer. hidden says that the layer hides whatever
// lies below it: by a whiteout, an opaque directory, or another kind of file.
func lookupIn(layer, full string) (f *os.File, target string, hidden bool, err error) {
	defer func() {
		if err != nil {
			err = &fs.PathError{Op: "look up", Path: path.Join(layer, full), Err: err}
		}
	}()
	const directory = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	dir, err := unix.Open(layer, directory&^unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, "", false, err
	}
	defer func() { unix.Close(dir) }()
	steps := strings.Split(full, "/")
	for _, step := range steps[:len(steps)-1] {
		next, err := unix.Openat(dir, step, directory, 0)
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			return nil, "", true, unix.ENOENT
		}
		if err != nil {
			return nil, "", hidden, err
		}
		unix.Close(dir)
		dir = next
		hidden = hidden || hides(dir)
	}
	last := steps[len(steps)-1]
	var st unix.Stat_t
	if err := unix.Fstatat(dir, last, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, "", hidden, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return nil, "", false, nil
	case unix.S_IFLNK:
		target, err = readlink(dir, last)
		return nil, target, false, err
	case unix.S_IFCHR:
		if st.Rdev == 0 { // a whiteout: what overlayfs takes for a deleted file
			return nil, "", true, unix.ENOENT
		}
	}
	f, err = openRegular(dir, last)
	return f, "", false, err
}

func readlink(dir int, name string) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, b)
	return string(b[:max(n, 0)]), err
}

// openRegular opens a regular file and nothing else: a pipe would block, a
// device could do anything.
func openRegular(dir int, name string) (*os.File, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, errors.Join(errors.New("not a regular file"), err, f.Close())
	}
	return f, nil
}

// isWhiteout reports whether overlayfs takes the file for a deleted one.
func isWhiteout(fi fs.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && fi.Mode()&fs.ModeCharDevice != 0 && st.Rdev == 0
}

// opaque reports whether the directory hides those of the layers below.
func opaque(dir *os.Root) bool {
	d, err := dir.Open(".")
	if err != nil {
		return false
	}
	defer d.Close()
	return hides(int(d.Fd()))
}

// hides is opaque for a descriptor.
func hides(dir int) bool {
	for _, attr := range []string{"trusted.overlay.opaque", "user.overlay.opaque"} {
		var value [1]byte
		n, err := unix.Fgetxattr(dir, attr, value[:])
		if err == nil && n == 1 && (value[0] == 'y' || value[0] == 'x') {
			return true
		}
	}
	return false
}
