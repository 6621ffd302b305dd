package server_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"berth.internal/server"
	"berth.internal/storage"
	"berth.internal/storage/bolt"
	"berth.internal/storage/disk"
	"berth.internal/storage/kv"
)

// sink is a response writer that costs next to nothing: what is measured is
// ours, not net/http's.
type sink struct {
	header http.Header
	status int
}

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) WriteHeader(status int)      { s.status = status }
func (s *sink) Write(p []byte) (int, error) { return len(p), nil }

// ReadFrom is what net/http has for bodies from a reader.
func (s *sink) ReadFrom(r io.Reader) (int64, error) { return io.Copy(io.Discard, r) }

// measure reports, when the function it returns is called, the processor time
// that an operation took, also of what runs beside it such as the garbage
// collector: on a machine with other work to do it says more than the clock.
func measure(b *testing.B) func() {
	b.ReportAllocs()
	used := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op") }
}

// BenchmarkRequest is what one request costs between net/http and the disk.
func BenchmarkRequest(b *testing.B) {
	dir := b.TempDir()
	index, err := bolt.Open(filepath.Join(dir, "index.db"), kv.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer index.Close()
	store, err := disk.Open(dir, disk.Options{})
	if err != nil {
		b.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	cfg := server.DefaultConfig()
	cfg.Audit.Dir = filepath.Join(dir, "audit")
	s, err := server.Open(b.Context(), cfg, storage.Drivers{Store: store, Index: index, Records: index}, log)
	if err != nil {
		b.Fatal(err)
	}
	h := s.Handler()
	do := func(method, path string, body []byte, want int) http.Header {
		r := httptest.NewRequestWithContext(b.Context(), method, path, bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		w := &sink{header: http.Header{}, status: 200}
		if h.ServeHTTP(w, r); w.status != want {
			b.Fatalf("%s %s = %d, want %d", method, path, w.status, want)
		}
		return w.header
	}
	blob := func(n int) []byte { return bytes.Repeat(fmt.Appendf(nil, "%08d", n), 512) }
	push := func(body []byte) string {
		d := digest.FromBytes(body).String()
		do("PUT", do("POST", "/v2/team/app/blobs/uploads/", nil, 202).Get("Location")+"?digest="+d, body, 201)
		return d
	}
	layer := push(blob(0))
	manifest := func(n int) []byte {
		return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":4096},"layers":[],"annotations":{"n":"%d"}}`, layer, n)
	}
	for i := range 500 {
		do("PUT", fmt.Sprintf("/v2/team/app/manifests/t%d", i), manifest(0), 201)
	}
	for _, bc := range []struct {
		name, method, path string
	}{
		{"HEAD_blob", "HEAD", "/v2/team/app/blobs/" + layer},
		{"GET_blob", "GET", "/v2/team/app/blobs/" + layer},
		{"GET_manifest", "GET", "/v2/team/app/manifests/t250"},
		{"HEAD_manifest", "HEAD", "/v2/team/app/manifests/t250"},
		{"tags", "GET", "/v2/team/app/tags/list"},
		{"POST_DELETE_upload", "POST", "/v2/team/app/blobs/uploads/"}, // cancelled, since only so many may be open
	} {
		b.Run(bc.name, func(b *testing.B) {
			r := httptest.NewRequestWithContext(b.Context(), bc.method, bc.path, nil)
			r.Header = http.Header{"Accept": {"application/vnd.oci.image.manifest.v1+json"}, "User-Agent": {"bench"}}
			w := &sink{header: http.Header{}}
			defer measure(b)()
			for b.Loop() {
				clear(w.header)
				w.status = 200
				if h.ServeHTTP(w, r); w.status >= 300 {
					b.Fatalf("%s %s = %d", bc.method, bc.path, w.status)
				}
				if bc.method == "POST" {
					do("DELETE", w.header.Get("Location"), nil, 204)
				}
			}
		})
	}
	// The same with users, and a credential.
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte("correct horse"), 0o600); err != nil {
		b.Fatal(err)
	}
	cfg.Anonymous, cfg.AdminPasswordFile = server.AnonymousPull, password
	if s, err = server.Open(b.Context(), cfg, storage.Drivers{Store: store, Index: index, Records: index}, log); err != nil {
		b.Fatal(err)
	}
	login := httptest.NewRequestWithContext(b.Context(), "GET", "/auth/token?scope=repository:team/app:pull,push", nil)
	login.SetBasicAuth("admin", "correct horse")
	granted := httptest.NewRecorder()
	s.Handler().ServeHTTP(granted, login)
	var token struct{ Token string }
	if err := json.Unmarshal(granted.Body.Bytes(), &token); err != nil || token.Token == "" {
		b.Fatalf("token: %s %v", granted.Body, err)
	}
	for _, as := range []struct{ name, authorization string }{
		{"nobody", ""}, {"token", "Bearer " + token.Token}, {"Basic", login.Header.Get("Authorization")},
	} {
		b.Run("GET_manifest_by_"+as.name, func(b *testing.B) {
			r := httptest.NewRequestWithContext(b.Context(), "GET", "/v2/team/app/manifests/t250", nil)
			r.Header = http.Header{"Accept": {"application/vnd.oci.image.manifest.v1+json"}, "User-Agent": {"bench"}}
			if as.authorization != "" {
				r.Header.Set("Authorization", as.authorization)
			}
			w := &sink{header: http.Header{}}
			defer measure(b)()
			for b.Loop() {
				clear(w.header)
				w.status = 200
				if s.Handler().ServeHTTP(w, r); w.status >= 300 {
					b.Fatalf("= %d", w.status)
				}
			}
		})
	}
	b.Run("push_blob", func(b *testing.B) {
		n := rand.IntN(1 << 30)
		defer measure(b)()
		for b.Loop() {
			n++
			push(blob(n))
		}
	})
	b.Run("push_manifest", func(b *testing.B) {
		n := rand.IntN(1 << 30)
		defer measure(b)()
		for b.Loop() {
			n++
			do("PUT", fmt.Sprint("/v2/team/app/manifests/n", n), manifest(n), 201)
		}
	})
}
