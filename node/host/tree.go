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
	dir, err := os.OpenRoot(layer)
	if err != nil {
		return nil, "", false, err
	}
	defer func() { dir.Close() }()
	steps := strings.Split(full, "/")
	for i, step := range steps {
		fi, err := dir.Lstat(step)
		if err != nil {
			return nil, "", hidden, err
		}
		last := i == len(steps)-1
		switch {
		case fi.IsDir() && last:
			return nil, "", false, nil
		case fi.IsDir():
			next, err := dir.OpenRoot(step)
			if err != nil {
				return nil, "", false, err
			}
			dir.Close()
			dir = next
			hidden = hidden || opaque(dir)
		case !last || isWhiteout(fi):
			return nil, "", true, fs.ErrNotExist
		case fi.Mode()&fs.ModeSymlink != 0:
			target, err = dir.Readlink(step)
			return nil, target, false, err
		default:
			f, err = openRegular(dir, step)
			return f, "", false, err
		}
	}
	return nil, "", false, nil
}

// openRegular opens a regular file and nothing else: a pipe would block, a
// device could do anything.
func openRegular(dir *os.Root, name string) (*os.File, error) {
	f, err := dir.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%s is not a regular file", name), err, f.Close())
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
	for _, attr := range []string{"trusted.overlay.opaque", "user.overlay.opaque"} {
		var value [1]byte
		n, err := unix.Fgetxattr(int(d.Fd()), attr, value[:])
		if err == nil && n == 1 && (value[0] == 'y' || value[0] == 'x') {
			return true
		}
	}
	return false
}
