package kv

import (
	"context"
	"fmt"
	"slices"

	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
)

// A deleted manifest has a row of kindTrashed in place of that of kindManifest,
// and rows of kindNeeded in place of those of kindParent: they keep what it
// refers to from review. A blob that is deleted while such a manifest needs it
// has a row of kindHidden in place of that of kindBlob, until no such manifest
// is left.

// neededKey begins the rows of the deleted manifests of repo that refer to d.
func neededKey(repo string, d digest.Digest) key {
	return makeKey(kindNeeded).field(repo).field(d.String())
}

// trash puts m, which has no tag any more, into the trash of repo. What keeps a
// referrer of m is now m in the trash, so nothing is queued but m.
func (t tx) trash(repo string, m storage.Manifest, tags []string, rules storage.Rules) error {
	t.cut(repo, m)
	for _, ref := range m.References {
		t.namedBy(neededKey(repo, ref.Digest), ref, m.Digest)
	}
	until := t.after(rules.Trash)
	t.hold(asTrash, repo, m.Digest, trashedRow(storage.Trashed{
		Manifest: m, Tags: tags, Deleted: fromNanos(t.now), Until: fromNanos(until),
	}))
	t.queue(asTrash, repo, m.Digest, rules.Trash)
	return t.drop(asManifest, repo, m.Digest)
}

// trashed returns manifest d in the trash of repo.
func (t tx) trashed(repo string, d digest.Digest) (storage.Trashed, error) {
	v := t.Get(holdKey(asTrash, repo, d))
	if v == nil {
		return storage.Trashed{}, fmt.Errorf("manifest %s in the trash of %s: %w", d, repo, storage.ErrNotFound)
	}
	m, err := readTrashed(v)
	if err != nil {
		return storage.Trashed{}, fmt.Errorf("manifest %s in the trash of %s: %w", d, repo, err)
	}
	m.Digest = d
	return m, nil
}

// purge takes manifest d out of the trash for good, and queues what it kept.
func (t tx) purge(repo string, d digest.Digest, rules storage.Rules) error {
	m, err := t.trashed(repo, d)
	if err != nil {
		return err
	}
	if err := t.forgetTrash(repo, d); err != nil {
		return err
	}
	if err := t.queueReferences(repo, m.Manifest, rules); err != nil {
		return err
	}
	return t.queueReferrers(repo, d, rules)
}

// Purge implements storage.Trash.
func (x *Index) Purge(ctx context.Context, repo string, d digest.Digest, rules storage.Rules) error {
	return x.update(ctx, func(t tx) error { return t.purge(repo, d, rules) })
}

// forgetTrash removes the rows of manifest d in the trash of repo, if it is
// there, and lets go of the blobs that only it kept.
func (t tx) forgetTrash(repo string, d digest.Digest) error {
	if !t.has(holdKey(asTrash, repo, d)) {
		return nil
	}
	m, err := t.trashed(repo, d)
	if err != nil {
		return err
	}
	for _, ref := range m.References {
		t.Delete(neededKey(repo, ref.Digest).last(d.String()))
		if _, needed := t.first(neededKey(repo, ref.Digest)); !needed && t.has(holdKey(asHidden, repo, ref.Digest)) {
			if err := t.drop(asHidden, repo, ref.Digest); err != nil {
				return err
			}
		}
	}
	return t.drop(asTrash, repo, d)
}

// Trashed implements storage.Trash.
func (x *Index) Trashed(ctx context.Context, repo string, after digest.Digest, n int) (list []storage.Trashed, err error) {
	err = x.view(ctx, func(t tx) error {
		for _, d := range t.page(makeKey(kindTrashed).field(repo), after.String(), n) {
			m, err := t.trashed(repo, digest.Digest(d))
			if err != nil {
				return err
			}
			list = append(list, m)
		}
		return nil
	})
	return list, err
}

// TrashedManifest implements storage.Trash.
func (x *Index) TrashedManifest(ctx context.Context, repo string, d digest.Digest) (m storage.Trashed, err error) {
	err = x.view(ctx, func(t tx) error {
		m, err = t.trashed(repo, d)
		return err
	})
	return m, err
}

// Restore implements storage.Trash.
func (x *Index) Restore(ctx context.Context, repo string, d digest.Digest, tags []string, rules storage.Rules) (set []string, err error) {
	err = x.update(ctx, func(t tx) error {
		set = slices.Clone(tags)
		if !t.has(holdKey(asManifest, repo, d)) {
			m, err := t.trashed(repo, d)
			if err != nil {
				return fmt.Errorf("restore: %w", err)
			}
			if tags == nil {
				set = slices.DeleteFunc(m.Tags, func(tag string) bool { return t.tag(repo, tag) != "" })
			}
			if err := t.revive(repo, m.Manifest, rules); err != nil {
				return fmt.Errorf("restore manifest %s in %s: %w", d, repo, err)
			}
		}
		if err := t.name(repo, d, set, rules); err != nil {
			return fmt.Errorf("restore manifest %s: %w", d, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return set, nil
}

// revive lets repo hold m again, which is in its trash, after all that m
// refers to and that is there, too.
func (t tx) revive(repo string, m storage.Manifest, rules storage.Rules) error {
	var missing []digest.Digest
	for _, ref := range m.References {
		switch child, err := t.trashed(repo, ref.Digest); {
		case t.holds(repo, ref):
		case ref.Manifest && err == nil:
			if err := t.revive(repo, child.Manifest, rules); err != nil {
				return err
			}
		case t.has(holdKey(asHidden, repo, ref.Digest)):
			t.holdBlob(repo, ref.Digest, rules.Grace)
		case !ref.Optional:
			missing = append(missing, ref.Digest)
		}
	}
	if missing != nil {
		return &storage.MissingError{Digests: missing}
	}
	return t.holdManifest(repo, m, rules)
}
