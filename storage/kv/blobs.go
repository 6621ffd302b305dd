package kv

import (
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
	var move bool
	err = x.view(ctx, func(t tx) error {
		c, err = t.blob(repo, d)
		due, queued := t.reviewAt(asBlob, repo, d)
		move = queued && due < t.after(grace/2)
		return err
	})
	if err != nil || !move {
		return c, err
	}
	err = x.update(ctx, func(t tx) error {
		// A review may have come between.
		if c, err = t.blob(repo, d); err != nil {
			return err
		}
		t.queue(asBlob, repo, d, grace)
		return nil
	})
	return c, err
}

// blob returns the content that repo holds as blob d.
func (t tx) blob(repo string, d digest.Digest) (storage.Content, error) {
	if !t.has(holdKey(asBlob, repo, d)) {
		return storage.Content{}, fmt.Errorf("blob %s in %s: %w", d, repo, storage.ErrNotFound)
	}
	return t.content(d)
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
	if k := holdKey(asBlob, repo, d); !t.has(k) {
		t.mark(k)
		t.mark(holderKey(d).holding(asBlob).last(repo))
	}
	t.queue(asBlob, repo, d, grace)
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
		return t.drop(asBlob, repo, d)
	})
}
