package storage

import (
	"context"
	"time"
)

// Records keeps everything else that must be true on every server: users, keys,
// policies, nodes, apps, rollouts, leases. A key is a path of at most
// RecordKeyMax bytes, such as "users/ann"; a value is at most RecordMax bytes
// and the caller's affair. Every change gets the next revision of the whole
// Records, so that revisions order changes and serve as cursors.
type Records interface {
	// Get returns the record at key. Errors: ErrNotFound.
	Get(ctx context.Context, key string) (Record, error)

	// List returns up to n records whose key begins with prefix, in ASCII
	// order, after the key after, and the revision up to which the answer is
	// complete: Watch from there misses nothing.
	List(ctx context.Context, prefix, after string, n int) (recs []Record, revision uint64, err error)

	// Put writes value at key if the record is at revision rev there; 0 means
	// that there is none. It returns the new revision. Errors: ErrConflict.
	Put(ctx context.Context, key string, value []byte, rev uint64) (uint64, error)

	// Delete removes the record at key if it is at revision rev. Errors:
	// ErrNotFound; ErrConflict.
	Delete(ctx context.Context, key string, rev uint64) error

	// Watch returns the changes below prefix after cursor, oldest first, at
	// most n, and the cursor to go on from. If there are none it waits until
	// there is one or ctx ends; then it returns ctx's error. Of several changes
	// of one key it may return only the last. Errors: ErrCompacted if changes
	// after cursor were dropped, or cursor is of other data: List again.
	Watch(ctx context.Context, prefix string, cursor uint64, n int) (changes []Change, next uint64, err error)

	// Acquire takes or renews the lease at name for holder until ttl from now. A
	// holder lives in a process that has the Records open: where only one process
	// can, the next one finds its leases free. Errors: ErrHeld while another
	// holder has it.
	Acquire(ctx context.Context, name, holder string, ttl time.Duration) (Lease, error)

	// Release gives the lease back. Errors: ErrHeld if another holder has it.
	Release(ctx context.Context, name, holder string) error
}

// Limits of a record, in bytes.
const (
	RecordKeyMax = 512
	RecordMax    = 1 << 20
)

// Record is a value with the revision of its last change.
type Record struct {
	Key      string
	Value    []byte
	Revision uint64
}

// Change is a record that was written or deleted.
type Change struct {
	Record  // of a deleted record: no Value
	Deleted bool
}

// Lease is a right that ends by itself.
type Lease struct {
	Name    string
	Holder  string
	Expires time.Time // by the Index's clock
	Token   uint64    // grows with every change of holder: a fence for the holder's writes
}
