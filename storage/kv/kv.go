// Package kv is storage.Index and storage.Records, written once over an ordered
// key-value store with transactions. The drivers mem and bolt give it one. The
// keys and rows are listed in docs/design/0001-storage.md.
package kv

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"math"
	"sync"
	"time"

	"berth.internal/storage"
)

// DB is an ordered key-value store with transactions.
type DB interface {
	// View runs fn on a state that no Update changes. It returns fn's error.
	View(fn func(Tx) error) error

	// Update runs fn once, alone, and makes what it wrote durable before it
	// returns nil. If fn returns an error, that is returned and nothing of fn
	// stays. If the medium fails, Update returns an error and fn's writes may
	// stay or not, but never in part.
	Update(fn func(Tx) error) error

	// Close waits for what runs, then closes. Nothing may be called after it.
	Close() error
}

// Tx is a transaction. Slices that it hands out must not be changed, and are
// valid until its function returns; slices given to it must not be
// changed until the transaction has ended.
type Tx interface {
	// Get returns the value at key, nil if there is none.
	Get(key []byte) []byte

	// Put writes a value, which must not be empty. If the store refuses it,
	// the transaction fails.
	Put(key, value []byte)

	// Delete removes key, which need not exist.
	Delete(key []byte)

	// Ascend goes through all keys that are not less than from, in order. The
	// loop's body must not write.
	Ascend(from []byte) iter.Seq2[[]byte, []byte]
}

// Options are the settings of an Index.
type Options struct {
	// Now tells the time. Default time.Now.
	Now func() time.Time

	// Changes is how many changes of records Watch can look back on. Default
	// 65536.
	Changes uint64
}

// Index is storage.Index and storage.Records over a DB.
type Index struct {
	db      DB
	clock   clock
	changes uint64
	changed broadcast
}

var (
	_ storage.Index   = (*Index)(nil)
	_ storage.Records = (*Index)(nil)
)

// New returns the Index whose rows db holds. The Index owns db: Close closes it.
func New(db DB, o Options) *Index {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Index{db: db, clock: clock{now: o.Now}, changes: cmp.Or(o.Changes, 1<<16)}
}

// Close closes the DB.
func (x *Index) Close() error { return x.db.Close() }

// Now returns the time. It never goes back while the Index is open.
func (x *Index) Now(ctx context.Context) (time.Time, error) {
	return fromNanos(x.clock.nanos()), ctx.Err()
}

// tx is a Tx that knows the rows.
type tx struct {
	Tx
	now int64 // Unix nanoseconds; of all that one transaction writes
}

// view runs fn on one state of the rows.
func (x *Index) view(ctx context.Context, fn func(tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return x.db.View(func(t Tx) error { return fn(tx{t, x.clock.nanos()}) })
}

// update runs fn as one durable transaction. A caller that gives up while it
// runs waits all the same: the outcome is a moment away, and is then known.
func (x *Index) update(ctx context.Context, fn func(tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return x.db.Update(func(t Tx) error { return fn(tx{t, x.clock.nanos()}) })
}

// clock is a time that never goes back.
type clock struct {
	now func() time.Time

	mu   sync.Mutex
	last int64
}

func (c *clock) nanos() int64 {
	n := c.now().UnixNano()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = max(c.last, n)
	return c.last
}

func fromNanos(n int64) time.Time { return time.Unix(0, n).UTC() }

// toNanos is the reverse of fromNanos; what is out of its range comes to its
// nearer end.
func toNanos(t time.Time) int64 {
	switch {
	case t.Before(time.Unix(0, 0)):
		return 0
	case t.After(time.Unix(0, math.MaxInt64)):
		return math.MaxInt64
	}
	return t.UnixNano()
}

// broadcast wakes all who wait for a change.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

// wait returns a channel that the next call of wake closes.
func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) wake() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

// errDamaged is what a row gives that this program did not write.
var errDamaged = errors.New("index is damaged")
