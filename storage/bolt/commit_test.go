package bolt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"berth.internal/storage"
	"berth.internal/storage/kv"
	"go.etcd.io/bbolt"
)

func openTest(t testing.TB) *Index {
	t.Helper()
	x, err := Open(filepath.Join(t.TempDir(), "index.db"), kv.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestOpenLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	x, err := Open(path, kv.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, kv.Options{}); !errors.Is(err, storage.ErrLocked) || !strings.Contains(err.Error(), path) {
		t.Errorf("second Open = %v, want ErrLocked that names %s", err, path)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	if err := x.Close(); !errors.Is(err, errClosed) {
		t.Errorf("second Close = %v, want %v", err, errClosed)
	}
	if err := x.Forget(t.Context(), "key"); !errors.Is(err, errClosed) {
		t.Errorf("change after Close = %v, want %v", err, errClosed)
	}
}

// block lets the writer stand still, so that all that comes gathers in one
// batch, until the returned function is called.
func block(t *testing.T, d *db) (release func()) {
	t.Helper()
	entered, leave := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		err := d.Update(func(kv.Tx) error {
			close(entered)
			<-leave
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-entered
	return func() {
		close(leave)
		wg.Wait()
	}
}

// gather waits until n functions wait for the writer.
func gather(d *db, n int) {
	for {
		d.mu.Lock()
		got := len(d.waiting)
		d.mu.Unlock()
		if got == n {
			return
		}
		runtime.Gosched()
	}
}

var errTest = errors.New("test")

// TestTogether lets eight callers change the index again and again, as clients
// do that push: they share commits, all eight of them. Who is alone waits for
// nobody.
func TestTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := openTest(t)
		defer x.Close()
		const disk = time.Millisecond
		commits := 0
		x.db.commit = func(t *bbolt.Tx) error {
			commits++
			time.Sleep(disk)
			return t.Commit()
		}
		change := func(caller, i int) {
			if err := x.db.Update(func(tx kv.Tx) error {
				tx.Put(fmt.Append(nil, caller, "-", i), []byte{1})
				return nil
			}); err != nil {
				t.Error(err)
			}
		}
		const callers, times = 8, 20
		var all sync.WaitGroup
		for caller := range callers {
			all.Go(func() {
				for i := range times {
					time.Sleep(time.Duration(caller+1) * disk / 50) // what a client takes to come again
					change(caller, i)
				}
			})
		}
		all.Wait()
		if commits > times+2 {
			t.Errorf("%d changes of %d callers took %d commits, want about %d", callers*times, callers, commits, times)
		}
		for i := range 3 {
			time.Sleep(10 * disk)
			began := time.Now()
			change(callers, i)
			if took := time.Since(began); took != disk {
				t.Errorf("change %d of a caller that is alone took %v, want %v", i, took, disk)
			}
		}
	})
}

func TestBatchOutcomes(t *testing.T) {
	x := openTest(t)
	put := func(k, v string) func(kv.Tx) error {
		return func(t kv.Tx) error {
			t.Put([]byte(k), []byte(v))
			return nil
		}
	}
	if err := x.db.Update(put("old", "0")); err != nil {
		t.Fatal(err)
	}
	// In the order in which they run; each sees what the good ones before it did.
	cases := []struct {
		name  string
		fn    func(kv.Tx) error
		fails string // what the error or panic says; empty: none
	}{
		{"good", put("a", "1"), ""},
		{"fails", func(t kv.Tx) error {
			t.Put([]byte("a"), []byte("2"))
			t.Put([]byte("a"), []byte("3"))
			t.Put([]byte("new"), []byte("x"))
			t.Put([]byte("new"), []byte("y"))
			t.Delete([]byte("new"))
			t.Delete([]byte("old"))
			t.Delete([]byte("absent"))
			t.Put([]byte("old"), []byte("z"))
			return errTest
		}, "test"},
		{"panics", func(t kv.Tx) error {
			t.Put([]byte("b"), []byte("x"))
			t.Delete([]byte("a"))
			panic("boom")
		}, "boom"},
		{"puts an empty value", func(t kv.Tx) error {
			t.Put([]byte("c"), []byte("x"))
			t.Put([]byte("d"), nil)
			t.Put([]byte("e"), []byte("x"))
			return nil
		}, "empty value"},
		{"puts a key too large", func(t kv.Tx) error {
			t.Put([]byte("c"), []byte("x"))
			t.Put(make([]byte, 1<<16), []byte("x"))
			return nil
		}, "key too large"},
		{"looks", func(t kv.Tx) error {
			if got := dump(t); got != "a=1 old=0 " {
				return fmt.Errorf("it saw %q", got)
			}
			return nil
		}, ""},
		{"good as well", put("f", "1"), ""},
	}
	release := block(t, x.db)
	var wg sync.WaitGroup
	for i, tc := range cases {
		wg.Go(func() {
			err := caught(func() error { return x.db.Update(tc.fn) })
			if (err != nil) != (tc.fails != "") || err != nil && !strings.Contains(err.Error(), tc.fails) {
				t.Errorf("%s: Update = %v, want %q", tc.name, err, tc.fails)
			}
		})
		gather(x.db, i+1)
	}
	release()
	wg.Wait()
	err := x.db.View(func(tx kv.Tx) error {
		if got, want := dump(tx), "a=1 f=1 old=0 "; got != want {
			t.Errorf("after the batch: %q, want %q", got, want)
		}
		return nil
	})
	if err := errors.Join(err, x.Close()); err != nil {
		t.Error(err)
	}
}

// caught returns a panic of fn as an error.
func caught(fn func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v", v)
		}
	}()
	return fn()
}

func dump(t kv.Tx) string {
	var b strings.Builder
	for k, v := range t.Ascend(nil) {
		fmt.Fprintf(&b, "%s=%s ", k, v)
	}
	return b.String()
}

// How a disk does its work.
const (
	works int32 = iota
	failsBefore
	failsAfter
)

// failing lets commits of d fail as the disk that it returns says.
func failing(d *db) *atomic.Int32 {
	disk := new(atomic.Int32)
	d.commit = func(t *bbolt.Tx) error {
		switch disk.Load() {
		case failsBefore:
			return syscall.EIO
		case failsAfter:
			return errors.Join(t.Commit(), &os.PathError{Op: "sync", Err: syscall.EIO})
		}
		return t.Commit()
	}
	return disk
}

// TestUnsettled lets commits fail in the two ways that a disk has: before
// anything has changed, and when nobody can tell.
func TestUnsettled(t *testing.T) {
	x := openTest(t)
	put := func(k string) error {
		return x.db.Update(func(t kv.Tx) error {
			t.Put([]byte(k), []byte("1"))
			return nil
		})
	}
	holds := func(want string) {
		t.Helper()
		if err := x.db.View(func(tx kv.Tx) error {
			if got := dump(tx); got != want {
				t.Errorf("the index holds %q, want %q", got, want)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	disk := failing(x.db)
	disk.Store(failsBefore)
	if err := put("a"); !errors.Is(err, storage.ErrMedium) || x.Ready() != nil {
		t.Errorf("a change that did not happen = %v, then Ready = %v; want ErrMedium, and ready", err, x.Ready())
	}
	disk.Store(failsAfter)
	for _, k := range []string{"b", "c"} { // the second is refused before it begins
		if err := put(k); !errors.Is(err, storage.ErrMedium) || x.Ready() == nil {
			t.Errorf("a change that may have happened = %v, then Ready = %v; want ErrMedium twice", err, x.Ready())
		}
		holds("b=1 ")
	}

	// It goes on when the disk does, and when all have gone who read the state
	// before. A snapshot is not waited for.
	disk.Store(works)
	snapshot := make(chan error)
	from, to := io.Pipe()
	go func() { snapshot <- x.Snapshot(t.Context(), to) }()
	if _, err := io.ReadFull(from, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := put("e"); !errors.Is(err, storage.ErrMedium) || !strings.Contains(err.Error(), "snapshot") || x.Ready() == nil {
		t.Errorf("a change while there is a snapshot = %v, then Ready = %v; want ErrMedium that says so", err, x.Ready())
	}
	go func() { _, _ = io.Copy(io.Discard, from) }()
	if err := <-snapshot; err != nil {
		t.Error(err)
	}
	reading, leave, done := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		done <- x.db.View(func(kv.Tx) error {
			close(reading)
			<-leave
			return nil
		})
	}()
	<-reading
	go func() { done <- put("d") }()
	for x.db.views.TryRLock() { // until the writer waits for the reader
		x.db.views.RUnlock()
		runtime.Gosched()
	}
	if x.Ready() == nil {
		t.Error("the index is ready while somebody reads the state before")
	}
	close(leave)
	if err := errors.Join(<-done, <-done, x.Ready()); err != nil {
		t.Errorf("when the disk works again: %v", err)
	}
	holds("b=1 d=1 ")
	if err := x.Close(); err != nil {
		t.Error(err)
	}
}

// TestSettlesAlone lets nobody write: the index is ready again all the same.
func TestSettlesAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := openTest(t)
		disk := failing(x.db)
		disk.Store(failsAfter)
		if err := x.Intend(t.Context(), "key", time.Hour); !errors.Is(err, storage.ErrMedium) {
			t.Errorf("Intend = %v, want ErrMedium", err)
		}
		synctest.Wait()
		disk.Store(works)
		time.Sleep(settleInterval) // of the bubble: no time passes
		synctest.Wait()
		if err := x.Ready(); err != nil {
			t.Errorf("after %s: %v", settleInterval, err)
		}
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestMedium is about the errors of bbolt, some of which are texts.
func TestMedium(t *testing.T) {
	for _, tc := range []struct{ err, want error }{
		{errors.New("file resize error: truncate index.db: " + syscall.ENOSPC.Error()), storage.ErrNoSpace},
		{errors.New("file sync error: " + syscall.EIO.Error()), storage.ErrMedium},
		{fmt.Errorf("write: %w", syscall.EDQUOT), storage.ErrNoSpace},
		{fmt.Errorf("write: %w", syscall.EROFS), storage.ErrMedium},
	} {
		if got := medium(tc.err); !errors.Is(got, tc.want) || !strings.HasPrefix(got.Error(), tc.want.Error()) {
			t.Errorf("medium(%q) = %q, want %v", tc.err, got, tc.want)
		}
	}
	if err := errors.New("other"); medium(err) != err { //nolint:errorlint // as it is
		t.Errorf("medium(%v) = %v", err, medium(err))
	}
}

// TestUnreadablePage cuts off the file below the feet of the index, so that to
// read it faults as it does when a disk cannot read a page.
func TestUnreadablePage(t *testing.T) {
	x := openTest(t)
	big := bytes.Repeat([]byte("x"), 32<<10)
	for i := range 100 {
		if err := x.db.Update(func(t kv.Tx) error {
			t.Put(fmt.Appendf(nil, "%03d", i), big)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	sum := 0
	read := func(t kv.Tx) error {
		for _, b := range t.Get([]byte("050")) {
			sum += int(b)
		}
		t.Put([]byte("050"), big)
		return nil
	}
	if err := os.Truncate(x.db.bolt.Path(), 16<<10); err != nil {
		t.Fatal(err)
	}
	for range 2 { // and no lock is left behind
		if err := x.db.View(func(t kv.Tx) error { return read(discard{t}) }); !errors.Is(err, storage.ErrMedium) {
			t.Errorf("View = %v, want ErrMedium", err)
		}
		if err := x.db.Update(read); !errors.Is(err, storage.ErrMedium) {
			t.Errorf("Update = %v, want ErrMedium", err)
		}
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
}

// discard is a transaction that keeps nothing.
type discard struct{ kv.Tx }

func (discard) Put([]byte, []byte) {}

func benchmarkCommit(b *testing.B, writers int, update func(fn func(put func(k, v []byte)) error) error) {
	b.SetParallelism(writers) // times GOMAXPROCS; see the caller
	value := make([]byte, 200)
	var mu sync.Mutex
	n := 0
	began := time.Now()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			mu.Lock()
			n++
			key := fmt.Appendf(nil, "%08d", n*7919%100_000_000)
			mu.Unlock()
			err := update(func(put func(k, v []byte)) error {
				for i := range 4 {
					put(append([]byte{byte(i)}, key...), value)
				}
				return nil
			})
			if err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "commits/s")
}

// BenchmarkCommit compares ours with bbolt's own ways to commit, four rows of
// 200 bytes at a time.
func BenchmarkCommit(b *testing.B) {
	for _, perCPU := range []int{1, 4, 16, 32} {
		b.Run(fmt.Sprintf("ours/%dxCPU", perCPU), func(b *testing.B) {
			x := openTest(b)
			benchmarkCommit(b, perCPU, func(fn func(func(k, v []byte)) error) error {
				return x.db.Update(func(t kv.Tx) error { return fn(t.Put) })
			})
			if err := x.Close(); err != nil {
				b.Error(err)
			}
		})
		for _, name := range []string{"Update", "Batch"} {
			b.Run(fmt.Sprintf("%s/%dxCPU", name, perCPU), func(b *testing.B) {
				x := openTest(b)
				run := x.db.bolt.Update
				if name == "Batch" {
					run = x.db.bolt.Batch
				}
				benchmarkCommit(b, perCPU, func(fn func(func(k, v []byte)) error) error {
					return run(func(t *bbolt.Tx) error {
						rows := t.Bucket(bucket())
						return fn(func(k, v []byte) {
							if err := rows.Put(k, v); err != nil {
								b.Error(err)
							}
						})
					})
				})
				if err := x.Close(); err != nil {
					b.Error(err)
				}
			})
		}
	}
}
