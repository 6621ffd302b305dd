package layout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"berth.internal/client"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxIndex is the largest index.json or manifest.json that is read, in bytes.
const maxIndex = 16 << 20

// OCI is an OCI image layout (image-spec, "Image Layout") to read from.
type OCI struct {
	files files
	path  string
	root  v1.Descriptor
	index v1.Index
}

// OpenOCI opens the image layout in a directory, and in it the image that is
// tagged so. An empty tag means the only image there is.
func OpenOCI(dir, tag string) (*OCI, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s is not a directory; name an archive with oci-archive:%s or docker-archive:%s", dir, dir, dir)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return openOCI(directory{root}, dir, tag)
}

// OpenOCIArchive opens an image layout in a tar archive, as podman save --format
// oci-archive writes it. tag is as with OpenOCI.
func OpenOCIArchive(file, tag string) (*OCI, error) {
	a, err := openArchive(file)
	if err != nil {
		return nil, err
	}
	return openOCI(a, file, tag)
}

func openOCI(f files, name, tag string) (*OCI, error) {
	l := &OCI{files: f, path: name}
	err := l.readIndex()
	if err == nil {
		l.root, err = choose(l.index.Manifests, tag)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), f.Close())
	}
	return l, nil
}

func (l *OCI) readIndex() error {
	mark, err := small(l.files, v1.ImageLayoutFile, maxIndex)
	if errors.Is(err, fs.ErrNotExist) {
		if _, _, err := l.files.open(dockerManifest); err == nil {
			return errors.New("this is an archive of docker save, not an OCI image layout; name it docker-archive:FILE")
		}
		return errors.New("this is not an OCI image layout: it has no file oci-layout")
	}
	if err != nil {
		return err
	}
	var version v1.ImageLayout
	if err := json.Unmarshal(mark, &version); err != nil || version.Version != v1.ImageLayoutVersion {
		return fmt.Errorf("this image layout is of version %q, not %s", version.Version, v1.ImageLayoutVersion)
	}
	raw, err := small(l.files, v1.ImageIndexFile, maxIndex)
	if err != nil {
		return fmt.Errorf("this OCI image layout is not complete: %w", err)
	}
	l.index, err = parseIndex(raw)
	return err
}

func parseIndex(raw []byte) (v1.Index, error) {
	var index v1.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return v1.Index{}, fmt.Errorf("%s is not a valid index: %w", v1.ImageIndexFile, err)
	}
	for _, d := range index.Manifests {
		if err := d.Digest.Validate(); err != nil || d.Size < 0 {
			return v1.Index{}, fmt.Errorf("%s names a manifest without a right digest and size", v1.ImageIndexFile)
		}
	}
	return index, nil
}

// choose returns the manifest that is tagged so: by its tag, or by the full
// name that some tools write there.
func choose(manifests []v1.Descriptor, tag string) (v1.Descriptor, error) {
	var found []v1.Descriptor
	var tags []string
	for _, d := range manifests {
		name := d.Annotations[v1.AnnotationRefName]
		if tag == "" || name == tag || strings.HasSuffix(name, ":"+tag) {
			found = append(found, d)
		}
		if name != "" {
			tags = append(tags, name)
		}
	}
	if tag == "" && len(found) > 1 { // referrers have no name of their own
		found = named(found)
	}
	has := "; tags here: " + strings.Join(tags, ", ")
	if len(tags) == 0 {
		has = "; there are no tags here"
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(manifests) == 0:
		return v1.Descriptor{}, errors.New("there is no image here")
	case tag == "":
		return v1.Descriptor{}, fmt.Errorf("there are %d images here: add :TAG to choose one%s", len(manifests), has)
	case len(found) == 0:
		return v1.Descriptor{}, fmt.Errorf("there is no image tagged %q%s", tag, has)
	}
	return v1.Descriptor{}, fmt.Errorf("%d images are tagged %q: write the tag in full%s", len(found), tag, has)
}

func named(all []v1.Descriptor) []v1.Descriptor {
	var some []v1.Descriptor
	for _, d := range all {
		if d.Annotations[v1.AnnotationRefName] != "" {
			some = append(some, d)
		}
	}
	return some
}

// Root returns the image that was chosen.
func (l *OCI) Root(context.Context) (v1.Descriptor, error) {
	d := l.root
	d.Annotations = nil // those of index.json are the layout's, not the image's
	return d, nil
}

// Manifest reads and verifies a manifest.
func (l *OCI) Manifest(_ context.Context, d v1.Descriptor) ([]byte, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", l.path, err)
	}
	body, err := small(l.files, blobPath(d.Digest), client.MaxManifest)
	if err != nil {
		return nil, fmt.Errorf("%s: manifest %s is missing or wrong: %w", l.path, d.Digest, err)
	}
	if got := d.Digest.Algorithm().FromBytes(body); got != d.Digest {
		return nil, fmt.Errorf("%s is damaged: the bytes of manifest %s have digest %s", l.path, d.Digest, got)
	}
	return body, nil
}

// Blob opens a blob, after a look at its size.
func (l *OCI) Blob(_ context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error) {
	return openBlob(l.files, l.path, blobPath(d.Digest), d, offset)
}

func openBlob(f files, where, name string, d v1.Descriptor, offset int64) (io.ReadCloser, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	c, size, err := f.open(name)
	if err != nil {
		return nil, fmt.Errorf("%s: blob %s is missing or wrong: %w", where, d.Digest, err)
	}
	if size != d.Size {
		err = fmt.Errorf("%s is damaged: blob %s has %d bytes instead of %d", where, d.Digest, size, d.Size)
	} else {
		_, err = c.Seek(offset, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Referrers looks through all manifests that index.json names.
func (l *OCI) Referrers(ctx context.Context, of digest.Digest) ([]v1.Descriptor, error) {
	var all []v1.Descriptor
	for _, d := range l.index.Manifests {
		body, err := l.Manifest(ctx, d)
		if err != nil {
			return nil, err
		}
		if subject(body) == of {
			d.Annotations = nil
			all = append(all, d)
		}
	}
	return all, nil
}

// subject returns what a manifest refers to, empty if nothing.
func subject(manifest []byte) digest.Digest {
	var m struct {
		Subject v1.Descriptor `json:"subject"`
	}
	if json.Unmarshal(manifest, &m) != nil {
		return ""
	}
	return m.Subject.Digest
}

// Close closes the files.
func (l *OCI) Close() error { return l.files.Close() }

// blobPath is where a layout has a blob or manifest; the digest is valid.
func blobPath(d digest.Digest) string {
	return path.Join(v1.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}
