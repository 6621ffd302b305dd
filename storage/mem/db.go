// Package mem keeps everything in memory, for tests and demonstrations.
package mem

import (
	"bytes"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"

	"berth.internal/storage/kv"
	"github.com/google/btree"
)

// NewIndex returns an empty storage.Index and storage.Records.
func NewIndex(o kv.Options) *kv.Index { return kv.New(newDB(), o) }

// db is an ordered map. A transaction writes to a copy, which shares all it
// does not change, and the copy takes the original's place when it succeeds.
type db struct {
	mu   sync.Mutex // held by the one that writes
	tree atomic.Pointer[tree]
}

type (
	tree = btree.BTreeG[pair]
	pair struct{ key, value []byte }
)

// NewDB returns an empty ordered key-value store, for tests of what stands on
// one.
func NewDB() kv.DB { return newDB() }

func newDB() *db {
	d := new(db)
	d.tree.Store(btree.NewG(32, func(a, b pair) bool { return bytes.Compare(a.key, b.key) < 0 }))
	return d
}

func (d *db) View(fn func(kv.Tx) error) error { return fn(&tx{tree: d.tree.Load()}) }

func (d *db) Update(fn func(kv.Tx) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := &tx{tree: d.tree.Load().Clone()}
	if err := fn(t); err != nil {
		return err
	}
	if t.err != nil {
		return t.err
	}
	d.tree.Store(t.tree)
	return nil
}

func (d *db) Close() error { return nil }

type tx struct {
	tree *tree
	err  error
}

func (t *tx) Get(key []byte) []byte {
	p, _ := t.tree.Get(pair{key: key})
	return p.value
}

func (t *tx) Put(key, value []byte) {
	if len(value) == 0 {
		t.err = fmt.Errorf("put %q: empty value", key)
		return
	}
	t.tree.ReplaceOrInsert(pair{bytes.Clone(key), bytes.Clone(value)})
}

func (t *tx) Delete(key []byte) { t.tree.Delete(pair{key: key}) }

func (t *tx) Ascend(from []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		t.tree.AscendGreaterOrEqual(pair{key: from}, func(p pair) bool { return yield(p.key, p.value) })
	}
}
