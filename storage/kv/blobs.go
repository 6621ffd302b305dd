package kv

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
)

// Blob implements storage.Blobs.
func (x *Index) Blob(ctx context.Context, repo string, d digest.Digest) (c storage.Content, err error) {
	err = x.view(ctx, func(t tx) error {
		c, err = t.blob(repo, d)
		return err
	})
	return c, err
}

// Promise implements storage.Blobs.
func (x *Index) Promise(ctx context.Context, repo string, d digest.Digest, grace time.Duration) (c storage.Content, err error) {
	err = x.promise(ctx, asBlob, repo, d, grace, func(t tx) error {
		c, err = t.peek(repo, d)
		c.Inline = nil
		return err
	})
	return c, err
}

// promise reads what repo holds under d, and keeps it from review for at least
// half of grace.
func (x *Index) promise(ctx context.Context, h holding, repo string, d digest.Digest, grace time.Duration, read func(tx) error) error {
	var move bool
	err := x.view(ctx, func(t tx) error {
		due, queued := t.reviewAt(h, repo, d)
		move = queued && due < t.after(grace/2)
		return read(t)
	})
	if err != nil || !move {
		return err
	}
	return x.update(ctx, func(t tx) error {
		if err := read(t); err != nil { // a review may have come between
			return err
		}
		t.queue(h, repo, d, grace)
		return nil
	})
}

// blob returns the content that repo holds as blob d.
func (t tx) blob(repo string, d digest.Digest) (storage.Content, error) {
	c, err := t.peek(repo, d)
	c.Inline = bytes.Clone(c.Inline)
	return c, err
}

// peek is blob, but what is inline is valid only until the transaction ends.
func (t tx) peek(repo string, d digest.Digest) (storage.Content, error) {
	if !t.has(holdKey(asBlob, repo, d)) {
		return storage.Content{}, fmt.Errorf("blob %s in %s: %w", d, repo, storage.ErrNotFound)
	}
	if err := t.damage(d); err != nil {
		return storage.Content{}, err
	}
	return t.stored(d)
}

// PutBlob implements storage.Blobs.
func (x *Index) PutBlob(ctx context.Context, put storage.BlobPut) (c storage.Content, err error) {
	if err := checkInline(put.Content); err != nil {
		return c, fmt.Errorf("put blob in %s: %w", put.Repo, err)
	}
	err = x.update(ctx, func(t tx) error {
		if err := t.store(put.Content); err != nil {
			return fmt.Errorf("put blob %s in %s: %w", put.Content.Digest, put.Repo, err)
		}
		t.holdBlob(put.Repo, put.Content.Digest, put.Grace)
		if put.Session != "" {
			if err := t.endSession(put.Session); err != nil {
				return err
			}
		}
		c, err = t.content(put.Content.Digest)
		return err
	})
	return c, err
}

// Mount implements storage.Blobs.
func (x *Index) Mount(ctx context.Context, repo, from string, d digest.Digest, grace time.Duration) (c storage.Content, err error) {
	err = x.update(ctx, func(t tx) error {
		if c, err = t.blob(from, d); err != nil {
			return err
		}
		t.holdBlob(repo, d, grace)
		return nil
	})
	return c, err
}

// holdBlob lets repo hold d, which has content, until the review finds it
// without a manifest.
func (t tx) holdBlob(repo string, d digest.Digest, grace time.Duration) {
	if !t.has(holdKey(asBlob, repo, d)) {
		t.hold(asBlob, repo, d, mark)
		t.release(asHidden, repo, d)
	}
	t.queue(asBlob, repo, d, grace)
}

// hold lets repo hold d, which has content.
func (t tx) hold(h holding, repo string, d digest.Digest, value []byte) {
	t.Put(holdKey(h, repo, d), value)
	t.mark(holderKey(d).holding(h).last(repo))
}

// release is the reverse of hold. The caller sees to it that the content has
// another holder, or uses drop.
func (t tx) release(h holding, repo string, d digest.Digest) {
	t.Delete(holdKey(h, repo, d))
	t.Delete(holderKey(d).holding(h).last(repo))
	t.unqueue(h, repo, d)
}

// Holders implements storage.Blobs.
func (x *Index) Holders(ctx context.Context, d digest.Digest, after string, n int) (repos []string, err error) {
	err = x.view(ctx, func(t tx) error {
		repos = t.page(holderKey(d).holding(asBlob), after, n)
		return nil
	})
	return repos, err
}

// DeleteBlob implements storage.Blobs.
func (x *Index) DeleteBlob(ctx context.Context, repo string, d digest.Digest) error {
	return x.update(ctx, func(t tx) error {
		if !t.has(holdKey(asBlob, repo, d)) {
			return fmt.Errorf("delete blob %s from %s: %w", d, repo, storage.ErrNotFound)
		}
		if parent, ok := t.first(parentKey(repo, d)); ok {
			return fmt.Errorf("delete blob %s from %s: %w by %s", d, repo, storage.ErrReferenced, parent)
		}
		if _, ok := t.first(neededKey(repo, d)); ok {
			t.hold(asHidden, repo, d, mark)
		}
		return t.drop(asBlob, repo, d)
	})
}
