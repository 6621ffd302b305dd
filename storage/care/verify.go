// Package care finds damage: Check compares what the Index says with what the
// Store has, once and on demand; Scrub reads everything again and again, slowly,
// and quarantines what is damaged. Both work beside a server that serves, and
// against the contract only. The reasons are in docs/design/0009-care.md.
package care

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"

	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
	"golang.org/x/time/rate"
)

const (
	page    = 256       // contents of a page
	bufSize = 256 << 10 // bytes read at once
)

// reader verifies contents, at a rate.
type reader struct {
	store storage.Store
	index storage.Index
	limit *rate.Limiter // bytes a second; nil: as fast as it goes
	every func() error  // called between two reads; an error ends the work; may be nil
	buf   []byte
}

func newReader(store storage.Store, index storage.Index, bytesPerSecond int64) *reader {
	r := &reader{store: store, index: index, buf: make([]byte, bufSize)}
	if bytesPerSecond > 0 {
		r.limit = rate.NewLimiter(rate.Limit(bytesPerSecond), bufSize)
	}
	return r
}

// verify tells what is wrong with the bytes of c, empty if nothing is, and looks
// once more at what seems wrong. Unless deep, bytes of the Store are counted, but
// not read. err is a reason to stop, such as a context that has ended.
func (r *reader) verify(ctx context.Context, c storage.Content, deep bool) (wrong string, err error) {
	look := func(ctx context.Context, c storage.Content) (string, error) { return r.once(ctx, c, deep) }
	if wrong, err = look(ctx, c); wrong == "" || err != nil {
		return "", err
	}
	return r.confirm(ctx, c, look)
}

// once tells what seems wrong with the bytes of c at one look.
func (r *reader) once(ctx context.Context, c storage.Content, deep bool) (wrong string, err error) {
	switch {
	case c.Size < 0:
		return "the index has lost where its bytes are", nil
	case c.Key == "":
		if int64(len(c.Inline)) != c.Size {
			return fmt.Sprintf("the index has %d bytes of %d", len(c.Inline), c.Size), nil
		}
		if got := c.Digest.Algorithm().FromBytes(c.Inline); got != c.Digest {
			return "its bytes in the index have digest " + got.String(), nil
		}
		return "", nil
	}
	blob, wrong, err := r.open(ctx, c)
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case ours(err):
		return "", err
	case err != nil:
		return fmt.Sprintf("its bytes cannot be opened: %v", bare(err)), nil
	case wrong != "":
		return wrong, nil
	}
	defer blob.Close()
	if !deep {
		return "", nil
	}
	if once, ok := blob.(interface{ ReadOnce() }); ok {
		once.ReadOnce() // what is read here should not drive out what clients read
	}
	hash := c.Digest.Algorithm().Hash()
	for {
		n, err := blob.Read(r.buf)
		hash.Write(r.buf[:n])
		if r.limit != nil && n > 0 {
			if err := r.limit.WaitN(ctx, n); err != nil {
				return "", err
			}
		}
		if r.every != nil {
			if err := r.every(); err != nil {
				return "", err
			}
		}
		switch {
		case ctx.Err() != nil:
			return "", ctx.Err()
		case errors.Is(err, io.EOF):
			if got := digest.NewDigest(c.Digest.Algorithm(), hash); got != c.Digest {
				return "its bytes in the store have digest " + got.String(), nil
			}
			return "", nil
		case err != nil:
			return fmt.Sprintf("its bytes cannot be read: %v", bare(err)), nil
		}
	}
}

// open opens the bytes of c in the store, or tells what is wrong with them. They
// may be well if there is an error.
func (r *reader) open(ctx context.Context, c storage.Content) (blob storage.Blob, wrong string, err error) {
	blob, err = r.store.Open(ctx, c.Key)
	switch {
	case storage.IsNotFound(err):
		return nil, "its bytes are missing in the store", nil
	case err != nil:
		return nil, "", err
	case blob.Size() != c.Size:
		return nil, fmt.Sprintf("the store has %d bytes of %d", blob.Size(), c.Size), blob.Close()
	}
	return blob, "", nil
}

// ours tells whether err says nothing about the bytes, but that this process has
// too much at once.
func ours(err error) bool {
	for _, want := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM} {
		if errors.Is(err, want) {
			return true
		}
	}
	return false
}

// bare is err without the path of a file: clients are told why their blob is
// quarantined, and have no business with the server's disk.
func bare(err error) error {
	if at, ok := errors.AsType[*fs.PathError](err); ok {
		return at.Err
	}
	return err
}

// look is a way to find out what is wrong with content.
type look func(ctx context.Context, c storage.Content) (wrong string, err error)

// confirm looks at c once more, when something was wrong with it: it may have
// been deleted, or pushed again, since the Index named it, and a disk may fail
// once. It tells what is wrong still.
func (r *reader) confirm(ctx context.Context, c storage.Content, look look) (wrong string, err error) {
	same, err := r.current(ctx, c)
	if err != nil || !same {
		return "", err
	}
	if wrong, err = look(ctx, c); wrong == "" || err != nil {
		return "", err
	}
	same, err = r.current(ctx, c)
	if err != nil || !same {
		return "", err
	}
	return wrong, nil
}

// current tells whether the Index still names the same bytes for the digest of c.
func (r *reader) current(ctx context.Context, c storage.Content) (bool, error) {
	// The digest itself comes among the first after its prefix.
	list, err := r.index.Contents(ctx, c.Digest[:len(c.Digest)-1], 16)
	for _, now := range list {
		if now.Digest == c.Digest {
			return now.Key == c.Key && now.Size == c.Size, err
		}
	}
	return false, err
}

// contents calls f with every content of the Index after that digest, in order,
// a page at a time.
func contents(ctx context.Context, index storage.Index, after digest.Digest, f func(storage.Content) error) error {
	for {
		list, err := index.Contents(ctx, after, page)
		if err != nil || len(list) == 0 {
			return err
		}
		for _, c := range list {
			if err := f(c); err != nil {
				return err
			}
		}
		after = list[len(list)-1].Digest
	}
}
