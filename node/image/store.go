package image

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"berth.internal/internal/durable"
	"berth.internal/internal/oci"
)

// Store keeps images below one directory, which belongs to one process at a
// time. All methods may be called at once.
type Store struct {
	dir     string
	o       Options
	conns   chan struct{} // a slot for each blob request
	unpacks chan struct{} // a slot for each layer being unpacked
	metrics metrics

	write sync.Mutex // held by whoever changes names.json or a record, over the disk's part of it

	mu      sync.RWMutex // guards the rest, never over the disk
	images  map[digest.Digest]*entry
	ids     []string                 // hex part of the keys of images, sorted
	names   map[string]digest.Digest // "registry/repository:tag" and "registry/repository@digest" to image
	layers  map[digest.Digest]*layer
	flights map[digest.Digest]*flight
}

// entry is an image in memory.
type entry struct {
	image   Image           // without its names
	diffs   []digest.Digest // its layers, bottom first, each once
	names   map[string]struct{}
	holders map[string]struct{}
}

// layer is an unpacked layer. refs counts the images and running pulls that
// need it.
type layer struct {
	refs int
	size int64
}

// Open opens the store in dir, which it makes where it is missing. Temporary
// files of an earlier process are removed. Errors: ErrVersion.
//
// Who holds an image is not on disk: before the first Remove or Sweep, announce
// every container's image again with Retain.
func Open(dir string, o Options) (*Store, error) {
	o = withDefaults(o)
	s := &Store{
		dir: dir, o: o,
		conns:   make(chan struct{}, o.Connections),
		unpacks: make(chan struct{}, o.Unpackers),
		metrics: newMetrics(),
		images:  map[digest.Digest]*entry{},
		names:   map[string]digest.Digest{},
		layers:  map[digest.Digest]*layer{},
		flights: map[digest.Digest]*flight{},
	}
	for _, sub := range []string{"", recordDir, layerDir, partialDir} {
		if err := durable.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("open image store: %w", err)
		}
	}
	// Layers hold devices and set-user-id files: nobody else may enter.
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", dir, err)
	}
	return s, nil
}

func withDefaults(o Options) Options {
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	o.Connections = cmp.Or(o.Connections, 6)
	o.Unpackers = cmp.Or(o.Unpackers, max(2, runtime.NumCPU()))
	o.Stall = cmp.Or(o.Stall, 20*time.Second)
	o.Retries = cmp.Or(o.Retries, 6)
	o.Limits.Bytes = cmp.Or(o.Limits.Bytes, 256<<30)
	o.Limits.Ratio = cmp.Or(o.Limits.Ratio, 200)
	o.Limits.Entries = cmp.Or(o.Limits.Entries, 4_000_000)
	o.Limits.Depth = cmp.Or(o.Limits.Depth, 255)
	return o
}

// Get returns the image that name stands for: an image id, with or without
// "sha256:", a prefix of one that no other image has, or a canonical name:
// registry/repository with :tag (default latest) or @digest. Errors:
// ErrNotFound, ErrAmbiguous.
func (s *Store) Get(name string) (Image, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	id, _, err := s.resolve(name)
	if err != nil {
		return Image{}, err
	}
	return s.images[id].named(), nil
}

// List returns all images, latest created first.
func (s *Store) List() []Image {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := make([]Image, 0, len(s.images))
	for _, e := range s.images {
		list = append(list, e.named())
	}
	slices.SortFunc(list, func(a, b Image) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID))
	})
	return list
}

// Layers returns the directories of the image's layers, bottom first, as
// overlayfs takes them for lower directories. They stay while the image is
// retained. A layer that an image lists twice appears once, at its topmost
// place: overlayfs refuses it twice, and what is above hides it below.
// Errors: ErrNotFound.
func (s *Store) Layers(id digest.Digest) ([]string, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	e, ok := s.images[id]
	if !ok {
		return nil, fmt.Errorf("layers of image %s: %w", id, ErrNotFound)
	}
	dirs := make([]string, len(e.diffs))
	for i, d := range e.diffs {
		dirs[i] = filepath.Join(s.layerPath(d), rootDir)
	}
	return dirs, nil
}

// Tag gives the image one more name, taking it from the image that has it now.
// ref must have a tag and no digest. Errors: ErrNotFound.
func (s *Store) Tag(id digest.Digest, ref oci.Reference) error {
	if ref.Tag == "" || ref.Digest != "" {
		return fmt.Errorf("tag image %s: %s is not a name with a tag", id, ref)
	}
	s.write.Lock()
	defer s.write.Unlock()
	if _, ok := s.rawConfig(id); !ok {
		return fmt.Errorf("tag image %s: %w", id, ErrNotFound)
	}
	return s.rename(map[string]digest.Digest{ref.Name() + ":" + ref.Tag: id}, nil)
}

// resolve finds the image for name and, unless name is an id, the key of
// s.names it was found by. s.mu is held.
func (s *Store) resolve(name string) (id digest.Digest, key string, err error) {
	if _, ok := s.images[digest.Digest(name)]; ok {
		return digest.Digest(name), "", nil
	}
	key = nameKey(name)
	if id, ok := s.names[key]; ok {
		return id, key, nil
	}
	prefix := strings.TrimPrefix(name, digest.Canonical.String()+":")
	if !isHex(prefix) {
		return "", "", fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	i, _ := slices.BinarySearch(s.ids, prefix)
	switch {
	case i == len(s.ids) || !strings.HasPrefix(s.ids[i], prefix):
		return "", "", fmt.Errorf("%w: %s", ErrNotFound, name)
	case i+1 < len(s.ids) && strings.HasPrefix(s.ids[i+1], prefix):
		return "", "", fmt.Errorf("%w: %s", ErrAmbiguous, name)
	}
	return digest.NewDigestFromEncoded(digest.Canonical, s.ids[i]), "", nil
}

func isHex(s string) bool {
	return s != "" && strings.Trim(s, "0123456789abcdef") == ""
}

// nameKey returns the key of Store.names for a canonical name: a digest wins
// over a tag, and the tag is latest if there is neither.
func nameKey(name string) string {
	base, dgst, hasDigest := strings.Cut(name, "@")
	repo, tag := base, "latest"
	if i := strings.LastIndexByte(base, ':'); i > strings.LastIndexByte(base, '/') {
		repo, tag = base[:i], base[i+1:]
	}
	if hasDigest {
		return repo + "@" + dgst
	}
	return repo + ":" + tag
}

// repository returns the part of a key of Store.names before its tag or digest.
func repository(key string) string {
	if repo, _, ok := strings.Cut(key, "@"); ok {
		return repo
	}
	return key[:strings.LastIndexByte(key, ':')]
}

func isDigestName(key string) bool { return strings.Contains(key, "@") }

// named returns the image with the names it has now.
func (e *entry) named() Image {
	img := e.image
	for _, key := range slices.Sorted(maps.Keys(e.names)) {
		if isDigestName(key) {
			img.RepoDigests = append(img.RepoDigests, key)
		} else {
			img.RepoTags = append(img.RepoTags, key)
		}
	}
	return img
}

// rawConfig returns the configuration of image id, if it is there.
func (s *Store) rawConfig(id digest.Digest) ([]byte, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if e, ok := s.images[id]; ok {
		return e.image.RawConfig, true
	}
	return nil, false
}

// rename writes names.json with the names of set added and those of drop gone,
// and then changes the names in memory. s.write is held.
func (s *Store) rename(set map[string]digest.Digest, drop []string) error {
	s.mu.RLock()
	next := maps.Clone(s.names)
	s.mu.RUnlock()
	for _, key := range drop {
		delete(next, key)
	}
	maps.Copy(next, set)
	if err := s.writeNames(next); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range slices.Concat(drop, slices.Collect(maps.Keys(set))) {
		if e, ok := s.images[s.names[key]]; ok {
			delete(e.names, key)
		}
	}
	for key, id := range set {
		s.images[id].names[key] = struct{}{}
	}
	s.names = next
	return nil
}

// add puts the image into memory, or its newer state over an older one. s.mu is
// held.
func (s *Store) add(img Image, diffs []digest.Digest) {
	if e, ok := s.images[img.ID]; ok {
		e.image = img
		return
	}
	for _, d := range diffs {
		s.layers[d].refs++
	}
	s.images[img.ID] = &entry{image: img, diffs: diffs, names: map[string]struct{}{}, holders: map[string]struct{}{}}
	i, _ := slices.BinarySearch(s.ids, img.ID.Encoded())
	s.ids = slices.Insert(s.ids, i, img.ID.Encoded())
}

// load reads what is on disk. An image that lacks a layer is left out: pulling
// it again repairs it.
func (s *Store) load() error {
	if err := s.clearWork(); err != nil {
		return err
	}
	if err := s.loadLayers(); err != nil {
		return err
	}
	files, err := os.ReadDir(filepath.Join(s.dir, recordDir))
	if err != nil {
		return err
	}
	for _, f := range files {
		path := filepath.Join(s.dir, recordDir, f.Name())
		if strings.HasPrefix(f.Name(), ".") { // what a crash left of durable.WriteFile
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		rec, err := readRecord(path)
		if err != nil {
			return err
		}
		img, diffs, err := s.restore(rec)
		if errors.Is(err, fs.ErrNotExist) {
			s.o.Logger.Error("image is incomplete, pull it again", "image", img.ID, "error", err)
			continue
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		s.add(img, diffs)
	}
	return s.loadNames()
}

func (s *Store) loadLayers() error {
	algorithms, err := os.ReadDir(filepath.Join(s.dir, layerDir))
	if err != nil {
		return err
	}
	for _, alg := range algorithms {
		dirs, err := os.ReadDir(filepath.Join(s.dir, layerDir, alg.Name()))
		if err != nil {
			return err
		}
		for _, d := range dirs {
			diff := digest.NewDigestFromEncoded(digest.Algorithm(alg.Name()), d.Name())
			info, err := readLayerInfo(s.layerPath(diff))
			if err != nil {
				return fmt.Errorf("layer %s: %w", diff, err)
			}
			s.layers[diff] = &layer{size: info.Size}
		}
	}
	return nil
}

func (s *Store) loadNames() error {
	names, err := s.readNames()
	if err != nil {
		return err
	}
	for key, id := range names {
		if e, ok := s.images[id]; ok {
			s.names[key] = id
			e.names[key] = struct{}{}
		}
	}
	return nil
}

// restore makes an image of its record. Errors: fs.ErrNotExist if a layer is
// missing.
func (s *Store) restore(rec record) (Image, []digest.Digest, error) {
	img := Image{
		ID: digest.FromBytes(rec.Config), Manifest: rec.Descriptor, RawConfig: rec.Config,
		RawManifest: rec.Manifest, Pulled: rec.Pulled,
	}
	if err := json.Unmarshal(rec.Config, &img.Config); err != nil {
		return img, nil, err
	}
	if img.Config.Created != nil {
		img.Created = *img.Config.Created
	}
	diffs := topmost(img.Config.RootFS.DiffIDs)
	for _, d := range diffs {
		l, ok := s.layers[d]
		if !ok {
			return img, nil, fmt.Errorf("layer %s: %w", d, fs.ErrNotExist)
		}
		img.Size += l.size
	}
	return img, diffs, nil
}

// topmost drops all but the last of equal digests.
func topmost(diffs []digest.Digest) []digest.Digest {
	var out []digest.Digest
	for i, d := range diffs {
		if !slices.Contains(diffs[i+1:], d) {
			out = append(out, d)
		}
	}
	return out
}
