package kv

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"

	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
)

func damageKey(d digest.Digest) key { return makeKey(kindDamage).last(d.String()) }

// damage returns a *storage.QuarantinedError if the content of d is
// quarantined.
func (t tx) damage(d digest.Digest) error {
	v := t.Get(damageKey(d))
	if v == nil {
		return nil
	}
	since, why, err := readDamage(v)
	if err != nil {
		return err
	}
	return &storage.QuarantinedError{Digest: d, Why: why, Since: fromNanos(since)}
}

// Contents implements storage.Care.
func (x *Index) Contents(ctx context.Context, after digest.Digest, n int) (list []storage.Content, err error) {
	err = x.view(ctx, func(t tx) error {
		for _, d := range t.page(makeKey(kindContent), after.String(), n) {
			c, err := t.bytes(digest.Digest(d))
			if err != nil { // damage in the index itself: Check tells more
				c = storage.Content{Digest: digest.Digest(d), Size: -1}
			}
			list = append(list, c)
		}
		return nil
	})
	return list, err
}

// Quarantine implements storage.Care.
func (x *Index) Quarantine(ctx context.Context, c storage.Content, why string) (done bool, err error) {
	err = x.update(ctx, func(t tx) error {
		done = false
		p, ok, err := t.place(c.Digest)
		if err != nil || !ok || p.key != c.Key || p.size != c.Size {
			return err
		}
		done = true
		if why == "" {
			t.Delete(damageKey(c.Digest))
			return nil
		}
		if !t.has(damageKey(c.Digest)) { // else since when stays
			t.Put(damageKey(c.Digest), makeRow().uint(uint64(t.now)).text(why))
		}
		return nil
	})
	return done, err
}

func readDamage(v []byte) (since int64, why string, err error) {
	f := readRow(v)
	since, why = f.int(), f.text()
	return since, why, f.end("a quarantine")
}

// Quarantined implements storage.Care.
func (x *Index) Quarantined(ctx context.Context, after digest.Digest, n int) (list []storage.Quarantined, err error) {
	const holders = 10
	err = x.view(ctx, func(t tx) error {
		for _, d := range t.page(makeKey(kindDamage), after.String(), n) {
			q := storage.Quarantined{Digest: digest.Digest(d)}
			since, why, err := readDamage(t.Get(damageKey(q.Digest)))
			if err != nil {
				return err
			}
			p, _, err := t.place(q.Digest)
			if err != nil {
				return err
			}
			q.Size, q.Why, q.Since = p.size, why, fromNanos(since)
			for rest := range t.scan(holderKey(q.Digest), "") {
				if rest == "" || len(q.Holders) == holders {
					break
				}
				q.Holders = append(q.Holders, rest[1:])
			}
			list = append(list, q)
		}
		return nil
	})
	return list, err
}

// Requeue implements storage.Care.
func (x *Index) Requeue(ctx context.Context, from string, n int, rules storage.Rules) (next string, err error) {
	start, err := hex.DecodeString(from)
	if err != nil {
		return "", fmt.Errorf("requeue from %q: %w", from, err)
	}
	err = x.update(ctx, func(t tx) error {
		next = ""
		prefix := makeKey(kindManifest)
		var found []key
		for rest := range t.scan(prefix, string(start)) {
			if len(found) == n {
				next = hex.EncodeToString(found[n-1][1:])
				break
			}
			found = append(found, bytes.Clone(prefix.last(rest)))
		}
		for _, k := range found {
			repo, d := cut(string(k[1:]))
			_, tagged := t.first(tagOfKey(repo, digest.Digest(d)))
			if _, queued := t.reviewAt(asManifest, repo, digest.Digest(d)); !tagged && !queued {
				if err := t.queueManifest(repo, digest.Digest(d), rules); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return next, err
}
