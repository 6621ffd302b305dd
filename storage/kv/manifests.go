package kv

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Manifest implements storage.Manifests.
func (x *Index) Manifest(ctx context.Context, repo string, d digest.Digest) (m storage.Manifest, err error) {
	err = x.view(ctx, func(t tx) error {
		m, err = t.manifest(repo, d)
		return err
	})
	return m, err
}

// PromiseManifest implements storage.Manifests.
func (x *Index) PromiseManifest(ctx context.Context, repo string, d digest.Digest, grace time.Duration) (m storage.Manifest, err error) {
	err = x.promise(ctx, asManifest, repo, d, grace, func(t tx) error {
		m, err = t.manifest(repo, d)
		return err
	})
	return m, err
}

// Tagged implements storage.Manifests.
func (x *Index) Tagged(ctx context.Context, repo, tag string) (m storage.Manifest, err error) {
	err = x.view(ctx, func(t tx) error {
		d := t.tag(repo, tag)
		if d == "" {
			return fmt.Errorf("tag %s in %s: %w", tag, repo, storage.ErrNotFound)
		}
		m, err = t.manifest(repo, d)
		return err
	})
	return m, err
}

// manifest returns manifest d of repo with its content.
func (t tx) manifest(repo string, d digest.Digest) (storage.Manifest, error) {
	m, err := t.manifestRow(repo, d)
	if err != nil {
		return storage.Manifest{}, err
	}
	m.Content, err = t.content(d)
	return m, err
}

// manifestRow returns manifest d of repo, of its content only digest and size.
func (t tx) manifestRow(repo string, d digest.Digest) (storage.Manifest, error) {
	v := t.Get(holdKey(asManifest, repo, d))
	if v == nil {
		return storage.Manifest{}, fmt.Errorf("manifest %s in %s: %w", d, repo, storage.ErrNotFound)
	}
	m, err := readManifest(v)
	if err != nil {
		return storage.Manifest{}, fmt.Errorf("manifest %s in %s: %w", d, repo, err)
	}
	m.Digest = d
	return m, nil
}

// PutManifest implements storage.Manifests.
func (x *Index) PutManifest(ctx context.Context, put storage.ManifestPut) error {
	if err := checkInline(put.Manifest.Content); err != nil {
		return fmt.Errorf("put manifest in %s: %w", put.Repo, err)
	}
	return x.update(ctx, func(t tx) error {
		if err := t.checkPut(put); err != nil {
			return fmt.Errorf("put manifest %s in %s: %w", put.Manifest.Digest, put.Repo, err)
		}
		if err := t.store(put.Manifest.Content); err != nil {
			return fmt.Errorf("put manifest %s in %s: %w", put.Manifest.Digest, put.Repo, err)
		}
		put.Manifest.Pushed = fromNanos(t.now)
		if err := t.holdManifest(put.Repo, put.Manifest, put.Rules); err != nil {
			return err
		}
		return t.name(put.Repo, put.Manifest.Digest, put.Tags, put.Rules)
	})
}

// name moves tags to manifest d, which repo holds, and queues it if it has none.
func (t tx) name(repo string, d digest.Digest, tags []string, rules storage.Rules) error {
	for _, tag := range tags {
		if err := t.moveTag(repo, tag, d, rules); err != nil {
			return err
		}
	}
	if _, tagged := t.first(tagOfKey(repo, d)); !tagged {
		return t.queueManifest(repo, d, rules)
	}
	return nil
}

// checkPut tells whether all is as put demands.
func (t tx) checkPut(put storage.ManifestPut) error {
	var missing []digest.Digest
	for _, ref := range put.Manifest.References {
		if !ref.Optional && !t.holds(put.Repo, ref) {
			missing = append(missing, ref.Digest)
		}
	}
	if missing != nil {
		return &storage.MissingError{Digests: missing}
	}
	for _, tag := range put.Tags {
		now := t.tag(put.Repo, tag)
		if put.IfMatch != "" && now != put.IfMatch || put.IfAbsent && now != "" {
			return fmt.Errorf("tag %s is on %q: %w", tag, now, storage.ErrConflict)
		}
	}
	return nil
}

// holds tells whether repo holds what ref names. A child of an index is a
// manifest if there is one, else a blob. Quarantined content is as good as
// none: who is told so pushes it again.
func (t tx) holds(repo string, ref storage.Reference) bool {
	held := ref.Manifest && t.has(holdKey(asManifest, repo, ref.Digest)) ||
		t.has(holdKey(asBlob, repo, ref.Digest))
	return held && !t.has(damageKey(ref.Digest))
}

// holdManifest lets repo hold m, whose content is stored. If it does already,
// m's time of push stays.
func (t tx) holdManifest(repo string, m storage.Manifest, rules storage.Rules) error {
	k := holdKey(asManifest, repo, m.Digest)
	if v := t.Get(k); v != nil {
		old, err := t.manifestRow(repo, m.Digest)
		if err != nil {
			return err
		}
		m.Pushed = old.Pushed
		if bytes.Equal(v, manifestRow(m)) {
			return nil
		}
		if err := t.unlink(repo, old, rules); err != nil {
			return err
		}
	}
	t.hold(asManifest, repo, m.Digest, manifestRow(m))
	t.link(repo, m)
	return t.forgetTrash(repo, m.Digest)
}

// DeleteManifest implements storage.Manifests.
func (x *Index) DeleteManifest(ctx context.Context, repo string, d digest.Digest, rules storage.Rules) error {
	return x.update(ctx, func(t tx) error {
		m, err := t.manifestRow(repo, d)
		if err != nil {
			return err
		}
		if parent, ok := t.namer(parentKey(repo, d), asManifest); ok {
			return fmt.Errorf("delete manifest %s from %s: %w by %s", d, repo, storage.ErrReferenced, parent)
		}
		tags := t.all(tagOfKey(repo, d))
		for _, tag := range tags {
			if err := t.takeTag(repo, tag, d, rules); err != nil {
				return fmt.Errorf("delete manifest %s: %w", d, err)
			}
		}
		if rules.Trash > 0 {
			return t.trash(repo, m, tags, rules)
		}
		return t.dropManifest(repo, m, rules)
	})
}

// dropManifest takes m, which has no tag, from repo, and queues what it may
// have kept.
func (t tx) dropManifest(repo string, m storage.Manifest, rules storage.Rules) error {
	if err := t.unlink(repo, m, rules); err != nil {
		return err
	}
	if err := t.queueReferrers(repo, m.Digest, rules); err != nil {
		return err
	}
	return t.drop(asManifest, repo, m.Digest)
}

// queueReferrers queues the manifests whose subject d is.
func (t tx) queueReferrers(repo string, d digest.Digest, rules storage.Rules) error {
	for _, referrer := range t.all(referrerKey(repo, d)) {
		if err := t.queueManifest(repo, digest.Digest(referrer), rules); err != nil {
			return err
		}
	}
	return nil
}

// queueManifest queues manifest d of repo with the grace for its sort.
func (t tx) queueManifest(repo string, d digest.Digest, rules storage.Rules) error {
	m, err := t.manifestRow(repo, d)
	if err != nil {
		return err
	}
	grace := rules.Untagged
	if m.Subject != "" {
		grace = rules.Dangling
	}
	t.queue(asManifest, repo, d, grace)
	return nil
}

// all returns all that follows prefix.
func (t tx) all(prefix key) []string {
	var out []string
	for rest := range t.scan(prefix, "") {
		out = append(out, rest)
	}
	return out
}

// Repositories implements storage.Manifests.
func (x *Index) Repositories(ctx context.Context, after string, n int) (repos []string, err error) {
	repos = make([]string, 0, min(max(n, 0), 1024))
	err = x.view(ctx, func(t tx) error {
		for len(repos) < n {
			from := makeKey(kindManifest)
			if after != "" {
				from = append(from.last(after), 1) // beyond all rows of after
			}
			found := false
			for k := range t.Ascend(from) {
				if found = k[0] == kindManifest; found {
					after, _ = cut(string(k[1:]))
				}
				break
			}
			if !found {
				return nil
			}
			repos = append(repos, after)
		}
		return nil
	})
	return repos, err
}

// Referrers implements storage.Manifests.
func (x *Index) Referrers(ctx context.Context, repo string, d digest.Digest, artifactType string, after digest.Digest, n int) (list []v1.Descriptor, err error) {
	prefix := referrerKey(repo, d)
	if artifactType != "" {
		prefix = referrerTypeKey(repo, d, artifactType)
	}
	err = x.view(ctx, func(t tx) error {
		digests := t.page(prefix, after.String(), n)
		list = make([]v1.Descriptor, 0, len(digests))
		for _, r := range digests {
			m, err := t.manifestRow(repo, digest.Digest(r))
			if err != nil {
				return err
			}
			list = append(list, v1.Descriptor{
				MediaType:    m.MediaType,
				Digest:       m.Digest,
				Size:         m.Size,
				ArtifactType: m.ArtifactType,
				Annotations:  m.Annotations,
			})
		}
		return nil
	})
	return list, err
}
