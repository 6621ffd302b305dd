package bolt

import (
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"berth.internal/storage"
	"berth.internal/storage/kv"
	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/bbolt"
)

var errClosed = errors.New("index is closed")

// db is a kv.DB whose one writer takes all functions that wait and commits them
// together: while the disk works for some, the next ones gather.
type db struct {
	bolt    *bbolt.DB
	seconds prometheus.Histogram
	batch   prometheus.Histogram

	mu      sync.Mutex
	waiting []*request
	closing bool

	wake   chan struct{} // holds one element while there is something to do
	done   chan struct{} // closed when the writer has returned
	failed error         // the writer's own: why it takes no more
}

// request is one function that waits for its turn and then for the disk.
type request struct {
	fn      func(kv.Tx) error
	outcome chan error
	panic   string // what fn panicked with, and where
}

func newDB(b *bbolt.DB) *db {
	d := &db{
		bolt: b,
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "berth_storage_commit_seconds",
			Help:    "Time to make one batch of index changes durable.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16),
		}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "berth_storage_commit_changes",
			Help:    "Index changes that shared one commit.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 10),
		}),
		wake: make(chan struct{}, 1),
		done: make(chan struct{}),
	}
	go d.write()
	return d
}

// View implements kv.DB.
func (d *db) View(fn func(kv.Tx) error) error {
	return d.bolt.View(func(t *bbolt.Tx) error { return fn(&tx{rows: t.Bucket(bucket())}) })
}

// Update implements kv.DB. A panic of fn is the caller's, not the writer's.
func (d *db) Update(fn func(kv.Tx) error) error {
	r := &request{fn: fn, outcome: make(chan error, 1)}
	d.mu.Lock()
	if d.closing {
		d.mu.Unlock()
		return errClosed
	}
	d.waiting = append(d.waiting, r)
	d.mu.Unlock()
	d.wakeWriter()
	err := <-r.outcome
	if r.panic != "" {
		panic(r.panic)
	}
	return err
}

// Close implements kv.DB.
func (d *db) Close() error {
	d.mu.Lock()
	again := d.closing
	d.closing = true
	d.mu.Unlock()
	if again {
		return errClosed
	}
	d.wakeWriter()
	<-d.done
	return d.bolt.Close()
}

func (d *db) wakeWriter() {
	select {
	case d.wake <- struct{}{}:
	default: // it will look again anyway
	}
}

// write is the writer: it commits until Close, and then what still waits.
func (d *db) write() {
	defer close(d.done)
	for {
		d.mu.Lock()
		batch := d.waiting
		d.waiting = nil
		closing := d.closing
		d.mu.Unlock()
		switch {
		case len(batch) > 0:
			d.commit(batch)
		case closing:
			return
		default:
			<-d.wake
		}
	}
}

// commit runs the functions of batch in one transaction and tells each what
// became of it.
func (d *db) commit(batch []*request) {
	outcomes := make([]error, len(batch))
	err := d.failed
	if err == nil {
		err = d.runAll(batch, outcomes)
	}
	if err != nil && !errors.Is(err, storage.ErrNoSpace) && d.failed == nil {
		// What the disk holds now is not known, and nothing may stand on it
		// that says it is durable.
		d.failed = fmt.Errorf("index takes no changes until berth is started again: %w", err)
	}
	for i, r := range batch {
		if outcomes[i] == nil {
			outcomes[i] = err
		}
		r.outcome <- outcomes[i]
	}
}

// runAll fills in the errors of the functions that failed alone. It returns an
// error if the transaction failed for all.
func (d *db) runAll(batch []*request, outcomes []error) error {
	began := time.Now()
	t, err := d.bolt.Begin(true)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	rows, wrote := t.Bucket(bucket()), false
	for i, r := range batch {
		part := &tx{rows: rows}
		if outcomes[i] = r.run(part); outcomes[i] == nil {
			outcomes[i] = part.err
		}
		if outcomes[i] == nil {
			wrote = wrote || len(part.undo) > 0
			continue
		}
		if err := part.rollback(); err != nil {
			return errors.Join(err, t.Rollback())
		}
	}
	if !wrote {
		return t.Rollback()
	}
	if err := t.Commit(); err != nil {
		return fmt.Errorf("commit: %w", storage.NoSpace(err))
	}
	d.seconds.Observe(time.Since(began).Seconds())
	d.batch.Observe(float64(len(batch)))
	return nil
}

// run calls the function. A panic becomes an error here, and a panic again
// where Update was called.
func (r *request) run(t *tx) (err error) {
	defer func() {
		if v := recover(); v != nil {
			r.panic = fmt.Sprintf("%v\n\n%s", v, debug.Stack())
			err = errors.New("panic in a transaction")
		}
	}()
	return r.fn(t)
}
