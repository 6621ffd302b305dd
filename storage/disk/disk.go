// Package disk keeps bytes as files:
//
//	<root>/uploads/<id>
//	<root>/blobs/<algorithm>/<first two hex digits>/<hex>.<generation>
package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"berth.internal/internal/durable"
	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// copySize is the size in bytes of the pieces in which an upload arrives. It
// stays in a core's cache between the socket, the hash and the file.
const copySize = 256 << 10

// Options are the settings of a Store.
type Options struct {
	// Reserve is how many bytes of the disk blobs leave free, so that the index
	// on it can go on. At most a tenth of the disk is.
	Reserve int64
}

// Store is a storage.Store in a directory.
type Store struct {
	root    string
	buffers sync.Pool // *[]byte of copySize
	space   space

	mu     sync.Mutex
	shards map[string]bool // directories of blobs that are there for good
}

var (
	_ storage.Store   = (*Store)(nil)
	_ storage.Limited = (*Store)(nil)
)

// Open opens the Store in the directory root, and makes what is missing. The
// caller sees to it that no other process uses root.
func Open(root string, o Options) (*Store, error) {
	for _, dir := range []string{"blobs", "uploads"} {
		if err := durable.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			return nil, fmt.Errorf("open store: %w", storage.Medium(err))
		}
	}
	return &Store{
		root: root,
		buffers: sync.Pool{New: func() any {
			b := make([]byte, copySize)
			return &b
		}},
		space:  newSpace(root, o.Reserve),
		shards: map[string]bool{},
	}, nil
}

// Close does nothing: the Store holds no file open.
func (s *Store) Close() error { return nil }

// newKey returns the key of a new generation of d.
func newKey(d digest.Digest, generation string) storage.Key {
	return storage.Key(d.String() + "." + generation)
}

// path returns where the bytes of key are. The key may come from a damaged or
// hostile index: what is not a key must not become a path.
func (s *Store) path(key storage.Key) (string, error) {
	name, generation, _ := strings.Cut(string(key), ".")
	d, err := digest.Parse(name)
	if err != nil || !isWord(generation) {
		return "", fmt.Errorf("%.100q is not a key of this store", key)
	}
	hex := d.Encoded()
	return filepath.Join(s.root, "blobs", d.Algorithm().String(), hex[:2], hex+"."+generation), nil
}

// uploadPath returns where the bytes of upload id are.
func (s *Store) uploadPath(id string) (string, error) {
	if !isWord(id) {
		return "", fmt.Errorf("%.100q is not an upload of this store", id)
	}
	return filepath.Join(s.root, "uploads", id), nil
}

// isWord tells whether s can be an id or a generation of ours.
func isWord(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == ""
}

// blob is a file whose size is known.
type blob struct {
	*os.File
	size int64
}

func (b blob) Size() int64 { return b.size }

// ReadOnce says that what is read will not be needed again soon, so that it does
// not drive out of the page cache what is. An old kernel that cannot do that
// reads as usual.
func (b blob) ReadOnce() { _ = unix.Fadvise(int(b.Fd()), 0, 0, unix.FADV_NOREUSE) }

// Open implements storage.Store.
func (s *Store) Open(ctx context.Context, key storage.Key) (storage.Blob, error) {
	path, err := s.path(key)
	if err != nil {
		return nil, fmt.Errorf("open blob: %w: %w", err, storage.ErrNotFound)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open blob %s: %w", key, storage.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open blob: %w", storage.Medium(err))
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open blob: %w", storage.Medium(err)), f.Close())
	}
	return blob{f, info.Size()}, nil
}

// shard makes the directory dir of blobs, durable, unless that is done. Whether
// it is there tells nothing: who made it may not have come to the sync yet.
func (s *Store) shard(dir string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shards[dir] {
		return nil
	}
	err := durable.MkdirAll(dir, 0o700)
	s.shards[dir] = err == nil
	return err
}

// lostShard lets the next blob make the directory again that somebody removed.
func (s *Store) lostShard(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.shards, dir)
}

// Delete implements storage.Store. The bytes are gone for good when it returns,
// also if an earlier call removed them and got no further: the caller then
// forgets that they were there.
func (s *Store) Delete(ctx context.Context, keys ...storage.Key) error {
	var dirs []string
	for _, key := range keys {
		path, err := s.path(key)
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = os.Remove(path)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("delete blob: %w", storage.Medium(err))
		}
		dirs = append(dirs, filepath.Dir(path))
	}
	// Only now: the first sync takes all removals with it into one commit of the
	// file system's journal, and the others find nothing left to do.
	slices.Sort(dirs)
	for _, dir := range slices.Compact(dirs) {
		err := durable.SyncDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("delete blob: %w", storage.Medium(err))
		}
	}
	return nil
}

// Discard implements storage.Store.
func (s *Store) Discard(ctx context.Context, id string) error {
	path, err := s.uploadPath(id)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("discard upload: %w", storage.Medium(err))
	}
	return nil
}

// Uploads implements storage.Store. Files that are not ours are passed over.
func (s *Store) Uploads(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for name, err := range names(ctx, filepath.Join(s.root, "uploads")) {
			if err != nil {
				yield("", fmt.Errorf("list uploads: %w", err))
				return
			}
			if isWord(name) && !yield(name, nil) {
				return
			}
		}
	}
}

// Keys implements storage.Store. Files that are not ours are passed over.
func (s *Store) Keys(ctx context.Context) iter.Seq2[storage.Key, error] {
	return func(yield func(storage.Key, error) bool) {
		for path, err := range below(ctx, filepath.Join(s.root, "blobs"), 3) {
			if err != nil {
				yield("", fmt.Errorf("list blobs: %w", err))
				return
			}
			algorithm := filepath.Base(filepath.Dir(filepath.Dir(path)))
			key := storage.Key(algorithm + ":" + filepath.Base(path))
			if there, err := s.path(key); err == nil && there == path && !yield(key, nil) {
				return
			}
		}
	}
}

// below gives the paths that are depth levels below dir.
func below(ctx context.Context, dir string, depth int) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for name, err := range names(ctx, dir) {
			path := filepath.Join(dir, name)
			if err != nil || depth == 1 {
				if !yield(path, err) {
					return
				}
				continue
			}
			for path, err := range below(ctx, path, depth-1) {
				if !yield(path, err) {
					return
				}
			}
		}
	}
}

// names lists the directory dir, or nothing if it is a file.
func names(ctx context.Context, dir string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		entries, err := os.ReadDir(dir)
		if err == nil {
			err = ctx.Err()
		}
		if err != nil && !errors.Is(err, syscall.ENOTDIR) {
			yield("", err)
			return
		}
		for _, e := range entries {
			if !yield(e.Name(), nil) {
				return
			}
		}
	}
}
