// Package storage is the contract between berth and whatever keeps its data:
// Store keeps bytes under opaque keys, Index keeps names, Records keeps the
// rest. It imports no driver; storagetest holds every driver to it. The
// reasons are in docs/design/0001-storage.md.
package storage

import (
	"context"
	_ "crypto/sha256" // the algorithms that every Store knows
	_ "crypto/sha512"
	"errors"
	"fmt"
	"io"
	"iter"
	"syscall"

	"github.com/opencontainers/go-digest"
)

// The errors a caller must tell apart. Drivers wrap them with what was
// attempted on what; callers compare with errors.Is.
var (
	ErrNotFound   = errors.New("not found")
	ErrMismatch   = errors.New("content does not match its digest")
	ErrReferenced = errors.New("still referenced")
	ErrConflict   = errors.New("changed by somebody else")
	ErrImmutable  = errors.New("tag is immutable")
	ErrHeld       = errors.New("held by somebody else")
	ErrCompacted  = errors.New("cursor is too old")
	ErrCursor     = errors.New("not a place in this list")
	ErrNoSpace    = errors.New("no space left")
	ErrMedium     = errors.New("the medium fails") // what was to be changed may be changed or not
	ErrLocked     = errors.New("in use by another process")
	ErrVersion    = errors.New("written by a newer berth")
)

// Medium returns err, wrapped in ErrNoSpace if it says that a disk or a quota is
// full, and in ErrMedium if it says that a disk does not do its work.
func Medium(err error) error {
	for _, full := range []error{syscall.ENOSPC, syscall.EDQUOT} {
		if errors.Is(err, full) {
			return fmt.Errorf("%w: %w", ErrNoSpace, err)
		}
	}
	for _, fails := range []error{syscall.EIO, syscall.EROFS, syscall.ENXIO, syscall.ENODEV, syscall.ESTALE} {
		if errors.Is(err, fails) {
			return fmt.Errorf("%w: %w", ErrMedium, err)
		}
	}
	return err
}

// InlineMax is the largest content, in bytes, that the Index keeps itself.
// Larger content goes to the Store. One synced transaction is then all that a
// small blob or manifest costs.
const InlineMax = 64 << 10

// Key is where a Store keeps some bytes. Only the Store that made it knows
// what it means: a path that holds digest and generation on disk, a random
// object name in S3. Content that is stored again gets another key, so a late
// delete of an old key never hits new content.
type Key string

// Store keeps bytes. Nothing in it can be found by digest: that is the Index's
// business, so what a Store holds is invisible until the Index names it.
type Store interface {
	// Create opens an empty upload whose bytes are hashed with alg as they
	// arrive. Errors: ErrNoSpace.
	Create(ctx context.Context, alg digest.Algorithm) (Upload, error)

	// Resume opens the upload that state describes, cut back to state.Size
	// bytes. Errors: ErrNotFound if it is gone or holds fewer bytes.
	Resume(ctx context.Context, state UploadState) (Upload, error)

	// Discard removes the bytes of an upload that nobody has open. Discarding
	// an absent upload is no error.
	Discard(ctx context.Context, id string) error

	// Uploads lists the ids of all uploads whose bytes outlive the process, in
	// any order: those that were saved, and some that were not.
	Uploads(ctx context.Context) iter.Seq2[string, error]

	// Open opens committed bytes. Errors: ErrNotFound.
	Open(ctx context.Context, key Key) (Blob, error)

	// Delete removes committed bytes, durable when it returns nil. Many keys cost
	// little more than one. Deleting an absent key is no error: the caller may be
	// repeating what a crash, or an error in the middle, interrupted.
	Delete(ctx context.Context, keys ...Key) error

	// Keys lists all committed keys, in any order. It walks everything; only
	// fsck and tests may call it.
	Keys(ctx context.Context) iter.Seq2[Key, error]

	Close() error
}

// Blob is committed content, open for reading. A driver whose bytes are files
// embeds *os.File, so that they go out by sendfile.
type Blob interface {
	io.ReadSeekCloser
	Size() int64
}

// UploadState is what a Store needs to open an upload again, in another
// process or on another server.
type UploadState struct {
	ID        string           `json:"id"`
	Size      int64            `json:"size"`             // bytes, all of them durable
	Algorithm digest.Algorithm `json:"algorithm"`        // of Hash
	Hash      []byte           `json:"hash"`             // encoding.BinaryMarshaler of the running hash
	Driver    []byte           `json:"driver,omitempty"` // the driver's own, such as the parts of an S3 multipart upload
}

// Upload is content on its way in, used by one goroutine at a time. Its end is
// in two steps, so that a crash between them leaves bytes that are found again:
// Seal says where the bytes will be, the caller records that key in the Index
// (Intend), and only then Commit puts them there. The function Commit of this
// package does all three and names the blob. Small content ends with Inline
// instead, and no Store holds it.
type Upload interface {
	io.Writer // Errors: ErrNoSpace; Size tells how much was taken

	ID() string
	Size() int64 // bytes written so far

	// Save makes all bytes written so far durable and returns the state from
	// which Resume goes on. Errors: ErrNoSpace. If the medium failed to make
	// them durable, as in Seal, the upload is gone.
	Save(ctx context.Context) (UploadState, error)

	// Inline verifies that the bytes, at most InlineMax, hash to want, and
	// returns them, to be kept by the Index; Abort then ends the upload.
	// Errors: ErrMismatch; the upload is then gone.
	Inline(ctx context.Context, want digest.Digest) ([]byte, error)

	// Seal verifies that the bytes hash to want, makes them durable and
	// returns the key under which Commit will put them. If want names another
	// algorithm than the upload was created with, the bytes are read once
	// again. Errors: ErrMismatch; the upload is then gone.
	Seal(ctx context.Context, want digest.Digest) (Key, error)

	// Commit puts the sealed bytes under their key, durable also through a
	// power cut when it returns nil. Errors: ErrNotFound if the upload was
	// discarded meanwhile.
	Commit(ctx context.Context) error

	// Close keeps what was saved, so that Resume can go on. After Commit or
	// Abort it does nothing, so it can be deferred.
	Close() error

	// Abort drops the bytes. After Commit it does nothing.
	Abort() error
}

// Reserver is an Upload that can tell whether what comes will fit.
type Reserver interface {
	// Reserve says that n more bytes are about to be written. Errors:
	// ErrNoSpace if it is known already that they do not fit.
	Reserve(n int64) error
}

// Limited is a Store that shares a medium with the Index and leaves it room: on
// a full disk names can still be changed, and above all be deleted.
type Limited interface {
	// Room says whether n more bytes may be kept, of blobs, or of manifests, for
	// which the room lasts longer. Errors: ErrNoSpace.
	Room(k Kind, n int64) error
}

// Room is that of s, if it is Limited.
func Room(s Store, k Kind, n int64) error {
	if l, ok := s.(Limited); ok {
		return l.Room(k, n)
	}
	return nil
}

// Importer is a Store that takes bytes from another one of its kind under the
// key that they have there, as a backup does.
type Importer interface {
	Store

	// Import puts the bytes of c, which from keeps under c.Key, there in this
	// Store, too; by a link to the same bytes if link says so and the medium
	// can. What is there already in its size stays. Bytes that are copied are
	// verified, others are not. Durable after Sync. Errors: ErrNotFound if from
	// does not have it; ErrMismatch if its size is another, or the bytes that
	// were read are; ErrNoSpace.
	Import(ctx context.Context, c Content, from Store, link bool) (Imported, error)

	// Sync makes durable what was imported.
	Sync(ctx context.Context) error
}

// Imported says what Import did.
type Imported struct {
	New    bool // the bytes were not there
	Linked bool // they are the same on the medium as the other Store's
}

// Snapshotter is an Index that can tell all it holds, and Records with it.
type Snapshotter interface {
	// Snapshot writes all as of one moment to w, in a form that the driver opens
	// as an Index. Others go on to read and write. Errors: that of w, as it is.
	Snapshot(ctx context.Context, w io.Writer) error
}

// Opener opens more drivers of a kind, in other places.
type Opener struct {
	Index func(path string) (Index, error) // over the file at path
	Store func(dir string) (Store, error)  // over the directory dir
}

// Drivers is a set of opened drivers, as the roof hands it to the rooms.
type Drivers struct {
	Store   Store
	Index   Index
	Records Records
	Opener  Opener // for backups; empty if there can be none
}
