package powercut

import (
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// Kind is what an operation does.
type Kind int

// The operations that change a file system, and Read.
const (
	Create Kind = iota
	Mkdir
	Link
	Unlink // and Rmdir
	Rename // of what is now at a path
	Write
	Resize
	Sync    // of a file
	SyncDir // of a directory
	Read
	lose // a Sync that failed
)

func (k Kind) String() string {
	return [...]string{"create", "mkdir", "link", "unlink", "rename", "write", "resize", "sync", "sync directory", "read", "lose"}[k]
}

// sector is how many bytes a disk writes whole or not at all.
const sector = 512

// change is an entry of the journal.
type change struct {
	on    *node
	kind  Kind
	name  string // of a directory's
	child *node  // under name; nil: removed
	old   string // the name that goes with that, if not empty
	off   int64  // where data is written, or the new size if data is nil
	data  []byte
}

// apply returns a file's bytes after a write.
func (c change) apply(b []byte) []byte {
	end := c.off + int64(len(c.data))
	if c.data == nil && c.off < int64(len(b)) {
		return b[:c.off]
	}
	if end > int64(len(b)) {
		b = append(b, make([]byte, end-int64(len(b)))...)
	}
	copy(b[c.off:], c.data)
	return b
}

// sectors are the parts of a write that reach a disk on their own.
func (c change) sectors() []change {
	if len(c.data) <= sector {
		return []change{c}
	}
	var list []change
	for data, off := c.data, c.off; len(data) > 0; {
		n := min(len(data), sector-int(off%sector))
		list = append(list, change{on: c.on, kind: c.kind, off: off, data: data[:n]})
		data, off = data[n:], off+int64(n)
	}
	return list
}

// Tree is what a disk holds: a file or a directory.
type Tree struct {
	Mode  uint32
	Data  []byte           // of a file
	Names map[string]*Tree // of a directory
}

// Write writes the tree, but for its sockets, to the directory dir, which need
// not exist.
func (t *Tree) Write(dir string) error {
	switch t.Mode & syscall.S_IFMT {
	case syscall.S_IFSOCK:
		return nil
	case syscall.S_IFREG:
		return os.WriteFile(dir, t.Data, os.FileMode(t.Mode&0o777))
	}
	if err := os.Mkdir(dir, os.FileMode(t.Mode&0o777)); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	for name, child := range t.Names {
		if err := child.Write(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// Moment is a point in the life of a file system: the number of changes before
// it.
type Moment int

// Now returns the moment after all that has happened.
func (f *FS) Now() Moment {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Moment(len(f.journal))
}

// Syncs returns the moments just before something became durable: the last ones
// at which a disk that keeps no more than it must was still in the state before.
func (f *FS) Syncs() []Moment {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []Moment
	for i, c := range f.journal {
		if c.kind == Sync || c.kind == SyncDir {
			list = append(list, Moment(i))
		}
	}
	return list
}

// Describe says what happened at a moment.
func (f *FS) Describe(at Moment) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if int(at) >= len(f.journal) {
		return "the end"
	}
	c := f.journal[at]
	return c.kind.String() + " " + filepath.Join(c.on.Path(nil), c.name)
}

// stored is a node on a disk.
type stored struct {
	data    []byte
	names   map[string]*node
	pending []change // since the last sync, oldest first
}

// Disk returns what a disk would hold if the power had been cut at a moment. Of
// what was not synced, each sector and each name survives with probability keep.
func (f *FS) Disk(at Moment, keep float64, rnd *rand.Rand) *Tree {
	f.mu.Lock()
	defer f.mu.Unlock()
	disk := map[*node]*stored{}
	for _, c := range f.journal[:at] {
		s := f.stored(disk, c.on)
		switch c.kind {
		case Sync, SyncDir:
			for _, p := range s.pending {
				s.apply(p)
			}
			s.pending = nil
		case lose:
			s.pending = nil
		default:
			s.pending = append(s.pending, c)
		}
	}
	return f.cut(disk, f.root, keep, rnd)
}

// stored returns what the disk has of n, which is at first what it was mounted
// with.
func (f *FS) stored(disk map[*node]*stored, n *node) *stored {
	s := disk[n]
	if s != nil {
		return s
	}
	s = &stored{names: map[string]*node{}}
	disk[n] = s
	if n.from == nil {
		return s
	}
	s.data = slices.Clone(n.from.Data)
	for name := range n.from.Names {
		s.names[name] = n.mounted[name]
	}
	return s
}

func (s *stored) apply(c change) {
	switch {
	case c.name == "":
		s.data = c.apply(s.data)
	case c.child == nil:
		delete(s.names, c.name)
	default:
		s.names[c.name] = c.child
		delete(s.names, c.old)
	}
}

func (f *FS) cut(disk map[*node]*stored, n *node, keep float64, rnd *rand.Rand) *Tree {
	s := f.stored(disk, n)
	after := stored{data: slices.Clone(s.data), names: maps.Clone(s.names)}
	for _, p := range s.pending {
		parts := []change{p}
		if p.data != nil {
			parts = p.sectors()
		}
		for _, part := range parts {
			if keep == 1 || keep > 0 && rnd.Float64() < keep {
				after.apply(part)
			}
		}
	}
	t := &Tree{Mode: n.mode, Data: after.data}
	if n.mode&syscall.S_IFMT == syscall.S_IFDIR {
		t.Names = map[string]*Tree{}
		for _, name := range slices.Sorted(maps.Keys(after.names)) { // what was drawn can be drawn again
			t.Names[name] = f.cut(disk, after.names[name], keep, rnd)
		}
	}
	return t
}
