package disk

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"berth.internal/internal/durable"
	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
)

// upload is a storage.Upload. Its first bytes stay in memory: most content is
// small, goes to the Index, and never needs a file.
type upload struct {
	store *Store
	id    string
	alg   digest.Algorithm
	hash  hash.Hash // of all bytes, with alg
	size  int64

	small   []byte   // all bytes, while file is nil
	file    *os.File // all bytes
	started int64    // bytes on their way from file to the disk
	checked int64    // bytes for which there was room when the disk was last asked

	promised int64 // bytes of the disk's room that are not written yet
	saved    int64 // bytes with which somebody may resume it; -1 if nobody may

	key  storage.Key // set by Seal
	done bool
}

var (
	_ storage.Upload   = (*upload)(nil)
	_ storage.Reserver = (*upload)(nil)
	_ io.ReaderFrom    = (*upload)(nil)
)

// Create implements storage.Store.
func (s *Store) Create(ctx context.Context, alg digest.Algorithm) (storage.Upload, error) {
	if !alg.Available() {
		return nil, fmt.Errorf("create upload: unknown digest algorithm %q", alg)
	}
	return &upload{store: s, id: rand.Text(), alg: alg, hash: alg.Hash(), saved: -1}, ctx.Err()
}

// Resume implements storage.Store.
func (s *Store) Resume(ctx context.Context, state storage.UploadState) (storage.Upload, error) {
	path, err := s.uploadPath(state.ID)
	if err != nil {
		return nil, fmt.Errorf("resume upload: %w: %w", err, storage.ErrNotFound)
	}
	if !state.Algorithm.Available() {
		return nil, fmt.Errorf("resume upload %s: unknown digest algorithm %q", state.ID, state.Algorithm)
	}
	h := state.Algorithm.Hash()
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(state.Hash); err != nil {
		return nil, fmt.Errorf("resume upload %s: %w", state.ID, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("resume upload %s: %w", state.ID, storage.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("resume upload: %w", storage.Medium(err))
	}
	u := &upload{
		store: s, id: state.ID, alg: state.Algorithm, hash: h, size: state.Size,
		file: f, started: state.Size, checked: state.Size - writebackSize, saved: state.Size,
	}
	if err := u.cutBack(); err != nil {
		return nil, errors.Join(fmt.Errorf("resume upload %s: %w", state.ID, storage.Medium(err)), f.Close())
	}
	return u, ctx.Err()
}

// cutBack leaves u.size bytes in the file.
func (u *upload) cutBack() error {
	info, err := u.file.Stat()
	if err != nil {
		return err
	}
	if info.Size() < u.size {
		return fmt.Errorf("%d bytes of %d: %w", info.Size(), u.size, storage.ErrNotFound)
	}
	if err := u.file.Truncate(u.size); err != nil {
		return err
	}
	_, err = u.file.Seek(u.size, io.SeekStart)
	return err
}

func (u *upload) ID() string  { return u.id }
func (u *upload) Size() int64 { return u.size }

// Reserve implements storage.Reserver. What it finds room for it keeps for the
// upload, against others that come meanwhile.
func (u *upload) Reserve(n int64) error {
	if n <= storage.InlineMax {
		return nil
	}
	if err := u.claim(n); err != nil {
		return fmt.Errorf("reserve %d bytes for upload %s: %w", n, u.id, u.store.space.refused(err))
	}
	return nil
}

// claim promises n more bytes to the upload.
func (u *upload) claim(n int64) error {
	space := &u.store.space
	others := space.promised.Add(n) - n
	u.promised += n
	err := space.fits(storage.KindBlob, n, others)
	if err != nil {
		u.release(n)
	}
	return err
}

// release gives back n bytes of what was promised to the upload, or what is left
// of that.
func (u *upload) release(n int64) {
	n = min(n, u.promised)
	u.promised -= n
	u.store.space.promised.Add(-n)
}

// check refuses n more bytes if there is no room for them. It asks the disk once
// for many, and also when they were promised: others write to it, too.
func (u *upload) check(n int64) error {
	var err error
	switch {
	case n > u.promised:
		if u.claim(max(n, writebackSize)) != nil {
			err = u.claim(n - u.promised) // the last that fits
		}
	case u.file == nil || u.size+n-u.checked >= writebackSize:
		err = u.store.space.fits(storage.KindBlob, n, 0)
	default:
		return nil
	}
	if err != nil {
		return u.store.space.refused(err)
	}
	u.checked = u.size + n
	return nil
}

// Write implements io.Writer.
func (u *upload) Write(p []byte) (int, error) {
	n, err := u.take(p)
	u.hash.Write(p[:n])
	u.size += int64(n)
	if err != nil {
		return n, fmt.Errorf("write upload %s: %w", u.id, storage.Medium(err))
	}
	return n, nil
}

// take puts p in memory or in the file.
func (u *upload) take(p []byte) (int, error) {
	if u.done {
		return 0, fs.ErrClosed
	}
	if u.file == nil && len(u.small)+len(p) <= storage.InlineMax {
		u.small = append(u.small, p...)
		return len(p), nil
	}
	if err := u.spill(); err != nil {
		return 0, err
	}
	if err := u.check(int64(len(p))); err != nil {
		return 0, err
	}
	n, err := u.file.Write(p)
	u.release(int64(n))
	u.started = startWriteback(u.file, u.started, u.size+int64(n))
	return n, err
}

// spill moves the bytes from memory to a file. If it fails, they stay where
// they are.
func (u *upload) spill() error {
	if u.file != nil {
		return nil
	}
	path, err := u.store.uploadPath(u.id)
	if err == nil {
		err = u.check(0)
	}
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		_ = os.Remove(path) // a disk may report a failure and have made it
		return err
	}
	if _, err := f.Write(u.small); err != nil {
		return errors.Join(err, f.Close(), os.Remove(path))
	}
	u.file, u.small = f, nil
	return nil
}

// ReadFrom implements io.ReaderFrom. It takes all that r gave before it failed.
func (u *upload) ReadFrom(r io.Reader) (total int64, err error) {
	p := u.store.buffers.Get().(*[]byte)
	defer u.store.buffers.Put(p)
	for {
		n, rerr := fill(r, *p)
		took, err := u.Write((*p)[:n])
		total += int64(took)
		switch {
		case err != nil:
			return total, err
		case errors.Is(rerr, io.EOF):
			return total, nil
		case rerr != nil:
			return total, rerr
		}
	}
}

// fill is io.ReadFull, but returns r's error as it is: io.ErrUnexpectedEOF is
// that of a request that was cut short.
func fill(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

// Save implements storage.Upload.
func (u *upload) Save(ctx context.Context) (storage.UploadState, error) {
	state, err := u.save()
	if err != nil {
		return storage.UploadState{}, fmt.Errorf("save upload %s: %w", u.id, storage.Medium(err))
	}
	return state, ctx.Err()
}

func (u *upload) save() (state storage.UploadState, err error) {
	if u.done {
		return state, fs.ErrClosed
	}
	if err := u.spill(); err != nil {
		return state, err
	}
	if err := u.sync(); err != nil {
		return state, err
	}
	if u.saved < 0 {
		if err := durable.SyncDir(filepath.Dir(u.file.Name())); err != nil {
			return state, err
		}
	}
	u.saved = u.size
	sum, err := u.hash.(encoding.BinaryMarshaler).MarshalBinary()
	return storage.UploadState{ID: u.id, Size: u.size, Algorithm: u.alg, Hash: sum}, err
}

// sync makes the file durable. If that fails the upload is gone: the kernel
// forgets what it could not write, and a second try would succeed over a hole.
func (u *upload) sync() error {
	if err := u.file.Sync(); err != nil {
		return errors.Join(err, u.Abort())
	}
	return nil
}

// Inline implements storage.Upload.
func (u *upload) Inline(ctx context.Context, want digest.Digest) ([]byte, error) {
	if u.size > storage.InlineMax {
		return nil, fmt.Errorf("upload %s of %d bytes is too large to be inline", u.id, u.size)
	}
	if err := u.verify(want); err != nil {
		return nil, err
	}
	if u.file == nil {
		return u.small, ctx.Err()
	}
	data := make([]byte, u.size)
	if _, err := u.file.ReadAt(data, 0); err != nil {
		return nil, fmt.Errorf("read upload %s: %w", u.id, storage.Medium(err))
	}
	return data, ctx.Err()
}

// Seal implements storage.Upload.
func (u *upload) Seal(ctx context.Context, want digest.Digest) (storage.Key, error) {
	if err := u.verify(want); err != nil {
		return "", err
	}
	err := u.spill()
	if err == nil {
		err = u.sync()
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return "", fmt.Errorf("seal upload %s: %w", u.id, storage.Medium(err))
	}
	u.key = newKey(want, rand.Text())
	return u.key, nil
}

// verify drops the upload if its bytes do not hash to want.
func (u *upload) verify(want digest.Digest) error {
	if u.done {
		return fmt.Errorf("verify upload %s: %w", u.id, fs.ErrClosed)
	}
	if err := want.Validate(); err != nil {
		return fmt.Errorf("verify upload %s: %w", u.id, err)
	}
	h := u.hash
	if want.Algorithm() != u.alg {
		var content io.Reader = bytes.NewReader(u.small)
		if u.file != nil {
			content = io.NewSectionReader(u.file, 0, u.size)
		}
		h = want.Algorithm().Hash()
		if _, err := io.Copy(h, content); err != nil {
			return fmt.Errorf("verify upload %s: %w", u.id, storage.Medium(err))
		}
	}
	if got := digest.NewDigest(want.Algorithm(), h); got != want {
		return errors.Join(fmt.Errorf("upload %s is %s, not %s: %w", u.id, got, want, storage.ErrMismatch), u.Abort())
	}
	return nil
}

// Commit implements storage.Upload.
func (u *upload) Commit(ctx context.Context) error {
	err := u.commit(ctx)
	if err != nil {
		return fmt.Errorf("commit upload %s: %w", u.id, storage.Medium(err))
	}
	return nil
}

func (u *upload) commit(ctx context.Context) error {
	if u.key == "" || u.done {
		return errors.New("it is not sealed")
	}
	to, err := u.store.path(u.key)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = u.store.shard(filepath.Dir(to))
	}
	if err == nil {
		if err = os.Rename(u.file.Name(), to); errors.Is(err, fs.ErrNotExist) {
			u.store.lostShard(filepath.Dir(to))
			if _, gone := os.Lstat(u.file.Name()); errors.Is(gone, fs.ErrNotExist) {
				err = fmt.Errorf("it was discarded: %w", storage.ErrNotFound)
			}
		}
	}
	if err != nil {
		return err
	}
	// A power cut may bring the old name back as well, as an upload without a
	// session. So only the new one must be durable.
	u.end()
	return errors.Join(durable.SyncDir(filepath.Dir(to)), u.file.Close())
}

// end comes when nothing more is written.
func (u *upload) end() {
	u.done = true
	u.release(u.promised)
}

// Close implements storage.Upload. What nobody can resume goes: on a full disk
// it would take the room for a day.
func (u *upload) Close() error {
	if u.done || u.saved < 0 {
		return u.Abort()
	}
	u.end()
	var err error
	if u.size > u.saved {
		err = u.file.Truncate(u.saved)
	}
	if err = errors.Join(err, u.file.Close()); err != nil {
		return fmt.Errorf("close upload %s: %w", u.id, storage.Medium(err))
	}
	return nil
}

// Abort implements storage.Upload.
func (u *upload) Abort() error {
	if u.done {
		return nil
	}
	u.end()
	if u.file == nil {
		return nil
	}
	if err := errors.Join(u.file.Close(), os.Remove(u.file.Name())); err != nil {
		return fmt.Errorf("abort upload %s: %w", u.id, storage.Medium(err))
	}
	return nil
}
