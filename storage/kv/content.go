package kv

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
)

// A digest has one row of kindContent while any repository holds it in any way,
// and one row of kindHolder for each of them. The row does not change, unless
// content that is quarantined is put again; it goes with the last holder.

// holdKey is the row that says that repo holds d. The letter of a holding is
// its kind of row.
func holdKey(h holding, repo string, d digest.Digest) key {
	return makeKey(byte(h)).field(repo).last(d.String())
}

func holderKey(d digest.Digest) key { return makeKey(kindHolder).field(d.String()) }

func contentKey(d digest.Digest) key { return makeKey(kindContent).last(d.String()) }

func inlineKey(n uint64) key { return makeKey(kindInline).number(n) }

// content returns the content of a digest that is held, unless it is
// quarantined.
func (t tx) content(d digest.Digest) (storage.Content, error) {
	if err := t.damage(d); err != nil {
		return storage.Content{}, err
	}
	return t.bytes(d)
}

// bytes returns the content of a digest that is held, as it is.
func (t tx) bytes(d digest.Digest) (storage.Content, error) {
	c, err := t.stored(d)
	c.Inline = bytes.Clone(c.Inline)
	return c, err
}

// stored is bytes, but what is inline is valid only until the transaction ends.
func (t tx) stored(d digest.Digest) (storage.Content, error) {
	p, ok, err := t.place(d)
	if err == nil && !ok {
		err = fmt.Errorf("%w: %s is held, but has no content", errDamaged, d)
	}
	if err != nil {
		return storage.Content{}, err
	}
	c := storage.Content{Digest: d, Size: p.size, Key: p.key}
	if p.key == "" && p.size > 0 {
		c.Inline = t.Get(inlineKey(p.inline))
		if int64(len(c.Inline)) != p.size {
			return storage.Content{}, fmt.Errorf("%w: %s has %d bytes of %d", errDamaged, d, len(c.Inline), p.size)
		}
	}
	return c, nil
}

// place returns where the bytes of d are, if any repository holds it.
func (t tx) place(d digest.Digest) (p place, ok bool, err error) {
	v := t.Get(contentKey(d))
	if v == nil {
		return place{}, false, nil
	}
	p, err = readPlace(v)
	return p, true, err
}

// store gives the digest of c its content. If it has one already, that stays,
// and a key that c brings becomes an orphan; but quarantined content is replaced.
func (t tx) store(c storage.Content) error {
	p, known, err := t.place(c.Digest)
	if err != nil {
		return err
	}
	if known && t.has(damageKey(c.Digest)) {
		t.Delete(damageKey(c.Digest))
		t.discard(c.Digest, p)
		known = false
	}
	if c.Key != "" && known && p.key == c.Key {
		return nil // the caller repeats itself
	}
	if c.Key != "" {
		if err := t.claim(c.Key); err != nil {
			return err
		}
		if known {
			t.orphan(c.Key, t.now)
			return nil
		}
	}
	if known {
		return nil
	}
	p = place{size: c.Size, key: c.Key}
	if c.Key == "" && c.Size > 0 {
		p.inline = t.next("inline")
		t.Put(inlineKey(p.inline), c.Inline)
	}
	t.Put(contentKey(c.Digest), p.row())
	return nil
}

// checkInline refuses content that says one thing and holds another.
func checkInline(c storage.Content) error {
	switch {
	case c.Key != "" && c.Inline != nil:
		return fmt.Errorf("content %s is inline and has a key", c.Digest)
	case c.Key == "" && int64(len(c.Inline)) != c.Size:
		return fmt.Errorf("content %s of %d bytes brings %d", c.Digest, c.Size, len(c.Inline))
	case len(c.Inline) > storage.InlineMax:
		return fmt.Errorf("content %s of %d bytes is too large to be inline", c.Digest, c.Size)
	}
	return nil
}

// drop takes d from repo. With the last holder the content goes too.
func (t tx) drop(h holding, repo string, d digest.Digest) error {
	t.release(h, repo, d)
	if _, held := t.first(holderKey(d)); held {
		return nil
	}
	p, ok, err := t.place(d)
	if err != nil || !ok {
		return err
	}
	t.Delete(damageKey(d))
	t.discard(d, p)
	return nil
}

// discard lets go of the bytes of d, which are at p.
func (t tx) discard(d digest.Digest, p place) {
	t.Delete(contentKey(d))
	if p.key != "" {
		t.orphan(p.key, t.now)
	} else if p.size > 0 {
		t.Delete(inlineKey(p.inline))
	}
}

func orphanAtKey(k storage.Key) key { return makeKey(kindOrphanAt).last(string(k)) }

func orphanKey(due int64, k storage.Key) key {
	return makeKey(kindOrphan).time(due).last(string(k))
}

// orphan makes k an orphan that is due then.
func (t tx) orphan(k storage.Key, due int64) {
	t.forget(k)
	t.mark(orphanKey(due, k))
	t.Put(orphanAtKey(k), binary.BigEndian.AppendUint64(nil, uint64(due)))
}

// forget removes k from the orphans and returns when it was due.
func (t tx) forget(k storage.Key) (due int64, ok bool) {
	v := t.Get(orphanAtKey(k))
	if len(v) != 8 {
		return 0, false
	}
	due = int64(binary.BigEndian.Uint64(v))
	t.Delete(orphanKey(due, k))
	t.Delete(orphanAtKey(k))
	return due, true
}

// claim takes a key that Intend announced out of the orphans, for a name. A key
// that is due may be losing its bytes at this moment.
func (t tx) claim(k storage.Key) error {
	due, ok := t.forget(k)
	if !ok {
		return fmt.Errorf("key %s was not announced: %w", k, storage.ErrNotFound)
	}
	if due <= t.now {
		return fmt.Errorf("key %s was given up: %w", k, storage.ErrNotFound)
	}
	return nil
}

// after is the time grace from now. A grace without end does not wrap around.
func (t tx) after(grace time.Duration) int64 {
	if grace > 0 && t.now > math.MaxInt64-int64(grace) {
		return math.MaxInt64
	}
	return t.now + int64(grace)
}
