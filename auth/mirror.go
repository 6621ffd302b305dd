package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"berth.internal/storage"
)

// mirror is what Records has below a prefix, as JSON of a T each, kept in memory:
// every request asks who its caller is. What this server writes is in its mirror
// when the call returns; what others write comes as soon as Records tells.
type mirror[T any] struct {
	records storage.Records
	prefix  string
	log     *slog.Logger

	mu      sync.RWMutex
	entries map[string]entry[T] // by name, without prefix
	cursor  uint64
	count   atomic.Int64 // of entries that are not gone; every request asks
}

// entry is a record as of a revision. gone: there was one, until that revision.
type entry[T any] struct {
	value    *T // must not be changed
	revision uint64
	gone     bool
}

// counts is how many accounts e is.
func (e entry[T]) counts() int64 {
	if e.gone {
		return 0
	}
	return 1
}

func newMirror[T any](records storage.Records, prefix string, log *slog.Logger) *mirror[T] {
	return &mirror[T]{records: records, prefix: prefix, log: log, entries: map[string]entry[T]{}}
}

// load reads all.
func (m *mirror[T]) load(ctx context.Context) error {
	const batch = 1000
	fresh := map[string]entry[T]{}
	var cursor uint64
	for after := ""; ; {
		recs, revision, err := m.records.List(ctx, m.prefix, after, batch)
		if err != nil {
			return fmt.Errorf("list %s: %w", m.prefix, err)
		}
		if after == "" {
			cursor = revision
		}
		for _, r := range recs {
			if v := m.parse(r); v != nil {
				fresh[strings.TrimPrefix(r.Key, m.prefix)] = entry[T]{value: v, revision: r.Revision}
			}
		}
		if len(recs) < batch {
			break
		}
		after = recs[len(recs)-1].Key
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, e := range m.entries {
		if e.revision > cursor { // written here, while the list was read
			fresh[name] = e
		}
	}
	m.entries, m.cursor = fresh, cursor
	n := int64(0)
	for _, e := range fresh {
		n += e.counts()
	}
	m.count.Store(n) // once: without users a server lets in more, so nobody may see less for a moment
	return nil
}

// parse returns nil for what cannot be read: nobody gets in by it.
func (m *mirror[T]) parse(r storage.Record) *T {
	v := new(T)
	if err := json.Unmarshal(r.Value, v); err != nil {
		m.log.Error("a record is damaged and does not count", "key", r.Key, "error", err)
		return nil
	}
	return v
}

// follow keeps the mirror true until ctx ends.
func (m *mirror[T]) follow(ctx context.Context) {
	for failed := 0; ; {
		m.mu.RLock()
		cursor := m.cursor
		m.mu.RUnlock()
		changes, next, err := m.records.Watch(ctx, m.prefix, cursor, 1000)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, storage.ErrCompacted):
			err = m.load(ctx)
		case err == nil:
			m.mu.Lock()
			for _, c := range changes {
				e := entry[T]{revision: c.Revision, gone: c.Deleted}
				if !c.Deleted {
					e.value = m.parse(c.Record)
					e.gone = e.value == nil
				}
				m.apply(strings.TrimPrefix(c.Key, m.prefix), e)
			}
			m.cursor = next
			m.mu.Unlock()
		}
		if err == nil {
			failed = 0
			continue
		}
		m.log.Error("changes made by other servers are not seen now", "prefix", m.prefix, "error", err)
		failed++
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(time.Duration(failed)*time.Second, 30*time.Second)):
		}
	}
}

// apply takes over e if it is news. mu is held.
func (m *mirror[T]) apply(name string, e entry[T]) {
	old, had := m.entries[name]
	if had && (old.revision > e.revision || old.revision == e.revision && old.gone) {
		return
	}
	if e.gone && had && old.gone {
		delete(m.entries, name) // Records has told what this server knew already
		return
	}
	if e.gone && !had {
		return
	}
	if !had {
		old.gone = true
	}
	m.entries[name] = e
	m.count.Add(e.counts() - old.counts())
}

// get returns the value of name, nil if there is none, and its revision.
func (m *mirror[T]) get(name string) (*T, uint64) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	e := m.entries[name]
	if e.gone {
		return nil, 0
	}
	return e.value, e.revision
}

func (m *mirror[T]) len() int { return int(m.count.Load()) }

// names returns those there are, in order.
func (m *mirror[T]) names() []string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	names := make([]string, 0, m.len())
	for name, e := range m.entries {
		if !e.gone {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// below returns those that begin with prefix, in no order.
func (m *mirror[T]) below(prefix string) []string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var names []string
	for name, e := range m.entries {
		if !e.gone && strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	return names
}

// put writes a value over the one at revision rev; 0 is none. Errors: ErrConflict.
func (m *mirror[T]) put(ctx context.Context, name string, v *T, rev uint64) (uint64, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return 0, err
	}
	rev, err = m.records.Put(ctx, m.prefix+name, b, rev)
	if err != nil {
		return 0, fmt.Errorf("write %s%s: %w", m.prefix, name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.apply(name, entry[T]{value: v, revision: rev})
	return rev, nil
}

// remove deletes the value at revision rev. Errors: ErrNotFound; ErrConflict.
func (m *mirror[T]) remove(ctx context.Context, name string, rev uint64) error {
	if err := m.records.Delete(ctx, m.prefix+name, rev); err != nil {
		return fmt.Errorf("delete %s%s: %w", m.prefix, name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e, ok := m.entries[name]; ok && e.revision == rev {
		if !e.gone {
			m.count.Add(-1)
		}
		m.entries[name] = entry[T]{revision: rev, gone: true}
	}
	return nil
}

// refresh reads one record again: after a conflict, before it is tried again.
func (m *mirror[T]) refresh(ctx context.Context, name string) error {
	r, err := m.records.Get(ctx, m.prefix+name)
	e := entry[T]{revision: r.Revision}
	switch {
	case storage.IsNotFound(err):
		m.mu.Lock()
		defer m.mu.Unlock()
		if old, ok := m.entries[name]; ok && !old.gone {
			old.gone = true
			m.count.Add(-1)
			m.entries[name] = old
		}
		return nil
	case err != nil:
		return fmt.Errorf("read %s%s: %w", m.prefix, name, err)
	}
	e.value = m.parse(r)
	e.gone = e.value == nil
	m.mu.Lock()
	defer m.mu.Unlock()
	m.apply(name, e)
	return nil
}
