package disk

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"berth.internal/internal/durable"
	"berth.internal/storage"
)

var _ storage.Importer = (*Store)(nil)

// Import implements storage.Importer. A link needs a Store on the same file
// system. No reserve is kept: it is not blobs of clients that come here.
func (s *Store) Import(ctx context.Context, c storage.Content, from storage.Store, link bool) (storage.Imported, error) {
	did, err := s.take(ctx, c, from, link)
	if err != nil {
		return storage.Imported{}, fmt.Errorf("import %s: %w", c.Key, storage.Medium(err))
	}
	return did, nil
}

func (s *Store) take(ctx context.Context, c storage.Content, from storage.Store, link bool) (did storage.Imported, err error) {
	to, err := s.path(c.Key)
	if err != nil {
		return did, err
	}
	// First, so that Sync makes also those names durable that are there already.
	if err := s.shard(filepath.Dir(to)); err != nil {
		return did, err
	}
	if info, err := os.Stat(to); err == nil && info.Size() == c.Size {
		return storage.Imported{Linked: sameFile(info, from, c.Key)}, ctx.Err()
	}
	blob, err := from.Open(ctx, c.Key)
	if err != nil {
		return did, err
	}
	defer blob.Close()
	if blob.Size() != c.Size {
		return did, fmt.Errorf("it has %d bytes of %d: %w", blob.Size(), c.Size, storage.ErrMismatch)
	}
	if other, ok := from.(*Store); ok && link {
		linked, err := other.linkTo(c.Key, to)
		if linked || err != nil {
			return storage.Imported{New: linked, Linked: linked}, err
		}
	}
	return storage.Imported{New: true}, s.copyIn(ctx, c, blob, to)
}

// sameFile tells whether the file of info is that of key in from.
func sameFile(info fs.FileInfo, from storage.Store, key storage.Key) bool {
	other, ok := from.(*Store)
	if !ok {
		return false
	}
	path, err := other.path(key)
	if err != nil {
		return false
	}
	theirs, err := os.Stat(path)
	return err == nil && os.SameFile(info, theirs)
}

// linkTo gives the file of key another name, unless the file systems do not
// allow that.
func (s *Store) linkTo(key storage.Key, to string) (bool, error) {
	path, err := s.path(key)
	if err != nil {
		return false, err
	}
	err = os.Link(path, to)
	if errors.Is(err, fs.ErrExist) { // in another size, as nothing of ours is
		if err = os.Remove(to); err == nil {
			err = os.Link(path, to)
		}
	}
	for _, no := range []error{syscall.EXDEV, syscall.EPERM, syscall.EMLINK, syscall.EOPNOTSUPP, syscall.ENOSYS} {
		if errors.Is(err, no) {
			return false, nil
		}
	}
	return err == nil, err
}

// copyIn copies blob, verified and synced, to the path to.
func (s *Store) copyIn(ctx context.Context, c storage.Content, blob storage.Blob, to string) error {
	if err := c.Digest.Validate(); err != nil {
		return err
	}
	path, err := s.uploadPath(rand.Text())
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = s.fillFrom(ctx, f, c, blob)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(path, to)
	}
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// fillFrom writes blob to f and verifies what it wrote.
func (s *Store) fillFrom(ctx context.Context, f *os.File, c storage.Content, blob storage.Blob) error {
	p := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(p)
	verifier := c.Digest.Verifier()
	var size, started int64
	for {
		n, rerr := blob.Read(*p)
		if _, err := f.Write((*p)[:n]); err != nil {
			return err
		}
		if _, err := verifier.Write((*p)[:n]); err != nil {
			return err
		}
		size += int64(n)
		started = startWriteback(f, started, size)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(rerr, io.EOF):
			if size != c.Size || !verifier.Verified() {
				return fmt.Errorf("its bytes are not those of %s: %w", c.Digest, storage.ErrMismatch)
			}
			return f.Sync()
		case rerr != nil:
			return rerr
		}
	}
}

// Sync implements storage.Importer.
func (s *Store) Sync(ctx context.Context) error {
	s.mu.Lock()
	dirs := make([]string, 0, len(s.shards))
	for dir := range s.shards {
		dirs = append(dirs, dir)
	}
	s.mu.Unlock()
	slices.Sort(dirs)
	for _, dir := range dirs {
		err := ctx.Err()
		if err == nil {
			err = durable.SyncDir(dir)
		}
		if err != nil {
			return fmt.Errorf("sync store: %w", storage.Medium(err))
		}
	}
	return nil
}
