package kv

import (
	"bytes"
	"crypto/sha256"

	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
)

// parentKey begins the rows of the manifests of repo that refer to d.
func parentKey(repo string, d digest.Digest) key {
	return makeKey(kindParent).field(repo).field(d.String())
}

// referrerKey begins the rows of the manifests of repo whose subject is d.
func referrerKey(repo string, d digest.Digest) key {
	return makeKey(kindReferrer).field(repo).field(d.String())
}

// referrerTypeKey begins the rows of those of one artifact type. It comes from
// the manifest as it is, of any length and with any bytes, so the key holds its
// hash.
func referrerTypeKey(repo string, d digest.Digest, artifactType string) key {
	h := sha256.Sum256([]byte(artifactType))
	return append(makeKey(kindReferTyp).field(repo).field(d.String()), h[:]...)
}

// asLayer is the value of a row of kindParent or kindNeeded whose manifest names
// a blob only. It keeps no manifest that happens to have the same bytes, or an
// artifact with its subject's manifest as a layer would keep that for ever.
var asLayer = []byte{rowVersion, byte(asBlob)}

// namedBy writes the row that begins with prefix and says that m names ref.
func (t tx) namedBy(prefix key, ref storage.Reference, m digest.Digest) {
	k := prefix.last(m.String())
	switch {
	case ref.Manifest:
		t.mark(k)
	case !t.has(k): // or m names it as both
		t.Put(k, asLayer)
	}
}

// namer returns a manifest of those whose rows begin with prefix, and name what
// is held in way h.
func (t tx) namer(prefix key, h holding) (m string, ok bool) {
	for m, v := range t.scan(prefix, "") {
		if h == asBlob || !bytes.Equal(v, asLayer) {
			return m, true
		}
	}
	return "", false
}

// link writes the rows that lead back from what m names to m.
func (t tx) link(repo string, m storage.Manifest) {
	for _, ref := range m.References {
		t.namedBy(parentKey(repo, ref.Digest), ref, m.Digest)
	}
	if m.Subject != "" {
		t.mark(referrerKey(repo, m.Subject).last(m.Digest.String()))
		t.mark(referrerTypeKey(repo, m.Subject, m.ArtifactType).last(m.Digest.String()))
	}
}

// unlink removes what link wrote and queues what m referred to.
func (t tx) unlink(repo string, m storage.Manifest, rules storage.Rules) error {
	t.cut(repo, m)
	return t.queueReferences(repo, m, rules)
}

// cut removes what link wrote.
func (t tx) cut(repo string, m storage.Manifest) {
	for _, ref := range m.References {
		t.Delete(parentKey(repo, ref.Digest).last(m.Digest.String()))
	}
	if m.Subject != "" {
		t.Delete(referrerKey(repo, m.Subject).last(m.Digest.String()))
		t.Delete(referrerTypeKey(repo, m.Subject, m.ArtifactType).last(m.Digest.String()))
	}
}

// queueReferences queues what m referred to, as a blob and as a manifest: which
// of them it kept depends on what came when.
func (t tx) queueReferences(repo string, m storage.Manifest, rules storage.Rules) error {
	for _, ref := range m.References {
		if t.has(holdKey(asBlob, repo, ref.Digest)) {
			t.queue(asBlob, repo, ref.Digest, rules.Grace)
		}
		if t.has(holdKey(asManifest, repo, ref.Digest)) {
			if err := t.queueManifest(repo, ref.Digest, rules); err != nil {
				return err
			}
		}
	}
	return nil
}
