package storage

import (
	"context"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
)

// IntendGrace is how long bytes may exist without a name before the collector
// takes them for orphans: the longest that a commit can last.
const IntendGrace = 24 * time.Hour

// Commit ends the upload: it verifies the bytes, makes them durable, and lets
// put.Repo hold them. A crash at any point leaves a blob that is complete, or
// none, and bytes that the collector finds. Small content moves into the Index.
//
// Errors: ErrMismatch; the upload is then gone.
func Commit(ctx context.Context, s Store, x Index, up Upload, want digest.Digest, put BlobPut) (Content, error) {
	key, err := up.Seal(ctx, want)
	if err != nil {
		return Content{}, err
	}
	if err := x.Intend(ctx, key, IntendGrace); err != nil {
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
	if got.Key != key { // somebody was first; theirs stays
		if err := s.Delete(ctx, key); err == nil {
			err = x.Forget(ctx, key)
		}
	}
	return got, nil
}
