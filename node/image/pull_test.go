package image_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"berth.internal/node/image"
)

func TestPull(t *testing.T) {
	r := newRegistry()
	m := r.make(t, tarOf(t, dir("etc"), file("etc/hosts", "below")), tarOf(t, file("etc/motd", "hello")))
	desc := r.push(t, m, "1")
	s := openStore(t, t.TempDir(), image.Options{})
	img := pull(t, s, r, "app:1")
	if img.Manifest.Digest != desc.Digest || img.ID != m.manifest.Config.Digest || img.Size != int64(len("below")+len("hello")) {
		t.Errorf("image = %+v, want manifest %s, id %s", img, desc.Digest, m.manifest.Config.Digest)
	}
	dirs, err := s.Layers(img.ID)
	if err != nil || len(dirs) != 2 {
		t.Fatalf("Layers = %v, %v", dirs, err)
	}
	if got, err := os.ReadFile(filepath.Join(dirs[1], "etc/motd")); err != nil || !bytes.Equal(got, []byte("hello")) {
		t.Errorf("etc/motd of the upper layer = %q, %v", got, err)
	}
}
