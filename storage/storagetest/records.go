package storagetest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"berth.internal/storage"
)

// TestRecords holds a driver's Records to the contract.
func TestRecords(t *testing.T, fresh NewData) {
	for _, tc := range []struct {
		name string
		run  func(*testing.T, *fixture)
	}{
		{"compare and swap", testRecordSwap},
		{"limits", testRecordLimits},
		{"list", testRecordList},
		{"watch/changes", testWatchChanges},
		{"watch/waits", testWatchWaits},
		{"watch/ends", testWatchEnds},
		{"watch/cursor of other data", testWatchCursor},
		{"watch/misses nothing", testWatchTogether},
		{"lease/life", testLease},
		{"lease/one holder", testLeaseTogether},
		{"together/counter", testRecordTogether},
		{"reopen", testRecordsReopen},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.run(t, newFixture(t, fresh)) })
	}
}

// set writes a record whatever its revision.
func (f *fixture) set(key, value string) uint64 {
	f.t.Helper()
	old, err := f.Get(f.t.Context(), key)
	if err != nil {
		f.is(storage.ErrNotFound, err, "Get")
	}
	rev, err := f.Put(f.t.Context(), key, []byte(value), old.Revision)
	f.ok(err)
	return rev
}

// list writes what List and Watch give in one line: "a=1 b=2", "-c" is deleted.
func line(changes []storage.Change) string {
	var words []string
	for _, c := range changes {
		if c.Deleted {
			words = append(words, "-"+c.Key)
		} else {
			words = append(words, c.Key+"="+string(c.Value))
		}
	}
	return strings.Join(words, " ")
}

func (f *fixture) listed(prefix, after string, n int, want string) uint64 {
	f.t.Helper()
	recs, rev, err := f.List(f.t.Context(), prefix, after, n)
	f.ok(err)
	var changes []storage.Change
	for _, r := range recs {
		changes = append(changes, storage.Change{Record: r})
	}
	if got := line(changes); got != want {
		f.t.Errorf("List(%q, after %q, %d) = %q, want %q", prefix, after, n, got, want)
	}
	return rev
}

func (f *fixture) watched(prefix string, cursor uint64, n int, want string) uint64 {
	f.t.Helper()
	changes, next, err := f.Watch(f.t.Context(), prefix, cursor, n)
	f.ok(err)
	if got := line(changes); got != want {
		f.t.Errorf("Watch(%q, %d) = %q, want %q", prefix, cursor, got, want)
	}
	return next
}

func testRecordSwap(t *testing.T, f *fixture) {
	ctx := t.Context()
	_, err := f.Get(ctx, "users/ann")
	f.is(storage.ErrNotFound, err, "Get of an absent record")
	f.is(storage.ErrNotFound, f.Delete(ctx, "users/ann", 0), "Delete of an absent record")
	_, err = f.Put(ctx, "users/ann", nil, 7)
	f.is(storage.ErrConflict, err, "Put on a revision where nothing is")

	first, err := f.Put(ctx, "users/ann", nil, 0) // an empty value is a value
	f.ok(err)
	_, err = f.Put(ctx, "users/ann", []byte("x"), 0)
	f.is(storage.ErrConflict, err, "Put of a new record where one is")
	second, err := f.Put(ctx, "users/ann", []byte("2"), first)
	f.ok(err)
	if second <= first || first == 0 {
		t.Errorf("revisions %d, %d do not grow", first, second)
	}
	_, err = f.Put(ctx, "users/ann", []byte("x"), first)
	f.is(storage.ErrConflict, err, "Put on an old revision")
	f.is(storage.ErrConflict, f.Delete(ctx, "users/ann", first), "Delete at an old revision")
	got, err := f.Get(ctx, "users/ann")
	f.ok(err)
	same(t, got, storage.Record{Key: "users/ann", Value: []byte("2"), Revision: second})
	got.Value[0] = 'x' // the caller's to change
	f.listed("users/", "", 10, "users/ann=2")

	f.ok(f.Delete(ctx, "users/ann", second))
	_, err = f.Get(ctx, "users/ann")
	f.is(storage.ErrNotFound, err, "Get of a deleted record")
	third, err := f.Put(ctx, "users/ann", []byte("3"), 0)
	f.ok(err)
	if third <= second {
		t.Errorf("revision %d after %d", third, second)
	}
}

func testRecordLimits(t *testing.T, f *fixture) {
	ctx := t.Context()
	long, large := strings.Repeat("k", storage.RecordKeyMax), make([]byte, storage.RecordMax)
	_, err := f.Put(ctx, long, large, 0)
	f.ok(err)
	got, err := f.Get(ctx, long)
	f.ok(err)
	if len(got.Value) != len(large) {
		t.Errorf("value of %d bytes comes back with %d", len(large), len(got.Value))
	}
	for _, tc := range []struct {
		key  string
		size int
	}{{"", 1}, {long + "k", 1}, {"large", storage.RecordMax + 1}} {
		if _, err := f.Put(ctx, tc.key, make([]byte, tc.size), 0); err == nil {
			t.Errorf("Put of a key of %d bytes and a value of %d succeeded", len(tc.key), tc.size)
		}
	}
}

func testRecordList(t *testing.T, f *fixture) {
	for i, k := range []string{"b/1", "a/2", "a/10", "a/1", "a", "c", "a-1"} {
		f.set(k, fmt.Sprint(i))
	}
	f.listed("", "", 100, "a=4 a-1=6 a/1=3 a/10=2 a/2=1 b/1=0 c=5")
	f.listed("a/", "", 100, "a/1=3 a/10=2 a/2=1")
	f.listed("a/", "a/1", 1, "a/10=2")
	f.listed("a/", "a/11", 10, "a/2=1") // need not exist
	f.listed("a/", "a/2", 10, "")
	f.listed("a/", "a-", 10, "a/1=3 a/10=2 a/2=1") // sorts before the prefix
	f.listed("a/", "b", 10, "")                    // sorts after it
	f.listed("d", "", 10, "")
	f.listed("", "", 0, "")
}

func testWatchChanges(t *testing.T, f *fixture) {
	ctx := t.Context()
	start := f.listed("a/", "", 10, "")
	f.set("a/1", "x")
	f.set("b/1", "other")
	f.set("a/2", "y")
	mid := f.watched("a/", start, 1, "a/1=x")
	f.watched("a/", mid, 10, "a/2=y")
	f.set("a/1", "z") // the first change of a/1 is no news any more
	end := f.watched("a/", start, 10, "a/2=y a/1=z")
	r, err := f.Get(ctx, "a/2")
	f.ok(err)
	f.ok(f.Delete(ctx, "a/2", r.Revision))
	end = f.watched("a/", end, 10, "-a/2")
	f.watched("a/", start, 10, "a/1=z -a/2")
	f.set("a/2", "again")
	f.watched("a/", end, 10, "a/2=again")
	f.watched("", start, 10, "b/1=other a/1=z a/2=again")
	if rev := f.listed("a/", "", 10, "a/1=z a/2=again"); rev <= end {
		t.Errorf("List is complete up to %d, want more than %d", rev, end)
	}
}

func testWatchWaits(t *testing.T, f *fixture) {
	start := f.listed("", "", 10, "")
	got := make(chan string)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() {
		changes, _, err := f.Watch(ctx, "a/", start, 10)
		if err != nil {
			t.Errorf("Watch = %v", err)
		}
		got <- line(changes)
	}()
	f.set("b/1", "not below a/") // may wake it, but is nothing to return
	f.set("a/1", "x")
	if s := <-got; s != "a/1=x" {
		t.Errorf("Watch = %q, want a/1=x", s)
	}
}

func testWatchEnds(t *testing.T, f *fixture) {
	start := f.listed("", "", 10, "")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, _, err := f.Watch(ctx, "a/", start, 10)
		done <- err
	}()
	cancel()
	f.is(context.Canceled, <-done, "Watch")
}

func testWatchCursor(t *testing.T, f *fixture) {
	f.set("a", "1")
	for _, cursor := range []uint64{1000, math.MaxUint64} { // as after the restore of a backup
		_, _, err := f.Watch(t.Context(), "", cursor, 10)
		f.is(storage.ErrCompacted, err, fmt.Sprintf("Watch from %d", cursor))
	}
}

// Writers write, one watches from page to page, and has the end state.
func testWatchTogether(t *testing.T, f *fixture) {
	const writers, each = 8, 25
	cursor := f.listed("", "", 1, "")
	seen := make(map[string]string)
	done := make(chan struct{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() {
		defer close(done)
		for full := 0; full < writers; {
			changes, next, err := f.Watch(ctx, "w/", cursor, 3)
			if err != nil {
				t.Errorf("Watch = %v", err)
				return
			}
			cursor = next
			for _, c := range changes {
				if seen[c.Key] = string(c.Value); seen[c.Key] == fmt.Sprint(each-1) {
					full++
				}
			}
		}
	}()
	together(writers, func(i int) {
		rev := uint64(0)
		for j := range each {
			var err error
			if rev, err = f.Put(t.Context(), fmt.Sprint("w/", i), fmt.Append(nil, j), rev); err != nil {
				t.Errorf("Put = %v", err)
				return
			}
		}
	})
	<-done
	if len(seen) != writers {
		t.Errorf("watcher saw %v, want %d keys", seen, writers)
	}
}

func testLease(t *testing.T, f *fixture) {
	ctx := t.Context()
	one, err := f.Acquire(ctx, "gc", "server-1", time.Minute)
	f.ok(err)
	if one.Name != "gc" || one.Holder != "server-1" || !one.Expires.Equal(f.clock.Now().Add(time.Minute)) || one.Token == 0 {
		t.Errorf("Acquire = %+v", one)
	}
	_, err = f.Acquire(ctx, "gc", "server-2", time.Minute)
	f.is(storage.ErrHeld, err, "Acquire of a lease that another has")
	f.is(storage.ErrHeld, f.Release(ctx, "gc", "server-2"), "Release of a lease that another has")
	_, err = f.Acquire(ctx, "scrub", "server-2", time.Minute)
	f.ok(err) // another lease

	f.clock.add(30 * time.Second)
	renewed, err := f.Acquire(ctx, "gc", "server-1", time.Minute)
	f.ok(err)
	if renewed.Token != one.Token || !renewed.Expires.Equal(one.Expires.Add(30*time.Second)) {
		t.Errorf("renewal of %+v = %+v", one, renewed)
	}
	f.clock.add(time.Minute)
	f.reopen()
	two, err := f.Acquire(ctx, "gc", "server-2", time.Minute)
	f.ok(err)
	if two.Token <= one.Token {
		t.Errorf("token %d of the next holder after %d", two.Token, one.Token)
	}
	_, err = f.Acquire(ctx, "gc", "server-1", time.Minute)
	f.is(storage.ErrHeld, err, "Acquire by who lost the lease")
	f.ok(f.Release(ctx, "gc", "server-2"))
	f.ok(f.Release(ctx, "gc", "server-2")) // nobody has it: no error
	three, err := f.Acquire(ctx, "gc", "server-1", time.Minute)
	f.ok(err)
	if three.Token <= two.Token {
		t.Errorf("token %d of the next holder after %d", three.Token, two.Token)
	}
}

func testLeaseTogether(t *testing.T, f *fixture) {
	const n = 16
	for range 5 {
		var holders atomic.Int32
		together(n, func(i int) {
			_, err := f.Acquire(t.Context(), "gc", fmt.Sprint("server-", i), time.Minute)
			if err == nil {
				holders.Add(1)
			} else if !errors.Is(err, storage.ErrHeld) {
				t.Errorf("Acquire = %v", err)
			}
		})
		if holders.Load() != 1 {
			t.Fatalf("%d of %d got the lease", holders.Load(), n)
		}
		f.clock.add(time.Minute)
	}
}

// Increments by compare and swap are all there.
func testRecordTogether(t *testing.T, f *fixture) {
	const n, each = 8, 10
	f.set("counter", "0")
	together(n, func(int) {
		for done := 0; done < each; {
			r, err := f.Get(t.Context(), "counter")
			if err != nil {
				t.Error(err)
				return
			}
			var count int
			_, _ = fmt.Sscan(string(r.Value), &count)
			_, err = f.Put(t.Context(), "counter", fmt.Append(nil, count+1), r.Revision)
			switch {
			case err == nil:
				done++
			case !errors.Is(err, storage.ErrConflict):
				t.Error(err)
				return
			}
		}
	})
	f.listed("", "", 10, fmt.Sprint("counter=", n*each))
}

func testRecordsReopen(t *testing.T, f *fixture) {
	start := f.listed("", "", 10, "")
	one := f.set("a", "1")
	f.reopen()
	f.listed("", "", 10, "a=1")
	if two := f.set("b", "2"); two <= one {
		t.Errorf("revision %d after reopening, want more than %d", two, one)
	}
	f.watched("", start, 10, "a=1 b=2")
}
