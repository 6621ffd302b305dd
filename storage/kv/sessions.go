package kv

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"berth.internal/storage"
)

func sessionKey(id string) key { return makeKey(kindSession).last(id) }

func idleKey(s storage.Session) key {
	return makeKey(kindIdle).time(toNanos(s.Updated)).last(s.ID)
}

// PutSession implements storage.Sessions.
func (x *Index) PutSession(ctx context.Context, s storage.Session) error {
	return x.update(ctx, func(t tx) error {
		if !s.Updated.IsZero() && !t.has(sessionKey(s.ID)) {
			return fmt.Errorf("write session %s: it has ended: %w", s.ID, storage.ErrNotFound)
		}
		if err := t.endSession(s.ID); err != nil {
			return err
		}
		s.Updated = fromNanos(t.now)
		v, err := json.Marshal(s)
		if err != nil {
			return fmt.Errorf("write session %s: %w", s.ID, err)
		}
		t.Put(sessionKey(s.ID), v)
		t.mark(idleKey(s))
		return nil
	})
}

// Session implements storage.Sessions.
func (x *Index) Session(ctx context.Context, id string) (s storage.Session, err error) {
	err = x.view(ctx, func(t tx) error {
		var ok bool
		s, ok, err = t.session(id)
		if err == nil && !ok {
			err = fmt.Errorf("session %s: %w", id, storage.ErrNotFound)
		}
		return err
	})
	return s, err
}

func (t tx) session(id string) (s storage.Session, ok bool, err error) {
	v := t.Get(sessionKey(id))
	if v == nil {
		return s, false, nil
	}
	if err := json.Unmarshal(v, &s); err != nil {
		return s, false, fmt.Errorf("%w: session %s: %w", errDamaged, id, err)
	}
	return s, true, nil
}

// EndSession implements storage.Sessions.
func (x *Index) EndSession(ctx context.Context, id string) error {
	return x.update(ctx, func(t tx) error { return t.endSession(id) })
}

func (t tx) endSession(id string) error {
	s, ok, err := t.session(id)
	if err != nil || !ok {
		return err
	}
	t.Delete(sessionKey(id))
	t.Delete(idleKey(s))
	return nil
}

// Idle implements storage.Sessions.
func (x *Index) Idle(ctx context.Context, before time.Time, from string, n int) (list []storage.Session, next string, err error) {
	after, err := readCursor(from)
	if err != nil {
		return nil, "", fmt.Errorf("list sessions: %w", err)
	}
	err = x.view(ctx, func(t tx) error {
		list, next, err = t.idle(before, after, n)
		return err
	})
	return list, next, err
}

func (t tx) idle(before time.Time, after string, n int) (list []storage.Session, next string, err error) {
	var ids []string
	next = t.early(makeKey(kindIdle), toNanos(before)-1, after, n, func(_ int64, id string) { ids = append(ids, id) })
	for _, id := range ids {
		s, ok, err := t.session(id)
		if err != nil {
			return nil, "", err
		}
		if !ok {
			return nil, "", fmt.Errorf("%w: session %s is listed only", errDamaged, id)
		}
		list = append(list, s)
	}
	return list, next, nil
}

// Expire implements storage.Sessions.
func (x *Index) Expire(ctx context.Context, before time.Time, n int) (list []storage.Session, err error) {
	err = x.update(ctx, func(t tx) error {
		if list, _, err = t.idle(before, "", n); err != nil {
			return err
		}
		for _, s := range list {
			if err := t.endSession(s.ID); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}
