// Package bolt keeps names and records in one bbolt file. Writers that come
// together share a transaction and its fsync.
package bolt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"time"

	"berth.internal/internal/durable"
	"berth.internal/storage"
	"berth.internal/storage/kv"
	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// mapSize is how much address space the file gets at first, in bytes. While it
// fits, growing the file does not wait for readers. It is not memory.
const mapSize = 1 << 30

// Index is a storage.Index and storage.Records in a file.
type Index struct {
	*kv.Index
	db *db
}

// Open opens the file at path, or makes it. Errors: storage.ErrLocked if
// another process has it open.
func Open(path string, o kv.Options) (*Index, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = create(path)
	}
	var b *bbolt.DB
	if err == nil {
		b, err = open(path)
	}
	if err != nil {
		return nil, fmt.Errorf("open index %s: %w", path, medium(err))
	}
	d := newDB(b)
	return &Index{Index: kv.New(d, o), db: d}, nil
}

// create makes the file in one step: half of one, which a power cut may leave,
// would be a damaged one.
func create(path string) error {
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	b, err := open(fresh)
	if err == nil {
		err = b.Close()
	}
	if err != nil {
		return err
	}
	return durable.Rename(fresh, path)
}

func open(path string) (*bbolt.DB, error) {
	readAhead(path)
	b, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:         time.Millisecond, // one attempt
		FreelistType:    bbolt.FreelistMapType,
		NoFreelistSync:  true, // else each commit writes the list of all free pages; Open finds them again
		InitialMmapSize: mapSize,
		NoStatistics:    true,
	})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, storage.ErrLocked
	}
	if err != nil {
		return nil, err
	}
	// This writes something in any case, and so settles the last change of a
	// process that could not: see settle.
	if err := b.Update(func(t *bbolt.Tx) error {
		rows, err := t.CreateBucketIfNotExists(bucket())
		if err != nil {
			return err
		}
		first := &tx{rows: rows}
		kv.Alone(first) // no other process has the file open
		return first.err
	}); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// Ready says why the index takes no changes now, nil if it does. It goes on to
// answer questions, and takes changes again as soon as its disk lets it.
func (x *Index) Ready() error { return x.db.ready() }

var _ storage.Snapshotter = (*Index)(nil)

// Snapshot implements storage.Snapshotter. It is one transaction that reads:
// pages that others free meanwhile are used again only after it.
func (x *Index) Snapshot(ctx context.Context, w io.Writer) error {
	to := &kept{ctx: ctx, w: w}
	err := x.db.snapshot(to)
	if to.err != nil {
		return to.err
	}
	if err != nil {
		return fmt.Errorf("snapshot of the index: %w", medium(err))
	}
	return nil
}

// kept is a writer that remembers its error, of which bbolt makes a text, and
// ends with ctx.
type kept struct {
	ctx context.Context //nolint:containedctx // it lives as long as one call
	w   io.Writer
	err error
}

func (k *kept) Write(p []byte) (n int, err error) {
	if k.err = k.ctx.Err(); k.err == nil {
		n, k.err = k.w.Write(p)
	}
	return n, k.err
}

// Metrics returns what is measured about commits.
func (x *Index) Metrics() []prometheus.Collector {
	return []prometheus.Collector{x.db.seconds, x.db.batch}
}

// bucket is the one bucket that holds all rows.
func bucket() []byte { return []byte("rows") }

// tx is a kv.Tx. It remembers how to undo what it wrote, so that one of several
// functions in a bbolt transaction can fail alone.
type tx struct {
	rows *bbolt.Bucket
	look *bbolt.Cursor // of Get: the bucket's own makes a new one for each key
	undo []change
	err  error // of the first write that bbolt refused
}

// change is a key and what it held before; nil is nothing.
type change struct{ key, value []byte }

func (t *tx) Get(key []byte) []byte {
	if t.look == nil {
		t.look = t.rows.Cursor()
	}
	if k, v := t.look.Seek(key); bytes.Equal(k, key) {
		return v
	}
	return nil
}

func (t *tx) Put(key, value []byte) {
	if t.err == nil && len(value) == 0 {
		t.err = fmt.Errorf("put %q: empty value", key)
	}
	if t.err != nil {
		return
	}
	old := t.Get(key)
	if t.err = t.rows.Put(key, value); t.err == nil {
		t.undo = append(t.undo, change{key, old})
	}
}

func (t *tx) Delete(key []byte) {
	old := t.Get(key)
	if t.err != nil || old == nil {
		return
	}
	if t.err = t.rows.Delete(key); t.err == nil {
		t.undo = append(t.undo, change{key, old})
	}
}

func (t *tx) Ascend(from []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		c := t.rows.Cursor()
		for k, v := c.Seek(from); k != nil && yield(k, v); k, v = c.Next() {
		}
	}
}

// rollback undoes all writes, the last one first.
func (t *tx) rollback() error {
	for len(t.undo) > 0 {
		c := t.undo[len(t.undo)-1]
		t.undo = t.undo[:len(t.undo)-1]
		var err error
		if c.value == nil {
			err = t.rows.Delete(c.key)
		} else {
			err = t.rows.Put(c.key, c.value)
		}
		if err != nil {
			return fmt.Errorf("undo: %w", err)
		}
	}
	return nil
}
