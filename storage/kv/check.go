package kv

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"strings"

	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
)

// Check implements storage.Care.
func (x *Index) Check(ctx context.Context, from string, n int) (problems []string, next string, err error) {
	start, err := hex.DecodeString(from)
	if err != nil {
		return nil, "", fmt.Errorf("check from %q: %w", from, err)
	}
	err = x.view(ctx, func(t tx) error {
		seen := 0
		for k, v := range t.Ascend(start) {
			if seen == n {
				next = hex.EncodeToString(k)
				return nil
			}
			seen++
			c := checker{tx: t}
			c.row(k[0], string(k[1:]), v)
			problems = append(problems, c.problems...)
		}
		return nil
	})
	return problems, next, err
}

// checker looks at one row and at those that must go with it.
type checker struct {
	tx
	problems []string
}

func (c *checker) wrong(format string, args ...any) {
	c.problems = append(c.problems, fmt.Sprintf(format, args...))
}

// row checks the row of that kind. rest is its key without the kind.
func (c *checker) row(kind byte, rest string, v []byte) {
	repo, after := cut(rest)
	switch kind {
	case kindBlob, kindHidden, kindManifest, kindTrashed:
		c.held(holding(kind), repo, digest.Digest(after), v)
	case kindContent:
		c.contentRow(digest.Digest(rest))
	case kindDamage:
		c.damageRow(digest.Digest(rest), v)
	case kindHolder:
		if d, who := cut(rest); who == "" || !c.has(holdKey(holding(who[0]), who[1:], digest.Digest(d))) {
			c.wrong("content %s names a holder that does not hold it: %q", d, who)
		}
	case kindTag:
		d := digest.Digest(v)
		if !c.has(holdKey(asManifest, repo, d)) {
			c.wrong("tag %s in %s is on %s, which the repository does not hold", after, repo, d)
		}
		if !c.has(tagOfKey(repo, d).last(after)) {
			c.wrong("tag %s in %s is on %s, which does not know it", after, repo, d)
		}
	case kindTagOf:
		if d, tag := cut(after); c.tag(repo, tag) != digest.Digest(d) {
			c.wrong("manifest %s in %s believes to be tagged %s, which is on %q", d, repo, tag, c.tag(repo, tag))
		}
	case kindParent, kindNeeded:
		child, parent := cut(after)
		c.refers(kind, repo, digest.Digest(parent), digest.Digest(child))
	case kindReferrer:
		subject, d := cut(after)
		if m, err := c.manifestRow(repo, digest.Digest(d)); err != nil || m.Subject != digest.Digest(subject) {
			c.wrong("%s is listed in %s as a referrer of %s, which it is not", d, repo, subject)
		}
	case kindReview, kindReviewAt, kindOrphan, kindOrphanAt:
		c.queued(kind, rest, v)
	}
}

// held checks that what a repository holds has content that knows its holder,
// and, of a manifest, what it refers to.
func (c *checker) held(h holding, repo string, d digest.Digest, v []byte) {
	if !c.has(contentKey(d)) {
		c.wrong("%s is held by %s, and has no content", d, repo)
	}
	if !c.has(holderKey(d).holding(h).last(repo)) {
		c.wrong("%s is held by %s, and its content does not know that", d, repo)
	}
	var m storage.Manifest
	var err error
	back := parentKey
	switch h {
	case asManifest:
		m, err = readManifest(v)
	case asTrash:
		var deleted storage.Trashed
		deleted, err = readTrashed(v)
		m, back = deleted.Manifest, neededKey
		if _, ok := c.reviewAt(asTrash, repo, d); !ok {
			c.wrong("%s is in the trash of %s for ever", d, repo)
		}
	}
	if err != nil {
		c.wrong("manifest %s in %s: %v", d, repo, err)
	}
	for _, ref := range m.References {
		if row := c.Get(back(repo, ref.Digest).last(d.String())); row == nil || ref.Manifest && bytes.Equal(row, asLayer) {
			c.wrong("manifest %s in %s refers to %s, which does not know it and could be collected", d, repo, ref.Digest)
		}
		if h == asManifest && !ref.Optional && !c.holdsAny(repo, ref) {
			c.wrong("manifest %s in %s refers to %s, which the repository does not hold", d, repo, ref.Digest)
		}
	}
	if h != asManifest || m.Subject == "" {
		return
	}
	for _, k := range []key{referrerKey(repo, m.Subject), referrerTypeKey(repo, m.Subject, m.ArtifactType)} {
		if !c.has(k.last(d.String())) {
			c.wrong("manifest %s in %s is missing among the referrers of %s", d, repo, m.Subject)
		}
	}
}

// holdsAny is holds without regard to quarantine, which Quarantined tells.
func (c *checker) holdsAny(repo string, ref storage.Reference) bool {
	return c.has(holdKey(asBlob, repo, ref.Digest)) || ref.Manifest && c.has(holdKey(asManifest, repo, ref.Digest))
}

func (c *checker) contentRow(d digest.Digest) {
	if _, ok := c.first(holderKey(d)); !ok {
		c.wrong("content %s has no holder", d)
	}
	got, err := c.bytes(d)
	if err != nil {
		c.wrong("content %s: %v", d, err)
	}
	if got.Key != "" && c.has(orphanAtKey(got.Key)) {
		c.wrong("content %s is at a key that is about to be deleted: %s", d, got.Key)
	}
}

func (c *checker) damageRow(d digest.Digest, v []byte) {
	if _, _, err := readDamage(v); err != nil {
		c.wrong("quarantine of %s: %v", d, err)
	}
	if !c.has(contentKey(d)) {
		c.wrong("%s is quarantined, and has no content", d)
	}
}

// refers checks that parent, held or in the trash, names child.
func (c *checker) refers(kind byte, repo string, parent, child digest.Digest) {
	var m storage.Manifest
	var err error
	if kind == kindParent {
		m, err = c.manifestRow(repo, parent)
	} else {
		var deleted storage.Trashed
		deleted, err = c.trashed(repo, parent)
		m = deleted.Manifest
	}
	if err != nil {
		c.wrong("%s is kept in %s by a manifest that is not there: %v", child, repo, err)
		return
	}
	for _, ref := range m.References {
		if ref.Digest == child {
			return
		}
	}
	c.wrong("%s is kept in %s by %s, which does not refer to it", child, repo, parent)
}

// queued checks that each entry of a queue has a row by time and a row by what
// it is about.
func (c *checker) queued(kind byte, rest string, v []byte) {
	byTime := map[byte]byte{kindReviewAt: kindReview, kindOrphanAt: kindOrphan}
	var other key
	_, what, ok := cutNumber(rest)
	switch kind {
	case kindReview:
		other = append(makeKey(kindReviewAt), what...)
	case kindOrphan:
		other = append(makeKey(kindOrphanAt), what...)
	default:
		var due uint64
		what = rest
		due, _, ok = cutNumber(string(v))
		other = append(makeKey(byTime[kind]).number(due), rest...)
	}
	if !ok || !c.has(other) {
		c.wrong("the queue has half of an entry: %q", strings.ReplaceAll(what, "\x00", " "))
	}
}
