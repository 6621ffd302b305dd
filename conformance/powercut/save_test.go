package powercut

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// saved are images that berth repo pull has written to files.
type saved struct {
	binary string
	url    string // of the registry
	place  string // kind of the target
	disk   *FS
	images []string
	done   []Moment // when each was there
}

// save writes images to one target on an empty disk, one after another.
func save(t *testing.T, binary, place string, images ...string) saved {
	t.Helper()
	r := running(t, built(), filepath.Join(memory(t), "data"))
	t.Cleanup(func() { ok(t, r.kill()) })
	f, dir := mount(t, nil)
	s := saved{binary: binary, url: r.url, place: place, disk: f, images: images}
	for _, id := range images {
		ok(t, client{newLedger(f.Now), r.url}.tagged(id))
		ok(t, s.berth("repo", "pull", "-q", "team/"+id+":1", fmt.Sprintf("%s:%s/image:%s", place, dir, id)))
		s.done = append(s.done, f.Now())
	}
	return s
}

// berth runs a command against the registry.
func (s saved) berth(args ...string) error {
	cmd := exec.Command(s.binary, args...)
	cmd.Env = append(os.Environ(), "BERTH_REGISTRY="+s.url)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// losses cuts the power at all moments, from the last on, until an image is found
// in part, or missing after it had been saved.
func (s saved) losses(t *testing.T) error {
	scratch := memory(t)
	for at := s.disk.Now(); at >= 0; at-- {
		if err := s.cut(scratch, at); err != nil {
			return fmt.Errorf("power cut before %s (%d): %w", s.disk.Describe(at), at, err)
		}
	}
	return nil
}

func (s saved) cut(scratch string, at Moment) error {
	dir, err := os.MkdirTemp(scratch, "cut")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := s.disk.Disk(at, 0, nil).Write(dir); err != nil {
		return err
	}
	image := filepath.Join(dir, "image")
	for i, id := range s.images {
		names := image // what names the image
		if s.place == "oci" {
			names = filepath.Join(image, "index.json")
		}
		text, err := os.ReadFile(names)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if !bytes.Contains(text, fmt.Appendf(nil, `"org.opencontainers.image.ref.name":%q`, id)) {
			if at >= s.done[i] {
				return fmt.Errorf("%s was saved and is not there", id)
			}
			continue
		}
		if err := s.berth("repo", "push", "-q", fmt.Sprintf("%s:%s:%s", s.place, image, id), "team/copy:"+id); err != nil {
			return err
		}
	}
	return nil
}

// TestSavedImages cuts the power while images are saved to files: each is whole
// or not there at all, and what was there before stays.
func TestSavedImages(t *testing.T) {
	for place, images := range map[string][]string{"oci": {"one", "two"}, "oci-archive": {"one"}} {
		t.Run(place, func(t *testing.T) {
			if err := save(t, built(), place, images...).losses(t); err != nil {
				t.Error(err)
			}
		})
	}
}
