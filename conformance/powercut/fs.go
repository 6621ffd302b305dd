// Package powercut is a file system for tests that keeps a journal of all that
// programs do to it. From that it tells what a disk would hold if the power had
// been cut at any moment: of writes without fsync of the file, and of names
// without fsync of the directory, nothing, all, or something at random. It also
// lets operations fail. It keeps everything in memory and is mounted by FUSE, so
// that a whole program can run on it unchanged, its memory maps included.
//
// It is as strict as POSIX allows a file system to be: an fsync of a file makes
// its bytes durable but not its name, bytes that an fsync failed to write are not
// written by the next one, and what is moved to another directory may be in both
// or in none. Only within a directory a name changes in one step, as on every
// file system.
package powercut

import (
	"context"
	"fmt"
	"path"
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
	root   *node

	mu      sync.Mutex // guards all below, and every node below root
	journal []change
	fault   *Fault
}

// node is a file or a directory, as programs see it.
type node struct {
	fs.Inode
	fs      *FS
	mode    uint32
	data    []byte           // of a file
	from    *Tree            // what it was mounted with; nil if it is new
	mounted map[string]*node // its children then
}

var (
	_ fs.NodeOnAdder   = (*node)(nil)
	_ fs.NodeCreater   = (*node)(nil)
	_ fs.NodeOpener    = (*node)(nil)
	_ fs.NodeReader    = (*node)(nil)
	_ fs.NodeWriter    = (*node)(nil)
	_ fs.NodeFsyncer   = (*node)(nil)
	_ fs.NodeGetattrer = (*node)(nil)
	_ fs.NodeSetattrer = (*node)(nil)
	_ fs.NodeMkdirer   = (*node)(nil)
	_ fs.NodeMknoder   = (*node)(nil)
	_ fs.NodeUnlinker  = (*node)(nil)
	_ fs.NodeRmdirer   = (*node)(nil)
	_ fs.NodeRenamer   = (*node)(nil)
	_ fs.NodeStatfser  = (*node)(nil)
	_ fs.NodeAllocater = (*node)(nil)
	_ fs.NodeLinker    = (*node)(nil)
)

// Mount mounts a file system that holds what is in tree on dir.
func Mount(dir string, tree *Tree) (*FS, error) {
	f := &FS{}
	f.root = f.newNode(syscall.S_IFDIR|0o755, tree)
	never := time.Duration(0) // attributes are not cached: sizes change under the kernel's feet
	server, err := fs.Mount(dir, f.root, &fs.Options{
		AttrTimeout: &never, EntryTimeout: &never,
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

// Fault lets operations fail.
type Fault struct {
	// Hits says whether it is about an operation. path begins at the root,
	// without a slash before.
	Hits func(k Kind, path string) bool

	After   int // how many such operations go well before
	Times   int // how many fail then; 0 means all
	Errno   syscall.Errno
	Happens bool // what is reported to have failed was done all the same

	seen int
}

// Break lets operations fail as fault says, or none if it is nil. It ends the
// fault before, and returns how many operations that one was about, also those
// that went well.
func (f *FS) Break(fault *Fault) (seen int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault != nil {
		seen = f.fault.seen
	}
	f.fault = fault
	return seen
}

// fails returns what an operation ends with, and whether to do it. The caller
// holds the lock.
func (n *node) fails(k Kind, name string) (errno syscall.Errno, do bool) {
	t := n.fs.fault
	if t == nil || !t.Hits(k, path.Join(n.Path(nil), name)) {
		return 0, true
	}
	t.seen++
	if t.seen <= t.After || t.Times > 0 && t.seen > t.After+t.Times {
		return 0, true
	}
	return t.Errno, t.Happens
}

func (f *FS) newNode(mode uint32, from *Tree) *node {
	n := &node{fs: f, mode: mode, from: from}
	if from != nil {
		n.data = slices.Clone(from.Data)
	}
	return n
}

func (n *node) isDir() bool { return n.mode&syscall.S_IFMT == syscall.S_IFDIR }

// OnAdd gives a directory what it is mounted with.
func (n *node) OnAdd(ctx context.Context) {
	if n.from == nil {
		return
	}
	n.mounted = map[string]*node{}
	for name, t := range n.from.Names {
		child := n.fs.newNode(t.Mode, t)
		n.mounted[name] = child
		n.AddChild(name, n.inode(ctx, child), true)
	}
}

func (n *node) inode(ctx context.Context, child *node) *fs.Inode {
	return n.NewPersistentInode(ctx, child, fs.StableAttr{Mode: child.mode & syscall.S_IFMT})
}

// note adds to the journal. The caller holds the lock.
func (n *node) note(c change) {
	c.on = n
	n.fs.journal = append(n.fs.journal, c)
}

// add puts a new child under n, unless that fails.
func (n *node) add(ctx context.Context, k Kind, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	errno, do := n.fails(k, name)
	if !do {
		return nil, errno
	}
	child := n.fs.newNode(mode, nil)
	inode := n.inode(ctx, child)
	n.note(change{kind: k, name: name, child: child})
	child.attr(&out.Attr)
	if errno != 0 {
		n.AddChild(name, inode, true)
	}
	return inode, errno
}

// change writes to a file, or sets its size if data is nil, unless that fails.
func (n *node) change(k Kind, off int64, data []byte) syscall.Errno {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	errno, do := n.fails(k, "")
	if do {
		c := change{kind: k, off: off, data: data}
		n.data = c.apply(n.data)
		n.note(c)
	}
	return errno
}

func (n *node) attr(a *fuse.Attr) {
	a.Mode, a.Size, a.Nlink = n.mode, uint64(len(n.data)), 1
	a.Blocks = (a.Size + 511) / 512
}

func (n *node) Create(ctx context.Context, name string, _, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	inode, errno := n.add(ctx, Create, name, syscall.S_IFREG|mode&0o777, out)
	return inode, nil, 0, errno
}

func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return n.add(ctx, Mkdir, name, syscall.S_IFDIR|mode&0o777, out)
}

// Mknod makes a socket.
func (n *node) Mknod(ctx context.Context, name string, mode, _ uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return n.add(ctx, Create, name, mode, out)
}

func (n *node) Link(_ context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	child, ok := target.(*node)
	if !ok {
		return nil, syscall.EXDEV
	}
	errno, do := n.fails(Link, name)
	if !do {
		return nil, errno
	}
	n.note(change{kind: Link, name: name, child: child})
	child.attr(&out.Attr)
	if errno != 0 {
		n.AddChild(name, child.EmbeddedInode(), true)
	}
	return child.EmbeddedInode(), errno
}

func (n *node) Unlink(_ context.Context, name string) syscall.Errno {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	errno, do := n.fails(Unlink, name)
	if !do {
		return errno
	}
	n.note(change{kind: Unlink, name: name})
	if errno != 0 {
		n.RmChild(name)
	}
	return errno
}

func (n *node) Rmdir(ctx context.Context, name string) syscall.Errno {
	if c := n.GetChild(name); c != nil && len(c.Children()) > 0 {
		return syscall.ENOTEMPTY
	}
	return n.Unlink(ctx, name)
}

func (n *node) Rename(_ context.Context, old string, to fs.InodeEmbedder, name string, flags uint32) syscall.Errno {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	dir, ok := to.(*node)
	child := n.GetChild(old)
	if !ok || child == nil || flags&^1 != 0 { // 1 is RENAME_NOREPLACE
		return syscall.EINVAL
	}
	if flags == 1 && dir.GetChild(name) != nil {
		return syscall.EEXIST
	}
	errno, do := dir.fails(Rename, name)
	if !do {
		return errno
	}
	moved := change{kind: Rename, name: name, child: child.Operations().(*node)}
	if dir == n {
		moved.old = old
		n.note(moved)
	} else {
		dir.note(moved)
		n.note(change{kind: Unlink, name: old})
	}
	if errno != 0 {
		n.MvChild(old, dir.EmbeddedInode(), name, true)
	}
	return errno
}

func (n *node) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_KEEP_CACHE, 0 // shared memory maps need the page cache
}

func (n *node) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	if errno, _ := n.fails(Read, ""); errno != 0 {
		return nil, errno
	}
	if off >= int64(len(n.data)) {
		return fuse.ReadResultData(nil), 0
	}
	return fuse.ReadResultData(dest[:copy(dest, n.data[off:])]), 0
}

func (n *node) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	if errno := n.change(Write, off, slices.Clone(data)); errno != 0 {
		return 0, errno
	}
	return uint32(len(data)), 0
}

func (n *node) Allocate(_ context.Context, _ fs.FileHandle, off, size uint64, _ uint32) syscall.Errno {
	n.fs.mu.Lock()
	has := uint64(len(n.data))
	n.fs.mu.Unlock()
	if off+size <= has {
		return 0
	}
	return n.change(Resize, int64(off+size), nil)
}

// Fsync of a file makes its bytes durable, of a directory its names. When it
// fails, the kernel takes a file's bytes for written all the same.
func (n *node) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	k := Sync
	if n.isDir() {
		k = SyncDir
	}
	errno, do := n.fails(k, "")
	switch {
	case do:
		n.note(change{kind: k})
	case k == Sync:
		n.note(change{kind: lose})
	}
	return errno
}

func (n *node) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	n.attr(&out.Attr)
	return 0
}

func (n *node) Setattr(_ context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		if errno := n.change(Resize, int64(size), nil); errno != 0 {
			return errno
		}
	}
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
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
