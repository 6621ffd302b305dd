package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"berth.internal/internal/durable"
)

// unlimited is how many bytes a layer may always unpack to, however small its
// blob.
const unlimited = 1 << 30

// wanted is a layer to bring in: the blob, and what it must unpack to.
type wanted struct {
	src  Source
	repo string
	blob v1.Descriptor
	diff digest.Digest
}

// bring downloads and unpacks a layer and puts it in its place.
func (s *Store) bring(ctx context.Context, w wanted, f *flight) (layerInfo, error) {
	partial := s.partialPath(w.diff)
	for {
		info, resumed, err := s.tryBring(ctx, w, f)
		if err == nil {
			return info, nil
		}
		if resumable(err) {
			return info, err
		}
		if rerr := os.RemoveAll(partial); rerr != nil {
			return info, errors.Join(err, rerr)
		}
		if !resumed || !errors.Is(err, ErrInvalid) {
			return info, err
		}
		// It may be what the earlier pull left that is wrong: a power cut does that.
		s.o.Logger.Warn("layer does not match after resuming, downloading it anew", "digest", w.blob.Digest, "error", err)
	}
}

// resumable says whether another pull can go on with what one that failed left.
func resumable(err error) bool {
	return !errors.Is(err, ErrInvalid) && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT)
}

// tryBring is bring without the second attempt. resumed says whether some of
// the blob was there before.
func (s *Store) tryBring(ctx context.Context, w wanted, f *flight) (info layerInfo, resumed bool, err error) {
	st := newStages(ctx)
	d, err := openDownload(st.ctx, s, w.src, w.repo, w.blob, filepath.Join(s.partialPath(w.diff), w.blob.Digest.Encoded()))
	if err != nil {
		st.fail(nil)
		return info, false, err
	}
	resumed = d.received > 0
	d.progress = func(received int64) { f.report(Downloading, received, w.blob.Size) }
	f.report(Downloading, d.received, w.blob.Size)
	st.run(nil, func() error { return d.run(st.ctx) })
	select {
	case s.unpacks <- struct{}{}:
		defer func() { <-s.unpacks }()
	case <-st.ctx.Done():
		return info, resumed, st.wait()
	}
	work, err := os.MkdirTemp(filepath.Join(s.dir, workDir), "layer-")
	if err != nil {
		st.fail(err)
		return info, resumed, st.wait()
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }() // does nothing once it is in its place
	root, err := makeRoot(work)
	if err != nil {
		st.fail(err)
		return info, resumed, st.wait()
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	info, err = s.unpack(st, d, root, w, f)
	if err != nil {
		return info, resumed, err
	}
	f.report(Verifying, w.blob.Size, w.blob.Size)
	return info, resumed, s.commit(work, root, w.diff, info)
}

func makeRoot(work string) (*os.File, error) {
	path := filepath.Join(work, rootDir)
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, err
	}
	return os.Open(path)
}

// unpack runs a layer through its stages: read and hash the blob, decompress,
// hash the tar, make the files. Both digests have matched when err is nil.
func (s *Store) unpack(st *stages, d *download, root *os.File, w wanted, f *flight) (info layerInfo, err error) {
	limits := s.o.Limits
	limits.Bytes = min(limits.Bytes, max(unlimited, limits.Ratio*w.blob.Size))
	blob, plain, checked := st.stream(), st.stream(), st.stream()
	blobHash, plainHash := w.blob.Digest.Algorithm().Hash(), w.diff.Algorithm().Hash()
	st.run(blob, func() error {
		var done int64
		err := blob.fill(d, func(b []byte) error {
			blobHash.Write(b)
			if done += int64(len(b)); d.total() == w.blob.Size {
				f.report(Extracting, done, w.blob.Size)
			}
			return nil
		})
		return errors.Join(err, d.closeFile())
	})
	st.run(plain, func() error { return inflate(plain, blob, limits.Bytes) })
	st.run(checked, func() error { return checked.hash(plain, plainHash) })
	st.run(nil, func() (err error) {
		info, err = untar(st.ctx, root, checked, limits)
		return err
	})
	if err := st.wait(); err != nil {
		return info, err
	}
	if got := digest.NewDigest(w.blob.Digest.Algorithm(), blobHash); got != w.blob.Digest {
		return info, fmt.Errorf("%w: the blob that the registry sent has digest %s, push the image again", ErrInvalid, got)
	}
	if got := digest.NewDigest(w.diff.Algorithm(), plainHash); got != w.diff {
		return info, fmt.Errorf("%w: it unpacks to content %s, the configuration says %s, push the image again", ErrInvalid, got, w.diff)
	}
	return info, nil
}

// inflate sends to out what in decompresses to, at most limit bytes.
func inflate(out, in *stream, limit int64) error {
	z, err := decompress(in)
	if err != nil {
		return fmt.Errorf("%w: it cannot be decompressed, push the image again: %w", ErrInvalid, err)
	}
	defer z.Close()
	var size int64
	err = out.fill(z, func(b []byte) error {
		if size += int64(len(b)); size > limit {
			return fmt.Errorf("%w: unpacks to more than %d bytes", ErrInvalid, limit)
		}
		return nil
	})
	if err != nil && !errors.Is(err, ErrInvalid) {
		return fmt.Errorf("%w: it cannot be decompressed, push the image again: %w", ErrInvalid, err)
	}
	return err
}

// commit puts the layer unpacked in work in its place, when all of it is on
// disk. The blob is dropped first: what is removed before it was written to
// disk need not be.
func (s *Store) commit(work string, root *os.File, diff digest.Digest, info layerInfo) error {
	if err := writeLayerInfo(work, info); err != nil {
		return err
	}
	if err := os.RemoveAll(s.partialPath(diff)); err != nil {
		return err
	}
	if err := unix.Syncfs(int(root.Fd())); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	place := s.layerPath(diff)
	if err := durable.MkdirAll(filepath.Dir(place), 0o700); err != nil {
		return err
	}
	return durable.Rename(work, place)
}
