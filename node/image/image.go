// Package image pulls images and keeps them unpacked: a layer is a directory,
// stored once by the digest of its content, and an image is a stack of them for
// overlayfs.
//
// Nothing can be seen before it is complete: a layer appears when the digest of
// its blob as sent and the digest of its unpacked tar (DiffID) have both
// matched and its files are on disk, an image when all its layers have, a name
// when its image has. A crash in between leaves temporary directories, which
// Open removes, and what a later pull can go on with: complete layers and the
// parts of blobs that had arrived.
//
// Compressed blobs are dropped once they are unpacked. The registry has them,
// and two copies of every image cost more disk than a second download.
package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// The errors a caller must tell apart; compare with errors.Is.
var (
	ErrNotFound  = errors.New("no such image")
	ErrAmbiguous = errors.New("several images match")
	ErrNames     = errors.New("image has names in several repositories")
	ErrInvalid   = errors.New("not a valid image")     // trying again does not help: what the registry has is wrong
	ErrPlatform  = errors.New("not for this platform") // the registry has none for the platform asked for
	ErrVersion   = errors.New("written by a newer berth")
)

// InUseError says which holders keep an image from being removed.
type InUseError struct {
	ID digest.Digest
	By []string // as given to Retain, sorted
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("image %s is in use by %s", e.ID, strings.Join(e.By, ", "))
}

// Image is an image that can be run from now on.
type Image struct {
	ID          digest.Digest // digest of the configuration
	Manifest    v1.Descriptor // of the platform's own manifest, as last pulled
	RepoTags    []string      // "registry/repository:tag", sorted
	RepoDigests []string      // "registry/repository@digest", of what was asked for: the index where there is one; sorted
	Config      v1.Image
	RawConfig   []byte // as the registry has it; hashes to ID
	RawManifest []byte // as the registry has it; hashes to Manifest.Digest
	Size        int64  // bytes of content in its layers; a layer shared with other images counts in full
	Created     time.Time
	Pulled      time.Time
}

// Source is where images come from: one registry.
type Source interface {
	// Manifest returns the manifest that ref, a tag or a digest, names in repo.
	Manifest(ctx context.Context, repo, ref string) (v1.Descriptor, []byte, error)

	// Blob returns length bytes of blob d from offset, counted from zero; a
	// negative length means to the end. Errors: errors.ErrUnsupported if only
	// the whole blob can be had, as from a registry that ignores Range.
	Blob(ctx context.Context, repo string, d digest.Digest, offset, length int64) (io.ReadCloser, error)
}

// Phase is what happens to a layer.
type Phase string

// A layer goes through these in order, or is Exists from the start. Resolved is
// the pull's own: Layer is then the digest that the reference stands for.
const (
	Resolved    Phase = "resolved"
	Waiting     Phase = "waiting"
	Downloading Phase = "downloading" // Current of Total bytes of the blob have arrived
	Extracting  Phase = "extracting"  // Current of Total bytes of the blob are unpacked
	Verifying   Phase = "verifying"   // digests are compared, files go to disk
	Done        Phase = "done"
	Exists      Phase = "exists" // was on this node already
)

// Event is progress of one layer of a pull.
type Event struct {
	Layer   digest.Digest // of the blob, as the manifest names it
	Phase   Phase
	Current int64 // bytes
	Total   int64 // bytes
}

// PullOptions say what to pull and whom to tell.
type PullOptions struct {
	// Platform to choose from an index. Nil means this machine's.
	Platform *v1.Platform

	// Progress is told what happens, at most some times a second for each
	// layer, one call at a time. It must not block. Nil tells nobody.
	Progress func(Event)
}

// Removed is one step of a removal, as docker rmi reports it: one of the two
// is set.
type Removed struct {
	Untagged string        // name that is gone
	Deleted  digest.Digest // image, or layer by its DiffID, that is gone
}

// Options are the store's settings. The zero value of each means its default.
type Options struct {
	// Logger is told what was repaired or given up. Default: nobody.
	Logger *slog.Logger

	// Connections is how many blob requests run at once, for all pulls
	// together. Default 6.
	Connections int

	// Unpackers is how many layers are unpacked at once, for all pulls
	// together. Default: the number of CPUs, but at least 2.
	Unpackers int

	// Stall is how long a connection may bring no byte before it is given up
	// and another goes on from there. Default 20 s.
	Stall time.Duration

	// Retries is how many times in a row a request may bring next to nothing
	// before the pull fails. Default 6: with the pauses, half a minute.
	Retries int

	// Limits bound what a layer may unpack to.
	Limits Limits
}

// Limits bound one layer. A layer that exceeds one is ErrInvalid.
type Limits struct {
	Bytes   int64 // of unpacked tar, and of the files in it. Default 256 GiB
	Ratio   int64 // unpacked to compressed bytes, once 1 GiB is unpacked. Default 200
	Entries int   // files, directories, links and so on. Default 4 000 000
	Depth   int   // directories above an entry. Default 255
}
