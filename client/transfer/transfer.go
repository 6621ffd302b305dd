// Package transfer copies images between registries and files: several blobs
// at a time, and only what the target does not hold.
package transfer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"

	"berth.internal/client"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Source is where one image, or an index of several, comes from.
type Source interface {
	// Root returns the manifest or index that the source's name stands for.
	Root(ctx context.Context) (v1.Descriptor, error)

	// Manifest returns the bytes of a manifest, verified against its digest
	// and no larger than client.MaxManifest.
	Manifest(ctx context.Context, d v1.Descriptor) ([]byte, error)

	// Blob opens the blob at the given byte. Its bytes are not verified.
	Blob(ctx context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error)

	// Referrers returns the manifests of the source whose subject is d.
	Referrers(ctx context.Context, d digest.Digest) ([]v1.Descriptor, error)
}

// Target is where it goes. Nobody sees anything of it under the target's name
// before Commit.
type Target interface {
	// Begin is told what will come before anything does: the root, and how many
	// manifests in all. It refuses what the target cannot hold.
	Begin(ctx context.Context, root v1.Descriptor, manifests int) error

	// PutBlob takes a blob, verified against its digest, if the target does
	// not hold it. progress is told how many bytes have come through. Several
	// calls at the same time are for different blobs.
	PutBlob(ctx context.Context, d v1.Descriptor, open func(offset int64) (io.ReadCloser, error), progress func(through int64)) (client.PushResult, error)

	// PutManifest takes a manifest after all that it refers to.
	PutManifest(ctx context.Context, d v1.Descriptor, body []byte) error

	// Commit takes the root, the last of all manifests, and names it.
	Commit(ctx context.Context, root v1.Descriptor, body []byte) error
}

// Options says what to copy, and how.
type Options struct {
	Platform  *v1.Platform // only this one of an index; nil: all
	Referrers bool         // also what refers to it: signatures, attestations, …
	Parallel  int          // blobs at a time; at least one
	Watch     Watcher      // nil: nobody
}

// Watcher is told how a copy goes on, from several goroutines.
type Watcher interface {
	Planned(blobs int, bytes int64)
	Moved(d v1.Descriptor, through int64) // bytes of d so far; it may go back
	Done(d v1.Descriptor, how client.PushResult)
}

// Result is what a copy did.
type Result struct {
	Root  v1.Descriptor
	Blobs map[client.PushResult]int // how many came to the target in which way
	Bytes int64                     // of blobs, that had to be moved
}

// Copy copies what src stands for to dst. When it fails dst's name is what it
// was before.
func Copy(ctx context.Context, dst Target, src Source, o Options) (Result, error) {
	root, err := src.Root(ctx)
	if err != nil {
		return Result{}, err
	}
	if o.Platform != nil {
		if root, err = pick(ctx, src, root, *o.Platform); err != nil {
			return Result{}, err
		}
	}
	p := plan{src: src, referrers: o.Referrers, seen: map[digest.Digest]bool{}}
	if err := p.add(ctx, root, 0); err != nil {
		return Result{}, err
	}
	if err := dst.Begin(ctx, root, len(p.manifests)); err != nil {
		return Result{}, err
	}
	res := Result{Root: root, Blobs: map[client.PushResult]int{}}
	if o.Watch == nil {
		o.Watch = nobody{}
	}
	o.Watch.Planned(len(p.blobs), p.size)
	if err := res.copyBlobs(ctx, dst, &p, o); err != nil {
		return Result{}, err
	}
	for _, m := range p.manifests {
		if m.desc.Digest == root.Digest {
			continue
		}
		if err := dst.PutManifest(ctx, m.desc, m.body); err != nil {
			return Result{}, err
		}
	}
	return res, dst.Commit(ctx, root, p.root)
}

func (res *Result) copyBlobs(ctx context.Context, dst Target, p *plan, o Options) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(o.Parallel, 1))
	var mu sync.Mutex
	for _, d := range p.blobs {
		g.Go(func() error {
			how, err := dst.PutBlob(ctx, d, opener(ctx, p.src, d), func(through int64) { o.Watch.Moved(d, through) })
			if err != nil {
				return err
			}
			o.Watch.Done(d, how)
			mu.Lock()
			defer mu.Unlock()
			res.Blobs[how]++
			if how == client.Uploaded {
				res.Bytes += d.Size
			}
			return nil
		})
	}
	return g.Wait()
}

// opener opens blob d, from the descriptor itself if it is in there
// (image-spec, "Embedded Content").
func opener(ctx context.Context, src Source, d v1.Descriptor) func(int64) (io.ReadCloser, error) {
	if d.Data != nil && int64(len(d.Data)) == d.Size {
		return func(offset int64) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(d.Data[min(offset, d.Size):])), nil
		}
	}
	return func(offset int64) (io.ReadCloser, error) { return src.Blob(ctx, d, offset) }
}

type nobody struct{}

func (nobody) Planned(int, int64)                    {}
func (nobody) Moved(v1.Descriptor, int64)            {}
func (nobody) Done(v1.Descriptor, client.PushResult) {}

// Small reads all of a blob that must be small, such as a config, and verifies
// it.
func Small(ctx context.Context, src Source, d v1.Descriptor) (b []byte, err error) {
	if d.Size > client.MaxManifest {
		return nil, fmt.Errorf("%s says that it has %d bytes, more than %d", d.Digest, d.Size, client.MaxManifest)
	}
	rc, err := opener(ctx, src, d)(0)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	b, err = io.ReadAll(io.LimitReader(rc, d.Size+1))
	if err != nil {
		return nil, err
	}
	if got := d.Digest.Algorithm().FromBytes(b); got != d.Digest {
		return nil, fmt.Errorf("wrong content: the bytes of %s have digest %s", d.Digest, got)
	}
	return b, nil
}
