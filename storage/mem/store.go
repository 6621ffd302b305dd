package mem

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"sync"

	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
)

// Store is a storage.Store. The zero value is empty and ready.
type Store struct {
	mu      sync.Mutex
	blobs   map[storage.Key][]byte
	uploads map[string][]byte
}

var _ storage.Store = (*Store)(nil)

// Create implements storage.Store.
func (s *Store) Create(ctx context.Context, alg digest.Algorithm) (storage.Upload, error) {
	if !alg.Available() {
		return nil, fmt.Errorf("create upload: unknown digest algorithm %q", alg)
	}
	return &upload{store: s, id: rand.Text(), alg: alg}, ctx.Err()
}

// Resume implements storage.Store.
func (s *Store) Resume(ctx context.Context, state storage.UploadState) (storage.Upload, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.uploads[state.ID]
	if !ok || int64(len(data)) < state.Size {
		return nil, fmt.Errorf("resume upload %s at %d bytes: %w", state.ID, state.Size, storage.ErrNotFound)
	}
	return &upload{store: s, id: state.ID, alg: state.Algorithm, data: bytes.Clone(data[:state.Size]), saved: true}, ctx.Err()
}

// Discard implements storage.Store.
func (s *Store) Discard(ctx context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.uploads, id)
	return ctx.Err()
}

// Uploads implements storage.Store.
func (s *Store) Uploads(context.Context) iter.Seq2[string, error] {
	s.mu.Lock()
	defer s.mu.Unlock()
	return list(slices.Collect(maps.Keys(s.uploads)))
}

// Keys implements storage.Store.
func (s *Store) Keys(context.Context) iter.Seq2[storage.Key, error] {
	s.mu.Lock()
	defer s.mu.Unlock()
	return list(slices.Collect(maps.Keys(s.blobs)))
}

func list[T any](all []T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for _, e := range all {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// Open implements storage.Store.
func (s *Store) Open(ctx context.Context, key storage.Key) (storage.Blob, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.blobs[key]
	if !ok {
		return nil, fmt.Errorf("open %s: %w", key, storage.ErrNotFound)
	}
	return blob{bytes.NewReader(data)}, ctx.Err()
}

// Delete implements storage.Store.
func (s *Store) Delete(ctx context.Context, keys ...storage.Key) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range keys {
		delete(s.blobs, key)
	}
	return ctx.Err()
}

// Close implements storage.Store.
func (s *Store) Close() error { return nil }

type blob struct{ *bytes.Reader }

func (blob) Close() error { return nil }

type upload struct {
	store *Store
	id    string
	alg   digest.Algorithm
	data  []byte
	key   storage.Key // set by Seal
	saved bool        // it may be discarded while it is open
	done  bool
}

func (u *upload) ID() string  { return u.id }
func (u *upload) Size() int64 { return int64(len(u.data)) }

func (u *upload) Write(p []byte) (int, error) {
	u.data = append(u.data, p...)
	return len(p), nil
}

func (u *upload) Save(ctx context.Context) (storage.UploadState, error) {
	if u.done {
		return storage.UploadState{}, fmt.Errorf("save upload %s: %w", u.id, fs.ErrClosed)
	}
	u.store.mu.Lock()
	defer u.store.mu.Unlock()
	if u.store.uploads == nil {
		u.store.uploads = make(map[string][]byte)
	}
	u.store.uploads[u.id], u.saved = bytes.Clone(u.data), true
	return storage.UploadState{ID: u.id, Size: u.Size(), Algorithm: u.alg}, ctx.Err()
}

func (u *upload) Inline(ctx context.Context, want digest.Digest) ([]byte, error) {
	if len(u.data) > storage.InlineMax {
		return nil, fmt.Errorf("upload %s of %d bytes is too large to be inline", u.id, len(u.data))
	}
	if err := u.verify(want); err != nil {
		return nil, err
	}
	return u.data, ctx.Err()
}

func (u *upload) Seal(ctx context.Context, want digest.Digest) (storage.Key, error) {
	if err := u.verify(want); err != nil {
		return "", err
	}
	u.key = storage.Key(want.Encoded() + "." + rand.Text())
	return u.key, ctx.Err()
}

// verify drops the upload if its bytes do not hash to want.
func (u *upload) verify(want digest.Digest) error {
	if u.done {
		return fmt.Errorf("verify upload %s: %w", u.id, fs.ErrClosed)
	}
	if err := want.Validate(); err != nil {
		return fmt.Errorf("verify upload %s: %w", u.id, err)
	}
	if got := want.Algorithm().FromBytes(u.data); got != want {
		return errors.Join(fmt.Errorf("upload %s is %s, not %s: %w", u.id, got, want, storage.ErrMismatch), u.Abort())
	}
	return nil
}

func (u *upload) Commit(ctx context.Context) error {
	if u.key == "" || u.done {
		return fmt.Errorf("commit upload %s: it is not sealed", u.id)
	}
	u.store.mu.Lock()
	defer u.store.mu.Unlock()
	if _, ok := u.store.uploads[u.id]; u.saved && !ok {
		return fmt.Errorf("commit upload %s: it was discarded: %w", u.id, storage.ErrNotFound)
	}
	if u.store.blobs == nil {
		u.store.blobs = make(map[storage.Key][]byte)
	}
	u.store.blobs[u.key] = u.data
	delete(u.store.uploads, u.id)
	u.done = true
	return ctx.Err()
}

func (u *upload) Close() error {
	u.done = true
	return nil
}

func (u *upload) Abort() error {
	if !u.done {
		u.done = true
		return u.store.Discard(context.Background(), u.id)
	}
	return nil
}
