package disk

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
)

// blobPath is what the package comment promises.
var blobPath = regexp.MustCompile(`^/root/blobs/(sha256|sha384|sha512)/([0-9a-f]{2})/([0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128})\.[A-Z2-7]{1,64}$`)

func FuzzPath(f *testing.F) {
	f.Add(string(newKey(digest.FromString("x"), "GENERATION")))
	f.Add("sha256:../../../../etc/passwd.A")
	f.Add(digest.FromString("x").String() + "./../x")
	s := &Store{root: "/root"}
	f.Fuzz(func(t *testing.T, key string) {
		if path, err := s.path(storage.Key(key)); err == nil {
			m := blobPath.FindStringSubmatch(path)
			if m == nil || !strings.HasPrefix(m[3], m[2]) || filepath.Clean(path) != path {
				t.Errorf("key %q is at %q", key, path)
			}
		}
		if path, err := s.uploadPath(key); err == nil && filepath.Dir(path) != "/root/uploads" {
			t.Errorf("upload %q is at %q", key, path)
		}
	})
}
