package registry

import (
	"math/big"
	"mime"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.internal/internal/oci"
)

// nameGrammar is copied from distribution-spec, "Pulling manifests".
var nameGrammar = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)

// FuzzRoute holds the reading of paths from their end against the spec's table
// of endpoints as regular expressions.
func FuzzRoute(f *testing.F) {
	for _, s := range []string{"/v2/", "/v2", "/v2/_catalog", "/v2/a/tags/list", "/v2/a/b/c/manifests/latest", "/v2/blobs/uploads/manifests/x", "/v2/a/blobs/uploads/", "/v2/a/blobs/uploads/id", "/v2/manifests/manifests/manifests", "/v2//blobs/x", "/v2/a/referrers/sha256:0", "/v2/uploads/blobs/uploads", "/x"} {
		f.Add(s)
	}
	endpoints := []struct {
		kind kind
		re   *regexp.Regexp
	}{
		{kindBase, regexp.MustCompile(`^/v2/?$`)},
		{kindCatalog, regexp.MustCompile(`^/v2/_catalog$`)},
		{kindTags, regexp.MustCompile(`^/v2/(.+)/tags/list$`)},
		{kindReferrers, regexp.MustCompile(`^/v2/(.+)/referrers/([^/]*)$`)},
		{kindManifest, regexp.MustCompile(`^/v2/(.+)/manifests/([^/]+)$`)},
		{kindUploads, regexp.MustCompile(`^/v2/(.+)/blobs/uploads/?$`)},
		{kindUpload, regexp.MustCompile(`^/v2/(.+)/blobs/uploads/([^/]+)$`)},
		{kindBlob, regexp.MustCompile(`^/v2/(.+)/blobs/([^/]*)$`)},
	}
	f.Fuzz(func(t *testing.T, path string) {
		if strings.ContainsAny(path, "\n\r") {
			return // no request line holds one
		}
		got, err := route(&url.URL{Path: path})
		for _, e := range endpoints {
			m := e.re.FindStringSubmatch(path)
			if m == nil {
				continue
			}
			legal := len(m) == 1 || len(m[1]) <= oci.MaxName && nameGrammar.MatchString(m[1])
			if legal != (err == nil) {
				t.Fatalf("route(%q) = %v, but the table says legal=%v", path, err, legal)
			}
			if legal && got.kind != e.kind {
				t.Fatalf("route(%q) = kind %d, want %d", path, got.kind, e.kind)
			}
			if legal && len(m) > 1 && got.name != m[1] || legal && len(m) > 2 && got.ref != m[2] {
				t.Fatalf("route(%q) = %+v, want name and reference %q", path, got, m[1:])
			}
			return
		}
		if err == nil {
			t.Fatalf("route(%q) = %+v, but no endpoint has that path", path, got)
		}
	})
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"0-1023", "bytes 5-9/*", "5-0", "-1-2", "0-99999999999999999999", "bytes 0-0/1"} {
		f.Add(s)
	}
	grammar := regexp.MustCompile(`(?s)^(?:bytes )?([0-9]+)-([0-9]+)(?:/(?s:.*))?$`)
	f.Fuzz(func(t *testing.T, s string) {
		first, last, err := parseContentRange(s)
		legal := false
		var a, z int64
		if m := grammar.FindStringSubmatch(s); m != nil {
			var errA, errZ error
			a, errA = strconv.ParseInt(m[1], 10, 63)
			z, errZ = strconv.ParseInt(m[2], 10, 63)
			legal = errA == nil && errZ == nil && a <= z
		}
		if legal != (err == nil) {
			t.Fatalf("parseContentRange(%q) = %v, but the grammar says legal=%v", s, err, legal)
		}
		if legal && (first != a || last != z) {
			t.Fatalf("parseContentRange(%q) = %d-%d, want %d-%d", s, first, last, a, z)
		}
	})
}

// FuzzAccepts holds the reading of Accept against the media type parser of the
// standard library, for what that can read.
func FuzzAccepts(f *testing.F) {
	for _, s := range []string{v1.MediaTypeImageIndex, "*/*", "text/html, " + v1.MediaTypeImageIndex + ";q=0.5", "application/*", "", ",", "Application/Vnd.Oci.Image.Index.V1+JSON"} {
		f.Add(s, "text/html")
	}
	f.Fuzz(func(t *testing.T, one, two string) {
		want := false
		for part := range strings.SplitSeq(one+","+two, ",") {
			mediaType, _, err := mime.ParseMediaType(part)
			if err != nil && strings.TrimSpace(part) != "" {
				return
			}
			want = want || mediaType == v1.MediaTypeImageIndex || mediaType == "*/*" || mediaType == "application/*"
		}
		if got := accepts([]string{one, two}, v1.MediaTypeImageIndex); got != want {
			t.Errorf("accepts(%q, %q) = %v, want %v", one, two, got, want)
		}
	})
}

// FuzzPage asks for a page of a list that is known.
func FuzzPage(f *testing.F) {
	for _, s := range []string{"", "0", "1", "-1", "99999999999999999999", "+1", "1_0", "x"} {
		f.Add(s, "b")
	}
	all := []string{"a", "b", "c", "d"}
	f.Fuzz(func(t *testing.T, n, last string) {
		p, err := readPage(url.Values{"n": {n}, "last": {last}})
		count, ok := new(big.Int).SetString(n, 10)
		if legal := ok && count.Sign() >= 0 && count.IsInt64(); legal != (err == nil) {
			t.Fatalf("readPage(n=%q) = %v, want legal=%v", n, err, legal)
		}
		if err != nil {
			return
		}
		if p.last != last || p.n < 0 || p.n > maxPage {
			t.Fatalf("readPage(n=%q, last=%q) = %+v", n, last, p)
		}
		w := httptest.NewRecorder()
		got := p.cut(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v2/_catalog", nil), all[:min(len(all), p.n+1)])
		if want := all[:min(len(all), p.n)]; !slices.Equal(got, want) || got == nil {
			t.Errorf("n=%q of %q gives %q, want %q", n, all, got, want)
		}
		if more := p.n > 0 && p.n < len(all); more != (w.Header().Get("Link") != "") {
			t.Errorf("n=%q of %q links to %q, want a link: %v", n, all, w.Header().Get("Link"), more)
		}
	})
}

func FuzzManifest(f *testing.F) {
	f.Add(`{"schemaVersion":2,"config":{"digest":"sha256:`+strings.Repeat("0", 64)+`"}}`, "")
	f.Add(`{"schemaVersion":2,"manifests":[{"digest":"sha256:x"}],"subject":{"digest":"y"}}`, "application/vnd.oci.image.index.v1+json")
	f.Add(`{"schemaVersion":1,"fsLayers":[]}`, "text/plain; charset=utf-8")
	f.Fuzz(func(t *testing.T, body, mediaType string) {
		m, err := parseManifest([]byte(body), mediaType, SparseNone)
		if err != nil {
			return
		}
		if !isIndex(m.MediaType) && !isImage(m.MediaType) {
			t.Fatalf("accepted a manifest of type %q", m.MediaType)
		}
		for _, ref := range m.References {
			if err := ref.Digest.Validate(); err != nil {
				t.Fatalf("accepted a reference to %q: %v", ref.Digest, err)
			}
		}
		linuxAMD64([]byte(body))
	})
}

// FuzzQuery sends any query to the endpoints that read one: no answer may be a
// failure of the server.
func FuzzQuery(f *testing.F) {
	for _, s := range []string{"n=5&last=x", "n=-1", "n=99999999999999999999", "mount=sha256:0&from=..", "digest=%00", "artifactType=%ff", "tag=a&tag=&tag=b", "last=sha256:x", "digest-algorithm=md5"} {
		f.Add(s, "*/*, ;;,q=1")
	}
	f.Fuzz(func(t *testing.T, query, accept string) {
		h := newHandler(t)
		for _, target := range []struct{ method, path string }{
			{"GET", "/v2/_catalog"},
			{"GET", "/v2/a/tags/list"},
			{"GET", "/v2/a/referrers/sha256:" + strings.Repeat("0", 64)},
			{"POST", "/v2/a/blobs/uploads/"},
			{"PUT", "/v2/a/manifests/x"},
			{"PUT", "/v2/a/blobs/uploads/id"},
		} {
			r := &http.Request{Method: target.method, URL: &url.URL{Path: target.path, RawQuery: query}, Header: http.Header{"Accept": {accept}}, Body: http.NoBody}
			w := &discard{header: http.Header{}}
			h.ServeHTTP(w, r.WithContext(t.Context()))
			if w.status >= 500 {
				t.Fatalf("%s %s?%s = %d", target.method, target.path, query, w.status)
			}
		}
	})
}

type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(status int)      { d.status = status }
