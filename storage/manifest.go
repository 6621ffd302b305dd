package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
)

// PutManifest names a manifest whose bytes are put.Manifest.Inline. If they are
// more than the Index keeps, they go to the Store first, as in Commit.
func PutManifest(ctx context.Context, s Store, x Index, put ManifestPut) error {
	if put.Manifest.Size <= InlineMax {
		if err := Room(s, KindManifest, put.Manifest.Size); err != nil {
			return fmt.Errorf("keep manifest %s in the index: %w", put.Manifest.Digest, err)
		}
		return x.PutManifest(ctx, put)
	}
	up, err := s.Create(ctx, put.Manifest.Digest.Algorithm())
	if err != nil {
		return err
	}
	defer func() { _ = up.Abort() }() // after Commit nothing; before, nobody knows of it
	if _, err := up.Write(put.Manifest.Inline); err != nil {
		return err
	}
	key, err := up.Seal(ctx, put.Manifest.Digest)
	if err != nil {
		return err
	}
	if err := x.Intend(ctx, key, cmp.Or(put.Rules.Orphan, IntendGrace)); err != nil {
		return fmt.Errorf("announce manifest %s: %w", put.Manifest.Digest, err)
	}
	if err := up.Commit(ctx); err != nil {
		return err
	}
	put.Manifest.Inline, put.Manifest.Key = nil, key
	err = x.PutManifest(ctx, put)
	var missing *MissingError
	if errors.As(err, &missing) || errors.Is(err, ErrConflict) || errors.Is(err, ErrImmutable) { // nothing has changed, for sure
		if s.Delete(ctx, key) == nil {
			_ = x.Forget(ctx, key) // else the collector does what was not done
		}
	}
	return err
}
