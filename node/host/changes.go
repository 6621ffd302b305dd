package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"
)

// ChangeKind is what happened to a file of a container.
type ChangeKind string

// What can have happened, in Docker's letters.
const (
	Modified ChangeKind = "C"
	Added    ChangeKind = "A"
	Deleted  ChangeKind = "D"
)

// Change is a file of a container that is not as in its image.
type Change struct {
	Kind ChangeKind
	Path string // absolute
}

// maxChanges is how many changes are told, and maxDepth how deep directories may be
// in each other.
const (
	maxChanges = 1 << 20
	maxDepth   = 1000
)

// Changes returns what a container has changed of its image's files, in the order of
// their paths. Errors: ErrNotFound; ErrConflict if there are too many to tell.
func (h *Host) Changes(ctx context.Context, ref string) ([]Change, error) {
	c, err := h.find(ref)
	if err != nil {
		return nil, err
	}
	lowers, err := h.opts.Images.Layers(digest.Digest(c.rec.ImageID))
	if err != nil {
		return nil, err
	}
	var layers tree
	for _, dir := range slices.Backward(lowers) {
		layers = append(layers, dir)
	}
	upper, err := os.OpenRoot(c.path("upper"))
	if missing(err) {
		return nil, nil // it was never started
	}
	if err != nil {
		return nil, err
	}
	defer upper.Close()
	d := differ{ctx: ctx, image: layers, given: c.given()}
	if err := d.dir(upper, "/", false); err != nil {
		return nil, fmt.Errorf("compare the files of container %s with its image: %w", shortID(c.rec.ID), err)
	}
	d.sort()
	return d.changes, nil
}

// given are the places of what the container was given, which is made in its
// files for something to be mounted on.
func (c *ctr) given() map[string]bool {
	given := map[string]bool{"/dev": true, "/proc": true, "/sys": true, "/etc/hosts": true, "/etc/hostname": true, "/etc/resolv.conf": true, "/dev/console": true}
	for _, m := range c.rec.Spec.Mounts {
		given[path.Clean(m.Target)] = true
	}
	return given
}

// differ compares the upper directory of an overlay with those below it.
type differ struct {
	ctx     context.Context
	image   tree
	given   map[string]bool
	changes []Change
}

func (d *differ) add(kind ChangeKind, name string) error {
	if len(d.changes) == maxChanges {
		return conflict("more than %d files are changed", maxChanges)
	}
	d.changes = append(d.changes, Change{kind, name})
	return d.ctx.Err()
}

func (d *differ) sort() {
	slices.SortFunc(d.changes, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
}

// dir compares what is in an open directory of the upper one. fresh says that nothing
// below it is of the image's.
func (d *differ) dir(dir *os.Root, name string, fresh bool) error {
	if strings.Count(name, "/") > maxDepth {
		return conflict("directories are more than %d deep in each other", maxDepth)
	}
	f, err := dir.Open(".")
	if err != nil {
		return err
	}
	entries, err := f.ReadDir(-1)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	for _, e := range entries {
		if err := d.entry(dir, path.Join(name, e.Name()), e.Name(), fresh); err != nil {
			return err
		}
	}
	return nil
}

// entry compares one file.
func (d *differ) entry(dir *os.Root, name, base string, fresh bool) error {
	fi, err := dir.Lstat(base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the container has just removed it
	}
	if err != nil {
		return err
	}
	var below fs.FileInfo
	if !fresh {
		if below, err = d.image.lstat(name[1:]); err != nil {
			return err
		}
	}
	switch {
	case isWhiteout(fi) && below == nil:
		return nil // made and removed again
	case isWhiteout(fi):
		return d.add(Deleted, name)
	case d.given[name] && !fi.IsDir():
		return nil
	case !fi.IsDir() && below == nil:
		return d.add(Added, name)
	case !fi.IsDir():
		return d.add(Modified, name)
	}
	sub, err := dir.OpenRoot(base)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer sub.Close()
	before := len(d.changes)
	covers := opaque(sub)
	if covers && below != nil && below.IsDir() {
		if err := d.hidden(sub, name); err != nil {
			return err
		}
	}
	if err := d.dir(sub, name, fresh || covers || below == nil || !below.IsDir()); err != nil {
		return err
	}
	switch {
	case d.given[name], below == nil && len(d.changes) == before && d.holdsGiven(name):
		return nil // made to be mounted on
	case below == nil:
		return d.add(Added, name)
	case len(d.changes) > before || !sameDir(below, fi):
		return d.add(Modified, name)
	}
	return nil
}

// holdsGiven reports whether a directory is there only for what was mounted below it.
func (d *differ) holdsGiven(name string) bool {
	for place := range d.given {
		if strings.HasPrefix(place, name+"/") {
			return true
		}
	}
	return false
}

// hidden tells what of the image's directory is gone since the container's own
// directory hides it.
func (d *differ) hidden(dir *os.Root, name string) error {
	names, err := d.image.list(name[1:])
	if err != nil {
		return err
	}
	for _, base := range names {
		if _, err := dir.Lstat(base); errors.Is(err, fs.ErrNotExist) {
			if err := d.add(Deleted, path.Join(name, base)); err != nil {
				return err
			}
		}
	}
	return nil
}

// sameDir reports whether a directory that was only copied up is as it was.
func sameDir(a, b fs.FileInfo) bool {
	x, xok := a.Sys().(*syscall.Stat_t)
	y, yok := b.Sys().(*syscall.Stat_t)
	return xok && yok && a.IsDir() && a.Mode() == b.Mode() && x.Uid == y.Uid && x.Gid == y.Gid
}

// lstat describes the file at name, whose parent directories are no links, in the
// uppermost layer that says something about it; nil if it is in none.
func (t tree) lstat(name string) (fs.FileInfo, error) {
	for _, layer := range t {
		fi, hidden, err := lstatIn(layer, name)
		switch {
		case err == nil:
			return fi, nil
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		case hidden:
			return nil, nil
		}
	}
	return nil, nil
}

// lstatIn is lstat for one layer. hidden says that the layer hides what lies below it.
func lstatIn(layer, name string) (fi fs.FileInfo, hidden bool, err error) {
	dir, err := os.OpenRoot(layer)
	if err != nil {
		return nil, false, err
	}
	defer func() { dir.Close() }()
	steps := strings.Split(name, "/")
	for i, step := range steps {
		fi, err := dir.Lstat(step)
		switch {
		case err != nil:
			return nil, hidden, err
		case isWhiteout(fi), i < len(steps)-1 && !fi.IsDir():
			return nil, true, fs.ErrNotExist
		case i == len(steps)-1:
			return fi, false, nil
		}
		next, err := dir.OpenRoot(step)
		if err != nil {
			return nil, hidden, err
		}
		dir.Close()
		dir = next
		hidden = hidden || opaque(dir)
	}
	return nil, hidden, fs.ErrNotExist
}

// list returns the names in a directory that a process would see.
func (t tree) list(name string) ([]string, error) {
	var names []string
	gone := map[string]bool{}
	for _, layer := range t {
		root, err := os.OpenRoot(layer)
		if err != nil {
			return nil, err
		}
		dir, err := root.OpenRoot(name)
		root.Close()
		if err != nil {
			continue // not in this layer, or not as a directory
		}
		f, err := dir.Open(".")
		if err == nil {
			entries, rerr := f.ReadDir(-1)
			err = errors.Join(rerr, f.Close())
			for _, e := range entries {
				fi, ferr := dir.Lstat(e.Name())
				if ferr == nil && isWhiteout(fi) {
					gone[e.Name()] = true
				} else if !gone[e.Name()] && !slices.Contains(names, e.Name()) {
					names = append(names, e.Name())
				}
			}
		}
		covers := opaque(dir)
		dir.Close()
		if err != nil {
			return nil, err
		}
		if covers {
			break
		}
	}
	return names, nil
}
