package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
)

// IntendGrace is how long bytes may exist without a name before the collector
// takes them for orphans, unless the rules say otherwise: longer than any commit
// lasts.
const IntendGrace = 24 * time.Hour

// Commit ends the upload: it verifies the bytes, makes them durable, and lets
// put.Repo hold them. Content of at most InlineMax bytes moves into the Index,
// so that it costs one transaction. A crash at any point leaves a blob that is
// complete, or none, and bytes that the collector finds.
//
// Errors: ErrMismatch; the upload is then gone.
func Commit(ctx context.Context, s Store, x Index, up Upload, want digest.Digest, put BlobPut) (Content, error) {
	if up.Size() <= InlineMax {
		if err := Room(s, KindBlob, up.Size()); err != nil {
			return Content{}, fmt.Errorf("keep %s in the index: %w", want, err)
		}
		return commitInline(ctx, x, up, want, put)
	}
	key, err := up.Seal(ctx, want)
	if err != nil {
		return Content{}, err
	}
	if err := x.Intend(ctx, key, cmp.Or(put.Orphan, IntendGrace)); err != nil {
		return Content{}, fmt.Errorf("announce %s: %w", want, err)
	}
	if err := up.Commit(ctx); err != nil {
		return Content{}, err
	}
	put.Content = Content{Digest: want, Size: up.Size(), Key: key}
	got, err := x.PutBlob(ctx, put)
	if err != nil {
		return Content{}, fmt.Errorf("name %s: %w", want, err)
	}
	if got.Key != key {
		// Somebody was first, and theirs stays. The blob is named, so a
		// failure here is no failure of Commit: ours is an orphan, and the
		// collector does what was not done.
		if err := s.Delete(ctx, key); err == nil {
			_ = x.Forget(ctx, key)
		}
	}
	return got, nil
}

func commitInline(ctx context.Context, x Index, up Upload, want digest.Digest, put BlobPut) (Content, error) {
	data, err := up.Inline(ctx, want)
	if err != nil {
		return Content{}, err
	}
	put.Content = Content{Digest: want, Size: int64(len(data)), Inline: data}
	got, err := x.PutBlob(ctx, put)
	if err != nil {
		return Content{}, errors.Join(fmt.Errorf("name %s: %w", want, err), up.Close())
	}
	// The blob is named. Bytes that Abort cannot remove are an upload without
	// a session, which Sweep finds.
	_ = up.Abort()
	return got, nil
}
