package registry

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/big"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.internal/internal/httpx"
	"berth.internal/internal/oci"
	"berth.internal/storage"
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
	for _, s := range []string{v1.MediaTypeImageIndex, "*/*", "text/html, " + v1.MediaTypeImageIndex + ";q=0.5", "application/*", "", ",", "Application/Vnd.Oci.Image.Index.V1+JSON", "*/*;q=0", v1.MediaTypeImageIndex + "; Q=0.000", "application/*;q=1;q=0"} {
		f.Add(s, "text/html")
		f.Add(s, v1.MediaTypeImageIndex+";q=0")
		f.Add(s, "*/*;q=0.3")
	}
	f.Fuzz(func(t *testing.T, one, two string) {
		weights := map[string]float64{} // the best of each range
		for part := range strings.SplitSeq(one+","+two, ",") {
			if strings.TrimSpace(part) == "" {
				continue
			}
			mediaType, params, err := mime.ParseMediaType(part)
			if err != nil || strings.ContainsAny(part, "\"*'") && strings.Contains(part, ";") {
				return // quoted, and of other alphabets: no weight is
			}
			weight := 1.0
			if q, ok := params["q"]; ok {
				if weight, err = strconv.ParseFloat(q, 64); err != nil {
					weight = 1
				}
			}
			if best, ok := weights[mediaType]; !ok || weight != 0 || best != 0 {
				weights[mediaType] = max(best, math.Abs(weight))
			}
		}
		want := false
		for _, r := range []string{v1.MediaTypeImageIndex, "application/*", "*/*"} {
			if weight, ok := weights[r]; ok {
				want = weight != 0
				break
			}
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

// FuzzManifest holds what is read of a manifest against the types of the
// image-spec.
func FuzzManifest(f *testing.F) {
	d := strings.Repeat("0", 64)
	f.Add(`{"schemaVersion":2,"config":{"digest":"sha256:`+d+`"}}`, "")
	f.Add(`{"schemaVersion":2,"manifests":[{"digest":"sha256:x"}],"subject":{"digest":"y"}}`, "application/vnd.oci.image.index.v1+json")
	f.Add(`{"schemaVersion":1,"fsLayers":[]}`, "text/plain; charset=utf-8")
	f.Add(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"a/b","annotations":{"c":"d"},`+
		`"config":{"mediaType":"e/f","digest":"sha256:`+d+`"},"layers":[{"digest":"sha512:`+d+d+`","urls":["g"]},{"digest":"sha256:`+d+`","data":""}],`+
		`"subject":{"digest":"sha256:`+d+`"}}`, "application/vnd.oci.image.manifest.v1+json;x")
	f.Add(`{"schemaVersion":2,"manifests":[{"digest":"sha256:`+d+`","platform":{"os":"linux","architecture":"amd64"}},`+
		`{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","digest":"sha256:`+d+`"}]}`, "")
	f.Fuzz(func(t *testing.T, body, mediaType string) {
		m, err := parseManifest([]byte(body), mediaType, SparseNone)
		if err != nil {
			return
		}
		var image v1.Manifest
		var index v1.Index
		if err := errors.Join(json.Unmarshal([]byte(body), &image), json.Unmarshal([]byte(body), &index)); err != nil {
			t.Fatalf("accepted what the image-spec's types do not: %v", err)
		}
		said, _, _ := strings.Cut(mediaType, ";")
		said = strings.ToLower(strings.TrimSpace(said))
		if image.SchemaVersion != 2 || image.MediaType != "" && image.MediaType != m.MediaType || said != "" && said != m.MediaType {
			t.Errorf("accepted version %d of %q, which says %q of itself, as %q", image.SchemaVersion, mediaType, image.MediaType, m.MediaType)
		}
		artifactType, named := image.ArtifactType, index.Manifests
		switch m.MediaType {
		case v1.MediaTypeImageManifest, dockerManifest:
			artifactType = cmp.Or(artifactType, image.Config.MediaType)
			named = append([]v1.Descriptor{image.Config}, image.Layers...)
		case v1.MediaTypeImageIndex, dockerList:
		default:
			t.Fatalf("accepted a manifest of type %q", m.MediaType)
		}
		if m.ArtifactType != artifactType || !maps.Equal(m.Annotations, image.Annotations) {
			t.Errorf("as a referrer it shows %q, %q, want %q, %q", m.ArtifactType, m.Annotations, artifactType, image.Annotations)
		}
		if image.Subject == nil && m.Subject != "" || image.Subject != nil && m.Subject != image.Subject.Digest {
			t.Errorf("the subject is %q, want %v", m.Subject, image.Subject)
		}
		if len(m.References) != len(named) {
			t.Fatalf("it names %v, want %v", m.References, named)
		}
		for i, ref := range m.References {
			elsewhere := len(named[i].URLs) > 0 || named[i].Data != nil || regexp.MustCompile(`\.(nondistributable|foreign)\.`).MatchString(named[i].MediaType)
			if ref.Digest != named[i].Digest || ref.Optional != elsewhere || ref.Manifest != isIndex(m.MediaType) || ref.Digest.Validate() != nil {
				t.Errorf("it names %+v, want %+v", ref, named[i])
			}
		}
		if child := linuxAMD64([]byte(body)); child != "" && !slices.ContainsFunc(index.Manifests, func(d v1.Descriptor) bool { return d.Digest == child }) {
			t.Errorf("the child for linux/amd64 is %s, which is none of %v", child, index.Manifests)
		}
	})
}

// FuzzRange holds answers to Range headers against RFC 9110, section 14.
func FuzzRange(f *testing.F) {
	for _, s := range []string{"bytes=1-4", "bytes=-5", "Bytes=7-", "bytes=5-0", "bytes=-0", "bytes=99-,0-0", "bytes=0-1, 3-4", "lines=1-2", "bytes=", "bytes=0-1,-00,x", "bytes=0-9,0-9"} {
		f.Add(s, uint8(12))
	}
	one := regexp.MustCompile(`^(?:([0-9]+)-([0-9]*)|-([0-9]+))$`)
	f.Fuzz(func(t *testing.T, header string, length uint8) {
		content := []byte(strings.Repeat("0123456789abcdefghijklmnopqrstuvwxyz", 8)[:length])
		size := int64(length)
		type span struct{ first, end int64 }
		var want []span // that are there
		asked, valid := 0, true
		unit, ranges, _ := strings.Cut(header, "=")
		isBytes := strings.EqualFold(unit, "bytes") && strings.Contains(header, "=")
		for spec := range strings.SplitSeq(ranges, ",") {
			if spec = strings.Trim(spec, " \t"); spec == "" || !isBytes {
				continue
			}
			asked++
			m := one.FindStringSubmatch(spec)
			if m == nil {
				valid = false
				continue
			}
			var n [3]int64
			for i, digits := range m[1:] {
				var err error
				if n[i], err = strconv.ParseInt(cmp.Or(digits, "0"), 10, 64); err != nil {
					valid = false // larger than any file
				}
			}
			s := span{n[0], min(n[1], size-1) + 1}
			switch {
			case m[1] == "":
				s = span{max(0, size-n[2]), size}
			case m[2] == "":
				s.end = size
			case n[1] < n[0]:
				valid = false
			}
			if s.first < s.end {
				want = append(want, s)
			}
		}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		r.Header.Set("Range", header)
		w := httptest.NewRecorder()
		c := storage.Content{Digest: digest.FromBytes(content), Size: size, Inline: content}
		httpx.Handle(Render, func(w http.ResponseWriter, r *http.Request) error { return new(Handler).sendBlob(w, r, c) }).ServeHTTP(w, r)
		got := w.Header().Get("Content-Range")
		var total int64
		for _, s := range want {
			total += s.end - s.first
		}
		switch {
		case !valid: // may be ignored, refused, or understood
			if w.Code != 200 && w.Code != 206 && w.Code != 416 {
				t.Errorf("Range %q of %d bytes = %d", header, size, w.Code)
			}
		case asked == 0 || size == 0 || total > size:
			if w.Code != 200 || w.Body.String() != string(content) {
				t.Errorf("Range %q of %d bytes = %d %q, want all of it", header, size, w.Code, w.Body)
			}
		case len(want) == 0:
			if w.Code != 416 || got != fmt.Sprintf("bytes */%d", size) || code(t, w) != "SIZE_INVALID" {
				t.Errorf("Range %q of %d bytes = %d, Content-Range %q, want 416", header, size, w.Code, got)
			}
		case len(want) == 1:
			s := want[0]
			if w.Code != 206 || w.Body.String() != string(content[s.first:s.end]) || got != fmt.Sprintf("bytes %d-%d/%d", s.first, s.end-1, size) {
				t.Errorf("Range %q of %d bytes = %d %q, Content-Range %q, want %+v", header, size, w.Code, w.Body, got, s)
			}
		default:
			_, params, err := mime.ParseMediaType(w.Header().Get("Content-Type"))
			if err != nil || w.Code != 206 {
				t.Fatalf("Range %q of %d bytes = %d %v, want parts", header, size, w.Code, w.Header())
			}
			parts := multipart.NewReader(w.Body, params["boundary"])
			for _, s := range want {
				part, err := parts.NextPart()
				if err != nil {
					t.Fatalf("Range %q of %d bytes: %v, want %+v", header, size, err, want)
				}
				if b, err := io.ReadAll(part); err != nil || string(b) != string(content[s.first:s.end]) {
					t.Errorf("Range %q of %d bytes has a part %q (%v), want %+v", header, size, b, err, s)
				}
			}
		}
	})
}

// FuzzQuery sends any query to the endpoints that read one, and tells what the
// answer must be from its parameters.
func FuzzQuery(f *testing.F) {
	held := digest.FromString("held")
	for _, s := range []string{
		"n=2&last=a", "n=-1", "n=99999999999999999999", "last=%62&n=0", "mount=" + held.String() + "&from=b", "mount=" + held.String(), "mount=sha256:0&from=..",
		"digest=%00", "digest=" + digest.FromString("").String(), "digest=" + held.String(), "artifactType=%ff", "tag=a&tag=&tag=b", "tag=a&tag=b%2Dc", "tag=x;y&n=1",
		"last=sha256:x", "digest-algorithm=md5", "digest-algorithm=sha512", strings.Repeat("tag=a&", 101),
	} {
		f.Add(s, "*/*, ;;,q=1")
	}
	tagGrammar := regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	digestGrammar := regexp.MustCompile(`^(sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128})$`)
	all := []string{"a", "b", "c", "d"}
	f.Fuzz(func(t *testing.T, query, accept string) {
		q := map[string][]string{}
		for pair := range strings.SplitSeq(query, "&") {
			key, value, _ := strings.Cut(pair, "=")
			key, err := url.QueryUnescape(key)
			value, err2 := url.QueryUnescape(value)
			if pair != "" && !strings.Contains(pair, ";") && err == nil && err2 == nil {
				q[key] = append(q[key], value)
			}
		}
		first := func(key string) string { return append(q[key], "")[0] }
		h := newHandler(t)
		pushBlob(t, h, "b", "held")
		m := image(t, h, "a", "")
		must(t, h, "PUT", "/v2/a/manifests/"+digest.FromString(m).String()+"?tag=a&tag=b&tag=c&tag=d", m, 201)
		ask := func(method, path, body string, want int) *httptest.ResponseRecorder {
			t.Helper()
			r := &http.Request{Method: method, URL: &url.URL{Path: path, RawQuery: query}, Header: http.Header{"Accept": {accept}}, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body))}
			w := httptest.NewRecorder()
			if h.ServeHTTP(w, r.WithContext(t.Context())); w.Code != want {
				t.Fatalf("%s %s?%s = %d %s, want %d", method, path, query, w.Code, w.Body, want)
			}
			if ns := first("ns"); w.Header().Get("OCI-Namespace") != ns {
				t.Errorf("%s %s?%s answers OCI-Namespace %q", method, path, query, w.Header().Get("OCI-Namespace"))
			}
			return w
		}

		n, status := int64(len(all)), 200
		if len(q["n"]) > 0 {
			if big, ok := new(big.Int).SetString(first("n"), 10); !ok || big.Sign() < 0 || !big.IsInt64() {
				status = 400
			} else {
				n = min(n, big.Int64())
			}
		}
		w := ask("GET", "/v2/a/tags/list", "", status)
		ask("GET", "/v2/_catalog", "", status)
		if status == 200 {
			rest := all[sort.SearchStrings(all, first("last")):]
			if len(rest) > 0 && rest[0] == first("last") {
				rest = rest[1:]
			}
			want, err := json.Marshal(rest[:min(int64(len(rest)), n)])
			if err != nil {
				t.Fatal(err)
			}
			if want := `{"name":"a","tags":` + string(want) + "}\n"; w.Body.String() != want {
				t.Errorf("tags/list?%s = %s, want %s", query, w.Body, want)
			}
		}

		w = ask("GET", "/v2/a/referrers/"+held.String(), "", 200)
		if applied := w.Header().Get("OCI-Filters-Applied"); (applied == "artifactType") != (first("artifactType") != "") {
			t.Errorf("referrers?%s answers OCI-Filters-Applied %q", query, applied)
		}

		d := first("digest")
		switch {
		case len(q["mount"]) > 0 && first("mount") == held.String() && (first("from") == "" || first("from") == "b"):
			status = 201
		case len(q["mount"]) == 0 && len(q["digest"]) > 0 && !digestGrammar.MatchString(d):
			status = 400
		case len(q["mount"]) == 0 && d != "" && d == digest.Digest(d).Algorithm().FromString("").String():
			status = 201
		case !slices.Contains([]string{"", "sha256", "sha512"}, first("digest-algorithm")):
			status = 400
		default:
			status = 202
		}
		ask("POST", "/v2/c/blobs/uploads/", "", status)

		status = 404
		if !digestGrammar.MatchString(d) {
			status = 400
		}
		ask("PUT", "/v2/a/blobs/uploads/id", "", status)

		status = 201
		if len(q["tag"]) > maxTagParams {
			status = 414
		} else if slices.ContainsFunc(q["tag"], func(tag string) bool { return !tagGrammar.MatchString(tag) }) {
			status = 400
		}
		w = ask("PUT", "/v2/a/manifests/"+digest.FromString(m).String(), m, status)
		if got := w.Header().Values("OCI-Tag"); status == 201 && !slices.Equal(got, q["tag"]) {
			t.Errorf("PUT ?%s answers OCI-Tag %q, want %q", query, got, q["tag"])
		}
	})
}
