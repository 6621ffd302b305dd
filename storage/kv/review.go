package kv

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"time"

	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
)

// entry is a row of the queue: what repo holds as digest is reviewed when due.
type entry struct {
	due    int64
	as     holding
	repo   string
	digest digest.Digest
}

func reviewAtKey(h holding, repo string, d digest.Digest) key {
	return makeKey(kindReviewAt).holding(h).field(repo).last(d.String())
}

func reviewKey(due int64, h holding, repo string, d digest.Digest) key {
	return makeKey(kindReview).time(due).holding(h).field(repo).last(d.String())
}

// queue sets the review of what repo holds under d to grace from now. A review
// that is due later stays where it is: somebody was promised that time.
func (t tx) queue(h holding, repo string, d digest.Digest, grace time.Duration) {
	due := t.after(grace)
	if was, ok := t.reviewAt(h, repo, d); ok {
		if was >= due {
			return
		}
		t.Delete(reviewKey(was, h, repo, d))
	}
	t.mark(reviewKey(due, h, repo, d))
	t.Put(reviewAtKey(h, repo, d), binary.BigEndian.AppendUint64(nil, uint64(due)))
}

// unqueue removes the review of what repo holds under d.
func (t tx) unqueue(h holding, repo string, d digest.Digest) {
	if due, ok := t.reviewAt(h, repo, d); ok {
		t.Delete(reviewKey(due, h, repo, d))
		t.Delete(reviewAtKey(h, repo, d))
	}
}

// reviewAt returns when the review of what repo holds under d is due, if it is
// queued.
func (t tx) reviewAt(h holding, repo string, d digest.Digest) (due int64, ok bool) {
	v := t.Get(reviewAtKey(h, repo, d))
	if len(v) != 8 {
		return 0, false
	}
	return int64(binary.BigEndian.Uint64(v)), true
}

// Review implements storage.Collector.
func (x *Index) Review(ctx context.Context, policy storage.ReviewPolicy, n int) (list []storage.Verdict, err error) {
	err = x.update(ctx, func(t tx) error {
		list, err = t.review(policy, n)
		return err
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

func (t tx) review(policy storage.ReviewPolicy, n int) ([]storage.Verdict, error) {
	var list []storage.Verdict
	due, _ := t.due(t.now, "", n)
	for _, e := range due {
		if due, ok := t.reviewAt(e.as, e.repo, e.digest); !ok || due != e.due {
			continue // what was condemned before it has moved it
		}
		v, err := t.judge(e, policy)
		if err != nil {
			return nil, fmt.Errorf("review %s in %s: %w", e.digest, e.repo, err)
		}
		list = append(list, v)
		if err := t.carryOut(e, v, policy.Rules); err != nil {
			return nil, fmt.Errorf("condemn %s in %s: %w", e.digest, e.repo, err)
		}
	}
	return list, nil
}

// Queued implements storage.Collector.
func (x *Index) Queued(ctx context.Context, policy storage.ReviewPolicy, until time.Time, from string, n int) (list []storage.Verdict, next string, err error) {
	after, err := readCursor(from)
	if err != nil {
		return nil, "", fmt.Errorf("list the queue: %w", err)
	}
	err = x.view(ctx, func(t tx) error {
		var entries []entry
		entries, next = t.due(toNanos(until), after, n)
		for _, e := range entries {
			v, err := t.judge(e, policy)
			if err != nil {
				return fmt.Errorf("judge %s in %s: %w", e.digest, e.repo, err)
			}
			list = append(list, v)
		}
		return nil
	})
	if err != nil {
		return nil, "", err
	}
	return list, next, nil
}

// due returns up to n entries that are due then, in order, after the row after.
func (t tx) due(until int64, after string, n int) (list []entry, next string) {
	next = t.early(makeKey(kindReview), until, after, n, func(due int64, rest string) {
		e := entry{due: due, as: holding(rest[0])}
		repo, d := cut(rest[1:])
		e.repo, e.digest = repo, digest.Digest(d)
		list = append(list, e)
	})
	return list, next
}

// early calls f with up to n rows of those that begin with prefix and go on with
// a time, which is until or before: with the time and what follows it. It begins
// after the row after, and returns the cursor of the last row if there are more.
func (t tx) early(prefix key, until int64, after string, n int, f func(at int64, rest string)) (next string) {
	seen, last := 0, after
	for row := range t.scan(prefix, after) {
		at, rest, ok := cutNumber(row)
		if !ok || rest == "" || int64(at) > until {
			break
		}
		if seen >= n {
			return writeCursor(last)
		}
		f(int64(at), rest)
		seen, last = seen+1, row
	}
	return ""
}

// writeCursor makes the place after a row for those outside, who may send it
// anywhere as a text. row is its key after the kind, and begins with a time.
func writeCursor(row string) string { return base64.RawURLEncoding.EncodeToString([]byte(row)) }

// readCursor is the reverse of writeCursor; the empty cursor is the beginning.
func readCursor(from string) (row string, err error) {
	b, err := base64.RawURLEncoding.DecodeString(from)
	if row = string(b); err != nil || from != "" && len(row) <= 8 || writeCursor(row) != from {
		return "", fmt.Errorf("from %.40q: %w", from, storage.ErrCursor)
	}
	return row, nil
}

// judge decides on e.
func (t tx) judge(e entry, policy storage.ReviewPolicy) (storage.Verdict, error) {
	v := storage.Verdict{Repo: e.repo, Digest: e.digest, Due: fromNanos(e.due)}
	switch e.as {
	case asHistory:
		v.Kind, v.Digest, v.Tag = storage.KindHistory, "", e.digest.String()
		v.Condemned, v.Why = true, "the tag was deleted"
		if t.tag(e.repo, v.Tag) != "" {
			v.Condemned, v.Why = false, "the tag is there again"
		}
		return v, nil
	case asTrash:
		v.Kind = storage.KindTrash
	case asManifest:
		v.Kind = storage.KindManifest
	default:
		v.Kind = storage.KindBlob
	}
	if !t.has(holdKey(e.as, e.repo, e.digest)) {
		v.Why = "it is no longer held"
		return v, nil
	}
	p, _, err := t.place(e.digest)
	if err != nil {
		return v, err
	}
	v.Size = p.size
	if e.as == asTrash {
		v.Condemned, v.Why = true, "its time in the trash is over"
		if e.due > t.now {
			v.Why = "it was deleted, and can be restored until then"
		}
		return v, nil
	}
	if parent, ok := t.namer(parentKey(e.repo, e.digest), e.as); ok {
		v.Why = "manifest " + parent + " refers to it"
		return v, nil
	}
	if parent, ok := t.namer(neededKey(e.repo, e.digest), e.as); ok {
		v.Why = "manifest " + parent + " in the trash refers to it"
		return v, nil
	}
	if e.as == asBlob {
		v.Condemned, v.Why = true, "no manifest refers to it"
		return v, nil
	}
	return v, t.judgeManifest(e, policy, &v)
}

// judgeManifest decides on a manifest that no other one refers to.
func (t tx) judgeManifest(e entry, policy storage.ReviewPolicy, v *storage.Verdict) error {
	m, err := t.manifestRow(e.repo, e.digest)
	if err != nil {
		return err
	}
	tag, tagged := t.first(tagOfKey(e.repo, e.digest))
	switch {
	case tagged:
		v.Why = "tagged " + tag
	case m.Subject != "" && t.has(holdKey(asManifest, e.repo, m.Subject)):
		v.Why = "its subject " + m.Subject.String() + " is there"
	case m.Subject != "" && t.has(holdKey(asTrash, e.repo, m.Subject)):
		v.Why = "its subject " + m.Subject.String() + " is in the trash"
	case m.Subject != "" && !policy.Dangling:
		v.Why = "referrers without their subject are kept"
	case m.Subject == "" && !policy.Untagged:
		v.Why = "untagged manifests are kept"
	case m.Subject != "":
		v.Condemned, v.Why = true, "untagged, and its subject "+m.Subject.String()+" is gone"
	default:
		v.Condemned, v.Why = true, "untagged"
	}
	return nil
}

// carryOut does what v says and takes e from the queue.
func (t tx) carryOut(e entry, v storage.Verdict, rules storage.Rules) error {
	switch {
	case !v.Condemned:
		t.unqueue(e.as, e.repo, e.digest)
		return nil
	case e.as == asHistory:
		t.unqueue(e.as, e.repo, e.digest)
		for _, change := range t.all(historyKey(e.repo, v.Tag)) {
			t.Delete(historyKey(e.repo, v.Tag).last(change))
		}
		return nil
	case e.as == asTrash:
		return t.purge(e.repo, e.digest, rules)
	case e.as == asBlob:
		return t.drop(asBlob, e.repo, e.digest)
	}
	m, err := t.manifestRow(e.repo, e.digest)
	if err != nil {
		return err
	}
	return t.dropManifest(e.repo, m, rules)
}

// Intend implements storage.Collector.
func (x *Index) Intend(ctx context.Context, k storage.Key, grace time.Duration) error {
	return x.update(ctx, func(t tx) error {
		t.orphan(k, t.after(grace))
		return nil
	})
}

// Orphans implements storage.Collector.
func (x *Index) Orphans(ctx context.Context, until time.Time, from string, n int) (keys []storage.Key, next string, err error) {
	after, err := readCursor(from)
	if err != nil {
		return nil, "", fmt.Errorf("list orphans: %w", err)
	}
	err = x.view(ctx, func(t tx) error {
		next = t.early(makeKey(kindOrphan), toNanos(until), after, n, func(_ int64, k string) {
			keys = append(keys, storage.Key(k))
		})
		return nil
	})
	return keys, next, err
}

// Forget implements storage.Collector.
func (x *Index) Forget(ctx context.Context, keys ...storage.Key) error {
	return x.update(ctx, func(t tx) error {
		for _, k := range keys {
			t.forget(k)
		}
		return nil
	})
}
