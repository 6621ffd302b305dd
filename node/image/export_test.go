package image

import (
	"context"
	"io"
	"os"
)

// Untar lets the tests unpack a tar without an image around it.
func Untar(ctx context.Context, root *os.File, r io.Reader, limits Limits) error {
	_, err := untar(ctx, root, r, withDefaults(Options{Limits: limits}).Limits)
	return err
}

// SegmentSize is the size of a request.
const SegmentSize = segmentSize

// ParseManifest reads a manifest as a pull does.
var ParseManifest = parseManifest
