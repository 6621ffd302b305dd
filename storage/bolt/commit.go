package bolt

import (
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
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

	mu        sync.Mutex
	waiting   []*request
	closing   bool
	unsettled error // why the last change may be on disk or not; see settle

	views     sync.RWMutex          // held by who reads
	snapshots sync.RWMutex          // held by who makes one
	commit    func(*bbolt.Tx) error // (*bbolt.Tx).Commit, but for tests
	wake      chan struct{}         // holds one element while there is something to do
	done      chan struct{}         // closed when the writer has returned
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
		commit: (*bbolt.Tx).Commit,
		wake:   make(chan struct{}, 1),
		done:   make(chan struct{}),
	}
	go d.write()
	return d
}

// View implements kv.DB.
func (d *db) View(fn func(kv.Tx) error) error {
	d.views.RLock()
	defer d.views.RUnlock()
	return guard("read index", func() error {
		return d.bolt.View(func(t *bbolt.Tx) error { return fn(&tx{rows: t.Bucket(bucket())}) })
	})
}

// snapshot writes the file as one reader sees it. It may take long.
func (d *db) snapshot(w io.Writer) error {
	d.snapshots.RLock()
	defer d.snapshots.RUnlock()
	return d.bolt.View(func(t *bbolt.Tx) error {
		_, err := t.WriteTo(w)
		return err
	})
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

// maxPatience bounds what a change waits for others when the disk is slow.
const maxPatience = 20 * time.Millisecond

// write is the writer: it commits until Close, and then what still waits.
func (d *db) write() {
	defer close(d.done)
	callers, took := 0, time.Duration(0) // of the last commit, with those who waited for its end
	for {
		d.gather(callers, min(took/2, maxPatience))
		callers = 0
		d.mu.Lock()
		batch := d.waiting
		d.waiting = nil
		closing, unsettled := d.closing, d.unsettled
		d.mu.Unlock()
		var again <-chan time.Time
		if unsettled != nil {
			again = time.After(settleInterval)
		}
		switch {
		case len(batch) > 0:
			began := time.Now()
			d.commitAll(batch)
			d.mu.Lock()
			callers, took = len(batch)+len(d.waiting), time.Since(began)
			d.mu.Unlock()
		case closing:
			return
		default:
			select {
			case <-d.wake:
			case <-again:
				_ = d.settle() // Ready tells
			}
		}
	}
}

// gather waits until that many functions wait, but not longer than patience.
// Who was served comes again in a moment, as long as there is more to push: the
// first of them, taken alone, would make all others wait for a commit of its
// own.
func (d *db) gather(callers int, patience time.Duration) {
	if callers < 2 {
		return
	}
	enough := time.NewTimer(patience)
	defer enough.Stop()
	for {
		d.mu.Lock()
		all := len(d.waiting) >= callers || d.closing
		d.mu.Unlock()
		if all {
			return
		}
		select {
		case <-d.wake:
		case <-enough.C:
			return
		}
	}
}

// commitAll runs the functions of batch in one transaction and tells each what
// became of it.
func (d *db) commitAll(batch []*request) {
	outcomes := make([]error, len(batch))
	err := d.settle()
	if err == nil {
		err = d.runAll(batch, outcomes)
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
		return fmt.Errorf("begin: %w", medium(err))
	}
	var rows *bbolt.Bucket
	err = guard("begin", func() error {
		rows = t.Bucket(bucket())
		return nil
	})
	if err != nil {
		return errors.Join(err, t.Rollback())
	}
	wrote := false
	for i, r := range batch {
		part := &tx{rows: rows}
		if outcomes[i] = r.run(part); outcomes[i] == nil {
			outcomes[i] = part.err
		}
		if outcomes[i] == nil {
			wrote = wrote || len(part.undo) > 0
			continue
		}
		if err := guard("undo", part.rollback); err != nil {
			return errors.Join(err, t.Rollback())
		}
	}
	if !wrote {
		return t.Rollback()
	}
	if err := d.end(t); err != nil {
		return err
	}
	d.seconds.Observe(time.Since(began).Seconds())
	d.batch.Observe(float64(len(batch)))
	return nil
}

// end commits t. When that fails before the meta page was written, which is what
// a full disk does, nothing has changed and nothing is wrong. After that, the
// disk may have the change or not, while all who read see it.
func (d *db) end(t *bbolt.Tx) error {
	id := t.ID()
	err := guard("commit", func() error { return d.commit(t) })
	if err == nil {
		return nil
	}
	_ = t.Rollback() // if it is still open
	err = medium(fmt.Errorf("commit: %w", err))
	if d.shows(id) {
		d.mu.Lock()
		d.unsettled = err
		d.mu.Unlock()
	}
	return err
}

// shows tells whether who reads now may see the transaction id.
func (d *db) shows(id int) bool {
	t, err := d.bolt.Begin(false)
	if err != nil {
		return true
	}
	defer func() { _ = t.Rollback() }() // of what only reads
	return t.ID() >= id
}

// settleInterval is how long the writer waits before it tries again to settle
// what nobody else makes it settle.
const settleInterval = 5 * time.Second

// settle comes before any change when it is not known whether the disk has the
// one before. That one's pages are durable, or its meta page would not have been
// written. So it is enough to write another meta page that leads to them: a
// transaction that changes nothing. No page may be written before that, for the
// disk may need those of the state before; and not before all have gone who
// still read that.
func (d *db) settle() error {
	d.mu.Lock()
	unsettled := d.unsettled
	d.mu.Unlock()
	if unsettled == nil {
		return nil
	}
	t, err := d.bolt.Begin(true)
	if err == nil {
		err = d.end(t)
	}
	if err != nil {
		return fmt.Errorf("index takes no changes until its disk has kept the one before: %w", medium(err))
	}
	if !d.snapshots.TryLock() { // nobody waits for that
		return fmt.Errorf("index takes no changes until a snapshot of it has ended: %w", medium(unsettled))
	}
	defer d.snapshots.Unlock()
	d.views.Lock()
	d.views.Unlock() //nolint:staticcheck // empty on purpose: all who read have gone
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unsettled = nil
	return nil
}

// ready says why the db takes no changes now.
func (d *db) ready() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.unsettled != nil {
		return fmt.Errorf("index takes no changes until its disk has kept the one before: %w", d.unsettled)
	}
	return nil
}

// medium is storage.Medium, also for the errors that bbolt has made a text of.
func medium(err error) error {
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.EROFS} {
		if !errors.Is(err, errno) && strings.HasSuffix(err.Error(), errno.Error()) {
			return storage.Medium(fmt.Errorf("%w (%w)", err, errno))
		}
	}
	return storage.Medium(err)
}

// guard makes an error of a memory fault in fn: the file is mapped, and that is
// how a disk says that it cannot read a page.
func guard(what string, fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if v := recover(); v != nil {
			if err = fault(v); err == nil {
				panic(v)
			}
			err = fmt.Errorf("%s: %w: %w", what, storage.ErrMedium, err)
		}
	}()
	return fn()
}

// fault returns the memory fault that v is, if it is one.
func fault(v any) error {
	if f, ok := v.(interface {
		error
		Addr() uintptr
	}); ok {
		return fmt.Errorf("a page of the file cannot be read: %w", f)
	}
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
	return guard("change index", func() error { return r.fn(t) })
}
