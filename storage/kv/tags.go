package kv

import (
	"bytes"
	"context"
	"fmt"
	"math"

	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
)

func tagKey(repo, tag string) key { return makeKey(kindTag).field(repo).last(tag) }

// tagOfKey begins the rows of the tags on manifest d.
func tagOfKey(repo string, d digest.Digest) key {
	return makeKey(kindTagOf).field(repo).field(d.String())
}

// historyKey begins the rows of the changes of a tag, the latest first.
func historyKey(repo, tag string) key { return makeKey(kindHistory).field(repo).field(tag) }

// tag returns what tag is on, empty if there is none.
func (t tx) tag(repo, tag string) digest.Digest { return digest.Digest(t.Get(tagKey(repo, tag))) }

// moveTag puts tag on d and queues what it was on.
func (t tx) moveTag(repo, tag string, d digest.Digest, rules storage.Rules) error {
	old := t.tag(repo, tag)
	switch {
	case old == d:
		return nil
	case old != "" && rules.Immutable != nil && rules.Immutable(tag):
		return fmt.Errorf("tag %s in %s is on %s: %w", tag, repo, old, storage.ErrImmutable)
	}
	t.setTag(repo, tag, old, d)
	t.unqueue(asHistory, repo, digest.Digest(tag))
	if old == "" {
		return nil
	}
	return t.queueUntagged(repo, old, rules)
}

// takeTag takes tag, which is on d, from repo. Its history stays as long as
// trash does.
func (t tx) takeTag(repo, tag string, d digest.Digest, rules storage.Rules) error {
	if rules.Immutable != nil && rules.Immutable(tag) {
		return fmt.Errorf("tag %s in %s is on %s: %w", tag, repo, d, storage.ErrImmutable)
	}
	t.setTag(repo, tag, d, "")
	t.queue(asHistory, repo, digest.Digest(tag), rules.Trash)
	return nil
}

// queueUntagged queues manifest d of repo, from which a tag was taken: as long
// as there is trash, the tag can be restored.
func (t tx) queueUntagged(repo string, d digest.Digest, rules storage.Rules) error {
	rules.Untagged = max(rules.Untagged, rules.Trash)
	rules.Dangling = max(rules.Dangling, rules.Trash)
	return t.queueManifest(repo, d, rules)
}

// setTag moves tag from old to d; empty is nowhere.
func (t tx) setTag(repo, tag string, old, d digest.Digest) {
	if old != "" {
		t.Delete(tagOfKey(repo, old).last(tag))
	}
	if d == "" {
		t.Delete(tagKey(repo, tag))
	} else {
		t.Put(tagKey(repo, tag), []byte(d))
		t.mark(tagOfKey(repo, d).last(tag))
	}
	t.remember(repo, tag, d)
}

// remember adds to the tag's history, and lets the oldest change go when there
// are too many.
func (t tx) remember(repo, tag string, d digest.Digest) {
	var n uint64
	if rest, ok := t.first(historyKey(repo, tag)); ok {
		inverted, _, _ := cutNumber(rest)
		n = math.MaxUint64 - inverted + 1
	}
	t.Put(historyKey(repo, tag).number(math.MaxUint64-n), makeRow().uint(uint64(t.now)).text(d.String()))
	if n >= storage.HistoryMax {
		t.Delete(historyKey(repo, tag).number(math.MaxUint64 - (n - storage.HistoryMax)))
	}
}

// DeleteTag implements storage.Manifests.
func (x *Index) DeleteTag(ctx context.Context, repo, tag string, rules storage.Rules) error {
	return x.update(ctx, func(t tx) error {
		d := t.tag(repo, tag)
		if d == "" {
			return fmt.Errorf("delete tag %s from %s: %w", tag, repo, storage.ErrNotFound)
		}
		if err := t.takeTag(repo, tag, d, rules); err != nil {
			return err
		}
		return t.queueUntagged(repo, d, rules)
	})
}

// Tags implements storage.Manifests.
func (x *Index) Tags(ctx context.Context, repo, after string, n int) (tags []string, err error) {
	err = x.view(ctx, func(t tx) error {
		_, manifests := t.first(makeKey(kindManifest).field(repo))
		_, blobs := t.first(makeKey(kindBlob).field(repo))
		if !manifests && !blobs {
			return fmt.Errorf("tags of %s: %w", repo, storage.ErrNotFound)
		}
		tags = t.page(makeKey(kindTag).field(repo), after, n)
		return nil
	})
	return tags, err
}

// PastTags implements storage.Manifests.
func (x *Index) PastTags(ctx context.Context, repo, after string, n int) (tags []string, err error) {
	prefix := makeKey(kindHistory).field(repo)
	err = x.view(ctx, func(t tx) error {
		for len(tags) < n {
			from := bytes.Clone(prefix)
			if after != "" {
				from = append(append(from, after...), 1) // beyond all changes of after
			}
			found := false
			for k := range t.Ascend(from) {
				if found = bytes.HasPrefix(k, prefix); found {
					after, _ = cut(string(k[len(prefix):]))
				}
				break
			}
			if !found {
				return nil
			}
			tags = append(tags, after)
		}
		return nil
	})
	return tags, err
}

// History implements storage.Manifests.
func (x *Index) History(ctx context.Context, repo, tag string, n int) (list []storage.TagChange, err error) {
	err = x.view(ctx, func(t tx) error {
		for _, v := range t.scan(historyKey(repo, tag), "") {
			if len(list) >= n {
				return nil
			}
			f := readRow(v)
			nanos := int64(f.uint())
			c := storage.TagChange{Digest: digest.Digest(f.text()), Time: fromNanos(nanos)}
			if err := f.end("a tag's history"); err != nil {
				return err
			}
			list = append(list, c)
		}
		return nil
	})
	return list, err
}
