package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.internal/internal/oci"
	"berth.internal/storage"
	"berth.internal/storage/care"
	"berth.internal/storage/kv"
	"berth.internal/storage/mem"
)

// newHandler returns a registry in memory in which everybody may do everything.
func newHandler(t *testing.T) *Handler {
	t.Helper()
	index := mem.NewIndex(kv.Options{})
	t.Cleanup(func() {
		if err := index.Close(); err != nil {
			t.Error(err)
		}
	})
	store := new(mem.Store)
	scrub := care.NewScrub(storage.Drivers{Store: store, Index: index, Records: index}, care.ScrubConfig{}, slog.New(slog.DiscardHandler))
	return New(Config{
		Store: store, Index: index, Suspect: scrub.Suspect,
		Access: func(*http.Request, string, Action) error { return nil },
		Owner:  func(r *http.Request) string { return r.Header.Get("X-User") },
		Rules: func(string) storage.Rules {
			return storage.Rules{Grace: time.Hour, Untagged: time.Hour, Dangling: time.Hour}
		}, Limits: func() Limits { return Limits{Sparse: SparseNone, MaxManifest: 1 << 20} }, UploadExpiry: time.Hour,
	})
}

// do sends a request; header holds names and values in turn.
func do(t *testing.T, h http.Handler, method, path string, body io.Reader, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, body)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// must is do with an answer that the test is not about.
func must(t *testing.T, h http.Handler, method, path, body string, want int, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	w := do(t, h, method, path, strings.NewReader(body), header...)
	if w.Code != want {
		t.Fatalf("%s %s = %d %s, want %d", method, path, w.Code, w.Body, want)
	}
	return w
}

func pushBlob(t *testing.T, h http.Handler, repo, content string) digest.Digest {
	t.Helper()
	d := digest.FromString(content)
	must(t, h, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), content, 201)
	return d
}

// image returns a manifest of a config and layers that are in the repository.
func image(t *testing.T, h http.Handler, repo string, extra string) string {
	t.Helper()
	config, layer := pushBlob(t, h, repo, "{}"), pushBlob(t, h, repo, "layer")
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":2},"layers":[{"mediaType":%q,"digest":%q,"size":5}]%s}`,
		v1.MediaTypeImageManifest, v1.MediaTypeImageConfig, config, v1.MediaTypeImageLayer, layer, extra)
}

// code returns the codes of an error answer.
func code(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	var answer struct{ Errors []oci.Error }
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		t.Fatalf("answer %q is not the spec's JSON: %v", w.Body, err)
	}
	var codes []string
	for _, e := range answer.Errors {
		codes = append(codes, string(e.Code))
	}
	return strings.Join(codes, " ")
}

func TestBlobAnswers(t *testing.T) {
	h := newHandler(t)
	d := pushBlob(t, h, "a", "hello, berth").String()
	absent := digest.FromString("absent").String()
	for _, tc := range []struct {
		name, method, path, rng string
		status                  int
		body, code              string
	}{
		{"whole", "GET", "/v2/a/blobs/" + d, "", 200, "hello, berth", ""},
		{"escaped colon", "GET", "/v2/a/blobs/" + strings.Replace(d, ":", "%3A", 1), "", 200, "hello, berth", ""},
		{"from", "GET", "/v2/a/blobs/" + d, "bytes=7-", 206, "berth", ""},
		{"suffix", "GET", "/v2/a/blobs/" + d, "bytes=-5", 206, "berth", ""},
		{"clipped", "GET", "/v2/a/blobs/" + d, "bytes=7-999", 206, "berth", ""},
		{"reversed", "GET", "/v2/a/blobs/" + d, "bytes=5-0", 416, "", "-"},
		{"past the end", "GET", "/v2/a/blobs/" + d, "bytes=12-", 416, "", "-"},
		{"head", "HEAD", "/v2/a/blobs/" + d, "", 200, "", "-"},
		{"absent", "GET", "/v2/a/blobs/" + absent, "", 404, "", "BLOB_UNKNOWN"},
		{"of another repository", "GET", "/v2/b/blobs/" + d, "", 404, "", "BLOB_UNKNOWN"},
		{"no digest", "GET", "/v2/a/blobs/sha256:short", "", 400, "", "DIGEST_INVALID"},
		{"unknown algorithm", "GET", "/v2/a/blobs/md5:" + strings.Repeat("0", 32), "", 400, "", "DIGEST_INVALID"},
		{"escaped slash", "GET", "/v2/a%2Fb/blobs/" + d, "", 400, "", "NAME_INVALID"},
		{"upper case", "GET", "/v2/A/blobs/" + d, "", 400, "", "NAME_INVALID"},
		{"method", "PATCH", "/v2/a/blobs/" + d, "", 405, "", "UNSUPPORTED"},
		{"nothing", "GET", "/v2/a/nothing/x", "", 404, "", "UNSUPPORTED"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := do(t, h, tc.method, tc.path, nil, "Range", tc.rng)
			if tc.rng == "" {
				w = do(t, h, tc.method, tc.path, nil)
			}
			if w.Code != tc.status {
				t.Fatalf("%s %s = %d %s, want %d", tc.method, tc.path, w.Code, w.Body, tc.status)
			}
			if v := w.Header().Get("Docker-Distribution-Api-Version"); v != "registry/2.0" {
				t.Errorf("Docker-Distribution-Api-Version = %q", v)
			}
			switch {
			case tc.code == "" && w.Body.String() != tc.body:
				t.Errorf("body %q, want %q", w.Body, tc.body)
			case tc.code != "" && tc.code != "-" && code(t, w) != tc.code:
				t.Errorf("code %s, want %s", code(t, w), tc.code)
			}
			if tc.status == 200 && (w.Header().Get("Docker-Content-Digest") != d || w.Header().Get("Content-Length") != "12" || w.Header().Get("Etag") != `"`+d+`"`) {
				t.Errorf("header %v lacks digest, length or tag", w.Header())
			}
		})
	}
}

func TestUploadInChunks(t *testing.T) {
	h := newHandler(t)
	d := digest.FromString("hello, berth")
	start := must(t, h, "POST", "/v2/a/blobs/uploads/", "", 202)
	to := start.Header().Get("Location")
	if start.Header().Get("Range") != "0-0" || !strings.HasPrefix(to, "/v2/a/blobs/uploads/") {
		t.Errorf("POST answers Range %q and Location %q", start.Header().Get("Range"), to)
	}
	w := must(t, h, "PATCH", to, "hello", 202, "Content-Range", "0-4")
	if r := w.Header().Get("Range"); r != "0-4" {
		t.Errorf("after five bytes Range = %q, want 0-4", r)
	}
	w = must(t, h, "PATCH", to, "again", 416, "Content-Range", "0-4")
	if r, l := w.Header().Get("Range"), w.Header().Get("Location"); r != "0-4" || l != to {
		t.Errorf("out of order: Range %q and Location %q, want where to go on", r, l)
	}
	must(t, h, "PATCH", to, ", ber", 202) // streamed
	if r := must(t, h, "GET", to, "", 204).Header().Get("Range"); r != "0-9" {
		t.Errorf("status says Range %q, want 0-9", r)
	}
	must(t, h, "PUT", to+"?digest="+d.String(), "th", 416, "Content-Range", "11-12")
	w = must(t, h, "PUT", to+"?digest="+d.String(), "th", 201, "Content-Range", "10-11")
	if l := w.Header().Get("Location"); l != "/v2/a/blobs/"+d.String() {
		t.Errorf("Location = %q", l)
	}
	if got := must(t, h, "GET", "/v2/a/blobs/"+d.String(), "", 200).Body.String(); got != "hello, berth" {
		t.Errorf("the blob is %q", got)
	}
	if c := code(t, must(t, h, "GET", to, "", 404)); c != "BLOB_UPLOAD_UNKNOWN" {
		t.Errorf("the session after its end: %s", c)
	}
}

func TestUploadsThatFail(t *testing.T) {
	d := digest.FromString("right").String()
	for _, tc := range []struct {
		name  string
		steps func(t *testing.T, h http.Handler, to string)
	}{
		{"wrong digest ends the session", func(t *testing.T, h http.Handler, to string) {
			if c := code(t, must(t, h, "PUT", to+"?digest="+d, "wrong", 400)); c != "DIGEST_INVALID" {
				t.Errorf("code %s", c)
			}
			must(t, h, "GET", to, "", 404)
		}},
		{"wrong digest after a chunk", func(t *testing.T, h http.Handler, to string) {
			must(t, h, "PATCH", to, "wro", 202)
			must(t, h, "PUT", to+"?digest="+d, "ng", 400)
			must(t, h, "GET", to, "", 404)
		}},
		{"no digest keeps it", func(t *testing.T, h http.Handler, to string) {
			must(t, h, "PUT", to, "right", 400)
			must(t, h, "PUT", to+"?digest="+d, "right", 201)
		}},
		{"a body that ends early keeps it", func(t *testing.T, h http.Handler, to string) {
			r := httptest.NewRequestWithContext(t.Context(), "PATCH", to, io.MultiReader(strings.NewReader("rig"), goneClient{}))
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != 400 {
				t.Errorf("the broken PATCH = %d", w.Code)
			}
			if r := must(t, h, "GET", to, "", 204).Header().Get("Range"); r != "0-2" {
				t.Errorf("Range = %q, want what had arrived", r)
			}
			must(t, h, "PUT", to+"?digest="+d, "ht", 201)
		}},
		{"cancelled", func(t *testing.T, h http.Handler, to string) {
			must(t, h, "PATCH", to, "some", 202)
			must(t, h, "DELETE", to, "", 204)
			must(t, h, "PATCH", to, "more", 404)
		}},
		{"of somebody else", func(t *testing.T, h http.Handler, to string) {
			must(t, h, "PATCH", to, "some", 404, "X-User", "mallory")
		}},
		{"of another repository", func(t *testing.T, h http.Handler, to string) {
			must(t, h, "PATCH", strings.Replace(to, "/a/", "/b/", 1), "some", 404)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHandler(t)
			tc.steps(t, h, must(t, h, "POST", "/v2/a/blobs/uploads/", "", 202).Header().Get("Location"))
		})
	}
}

// goneClient is the body of a client that goes away.
type goneClient struct{}

func (goneClient) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// full is a store on a full disk.
type full struct{ storage.Store }

func (full) Create(context.Context, digest.Algorithm) (storage.Upload, error) {
	return nil, fmt.Errorf("create upload: %w", storage.ErrNoSpace)
}

func TestFullDisk(t *testing.T) {
	h := newHandler(t)
	h.Store = full{h.Store}
	content := strings.Repeat("x", storage.InlineMax+1)
	d := digest.FromString(content).String()
	w := do(t, h, "POST", "/v2/a/blobs/uploads/?digest="+d, strings.NewReader(content))
	if w.Code != http.StatusInsufficientStorage || !strings.Contains(w.Body.String(), "disk is full") {
		t.Errorf("push on a full disk = %d %s, want 507 and the reason", w.Code, w.Body)
	}
	must(t, h, "HEAD", "/v2/a/blobs/"+d, "", 404)
}

func TestSimultaneousPatches(t *testing.T) {
	h := newHandler(t)
	to := must(t, h, "POST", "/v2/a/blobs/uploads/", "", 202).Header().Get("Location")
	body, feed := io.Pipe()
	first := make(chan int)
	go func() {
		r := httptest.NewRequestWithContext(t.Context(), "PATCH", to, body)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		first <- w.Code
	}()
	if _, err := feed.Write([]byte("first")); err != nil { // it is in the handler now
		t.Fatal(err)
	}
	second := make(chan int)
	go func() {
		r := httptest.NewRequestWithContext(t.Context(), "PATCH", to, strings.NewReader("second"))
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		second <- w.Code
	}()
	id := to[strings.LastIndexByte(to, '/')+1:]
	for waits := 0; waits < 2; { // until the second one is in the queue
		h.uploads.mu.Lock()
		waits = h.uploads.slots[id].users
		h.uploads.mu.Unlock()
		runtime.Gosched()
	}
	feed.Close()
	if a, b := <-first, <-second; a != 202 || b != 416 {
		t.Errorf("two PATCHes at once = %d and %d, want 202 and 416", a, b)
	}
}

func TestMount(t *testing.T) {
	h := newHandler(t)
	d := pushBlob(t, h, "from", "shared").String()
	absent := digest.FromString("absent").String()
	for _, tc := range []struct {
		name, query string
		status      int
	}{
		{"from", "mount=" + d + "&from=from", 201},
		{"from anywhere", "mount=" + d, 201},
		{"from a repository without it", "mount=" + d + "&from=other", 202},
		{"absent", "mount=" + absent, 202},
		{"from no name", "mount=" + d + "&from=A%20B", 202},
		{"no digest", "mount=x", 202},
	} {
		repo := "to" + strconv.Itoa(len(tc.name))
		if w := do(t, h, "POST", "/v2/"+repo+"/blobs/uploads/?"+tc.query, nil); w.Code != tc.status {
			t.Errorf("%s: %d %s, want %d", tc.name, w.Code, w.Body, tc.status)
		}
	}
	h.Access = func(_ *http.Request, repo string, _ Action) error {
		if repo == "from" {
			return oci.Denied
		}
		return nil
	}
	must(t, h, "POST", "/v2/without-right/blobs/uploads/?mount="+d+"&from=from", "", 202)
}

func TestManifests(t *testing.T) {
	h := newHandler(t)
	m := image(t, h, "a", "")
	d := digest.FromString(m).String()
	d512 := digest.SHA512.FromString(m).String()
	w := must(t, h, "PUT", "/v2/a/manifests/1", m, 201, "Content-Type", v1.MediaTypeImageManifest)
	if w.Header().Get("Docker-Content-Digest") != d {
		t.Errorf("Docker-Content-Digest = %q, want %s", w.Header().Get("Docker-Content-Digest"), d)
	}
	must(t, h, "PUT", "/v2/a/manifests/"+d512+"?tag=x&tag=y", m, 201, "Content-Type", v1.MediaTypeImageManifest)
	for _, tc := range []struct{ ref, digest string }{{"1", d}, {d, d}, {"x", d512}, {"y", d512}, {d512, d512}} {
		w := must(t, h, "GET", "/v2/a/manifests/"+tc.ref, "", 200)
		if w.Body.String() != m || w.Header().Get("Content-Type") != v1.MediaTypeImageManifest || w.Header().Get("Docker-Content-Digest") != tc.digest {
			t.Errorf("GET %s = %q %v", tc.ref, w.Body, w.Header())
		}
		if w := must(t, h, "HEAD", "/v2/a/manifests/"+tc.ref, "", 200); w.Body.Len() != 0 || w.Header().Get("Content-Length") != strconv.Itoa(len(m)) {
			t.Errorf("HEAD %s has %d bytes of body and header %v", tc.ref, w.Body.Len(), w.Header())
		}
	}
	must(t, h, "GET", "/v2/a/manifests/1", "", 304, "If-None-Match", `"`+d+`"`)
	must(t, h, "PUT", "/v2/a/manifests/1", m, 412, "Content-Type", v1.MediaTypeImageManifest, "If-Match", `"`+d512+`"`)
	must(t, h, "PUT", "/v2/a/manifests/"+d, m, 400, "Content-Type", v1.MediaTypeImageManifest, "If-Match", `"`+d+`"`)
	must(t, h, "DELETE", "/v2/a/manifests/1", "", 202)
	must(t, h, "GET", "/v2/a/manifests/1", "", 404)
	must(t, h, "GET", "/v2/a/manifests/"+d, "", 200)
	must(t, h, "DELETE", "/v2/a/manifests/"+d512, "", 202)
	must(t, h, "GET", "/v2/a/manifests/x", "", 404)
	must(t, h, "DELETE", "/v2/a/manifests/"+d512, "", 404)
}

func TestManifestsRefused(t *testing.T) {
	h := newHandler(t)
	m := image(t, h, "a", "")
	absent := digest.FromString("absent").String()
	missing := strings.NewReplacer(digest.FromString("layer").String(), absent, digest.FromString("{}").String(), digest.FromString("also absent").String()).Replace(m)
	tags := "?tag=t" + strings.Repeat("&tag=t", maxTagParams)
	for _, tc := range []struct {
		name, ref, mediaType, body string
		status                     int
		code                       string
	}{
		{"no JSON", "1", v1.MediaTypeImageManifest, "{", 400, "MANIFEST_INVALID"},
		{"other type in the body", "1", v1.MediaTypeImageIndex, m, 400, "MANIFEST_INVALID"},
		{"unknown type", "1", "text/plain", m, 400, "MANIFEST_INVALID"},
		{"schema 1", "1", schema1 + "prettyjws", `{"schemaVersion":1,"fsLayers":[]}`, 400, "MANIFEST_INVALID"},
		{"schema 1 under another type", "1", "", `{"schemaVersion":1,"fsLayers":[]}`, 400, "MANIFEST_INVALID"},
		{"no config", "1", v1.MediaTypeImageManifest, `{"schemaVersion":2}`, 400, "MANIFEST_INVALID"},
		{"wrong digest", absent, v1.MediaTypeImageManifest, m, 400, "DIGEST_INVALID"},
		{"bad tag", "-x", v1.MediaTypeImageManifest, m, 400, "MANIFEST_INVALID"},
		{"two missing", "1", v1.MediaTypeImageManifest, missing, 400, "MANIFEST_BLOB_UNKNOWN MANIFEST_BLOB_UNKNOWN"},
		{"too large", "1", v1.MediaTypeImageManifest, strings.Repeat(" ", 1<<20) + m, 413, "MANIFEST_INVALID"},
		{"too many tags", digest.FromString(m).String() + tags, v1.MediaTypeImageManifest, m, 414, "MANIFEST_INVALID"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := do(t, h, "PUT", "/v2/a/manifests/"+tc.ref, strings.NewReader(tc.body), "Content-Type", tc.mediaType)
			if w.Code != tc.status || code(t, w) != tc.code {
				t.Errorf("PUT %.80s = %d %s, want %d %s", tc.ref, w.Code, w.Body, tc.status, tc.code)
			}
		})
	}
}

func TestReferencesThatNeedNotBeThere(t *testing.T) {
	absent := digest.FromString("absent").String()
	layer := func(extra string) string {
		return fmt.Sprintf(`,"x":[{"mediaType":"m","digest":%q,"size":1}],"layers":[{"digest":%q,"size":6,%s}]`, absent, absent, extra)
	}
	index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":6}]}`, v1.MediaTypeImageIndex, v1.MediaTypeImageManifest, absent)
	for _, tc := range []struct {
		name   string
		sparse Sparse
		extra  string // of an image; else index is pushed
		status int
	}{
		{"plain", SparseNone, layer(`"mediaType":"application/vnd.oci.image.layer.v1.tar"`), 400},
		{"nondistributable", SparseNone, layer(`"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar"`), 201},
		{"foreign", SparseNone, layer(`"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"`), 201},
		{"urls", SparseNone, layer(`"mediaType":"x/y","urls":["https://example.com/x"]`), 201},
		{"data", SparseNone, layer(`"mediaType":"x/y","data":"YWJzZW50"`), 201},
		{"subject", SparseNone, fmt.Sprintf(`,"subject":{"mediaType":"x/y","digest":%q,"size":6}`, absent), 201},
		{"sparse image", SparseAll, layer(`"mediaType":"x/y"`), 201},
		{"image in mode index", SparseIndex, layer(`"mediaType":"x/y"`), 400},
		{"index", SparseNone, "", 400},
		{"sparse index", SparseIndex, "", 201},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHandler(t)
			h.Limits = func() Limits { return Limits{Sparse: tc.sparse, MaxManifest: 1 << 20} }
			body := index
			if tc.extra != "" {
				body = image(t, h, "a", tc.extra)
			}
			if w := do(t, h, "PUT", "/v2/a/manifests/1", strings.NewReader(body)); w.Code != tc.status {
				t.Errorf("PUT = %d %s, want %d", w.Code, w.Body, tc.status)
			}
		})
	}
}

// TestCacheIndex pushes what BuildKit does with its cache: an index whose
// children are layers.
func TestCacheIndex(t *testing.T) {
	h := newHandler(t)
	layer := pushBlob(t, h, "a", "layer")
	body := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":"application/vnd.buildkit.cacheconfig.v0","digest":%q,"size":5}]}`, v1.MediaTypeImageIndex, layer)
	must(t, h, "PUT", "/v2/a/manifests/cache", body, 201)
}

func TestAccept(t *testing.T) {
	h := newHandler(t)
	m := image(t, h, "a", "")
	must(t, h, "PUT", "/v2/a/manifests/image", m, 201)
	child := digest.FromString(m)
	index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":"linux","architecture":"amd64"}}]}`,
		v1.MediaTypeImageIndex, v1.MediaTypeImageManifest, child, len(m))
	must(t, h, "PUT", "/v2/a/manifests/index", index, 201)
	for _, tc := range []struct {
		name, ref string
		accept    []string
		want      string
	}{
		{"nothing said", "index", nil, v1.MediaTypeImageIndex},
		{"index", "index", []string{"Accept", dockerManifest, "Accept", "x/y, " + v1.MediaTypeImageIndex + ";q=0.5"}, v1.MediaTypeImageIndex},
		{"anything", "index", []string{"Accept", "*/*"}, v1.MediaTypeImageIndex},
		{"images only", "index", []string{"Accept", v1.MediaTypeImageManifest}, v1.MediaTypeImageManifest},
		{"images only, by digest", digest.FromString(index).String(), []string{"Accept", v1.MediaTypeImageManifest}, v1.MediaTypeImageIndex},
		{"neither", "index", []string{"Accept", dockerManifest}, v1.MediaTypeImageIndex},
	} {
		if got := must(t, h, "GET", "/v2/a/manifests/"+tc.ref, "", 200, tc.accept...).Header().Get("Content-Type"); got != tc.want {
			t.Errorf("%s: Content-Type %s, want %s", tc.name, got, tc.want)
		}
	}
	must(t, h, "DELETE", "/v2/a/manifests/"+child.String(), "", 403) // the index names it
}

func TestLists(t *testing.T) {
	h := newHandler(t)
	m := image(t, h, "list/a", "")
	for _, tag := range []string{"c", "B", "a"} {
		must(t, h, "PUT", "/v2/list/a/manifests/"+tag, m, 201)
	}
	must(t, h, "PUT", "/v2/list/b/manifests/1", image(t, h, "list/b", ""), 201)
	for _, tc := range []struct{ path, body, link string }{
		{"/v2/list/a/tags/list", `{"name":"list/a","tags":["B","a","c"]}`, ""},
		{"/v2/list/a/tags/list?n=2", `{"name":"list/a","tags":["B","a"]}`, `</v2/list/a/tags/list?last=a&n=2>; rel="next"`},
		{"/v2/list/a/tags/list?n=2&last=a", `{"name":"list/a","tags":["c"]}`, ""},
		{"/v2/list/a/tags/list?last=b", `{"name":"list/a","tags":["c"]}`, ""},
		{"/v2/list/a/tags/list?n=0", `{"name":"list/a","tags":[]}`, ""},
		{"/v2/_catalog", `{"repositories":["list/a","list/b"]}`, ""},
		{"/v2/_catalog?n=1", `{"repositories":["list/a"]}`, `</v2/_catalog?last=list%2Fa&n=1>; rel="next"`},
		{"/v2/_catalog?last=list/a", `{"repositories":["list/b"]}`, ""},
	} {
		w := must(t, h, "GET", tc.path, "", 200)
		if got := strings.TrimSpace(w.Body.String()); got != tc.body || w.Header().Get("Link") != tc.link {
			t.Errorf("GET %s = %s Link %q, want %s Link %q", tc.path, got, w.Header().Get("Link"), tc.body, tc.link)
		}
	}
	if c := code(t, must(t, h, "GET", "/v2/unknown/tags/list", "", 404)); c != "NAME_UNKNOWN" {
		t.Errorf("an unknown repository: %s", c)
	}
	must(t, h, "GET", "/v2/list/a/tags/list?n=x", "", 400)
	must(t, h, "GET", "/v2/list/a/tags/list?n=-1", "", 400)
	h.Access = func(_ *http.Request, repo string, _ Action) error {
		if repo == "list/a" {
			return errors.New("secret")
		}
		return nil
	}
	if got := strings.TrimSpace(must(t, h, "GET", "/v2/_catalog?n=1", "", 200).Body.String()); got != `{"repositories":["list/b"]}` {
		t.Errorf("the catalog shows what the caller may not pull: %s", got)
	}
}

func TestReferrers(t *testing.T) {
	h := newHandler(t)
	subject := digest.FromString("not pushed").String()
	refer := func(extra string) *httptest.ResponseRecorder {
		return must(t, h, "PUT", "/v2/a/manifests/"+"r"+strconv.Itoa(len(extra)), image(t, h, "a", fmt.Sprintf(`,"subject":{"mediaType":"x/y","digest":%q,"size":6}%s`, subject, extra)), 201)
	}
	if got := refer(`,"artifactType":"sbom/x","annotations":{"k":"v"}`).Header().Get("OCI-Subject"); got != subject {
		t.Errorf("OCI-Subject = %q, want %s", got, subject)
	}
	refer("")
	list := func(path string) (v1.Index, http.Header) {
		w := must(t, h, "GET", path, "", 200)
		var index v1.Index
		if err := json.Unmarshal(w.Body.Bytes(), &index); err != nil || w.Header().Get("Content-Type") != v1.MediaTypeImageIndex || index.SchemaVersion != 2 || index.Manifests == nil {
			t.Errorf("GET %s = %s (%v), want an index", path, w.Body, err)
		}
		return index, w.Header()
	}
	all, _ := list("/v2/a/referrers/" + subject)
	types := map[string]bool{}
	for _, d := range all.Manifests {
		types[d.ArtifactType] = true
	}
	if len(all.Manifests) != 2 || !types["sbom/x"] || !types[v1.MediaTypeImageConfig] {
		t.Errorf("referrers %+v, want two, of type sbom/x and of the config's", all.Manifests)
	}
	some, header := list("/v2/a/referrers/" + subject + "?artifactType=sbom/x")
	if len(some.Manifests) != 1 || some.Manifests[0].Annotations["k"] != "v" || header.Get("OCI-Filters-Applied") != "artifactType" {
		t.Errorf("filtered: %+v %v", some.Manifests, header)
	}
	if none, _ := list("/v2/unknown/referrers/" + subject); len(none.Manifests) != 0 {
		t.Errorf("an unknown repository has referrers: %+v", none)
	}
	must(t, h, "GET", "/v2/a/referrers/nodigest", "", 400)
}

func TestNamespaceIsEchoed(t *testing.T) {
	if got := must(t, newHandler(t), "GET", "/v2/?ns=docker.io", "", 200).Header().Get("OCI-Namespace"); got != "docker.io" {
		t.Errorf("OCI-Namespace = %q", got)
	}
}
