package transfer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"berth.internal/client"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxManifests = 10_000 // of one copy
	maxBlobs     = 100_000
	maxDepth     = 8 // of indexes in indexes, and referrers of referrers
)

// plan is all that a copy moves: manifests, each after those it refers to, and
// blobs in the order in which a pull wants them.
type plan struct {
	src       Source
	referrers bool
	seen      map[digest.Digest]bool
	manifests []manifest
	blobs     []v1.Descriptor
	size      int64  // of blobs
	root      []byte // body of the first manifest added
}

type manifest struct {
	desc v1.Descriptor
	body []byte
}

// content is what manifests and indexes refer to.
type content struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Config        *v1.Descriptor  `json:"config"`
	Layers        []v1.Descriptor `json:"layers"`
	Manifests     []v1.Descriptor `json:"manifests"`
}

// add plans the manifest d and all below it.
func (p *plan) add(ctx context.Context, d v1.Descriptor, depth int) error {
	if p.seen[d.Digest] {
		return nil
	}
	p.seen[d.Digest] = true
	if depth > maxDepth || len(p.seen) > maxManifests+maxBlobs {
		return errors.New("the image refers to more than an image does")
	}
	body, err := p.src.Manifest(ctx, d)
	if err != nil {
		return err
	}
	if p.root == nil {
		p.root = body
	}
	c, err := read(d, body)
	if err != nil {
		return err
	}
	for _, child := range c.Manifests {
		if err := child.Digest.Validate(); err != nil {
			return fmt.Errorf("index %s: %w", d.Digest, err)
		}
		if !isManifest(child.MediaType) { // such as the layers of a build cache
			err = p.addBlob(d, child)
		} else {
			err = p.add(ctx, child, depth+1)
		}
		if err != nil {
			return err
		}
	}
	if c.Config != nil {
		c.Layers = append([]v1.Descriptor{*c.Config}, c.Layers...)
	}
	for _, blob := range c.Layers {
		if err := p.addBlob(d, blob); err != nil {
			return err
		}
	}
	p.manifests = append(p.manifests, manifest{d, body})
	if len(p.manifests) > maxManifests {
		return fmt.Errorf("the image has more than %d manifests", maxManifests)
	}
	if !p.referrers {
		return nil
	}
	referrers, err := p.src.Referrers(ctx, d.Digest)
	if err != nil {
		return err
	}
	for _, r := range referrers {
		if err := p.add(ctx, r, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (p *plan) addBlob(of, d v1.Descriptor) error {
	if err := d.Digest.Validate(); err != nil || d.Size < 0 {
		return fmt.Errorf("manifest %s names a blob without a right digest and size", of.Digest)
	}
	// What is had elsewhere is not copied.
	if p.seen[d.Digest] || len(d.URLs) > 0 || strings.Contains(d.MediaType, "nondistributable") || strings.Contains(d.MediaType, ".foreign.") {
		return nil
	}
	p.seen[d.Digest] = true
	p.blobs = append(p.blobs, d)
	p.size += d.Size
	if len(p.blobs) > maxBlobs {
		return fmt.Errorf("the image has more than %d blobs", maxBlobs)
	}
	return nil
}

// read reads what a manifest refers to.
func read(d v1.Descriptor, body []byte) (content, error) {
	var c content
	if err := json.Unmarshal(body, &c); err != nil {
		return content{}, fmt.Errorf("manifest %s is not JSON: %w", d.Digest, err)
	}
	if c.SchemaVersion == 1 {
		return content{}, fmt.Errorf("manifest %s is of schema 1, which has been out of use since 2017: build or push the image again", d.Digest)
	}
	if !isManifest(d.MediaType) {
		return content{}, fmt.Errorf("manifest %s is of type %q, which is neither an image nor an index", d.Digest, d.MediaType)
	}
	if client.IsIndex(d.MediaType) {
		return content{Manifests: c.Manifests}, nil
	}
	if c.Config == nil {
		return content{}, fmt.Errorf("manifest %s has no config, so it is no image", d.Digest)
	}
	return content{Config: c.Config, Layers: c.Layers}, nil
}

func isManifest(mediaType string) bool {
	return mediaType == v1.MediaTypeImageManifest || mediaType == client.DockerManifest || client.IsIndex(mediaType)
}
