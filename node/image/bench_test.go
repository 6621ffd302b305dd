package image_test

import (
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"berth.internal/node/image"
)

// BenchmarkPull pulls a real tree as one gzip layer, from a server of this
// process into memory. Compare with -tree /usr/local/go; MB/s are of the
// unpacked tar.
func BenchmarkPull(b *testing.B) {
	r := newRegistry()
	data := gnuTar(b, *treeFlag, "--one-file-system")
	r.push(b, r.make(b, data), "latest")
	srv := httptest.NewServer(http.HandlerFunc(r.answer))
	defer srv.Close()
	root := onTmpfs(b)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		s := openStore(b, filepath.Join(root, "store"), image.Options{})
		img := pull(b, s, remote(srv.URL), "app")
		b.StopTimer()
		if _, err := s.Remove(img.ID.String(), true); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
