package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"berth.internal/client"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Remote is an image in a registry, as a source and as a target.
type Remote struct {
	Registry   *client.Registry
	Repository string
	Reference  string // tag or digest
	MountFrom  string // as a target: a repository of the same registry that may hold the blobs
}

// Root resolves the reference.
func (r *Remote) Root(ctx context.Context) (v1.Descriptor, error) {
	return r.Registry.Resolve(ctx, r.Repository, r.Reference)
}

// Manifest pulls a manifest by its digest.
func (r *Remote) Manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	_, body, err := r.Registry.Manifest(ctx, r.Repository, d.Digest.String())
	return body, err
}

// Referrers asks the registry.
func (r *Remote) Referrers(ctx context.Context, d digest.Digest) ([]v1.Descriptor, error) {
	var all []v1.Descriptor
	for desc, err := range r.Registry.Referrers(ctx, r.Repository, d, "") {
		if err != nil {
			return nil, err
		}
		if len(all) == maxManifests {
			return nil, fmt.Errorf("%s has more than %d referrers", d, maxManifests)
		}
		all = append(all, desc)
	}
	return all, nil
}

// Blob opens a blob. When the connection breaks it goes on by itself.
func (r *Remote) Blob(ctx context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error) {
	if offset >= d.Size {
		return io.NopCloser(strings.NewReader("")), nil
	}
	b := &resuming{ctx: ctx, remote: r, desc: d, at: offset}
	return b, b.open()
}

// maxResumes is how often in a row a pull may break without bringing a byte.
const maxResumes = 3

// resuming reads a blob over as many connections as it takes. It lives within
// one call of Copy, whose context it carries.
type resuming struct {
	ctx    context.Context
	remote *Remote
	desc   v1.Descriptor
	at     int64
	breaks int // since the last byte
	rc     io.ReadCloser
}

func (b *resuming) open() error {
	get := b.remote.Registry.Blob
	rc, err := get(b.ctx, b.remote.Repository, b.desc.Digest, b.at, -1)
	if errors.Is(err, errors.ErrUnsupported) { // whole blobs only
		if rc, err = get(b.ctx, b.remote.Repository, b.desc.Digest, 0, -1); err == nil {
			if _, err = io.CopyN(io.Discard, rc, b.at); err != nil {
				err = errors.Join(err, rc.Close())
			}
		}
	}
	if err != nil {
		return err
	}
	b.rc = rc
	return nil
}

func (b *resuming) Read(p []byte) (int, error) {
	for {
		n, err := b.rc.Read(p)
		b.at += int64(n)
		if n > 0 {
			b.breaks = 0
			if err != io.EOF || b.at < b.desc.Size {
				err = nil // the next Read meets it again
			}
			return n, err
		}
		if err == nil || err == io.EOF && b.at >= b.desc.Size {
			return 0, err
		}
		if b.breaks++; b.breaks > maxResumes || b.ctx.Err() != nil {
			return 0, err
		}
		// The connection is broken: that closing it fails says nothing new.
		_ = b.rc.Close()
		if oerr := b.open(); oerr != nil {
			b.rc = io.NopCloser(strings.NewReader(""))
			b.breaks = maxResumes
			return 0, oerr
		}
	}
}

func (b *resuming) Close() error { return b.rc.Close() }

// Begin refuses to push under the digest of something else.
func (r *Remote) Begin(_ context.Context, root v1.Descriptor, _ int) error {
	if strings.Contains(r.Reference, ":") && r.Reference != root.Digest.String() {
		return fmt.Errorf("push to %s@%s: the image has digest %s; name a tag to push to", r.Repository, r.Reference, root.Digest)
	}
	return nil
}

// PutBlob pushes a blob.
func (r *Remote) PutBlob(ctx context.Context, d v1.Descriptor, open func(int64) (io.ReadCloser, error), progress func(int64)) (client.PushResult, error) {
	return r.Registry.PushBlob(ctx, r.Repository, d, open, client.PushOptions{MountFrom: r.MountFrom, Progress: progress})
}

// PutManifest pushes a manifest under its digest.
func (r *Remote) PutManifest(ctx context.Context, d v1.Descriptor, body []byte) error {
	_, err := r.Registry.PushManifest(ctx, r.Repository, d.Digest.String(), d.MediaType, body)
	return err
}

// Commit pushes the root under the reference.
func (r *Remote) Commit(ctx context.Context, root v1.Descriptor, body []byte) error {
	_, err := r.Registry.PushManifest(ctx, r.Repository, r.Reference, root.MediaType, body)
	return err
}
