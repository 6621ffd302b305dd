package kv

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"berth.internal/storage"
)

// changeDeleted is the flag of a change that removed its record.
const changeDeleted = 1

func recordKey(k string) key { return makeKey(kindRecord).last(k) }

func changeKey(rev uint64) key { return makeKey(kindChange).number(rev) }

// record returns the record at k, if there is one.
func (t tx) record(k string) (storage.Record, bool, error) {
	v := t.Get(recordKey(k))
	if v == nil {
		return storage.Record{}, false, nil
	}
	r, err := readRecord(k, v)
	return r, true, err
}

func readRecord(k string, v []byte) (storage.Record, error) {
	if len(v) < 9 || v[0] != rowVersion {
		return storage.Record{}, fmt.Errorf("%w: record %s", errDamaged, k)
	}
	value := append(make([]byte, 0, len(v)-9), v[9:]...)
	return storage.Record{Key: k, Value: value, Revision: binary.BigEndian.Uint64(v[1:])}, nil
}

// Get implements storage.Records.
func (x *Index) Get(ctx context.Context, k string) (r storage.Record, err error) {
	err = x.view(ctx, func(t tx) error {
		var ok bool
		r, ok, err = t.record(k)
		if err == nil && !ok {
			err = fmt.Errorf("record %s: %w", k, storage.ErrNotFound)
		}
		return err
	})
	return r, err
}

// List implements storage.Records.
func (x *Index) List(ctx context.Context, prefix, after string, n int) (list []storage.Record, revision uint64, err error) {
	err = x.view(ctx, func(t tx) error {
		revision = t.count("revision")
		// The rows begin with prefix, and sort after both prefix and after.
		begin := ""
		switch {
		case strings.HasPrefix(after, prefix):
			begin = after[len(prefix):]
		case after > prefix:
			return nil // beyond all that begins with prefix
		}
		for rest, v := range t.scan(recordKey(prefix), begin) {
			if len(list) >= n {
				return nil
			}
			r, err := readRecord(prefix+rest, v)
			if err != nil {
				return err
			}
			list = append(list, r)
		}
		return nil
	})
	return list, revision, err
}

// Put implements storage.Records.
func (x *Index) Put(ctx context.Context, k string, value []byte, rev uint64) (next uint64, err error) {
	switch {
	case k == "" || len(k) > storage.RecordKeyMax:
		return 0, fmt.Errorf("put record: key of %d bytes, want 1 to %d", len(k), storage.RecordKeyMax)
	case len(value) > storage.RecordMax:
		return 0, fmt.Errorf("put record %s: value of %d bytes, want at most %d", k, len(value), storage.RecordMax)
	}
	err = x.update(ctx, func(t tx) error {
		old, _, err := t.record(k)
		if err != nil {
			return err
		}
		if old.Revision != rev {
			return fmt.Errorf("put record %s: at revision %d, not %d: %w", k, old.Revision, rev, storage.ErrConflict)
		}
		next = x.change(t, k, false)
		t.Put(recordKey(k), append(binary.BigEndian.AppendUint64(makeRow(), next), value...))
		return nil
	})
	if err != nil {
		return 0, err
	}
	x.changed.wake()
	return next, nil
}

// Delete implements storage.Records.
func (x *Index) Delete(ctx context.Context, k string, rev uint64) error {
	err := x.update(ctx, func(t tx) error {
		old, ok, err := t.record(k)
		switch {
		case err != nil:
			return err
		case !ok:
			return fmt.Errorf("delete record %s: %w", k, storage.ErrNotFound)
		case old.Revision != rev:
			return fmt.Errorf("delete record %s: at revision %d, not %d: %w", k, old.Revision, rev, storage.ErrConflict)
		}
		x.change(t, k, true)
		t.Delete(recordKey(k))
		return nil
	})
	if err == nil {
		x.changed.wake()
	}
	return err
}

// change gives the change of k the next revision, notes it for Watch, and lets
// the oldest change go when there are too many.
func (x *Index) change(t tx, k string, deleted bool) uint64 {
	flags := uint64(0)
	if deleted {
		flags = changeDeleted
	}
	rev := t.next("revision")
	t.Put(changeKey(rev), makeRow().text(k).uint(flags))
	if rev > x.changes {
		t.Delete(changeKey(rev - x.changes))
	}
	return rev
}

// Watch implements storage.Records.
func (x *Index) Watch(ctx context.Context, prefix string, cursor uint64, n int) (list []storage.Change, next uint64, err error) {
	for {
		changed := x.changed.wait() // before the look, so that nothing comes between
		err := x.view(ctx, func(t tx) error {
			list, next, err = x.since(t, prefix, cursor, n)
			return err
		})
		if err != nil {
			return nil, cursor, err
		}
		if len(list) > 0 {
			return list, next, nil
		}
		cursor = next
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, cursor, ctx.Err()
		}
	}
}

// since returns up to n changes below prefix after cursor, and the revision
// up to which it looked.
func (x *Index) since(t tx, prefix string, cursor uint64, n int) ([]storage.Change, uint64, error) {
	last := t.count("revision")
	if cursor > last || last-cursor > x.changes {
		return nil, cursor, fmt.Errorf("watch %s from revision %d of %d: %w", prefix, cursor, last, storage.ErrCompacted)
	}
	var list []storage.Change
	for rest, v := range t.scan(makeKey(kindChange), string(key(nil).number(cursor))) {
		if len(list) >= n {
			return list, cursor, nil
		}
		rev, _, _ := cutNumber(rest)
		f := readRow(v)
		k, flags := f.text(), f.uint()
		if err := f.end("a change"); err != nil {
			return nil, cursor, err
		}
		cursor = rev
		if !strings.HasPrefix(k, prefix) {
			continue
		}
		r, ok, err := t.record(k)
		if err != nil {
			return nil, cursor, err
		}
		switch {
		case ok && r.Revision == rev:
			list = append(list, storage.Change{Record: r})
		case !ok && flags&changeDeleted != 0:
			list = append(list, storage.Change{Record: storage.Record{Key: k, Revision: rev}, Deleted: true})
		} // else a later change of k follows
	}
	return list, cursor, nil
}

// lease reads the row at k; without one, nobody holds it.
func (t tx) lease(name string) (storage.Lease, error) {
	v := t.Get(makeKey(kindLease).last(name))
	if v == nil {
		return storage.Lease{Name: name}, nil
	}
	f := readRow(v)
	l := storage.Lease{Name: name, Holder: f.text(), Expires: fromNanos(f.int()), Token: f.uint()}
	return l, f.end("a lease")
}

// Alone is for a DB that one process at a time has open, in the first transaction
// after that process has opened it: whoever held a lease has ended with its
// process.
func Alone(t Tx) {
	leases := makeKey(kindLease)
	for _, name := range (tx{Tx: t}).all(leases) {
		t.Delete(makeKey(kindLease).last(name))
	}
}

// Acquire implements storage.Records.
func (x *Index) Acquire(ctx context.Context, name, holder string, ttl time.Duration) (l storage.Lease, err error) {
	err = x.update(ctx, func(t tx) error {
		if l, err = t.lease(name); err != nil {
			return err
		}
		if l.Holder != holder {
			if l.Holder != "" && toNanos(l.Expires) > t.now {
				return fmt.Errorf("acquire %s for %s: %w: %s until %s", name, holder, storage.ErrHeld, l.Holder, l.Expires.Format(time.RFC3339))
			}
			l.Holder, l.Token = holder, t.next("lease")
		}
		due := t.after(ttl)
		l.Expires = fromNanos(due)
		t.Put(makeKey(kindLease).last(name), makeRow().text(l.Holder).uint(uint64(due)).uint(l.Token))
		return nil
	})
	if err != nil {
		return storage.Lease{}, err
	}
	return l, nil
}

// Release implements storage.Records.
func (x *Index) Release(ctx context.Context, name, holder string) error {
	return x.update(ctx, func(t tx) error {
		l, err := t.lease(name)
		switch {
		case err != nil:
			return err
		case l.Holder != holder && l.Holder != "" && toNanos(l.Expires) > t.now:
			return fmt.Errorf("release %s of %s: %w: %s", name, holder, storage.ErrHeld, l.Holder)
		case l.Holder == holder:
			t.Delete(makeKey(kindLease).last(name))
		}
		return nil
	})
}
