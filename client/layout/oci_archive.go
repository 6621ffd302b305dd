package layout

import (
	"context"
	"io"

	"berth.internal/client"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// OCIArchiveTarget is an OCI image layout in a tar archive to write to. A file
// that had its name is replaced at Commit.
type OCIArchiveTarget struct {
	tar       *tarball
	tag       string
	referrers []v1.Descriptor
}

// CreateOCIArchive begins to write an image to an archive.
func CreateOCIArchive(file, tag string) (*OCIArchiveTarget, error) {
	t, err := createTarball(file)
	if err != nil {
		return nil, err
	}
	return &OCIArchiveTarget{tar: t, tag: tag}, nil
}

// Begin takes everything.
func (t *OCIArchiveTarget) Begin(context.Context, v1.Descriptor, int) error { return nil }

// PutBlob takes a blob.
func (t *OCIArchiveTarget) PutBlob(_ context.Context, d v1.Descriptor, open func(int64) (io.ReadCloser, error), progress func(int64)) (client.PushResult, error) {
	w, err := t.tar.reserve(blobPath(d.Digest), d.Size)
	if err != nil {
		return 0, err
	}
	return client.Uploaded, copyVerified(w, d, open, progress)
}

// PutManifest takes a manifest. One that has a subject will be in index.json,
// where referrers are looked for.
func (t *OCIArchiveTarget) PutManifest(_ context.Context, d v1.Descriptor, body []byte) error {
	if subject(body) != "" {
		t.referrers = append(t.referrers, tagged(d, ""))
	}
	return t.tar.add(blobPath(d.Digest), body)
}

// Commit writes the index and gives the archive its name.
func (t *OCIArchiveTarget) Commit(ctx context.Context, root v1.Descriptor, body []byte) error {
	if err := t.PutManifest(ctx, root, body); err != nil {
		return err
	}
	index, mark, err := write(enter(v1.Index{Manifests: t.referrers}, tagged(root, t.tag)))
	if err != nil {
		return err
	}
	if err := t.tar.add(v1.ImageLayoutFile, mark); err != nil {
		return err
	}
	if err := t.tar.add(v1.ImageIndexFile, index); err != nil {
		return err
	}
	return t.tar.commit()
}

// Close drops what was not committed.
func (t *OCIArchiveTarget) Close() error { return t.tar.close() }
