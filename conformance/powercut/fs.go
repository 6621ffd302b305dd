// Package powercut is a file system for tests that forgets, when the power is
// cut, what was not synced: writes without fsync of the file, and names without
// fsync of the directory. It keeps everything in memory and is mounted by FUSE,
// so that a whole program can run on it unchanged, its memory maps included.
//
// It is as strict as POSIX allows a file system to be: an fsync of a file makes
// its bytes durable but not its name.
package powercut

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// FS is a mounted file system.
type FS struct {
	server *fuse.Server
	mu     sync.Mutex // guards every node below root
	root   *node
	lazy   bool
}

// node is a file or a directory, as programs see it and as the disk has it.
type node struct {
	fs.Inode
	fs   *FS
	mode uint32
	// of a file
	data    []byte
	durable []byte
	pending []write // since the last fsync, oldest first
	// of a directory
	names    map[string]*node // as on disk
	unsynced []name           // since the last fsync, oldest first
}

// write is a change of a file's bytes: data at off or, if data is nil, a new
// size.
type write struct {
	off  int64
	data []byte
}

// name is a change of a directory: child is nil for a name removed.
type name struct {
	name  string
	child *node
}

var (
	_ fs.NodeCreater   = (*node)(nil)
	_ fs.NodeOpener    = (*node)(nil)
	_ fs.NodeReader    = (*node)(nil)
	_ fs.NodeWriter    = (*node)(nil)
	_ fs.NodeFsyncer   = (*node)(nil)
	_ fs.NodeGetattrer = (*node)(nil)
	_ fs.NodeSetattrer = (*node)(nil)
	_ fs.NodeMkdirer   = (*node)(nil)
	_ fs.NodeUnlinker  = (*node)(nil)
	_ fs.NodeRmdirer   = (*node)(nil)
	_ fs.NodeRenamer   = (*node)(nil)
	_ fs.NodeStatfser  = (*node)(nil)
	_ fs.NodeAllocater = (*node)(nil)
	_ fs.NodeLinker    = (*node)(nil)
)

// Mount mounts an empty file system on dir.
func Mount(dir string) (*FS, error) {
	f := &FS{}
	f.root = f.newNode(syscall.S_IFDIR | 0o755)
	second := time.Duration(0) // attributes are never cached: sizes change under the kernel's feet
	server, err := fs.Mount(dir, f.root, &fs.Options{
		AttrTimeout: &second, EntryTimeout: &second,
		MountOptions: fuse.MountOptions{DirectMount: true, FsName: "powercut", Name: "powercut", AllowOther: true},
	})
	if err != nil {
		return nil, fmt.Errorf("mount on %s: %w", dir, err)
	}
	f.server = server
	return f, nil
}

// Unmount ends the file system. Nobody may have a file open.
func (f *FS) Unmount() error {
	err := f.server.Unmount()
	f.server.Wait()
	return err
}

// LoseSyncs makes every fsync from now on return at once without doing
// anything: what a program would be that forgot them. A test that does not
// fail then proves nothing.
func (f *FS) LoseSyncs(lose bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lazy = lose
}

// Cut writes to dir what a disk would hold after the power was cut now. Of what
// was not synced each change survives with probability keep.
func (f *FS) Cut(dir string, keep float64, rnd *rand.Rand) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.root.cut(dir, keep, rnd)
}

func (n *node) cut(path string, keep float64, rnd *rand.Rand) error {
	if !n.isDir() {
		b := slices.Clone(n.durable)
		for _, w := range n.pending {
			if rnd.Float64() < keep {
				b = w.apply(b)
			}
		}
		return os.WriteFile(path, b, os.FileMode(n.mode&0o777))
	}
	if err := os.Mkdir(path, os.FileMode(n.mode&0o777)); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	names := maps.Clone(n.names)
	for _, u := range n.unsynced {
		if rnd.Float64() < keep {
			u.apply(names)
		}
	}
	for name, child := range names {
		if err := child.cut(filepath.Join(path, name), keep, rnd); err != nil {
			return err
		}
	}
	return nil
}

func (w write) apply(b []byte) []byte {
	end := w.off + int64(len(w.data))
	if w.data == nil && w.off < int64(len(b)) {
		return b[:w.off]
	}
	if end > int64(len(b)) {
		b = append(b, make([]byte, end-int64(len(b)))...)
	}
	copy(b[w.off:], w.data)
	return b
}

func (u name) apply(names map[string]*node) {
	if u.child == nil {
		delete(names, u.name)
	} else {
		names[u.name] = u.child
	}
}

func (f *FS) newNode(mode uint32) *node {
	n := &node{fs: f, mode: mode}
	if n.isDir() {
		n.names = map[string]*node{}
	}
	return n
}

func (n *node) isDir() bool { return n.mode&syscall.S_IFMT == syscall.S_IFDIR }

// add puts a new child under n. The caller holds the lock.
func (n *node) add(ctx context.Context, called string, mode uint32) (*node, *fs.Inode) {
	child := n.fs.newNode(mode)
	n.unsynced = append(n.unsynced, name{called, child})
	return child, n.NewInode(ctx, child, fs.StableAttr{Mode: mode & syscall.S_IFMT})
}

func (n *node) change(w write) {
	n.data = w.apply(n.data)
	n.pending = append(n.pending, w)
}

func (n *node) attr(a *fuse.Attr) {
	a.Mode, a.Size, a.Nlink = n.mode, uint64(len(n.data)), 1
	a.Blocks = (a.Size + 511) / 512
}

func (n *node) Create(ctx context.Context, name string, _, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	child, inode := n.add(ctx, name, syscall.S_IFREG|mode&0o777)
	child.attr(&out.Attr)
	return inode, nil, 0, 0
}

func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	child, inode := n.add(ctx, name, syscall.S_IFDIR|mode&0o777)
	child.attr(&out.Attr)
	return inode, 0
}

func (n *node) Link(_ context.Context, target fs.InodeEmbedder, called string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	child, ok := target.(*node)
	if !ok {
		return nil, syscall.EXDEV
	}
	n.unsynced = append(n.unsynced, name{called, child})
	child.attr(&out.Attr)
	return child.EmbeddedInode(), 0
}

func (n *node) Unlink(_ context.Context, called string) syscall.Errno {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	n.unsynced = append(n.unsynced, name{called, nil})
	return 0
}

func (n *node) Rmdir(ctx context.Context, called string) syscall.Errno {
	if c := n.GetChild(called); c != nil && len(c.Children()) > 0 {
		return syscall.ENOTEMPTY
	}
	return n.Unlink(ctx, called)
}

func (n *node) Rename(_ context.Context, old string, to fs.InodeEmbedder, called string, flags uint32) syscall.Errno {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	dir, ok := to.(*node)
	child := n.GetChild(old)
	if !ok || child == nil || flags&^1 != 0 { // 1 is RENAME_NOREPLACE
		return syscall.EINVAL
	}
	if flags == 1 && dir.GetChild(called) != nil {
		return syscall.EEXIST
	}
	dir.unsynced = append(dir.unsynced, name{called, child.Operations().(*node)})
	n.unsynced = append(n.unsynced, name{old, nil})
	return 0
}

func (n *node) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_KEEP_CACHE, 0 // shared memory maps need the page cache
}

func (n *node) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	if off >= int64(len(n.data)) {
		return fuse.ReadResultData(nil), 0
	}
	return fuse.ReadResultData(dest[:copy(dest, n.data[off:])]), 0
}

func (n *node) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	n.change(write{off, slices.Clone(data)})
	return uint32(len(data)), 0
}

func (n *node) Allocate(_ context.Context, _ fs.FileHandle, off, size uint64, _ uint32) syscall.Errno {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	if end := int64(off + size); end > int64(len(n.data)) {
		n.change(write{off: end})
	}
	return 0
}

// Fsync of a file makes its bytes durable, of a directory its names.
func (n *node) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	if n.fs.lazy {
		return 0
	}
	for _, w := range n.pending {
		n.durable = w.apply(n.durable)
	}
	for _, u := range n.unsynced {
		u.apply(n.names)
	}
	n.pending, n.unsynced = nil, nil
	return 0
}

func (n *node) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	n.attr(&out.Attr)
	return 0
}

func (n *node) Setattr(_ context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	if size, ok := in.GetSize(); ok {
		n.change(write{off: int64(size)})
	}
	if mode, ok := in.GetMode(); ok {
		n.mode = n.mode&syscall.S_IFMT | mode&0o777
	}
	n.attr(&out.Attr)
	return 0
}

func (n *node) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	out.Bsize, out.Blocks, out.Bfree, out.Bavail, out.NameLen = 4096, 1<<22, 1<<21, 1<<21, 255
	return 0
}
