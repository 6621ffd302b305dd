package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"berth.internal/internal/oci"
)

// Pull brings the image that ref names in src into the store, or what it lacks
// of it, and gives it that name: ref's tag, latest if it has neither tag nor
// digest, and in any case the digest of what the registry had there.
//
// All layers are downloaded and unpacked at the same time. Layers that another
// pull is bringing in are waited for. After a failure that another attempt may
// overcome, what has arrived is kept for it until Sweep; after any other,
// nothing is.
//
// Errors: ErrInvalid, ErrPlatform, what src returns, and the disk's.
func (s *Store) Pull(ctx context.Context, ref oci.Reference, src Source, o PullOptions) (Image, error) {
	p := &pull{store: s, ref: ref, src: src, o: o}
	start := time.Now()
	img, err := p.run(ctx)
	err = errors.Join(err, p.release(err))
	s.metrics.pulled(time.Since(start), err)
	switch {
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		return Image{}, fmt.Errorf("pull %s: the disk of %s is full, remove images that are not needed: %w", ref, s.dir, err)
	case err != nil:
		return Image{}, fmt.Errorf("pull %s: %w", ref, err)
	}
	return img, nil
}

// pull is one call of Pull.
type pull struct {
	store *Store
	ref   oci.Reference
	src   Source
	o     PullOptions

	telling sync.Mutex // held over a call of o.Progress

	mu    sync.Mutex
	held  []digest.Digest // layers that the pull keeps from being removed
	diffs []digest.Digest // of the image's layers
}

func (p *pull) run(ctx context.Context) (Image, error) {
	top, desc, raw, err := p.resolve(ctx)
	if err != nil {
		return Image{}, err
	}
	p.tell(Event{Layer: top, Phase: Resolved})
	m, err := parseManifest(raw)
	if err != nil {
		return Image{}, err
	}
	rawConfig, err := p.config(ctx, m.Config)
	if err != nil {
		return Image{}, fmt.Errorf("configuration %s: %w", m.Config.Digest, err)
	}
	c, err := parseConfig(rawConfig, len(m.Layers))
	if err != nil {
		return Image{}, err
	}
	if want := p.platform(); c.Architecture != "" && suits(c.Platform, want) < 0 {
		return Image{}, fmt.Errorf("%w: %s is wanted, it is for %s", ErrPlatform, platformString(want), platformString(c.Platform))
	}
	if err := p.layers(ctx, m.Layers, c.RootFS.DiffIDs); err != nil {
		return Image{}, err
	}
	return p.commit(top, record{Descriptor: desc, Manifest: raw, Config: rawConfig, Pulled: time.Now().UTC()})
}

func (p *pull) platform() v1.Platform {
	if p.o.Platform != nil {
		return *p.o.Platform
	}
	return hostPlatform()
}

// resolve finds the manifest to pull. top is the digest that the reference
// stands for: that of an index, if there is one.
func (p *pull) resolve(ctx context.Context) (top digest.Digest, desc v1.Descriptor, raw []byte, err error) {
	identifier := p.ref.Identifier()
	for range maxNesting {
		desc, raw, err = p.manifest(ctx, identifier)
		if err != nil {
			return top, desc, nil, err
		}
		top = cmp.Or(top, desc.Digest)
		if isManifest(desc.MediaType) {
			return top, desc, raw, nil
		}
		if !isIndex(desc.MediaType) {
			return top, desc, nil, fmt.Errorf("%w: %s is of type %q, which is not supported", ErrInvalid, desc.Digest, desc.MediaType)
		}
		child, err := chooseFrom(raw, p.platform())
		if err != nil {
			return top, desc, nil, err
		}
		identifier = child.Digest.String()
	}
	return top, desc, nil, fmt.Errorf("%w: more than %d indexes in one another", ErrInvalid, maxNesting)
}

// manifest gets one manifest or index, whose digest has then been checked.
func (p *pull) manifest(ctx context.Context, identifier string) (v1.Descriptor, []byte, error) {
	desc, raw, err := p.src.Manifest(ctx, p.ref.Repository, identifier)
	if err != nil {
		return desc, nil, err
	}
	if len(raw) > maxManifest {
		return desc, nil, fmt.Errorf("%w: manifest of %d bytes, at most %d are accepted", ErrInvalid, len(raw), maxManifest)
	}
	want := cmp.Or(desc.Digest, digest.FromBytes(raw))
	if d, err := digest.Parse(identifier); err == nil {
		want = d
	}
	if err := checkDigest(raw, want); err != nil {
		return desc, nil, err
	}
	desc.Digest, desc.Size, desc.MediaType = want, int64(len(raw)), mediaTypeOf(desc.MediaType, raw)
	return desc, raw, nil
}

// config gets the image's configuration, from the store if it is there.
func (p *pull) config(ctx context.Context, desc v1.Descriptor) ([]byte, error) {
	if data, ok := p.store.rawConfig(desc.Digest); ok {
		return data, nil
	}
	d := &download{src: p.src, repo: p.ref.Repository, blob: desc}
	r, err := d.open(ctx, 0, desc.Size)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, desc.Size+1))
	if err != nil {
		return nil, err
	}
	return data, checkDigest(data, desc.Digest)
}

// layers brings in all layers, the largest first: it takes longest.
func (p *pull) layers(ctx context.Context, blobs []v1.Descriptor, diffs []digest.Digest) error {
	var todo []wanted
	for i, blob := range blobs {
		w := wanted{src: p.src, repo: p.ref.Repository, blob: blob, diff: diffs[i]}
		if slices.ContainsFunc(todo, func(t wanted) bool { return t.diff == w.diff }) {
			p.tell(Event{Layer: blob.Digest, Phase: Exists, Current: blob.Size, Total: blob.Size})
			continue
		}
		p.tell(Event{Layer: blob.Digest, Phase: Waiting, Total: blob.Size})
		todo = append(todo, w)
		p.diffs = append(p.diffs, w.diff)
	}
	slices.SortStableFunc(todo, func(a, b wanted) int { return cmp.Compare(b.blob.Size, a.blob.Size) })
	g, ctx := errgroup.WithContext(ctx)
	for _, w := range todo {
		g.Go(func() error {
			if err := p.layer(ctx, w); err != nil {
				return fmt.Errorf("layer %s: %w", w.blob.Digest, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// layer holds the layer, bringing it in if it is not there. Somebody else's
// failure to bring it is not ours: then we try.
func (p *pull) layer(ctx context.Context, w wanted) error {
	tell := func(phase Phase, current, total int64) {
		p.tell(Event{Layer: w.blob.Digest, Phase: phase, Current: current, Total: total})
	}
	for phase := Exists; ; phase = Done {
		f, mine := p.join(w.diff, tell)
		switch {
		case f == nil:
			tell(phase, w.blob.Size, w.blob.Size)
			return nil
		case mine:
			info, err := p.store.bring(ctx, w, f)
			p.land(w.diff, f, info, err)
			if err == nil {
				tell(Done, w.blob.Size, w.blob.Size)
			}
			return err
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// join holds the layer if it is there; f is then nil. Else it returns the flight
// that brings it in, and whether that is ours to do.
func (p *pull) join(diff digest.Digest, tell func(Phase, int64, int64)) (f *flight, mine bool) {
	s := p.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if l, ok := s.layers[diff]; ok {
		l.refs++
		p.hold(diff)
		return nil, false
	}
	f, ok := s.flights[diff]
	if !ok {
		f = &flight{done: make(chan struct{})}
		s.flights[diff] = f
	}
	f.listen(tell)
	return f, !ok
}

// land ends our flight. If it was good, we hold the layer.
func (p *pull) land(diff digest.Digest, f *flight, info layerInfo, err error) {
	s := p.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.layers[diff] = &layer{refs: 1, size: info.Size}
		p.hold(diff)
	}
	delete(s.flights, diff)
	close(f.done)
}

func (p *pull) hold(diff digest.Digest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = append(p.held, diff)
}

// commit records the image, whose layers are all held, and gives it its names.
func (p *pull) commit(top digest.Digest, rec record) (Image, error) {
	s := p.store
	s.write.Lock()
	defer s.write.Unlock()
	s.mu.RLock()
	img, diffs, err := s.restore(rec)
	known, ok := s.images[img.ID]
	s.mu.RUnlock()
	if err != nil {
		return Image{}, err
	}
	if !ok || known.image.Manifest.Digest != img.Manifest.Digest {
		if err := s.writeRecord(img.ID, rec); err != nil {
			return Image{}, err
		}
		s.mu.Lock()
		s.add(img, diffs)
		s.mu.Unlock()
	}
	if err := s.rename(p.names(top, img.ID), nil); err != nil {
		if !ok {
			_, _, derr := s.deleteImage(img.ID) // its layers are held, so none goes
			err = errors.Join(err, derr)
		}
		return Image{}, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.images[img.ID].named(), nil
}

// names returns the names that the pulled image gets.
func (p *pull) names(top, id digest.Digest) map[string]digest.Digest {
	names := map[string]digest.Digest{p.ref.Name() + "@" + top.String(): id}
	if p.ref.Digest == "" {
		names[p.ref.Name()+":"+cmp.Or(p.ref.Tag, oci.DefaultTag)] = id
	}
	return names
}

// release gives up the layers that the pull held: the image holds them now, or,
// after a failure that nothing can overcome, those that no other image uses go,
// together with parts of blobs.
func (p *pull) release(failure error) error {
	s := p.store
	clean := failure != nil && !resumable(failure)
	s.mu.Lock()
	var errs []error
	var trash []string
	for _, d := range p.held {
		l := s.layers[d]
		if l.refs--; l.refs == 0 && clean {
			dir, err := s.trash(d)
			trash, errs = append(trash, dir), append(errs, err)
		}
	}
	for _, d := range p.diffs {
		if _, busy := s.flights[d]; clean && !busy {
			errs = append(errs, os.RemoveAll(s.partialPath(d)))
		}
	}
	s.mu.Unlock()
	return errors.Join(append(errs, empty(trash))...)
}

// tell passes an event on.
func (p *pull) tell(e Event) {
	if p.o.Progress == nil {
		return
	}
	p.telling.Lock()
	defer p.telling.Unlock()
	p.o.Progress(e)
}
