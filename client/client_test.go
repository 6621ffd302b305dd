package client

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth.internal/client/registrytest"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// dial returns a client that does not wait between attempts.
func dial(t *testing.T, o Options) *Registry {
	t.Helper()
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	r.backoff = func(int) time.Duration { return 0 }
	return r
}

func content(size int) (v1.Descriptor, []byte) {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(size)}).Read(b) // never fails
	return v1.Descriptor{Digest: digest.FromBytes(b), Size: int64(size)}, b
}

func opener(b []byte) func(int64) (io.ReadCloser, error) {
	return func(offset int64) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b[offset:])), nil }
}

func push(t *testing.T, r *Registry, repo string, b []byte) v1.Descriptor {
	t.Helper()
	d := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if _, err := r.PushBlob(t.Context(), repo, d, opener(b), PushOptions{}); err != nil {
		t.Fatal(err)
	}
	return d
}

// pushManifest stores a manifest whose only content is a config that says name.
func pushManifest(t *testing.T, r *Registry, repo, ref, name, subject string) digest.Digest {
	t.Helper()
	config := push(t, r, repo, fmt.Appendf(nil, `{"author":%q}`, name))
	body := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"artifactType":"text/x","config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[]%s}`,
		v1.MediaTypeImageManifest, v1.MediaTypeImageConfig, config.Digest, config.Size, subject)
	if ref == "" {
		ref = digest.FromString(body).String()
	}
	d, err := r.PushManifest(t.Context(), repo, ref, v1.MediaTypeImageManifest, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestBlobs(t *testing.T) {
	r := dial(t, Options{Registry: registrytest.Docker(t)})
	ctx := t.Context()
	if err := r.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{0, 1, 100_000} {
		desc, want := content(size)
		for _, tc := range []struct {
			repo string
			o    PushOptions
			want PushResult
		}{
			{"a", PushOptions{}, Uploaded},
			{"a", PushOptions{}, Existed},
			{"b", PushOptions{MountFrom: "a"}, Mounted},
			{"c", PushOptions{MountFrom: "nowhere"}, Uploaded},
		} {
			got, err := r.PushBlob(ctx, tc.repo, desc, opener(want), tc.o)
			if err != nil || got != tc.want {
				t.Errorf("PushBlob of %d bytes to %s, mount from %q = %v, %v, want %v", size, tc.repo, tc.o.MountFrom, got, err, tc.want)
			}
			rc, err := r.Blob(ctx, tc.repo, desc.Digest, 0, -1)
			if err != nil {
				t.Fatal(err)
			}
			got2, err := io.ReadAll(rc)
			if err := errors.Join(err, rc.Close()); err != nil || !bytes.Equal(got2, want) {
				t.Errorf("Blob of %d bytes from %s = %d bytes, %v", size, tc.repo, len(got2), err)
			}
		}
	}
}

func TestBlobRange(t *testing.T) {
	r := dial(t, Options{Registry: registrytest.Docker(t)})
	d := push(t, r, "a", []byte("hello, berth"))
	for _, tc := range []struct {
		offset, length int64
		want           string
	}{
		{0, 5, "hello"}, {7, -1, "berth"}, {7, 3, "ber"}, {7, 100, "berth"}, {0, -1, "hello, berth"}, {3, 0, ""},
	} {
		rc, err := r.Blob(t.Context(), "a", d.Digest, tc.offset, tc.length)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(rc)
		if err := errors.Join(err, rc.Close()); err != nil || string(got) != tc.want {
			t.Errorf("Blob from %d, %d bytes = %q, %v, want %q", tc.offset, tc.length, got, err, tc.want)
		}
	}
	_, err := r.Blob(t.Context(), "a", d.Digest, 12, -1)
	var e *Error
	if !errors.As(err, &e) || e.Status != http.StatusRequestedRangeNotSatisfiable {
		t.Errorf("Blob from its end = %v, want status 416", err)
	}
}

// TestBlobLies has a registry that does not send what it was asked for.
func TestBlobLies(t *testing.T) {
	for _, tc := range []struct {
		name, header string
		status       int
		want         string
	}{
		{"wrong first", "bytes 0-4/12", 206, "instead of those from 7 on"},
		{"wrong last", "bytes 7-8/12", 206, "instead of those from 7 on"},
		{"no range", "", 206, "invalid Content-Range"},
		{"short", "bytes 7-11/12", 206, "unexpected EOF"},
		{"whole", "", 200, errors.ErrUnsupported.Error()},
		{"nothing", "", 204, "answered 204"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if tc.header != "" {
					w.Header().Set("Content-Range", tc.header)
				}
				w.WriteHeader(tc.status)
				_, _ = io.WriteString(w, "ber") // 204 has no body
			}))
			defer srv.Close()
			rc, err := dial(t, Options{Registry: srv.URL}).Blob(t.Context(), "a", digest.FromString(""), 7, 5)
			if err == nil {
				_, err = io.ReadAll(rc)
				err = errors.Join(err, rc.Close())
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Blob = %v, want an error with %q", err, tc.want)
			}
		})
	}
}

// proxy puts before in front of a registry. An answer by before ends the
// request; otherwise it goes on.
func proxy(t *testing.T, registry string, before func(w http.ResponseWriter, r *http.Request) (answered bool)) string {
	t.Helper()
	to := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "http", Host: registry})
			p.Out.Host = p.In.Host
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !before(w, r) {
			to.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// breaking is a request body that fails after left bytes.
type breaking struct {
	io.ReadCloser
	left int
}

func (b *breaking) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, errors.New("cable cut")
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// sessions is a registry that can do no more than hold one upload, and keeps
// what it got when the line breaks.
type sessions struct {
	t       *testing.T
	cut     int // break the line after so many bytes,
	cuts    int // so many times
	patches int
	mu      sync.Mutex // a request that broke off may still be at work
	held    []byte
	stored  digest.Digest
}

func (s *sessions) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Location", "/v2/a/blobs/uploads/1")
	switch {
	case r.Method == http.MethodHead && s.stored == "":
		w.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodPost:
		s.held = nil
		w.WriteHeader(http.StatusAccepted)
	case r.Method == http.MethodGet:
		w.Header().Set("Range", fmt.Sprintf("0-%d", max(len(s.held)-1, 0)))
		w.WriteHeader(http.StatusNoContent)
	case r.Method == http.MethodPatch || r.Method == http.MethodPut:
		if cr := r.Header.Get("Content-Range"); cr != "" && !strings.HasPrefix(cr, fmt.Sprintf("%d-", len(s.held))) {
			s.t.Errorf("%s has Content-Range %s, but %d bytes are held", r.Method, cr, len(s.held))
		}
		if r.Method == http.MethodPatch {
			s.patches++
		}
		body := io.Reader(r.Body)
		if s.cuts > 0 {
			s.cuts--
			body = io.LimitReader(body, int64(s.cut))
		}
		b, err := io.ReadAll(body)
		s.held = append(s.held, b...)
		if n, _ := r.Body.Read(make([]byte, 1)); err != nil || n > 0 {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(http.StatusAccepted)
		if r.Method == http.MethodPut {
			s.stored = digest.FromBytes(s.held)
		}
	}
}

func TestPushResumes(t *testing.T) {
	s := &sessions{t: t, cut: 100_000, cuts: 8} // more than maxAttempts, but each brings something
	srv := httptest.NewServer(s)
	defer srv.Close()
	r := dial(t, Options{Registry: srv.URL})
	desc, b := content(1_000_000)
	var sent atomic.Int64
	got, err := r.PushBlob(t.Context(), "a", desc, opener(b), PushOptions{Progress: func(n int64) { sent.Store(n) }})
	if err != nil || got != Uploaded || s.stored != desc.Digest {
		t.Fatalf("PushBlob over a bad line = %v, %v, stored as %s", got, err, s.stored)
	}
	if s.patches != 8 || sent.Load() != desc.Size {
		t.Errorf("%d PATCH requests, progress through %d of %d: want 8 and all", s.patches, sent.Load(), desc.Size)
	}
}

// TestPushInChunks breaks the line in the second of five chunks, at a registry
// that drops what a broken request brought.
func TestPushInChunks(t *testing.T) {
	var patches, puts atomic.Int64
	addr := proxy(t, registrytest.Docker(t), func(_ http.ResponseWriter, r *http.Request) bool {
		switch r.Method {
		case http.MethodPatch:
			if patches.Add(1) == 2 {
				r.Body = &breaking{r.Body, 1000}
			}
		case http.MethodPut:
			puts.Add(1)
		}
		return false
	})
	r := dial(t, Options{Registry: addr})
	r.chunk = 200_000
	desc, b := content(1_000_000)
	got, err := r.PushBlob(t.Context(), "a", desc, opener(b), PushOptions{})
	if err != nil || got != Uploaded || puts.Load() != 1 {
		t.Errorf("PushBlob in chunks = %v, %v, with %d PUT requests, want one", got, err, puts.Load())
	}
	if n := patches.Load(); n < 5 || n > 7 { // begun anew, or gone on
		t.Errorf("it took %d PATCH requests", n)
	}
}

// TestRegistryRestarts takes the registry away for two attempts.
func TestRegistryRestarts(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	srv.Close()
	r := dial(t, Options{Registry: srv.URL})
	var attempts int
	r.backoff = func(int) time.Duration { attempts++; return 0 }
	if err := r.Ping(t.Context()); err == nil || attempts != 0 {
		t.Errorf("Ping of a registry that was never there = %v after %d more attempts, want none", err, attempts)
	}
	r.met.Store(true)
	if err := r.Ping(t.Context()); err == nil || attempts != maxAttempts-1 {
		t.Errorf("Ping of a registry that has gone = %v after %d more attempts, want %d", err, attempts, maxAttempts-1)
	}
}

// TestPushBeginsAgain uses a registry that drops an upload when its line breaks.
func TestPushBeginsAgain(t *testing.T) {
	var cuts atomic.Int64
	addr := proxy(t, registrytest.Docker(t), func(_ http.ResponseWriter, r *http.Request) bool {
		if r.ContentLength > 0 && cuts.Add(1) < maxAttempts {
			r.Body = &breaking{r.Body, 100_000}
		}
		return false
	})
	r := dial(t, Options{Registry: addr})
	desc, b := content(1_000_000)
	got, err := r.PushBlob(t.Context(), "a", desc, opener(b), PushOptions{})
	if err != nil || got != Uploaded {
		t.Fatalf("PushBlob over a bad line = %v, %v", got, err)
	}
	if _, ok, err := r.HasBlob(t.Context(), "a", desc.Digest); !ok || err != nil {
		t.Errorf("HasBlob after the push = %v, %v", ok, err)
	}
}

func TestPushGivesUp(t *testing.T) {
	var puts, cancelled atomic.Int64
	addr := proxy(t, registrytest.Docker(t), func(w http.ResponseWriter, r *http.Request) bool {
		switch r.Method {
		case http.MethodPut:
			puts.Add(1)
			w.WriteHeader(http.StatusBadGateway)
			return true
		case http.MethodDelete:
			cancelled.Add(1)
		}
		return false
	})
	desc, b := content(10)
	_, err := dial(t, Options{Registry: addr}).PushBlob(t.Context(), "a", desc, opener(b), PushOptions{})
	if err == nil || !strings.Contains(err.Error(), "502") || puts.Load() != maxAttempts || cancelled.Load() != 1 {
		t.Errorf("PushBlob = %v after %d attempts and %d cancels, want 502, %d and 1", err, puts.Load(), cancelled.Load(), maxAttempts)
	}
}

// TestPushSourceFails wants an upload that ends, and is cancelled, when the file
// is not what it was said to be.
func TestPushSourceFails(t *testing.T) {
	var puts, cancelled atomic.Int64
	addr := proxy(t, registrytest.Docker(t), func(_ http.ResponseWriter, r *http.Request) bool {
		switch r.Method {
		case http.MethodPut:
			puts.Add(1)
		case http.MethodDelete:
			cancelled.Add(1)
		}
		return false
	})
	r := dial(t, Options{Registry: addr})
	desc, b := content(200_000)
	for name, open := range map[string]func(int64) (io.ReadCloser, error){
		"short":      opener(b[:100_000]),
		"other":      opener(make([]byte, len(b))),
		"unreadable": func(int64) (io.ReadCloser, error) { return nil, io.ErrNoProgress },
	} {
		puts.Store(0)
		cancelled.Store(0)
		_, err := r.PushBlob(t.Context(), "a", desc, open, PushOptions{})
		if err == nil || puts.Load() > 1 || cancelled.Load() != 1 {
			t.Errorf("%s: PushBlob = %v after %d attempts and %d cancels, want an error, one and one", name, err, puts.Load(), cancelled.Load())
		}
	}
}

func TestManifestsAndLists(t *testing.T) {
	r := dial(t, Options{Registry: registrytest.Docker(t)})
	ctx := t.Context()
	var tags []string
	var first digest.Digest
	for i := range 250 { // more than a page
		tag := fmt.Sprintf("v%03d", i)
		d := pushManifest(t, r, "team/app", tag, fmt.Sprint(i%3), "")
		if i == 0 {
			first = d
		}
		tags = append(tags, tag)
	}
	desc, body, err := r.Manifest(ctx, "team/app", "v000")
	if err != nil || desc.Digest != first || digest.FromBytes(body) != first || desc.MediaType != v1.MediaTypeImageManifest {
		t.Errorf("Manifest = %+v, %v, want %s", desc, err, first)
	}
	for _, ref := range []string{"v000", first.String()} {
		if got, err := r.Resolve(ctx, "team/app", ref); err != nil || got.Digest != desc.Digest || got.Size != desc.Size || got.MediaType != desc.MediaType {
			t.Errorf("Resolve %s = %+v, %v, want %+v", ref, got, err, desc)
		}
	}
	var listed []string
	for tag, err := range r.Tags(ctx, "team/app") {
		if err != nil {
			t.Fatal(err)
		}
		listed = append(listed, tag)
	}
	if slices.Sort(listed); !slices.Equal(listed, tags) {
		t.Errorf("Tags = %q, want %q", listed, tags)
	}
	for repo, err := range r.Repositories(ctx) {
		if err != nil || repo != "team/app" {
			t.Errorf("Repositories = %q, %v, want team/app", repo, err)
		}
	}
	if err := r.DeleteManifest(ctx, "team/app", first); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Resolve(ctx, "team/app", "v000"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Resolve after the delete = %v, want not found", err)
	}
}

// TestReferrersByTag uses a registry that keeps no referrers, so that the
// client must.
func TestReferrersByTag(t *testing.T) {
	r := dial(t, Options{Registry: registrytest.Docker(t)})
	subject := pushManifest(t, r, "a", "1", "subject", "")
	var want []digest.Digest
	for _, name := range []string{"x", "y", "y"} {
		d := pushManifest(t, r, "a", "", name, fmt.Sprintf(`,"subject":{"mediaType":%q,"digest":%q,"size":1}`, v1.MediaTypeImageManifest, subject))
		want = append(want, d)
	}
	for _, tc := range []struct {
		artifactType string
		want         []digest.Digest
	}{{"", want[:2]}, {"text/x", want[:2]}, {"text/y", nil}} {
		var got []digest.Digest
		for desc, err := range r.Referrers(t.Context(), "a", subject, tc.artifactType) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, desc.Digest)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("Referrers of type %q = %v, want %v", tc.artifactType, got, tc.want)
		}
	}
}

func TestErrorsLeadOn(t *testing.T) {
	host := registrytest.Docker(t)
	r := dial(t, Options{Registry: host})
	pushManifest(t, r, "team/app", "1", "x", "")
	none := digest.FromString("none")
	gone := httptest.NewServer(nil)
	gone.Close()
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	defer secure.Close()
	at := func(s string) string { return strings.TrimPrefix(strings.TrimPrefix(s, "http://"), "https://") }
	for _, tc := range []struct {
		name string
		do   func(context.Context) error
		want string
	}{
		{
			"no tag", func(ctx context.Context) error { _, err := r.Resolve(ctx, "team/app", "2"); return err },
			"repository team/app has no tag 2 in " + host + "; list its tags with: berth repo tags " + host + "/team/app",
		},
		{
			"no manifest", func(ctx context.Context) error { _, err := r.Resolve(ctx, "team/app", none.String()); return err },
			"repository team/app has no manifest " + none.String(),
		},
		{
			"no blob", func(ctx context.Context) error { _, err := r.Blob(ctx, "team/app", none, 0, -1); return err },
			"repository team/app has no blob " + none.String() + " in " + host,
		},
		{"no repository", func(ctx context.Context) error {
			for _, err := range r.Tags(ctx, "other") {
				return err
			}
			return nil
		}, host + " has no repository other; list its repositories with: berth repo ls --registry " + host},
		{
			"no name", func(ctx context.Context) error { _, err := r.Resolve(ctx, "../x", "1"); return err },
			`"../x" is not the name of a repository`,
		},
		{
			"no digest", func(ctx context.Context) error { return r.DeleteBlob(ctx, "a", "sha256:/../x") },
			`"sha256:/../x" is not a digest`,
		},
		{
			"nobody there", dial(t, Options{Registry: gone.URL}).Ping,
			"cannot reach the registry at " + gone.URL + ": is it running? start one with: berth serve",
		},
		{"no registry", dial(t, Options{Registry: web.URL}).Ping, at(web.URL) + " answers, but not as a registry"},
		{"no TLS", dial(t, Options{Registry: "https://" + host}).Ping, "if it may go without, name it http://" + host},
		{"unknown CA", dial(t, Options{Registry: secure.URL}).Ping, "is not one this machine trusts; name its CA's file"},
	} {
		if err := tc.do(t.Context()); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v\nwant %s", tc.name, err, tc.want)
		}
	}
}

// TestWrongContent has a registry that sends other bytes than asked for.
func TestWrongContent(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Docker-Content-Digest", digest.FromString("right").String())
		_, _ = io.WriteString(w, "wrong") // the client reads it
	}))
	defer srv.Close()
	for _, ref := range []string{"1", digest.FromString("right").String()} {
		_, _, err := dial(t, Options{Registry: srv.URL}).Manifest(t.Context(), "a", ref)
		if err == nil || !strings.Contains(err.Error(), "wrong content") {
			t.Errorf("Manifest %s = %v, want wrong content", ref, err)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	for _, tc := range []struct {
		name     string
		after    string
		status   int
		attempts int64
		ok       bool
	}{
		{"busy", "0", 429, 3, true},
		{"unavailable", "", 503, 3, true},
		{"away for long", "3600", 503, 1, false},
		{"no use", "", 400, 1, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var n atomic.Int64
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if n.Add(1) < 3 {
					w.Header().Set("Retry-After", tc.after)
					w.WriteHeader(tc.status)
				}
			}))
			defer srv.Close()
			err := dial(t, Options{Registry: srv.URL}).Ping(t.Context())
			if (err == nil) != tc.ok || n.Load() != tc.attempts {
				t.Errorf("Ping = %v after %d attempts, want ok=%v after %d", err, n.Load(), tc.ok, tc.attempts)
			}
		})
	}
}

func TestStalledTransfer(t *testing.T) {
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "10")
		_, _ = io.WriteString(w, "half") // the client reads it
		_ = http.NewResponseController(w).Flush()
		<-release
	}))
	defer srv.Close()
	defer close(release)
	r := dial(t, Options{Registry: srv.URL})
	r.stall = 50 * time.Millisecond
	rc, err := r.Blob(t.Context(), "a", digest.FromString(""), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if b, err := io.ReadAll(rc); !errors.Is(err, errStalled) || string(b) != "half" {
		t.Errorf("a blob that stops half way = %q, %v, want half and %v", b, err, errStalled)
	}
}

func TestWarnings(t *testing.T) {
	addr := proxy(t, registrytest.Docker(t), func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header()["Warning"] = []string{`299 - "it ends \"soon\""`, `199 - "other"`}
		return false
	})
	var told []string
	r := dial(t, Options{Registry: addr, Warn: func(text string) { told = append(told, text) }})
	for range 2 {
		if err := r.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(told, []string{`it ends "soon"`}) {
		t.Errorf("told of %q, want the one warning, once", told)
	}
}

// TestWrongScheme speaks plainly with a server that wants TLS.
func TestWrongScheme(t *testing.T) {
	srv := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(srv.Close)
	host := srv.Listener.Addr().String()
	if err := dial(t, Options{Registry: host}).Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "name it https://"+host) {
		t.Errorf("Ping = %v, want the address to use", err)
	}
	ca := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := dial(t, Options{Registry: host, CAFile: ca}).URL(); got != "https://"+host {
		t.Errorf("with a CA the registry is %s", got)
	}
}

// TestTooManyRequests turns every request away once: also one that is not repeated
// after other failures gets through.
func TestTooManyRequests(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]int{}
	address := proxy(t, registrytest.Docker(t), func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		key := r.Method + " " + r.URL.Path
		if seen[key]++; seen[key] > 1 {
			return false
		}
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	})
	r := dial(t, Options{Registry: address})
	push(t, r, "a", []byte("blob"))
	const index = "application/vnd.oci.image.index.v1+json"
	d, err := r.PushManifest(t.Context(), "a", "1", index, []byte(`{"schemaVersion":2,"mediaType":"`+index+`","manifests":[]}`))
	if err != nil {
		t.Errorf("PushManifest = %v", err)
	}
	if err := r.DeleteManifest(t.Context(), "a", d); err != nil {
		t.Errorf("DeleteManifest = %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if seen["PUT /v2/a/manifests/1"] != 2 || seen["DELETE /v2/a/manifests/"+d.String()] != 2 {
		t.Errorf("requests: %v", seen)
	}
}
