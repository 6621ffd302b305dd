package image

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"berth.internal/internal/durable"
)

// Retain keeps the image and its layers until holder releases it. It is not
// written to disk: the holder's own record is, and announces it again after a
// restart. Retaining twice is retaining once. Errors: ErrNotFound.
func (s *Store) Retain(id digest.Digest, holder string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.images[id]
	if !ok {
		return fmt.Errorf("retain image %s: %w", id, ErrNotFound)
	}
	e.holders[holder] = struct{}{}
	return nil
}

// Release gives up what holder retained. An image that has lost its last name
// meanwhile goes with its last holder. Releasing what is not held does nothing.
func (s *Store) Release(id digest.Digest, holder string) error {
	s.write.Lock()
	s.mu.Lock()
	e, ok := s.images[id]
	if ok {
		delete(e.holders, holder)
	}
	last := ok && len(e.holders) == 0 && len(e.names) == 0
	s.mu.Unlock()
	var trash []string
	var err error
	if last {
		_, trash, err = s.deleteImage(id)
	}
	s.write.Unlock()
	return errors.Join(err, empty(trash))
}

// Remove takes away what name stands for, as docker rmi does. A name is
// untagged, and with its last tag a repository loses its digests too; an image
// id loses all its names. An image without names is deleted, with the layers
// that no other image uses.
//
// force lets an id go that has names in several repositories, and the last name
// of an image in use, which is then deleted when its last holder releases it.
//
// Errors: ErrNotFound, ErrAmbiguous, ErrNames, *InUseError.
func (s *Store) Remove(name string, force bool) ([]Removed, error) {
	s.write.Lock()
	steps, trash, err := s.remove(name, force)
	s.write.Unlock()
	return steps, errors.Join(err, empty(trash))
}

// remove does Remove up to the directories that are left to be emptied. s.write
// is held.
func (s *Store) remove(name string, force bool) (steps []Removed, trash []string, err error) {
	id, drop, free, err := s.planRemove(name, force)
	if err != nil {
		return nil, nil, fmt.Errorf("remove image: %w", err)
	}
	if err := s.rename(nil, drop); err != nil {
		return nil, nil, fmt.Errorf("remove image %s: %w", name, err)
	}
	for _, key := range drop {
		steps = append(steps, Removed{Untagged: key})
	}
	if !free {
		return steps, nil, nil
	}
	deleted, trash, err := s.deleteImage(id)
	for _, d := range deleted {
		steps = append(steps, Removed{Deleted: d})
	}
	return steps, trash, err
}

// planRemove says which names go with name, and whether the image goes too.
func (s *Store) planRemove(name string, force bool) (id digest.Digest, drop []string, free bool, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	id, key, err := s.resolve(name)
	if err != nil {
		return "", nil, false, err
	}
	e := s.images[id]
	if key == "" {
		repos := map[string]bool{}
		for n := range e.names {
			repos[repository(n)] = true
		}
		if len(repos) > 1 && !force {
			return "", nil, false, fmt.Errorf("%s: %w (force removes all of them)", name, ErrNames)
		}
		drop = slices.Sorted(maps.Keys(e.names))
	} else {
		drop = e.withDigests(key)
	}
	last := len(drop) == len(e.names)
	if last && len(e.holders) > 0 && !force {
		return "", nil, false, &InUseError{ID: id, By: slices.Sorted(maps.Keys(e.holders))}
	}
	return id, drop, last && len(e.holders) == 0, nil
}

// withDigests returns key and, if it is the last tag of its repository, the
// repository's digests.
func (e *entry) withDigests(key string) []string {
	drop := []string{key}
	if isDigestName(key) {
		return drop
	}
	for _, n := range slices.Sorted(maps.Keys(e.names)) {
		switch {
		case n == key || repository(n) != repository(key):
		case isDigestName(n):
			drop = append(drop, n)
		default:
			return []string{key}
		}
	}
	return drop
}

// deleteImage deletes an image without names: it forgets the image, removes its
// record and moves the layers that nobody else uses out of sight. deleted is the
// image and those layers; trash are the directories to be emptied. s.write is
// held.
func (s *Store) deleteImage(id digest.Digest) (deleted []digest.Digest, trash []string, err error) {
	s.mu.Lock()
	e := s.images[id]
	delete(s.images, id)
	i, _ := slices.BinarySearch(s.ids, id.Encoded())
	s.ids = slices.Delete(s.ids, i, i+1)
	s.mu.Unlock()
	// Without its record a layer is only an orphan, which Sweep would find.
	if err := os.Remove(s.recordPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("delete image %s: %w", id, err)
	}
	if err := durable.SyncDir(filepath.Join(s.dir, recordDir)); err != nil {
		return nil, nil, fmt.Errorf("delete image %s: %w", id, err)
	}
	deleted = []digest.Digest{id}
	for _, d := range e.diffs {
		path, err := s.drop(d)
		if err != nil {
			return deleted, trash, fmt.Errorf("delete image %s: %w", id, err)
		}
		if path != "" {
			deleted, trash = append(deleted, d), append(trash, path)
		}
	}
	return deleted, trash, nil
}

// drop gives up one use of a layer. A layer without uses is moved to the work
// directory, where the caller empties it.
func (s *Store) drop(diff digest.Digest) (trash string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock() // over the rename, so that nobody takes the layer meanwhile
	l := s.layers[diff]
	l.refs--
	if l.refs > 0 {
		return "", nil
	}
	return s.trash(diff)
}

// trash moves a layer that nobody uses to the work directory. s.mu is held.
func (s *Store) trash(diff digest.Digest) (string, error) {
	work, err := os.MkdirTemp(filepath.Join(s.dir, workDir), "gone-")
	if err != nil {
		return "", err
	}
	if err := os.Rename(s.layerPath(diff), filepath.Join(work, layerDir)); err != nil {
		return "", errors.Join(err, os.Remove(work))
	}
	delete(s.layers, diff)
	return work, nil
}

func empty(dirs []string) error {
	var errs []error
	for _, dir := range dirs {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// Sweep deletes what no name and no holder needs: images whose removal a crash
// cut short, and the layers and parts of blobs that a failed pull left for the
// next one and that are older than age. Call it once all holders have been
// announced after Open, and daily.
func (s *Store) Sweep(age time.Duration) error {
	s.write.Lock()
	trash, err := s.sweepImages()
	s.write.Unlock()
	before := time.Now().Add(-age)
	layers, lerr := s.sweepLayers(before)
	return errors.Join(err, lerr, s.sweepPartial(before), empty(slices.Concat(trash, layers)))
}

func (s *Store) sweepImages() (trash []string, err error) {
	s.mu.RLock()
	var free []digest.Digest
	for id, e := range s.images {
		if len(e.names) == 0 && len(e.holders) == 0 {
			free = append(free, id)
		}
	}
	s.mu.RUnlock()
	for _, id := range free {
		_, dirs, derr := s.deleteImage(id)
		trash, err = append(trash, dirs...), errors.Join(err, derr)
	}
	return trash, err
}

func (s *Store) sweepLayers(before time.Time) (trash []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for d, l := range s.layers {
		if l.refs > 0 {
			continue
		}
		info, serr := os.Stat(filepath.Join(s.layerPath(d), layerFile))
		if serr != nil || info.ModTime().After(before) {
			err = errors.Join(err, serr)
			continue
		}
		dir, terr := s.trash(d)
		if terr == nil {
			trash = append(trash, dir)
		}
		err = errors.Join(err, terr)
	}
	return trash, err
}

func (s *Store) sweepPartial(before time.Time) error {
	dirs, err := os.ReadDir(filepath.Join(s.dir, partialDir))
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock() // a pull that starts meanwhile waits, and then begins anew
	busy := map[string]bool{}
	for d := range s.flights {
		busy[filepath.Base(s.partialPath(d))] = true
	}
	for _, d := range dirs {
		info, ierr := d.Info()
		if ierr != nil || busy[d.Name()] || info.ModTime().After(before) {
			err = errors.Join(err, ierr)
			continue
		}
		err = errors.Join(err, os.RemoveAll(filepath.Join(s.dir, partialDir, d.Name())))
	}
	return err
}
