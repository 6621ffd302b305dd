package protocol_test

import (
	"bufio"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

// D, errors: the spec's JSON, status and code, as docker's clients know them,
// and in HEAD no body.
func TestErrors(t *testing.T) {
	r := newRepo(t)
	r.pushed("v1")
	d := sha("absent")
	for _, tc := range []struct {
		method, path string
		status       int
		code         string
	}{
		{http.MethodGet, "blobs/" + d, 404, "BLOB_UNKNOWN"},
		{http.MethodHead, "blobs/" + d, 404, ""},
		{http.MethodDelete, "blobs/" + d, 404, "BLOB_UNKNOWN"},
		{http.MethodGet, "blobs/sha256:x", 400, "DIGEST_INVALID"},
		{http.MethodHead, "blobs/sha256:x", 400, ""},
		{http.MethodGet, "manifests/" + d, 404, "MANIFEST_UNKNOWN"},
		{http.MethodHead, "manifests/absent", 404, ""},
		{http.MethodDelete, "manifests/absent", 404, "MANIFEST_UNKNOWN"},
		{http.MethodPut, "manifests/v2", 400, "MANIFEST_INVALID"},
		{http.MethodGet, "blobs/uploads/absent", 404, "BLOB_UPLOAD_UNKNOWN"},
		{http.MethodPatch, "blobs/uploads/absent", 404, "BLOB_UPLOAD_UNKNOWN"},
		{http.MethodPut, "blobs/uploads/absent?digest=" + d, 404, "BLOB_UPLOAD_UNKNOWN"},
		{http.MethodDelete, "blobs/uploads/absent", 404, "BLOB_UPLOAD_UNKNOWN"},
		{http.MethodGet, "/v2/unknown/tags/list", 404, "NAME_UNKNOWN"},
		{http.MethodGet, "/v2/UPPER/tags/list", 400, "NAME_INVALID"},
		{http.MethodPost, "blobs/uploads/?digest=x", 400, "DIGEST_INVALID"},
		{http.MethodGet, "nothing/of/the/spec", 404, "UNSUPPORTED"},
		{http.MethodGet, "/v2/x", 404, "UNSUPPORTED"},
	} {
		t.Run(tc.method+" "+tc.path, func(t *testing.T) {
			a := r.in(t).do(tc.method, tc.path, nil).want(tc.status, "Docker-Distribution-Api-Version: registry/2.0")
			if tc.method == http.MethodHead {
				if len(a.body) > 0 {
					t.Errorf("HEAD answers a body: %s", a.body)
				}
				return
			}
			f := a.wantError(tc.status, tc.code)
			if len(f.Errors) != 1 || f.Errors[0].Message == "" {
				t.Errorf("%s = %s, want one error with a message", a.request, a.body)
			}
		})
	}
}

// D, errors: a method that a path does not have is 405, with those it has.
func TestMethods(t *testing.T) {
	r := newRepo(t)
	d := sha("absent")
	for path, allowed := range map[string]string{
		"/v2/":             "GET, HEAD",
		"/v2/_catalog":     "GET, HEAD",
		"tags/list":        "GET, HEAD",
		"referrers/" + d:   "GET, HEAD",
		"manifests/v1":     "DELETE, GET, HEAD, PUT",
		"blobs/" + d:       "DELETE, GET, HEAD",
		"blobs/uploads/":   "POST",
		"blobs/uploads/id": "DELETE, GET, HEAD, PATCH, PUT",
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions, "BREW"} {
			if strings.Contains(allowed, method) {
				continue
			}
			a := r.do(method, path, nil).want(http.StatusMethodNotAllowed, "Allow: "+allowed)
			if method != http.MethodHead {
				a.wantError(http.StatusMethodNotAllowed, "UNSUPPORTED")
			}
		}
	}
}

// D: every answer carries the version of the API, and /v2/ says that this is a
// registry.
func TestVersionHeader(t *testing.T) {
	r := newRepo(t)
	d := r.blob("content")
	r.pushed("v1")
	version := "Docker-Distribution-Api-Version: registry/2.0"
	r.get("/v2/").want(http.StatusOK, version)
	r.head("/v2/").want(http.StatusOK, version)
	for _, path := range []string{"/v2", "/v2/_catalog", "tags/list", "manifests/v1", "blobs/" + d, "referrers/" + d} {
		r.get(path).want(http.StatusOK, version)
	}
	r.do(http.MethodPost, "blobs/uploads/", nil).want(http.StatusAccepted, version)
}

// D, errors: who may not do something is told so, with 403, whether it is there
// or not; and a registry that is to be read only is that.
func TestDenied(t *testing.T) {
	r := repoIn(t, own(t, "--anonymous", "pull"))
	d := sha("absent")
	for _, tc := range []struct{ method, path string }{
		{http.MethodPost, "blobs/uploads/"},
		{http.MethodPost, with("blobs/uploads/", "digest", d)},
		{http.MethodPost, with("blobs/uploads/", "mount", d, "from", "other")},
		{http.MethodGet, "blobs/uploads/id"},
		{http.MethodPatch, "blobs/uploads/id"},
		{http.MethodPut, with("blobs/uploads/id", "digest", d)},
		{http.MethodDelete, "blobs/uploads/id"},
		{http.MethodDelete, "blobs/" + d},
		{http.MethodPut, "manifests/v1"},
		{http.MethodPut, "manifests/" + d},
		{http.MethodDelete, "manifests/v1"},
		{http.MethodDelete, "manifests/" + d},
	} {
		r.do(tc.method, tc.path, nil).wantError(http.StatusForbidden, "DENIED")
	}
	r.get("/v2/").want(http.StatusOK)
	r.get("/v2/_catalog").want(http.StatusOK)
	r.get("blobs/"+d).wantError(http.StatusNotFound, "BLOB_UNKNOWN")
	r.get("manifests/v1").wantError(http.StatusNotFound, "MANIFEST_UNKNOWN")
	r.get("referrers/" + d).want(http.StatusOK)
}

// D, errors: what is outside of the API is not there, in the same words.
func TestOutside(t *testing.T) {
	r := newRepo(t)
	for _, path := range []string{"/", "/v1/", "/v2x/", "/v1/_ping", "/v2/x/y", "/v2/_catalog/", "//v2/", "/favicon.ico"} {
		r.get(path).wantError(http.StatusNotFound, "UNSUPPORTED")
	}
}

// D, errors: uploads that are begun and not gone on with are a burden; when they
// are too many, the client is told when to come again. One that has begun can go
// on.
func TestTooManyRequests(t *testing.T) {
	const most = 100_000
	r := repoIn(t, own(t))
	session := r.begin()
	var d net.Dialer
	c, err := d.DialContext(t.Context(), "tcp", strings.TrimPrefix(r.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sent := make(chan error, 1)
	go func() { // all at once, without waiting for answers
		request := "POST /v2/" + r.name + "/blobs/uploads/ HTTP/1.1\r\nHost: berth\r\nContent-Length: 0\r\n\r\n"
		w := bufio.NewWriterSize(c, 1<<20)
		for range most - 1 {
			_, _ = w.WriteString(request) // an error stays until Flush
		}
		sent <- w.Flush()
	}()
	answers := bufio.NewReader(c)
	for i := range most - 1 {
		resp, err := http.ReadResponse(answers, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusAccepted {
			t.Fatalf("POST %d = %d, want 202", i, resp.StatusCode)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	a := r.do(http.MethodPost, "blobs/uploads/", nil)
	a.wantError(http.StatusTooManyRequests, "TOOMANYREQUESTS")
	if seconds, err := strconv.Atoi(a.header.Get("Retry-After")); err != nil || seconds <= 0 {
		t.Errorf("Retry-After: %q, want seconds", a.header.Get("Retry-After"))
	}
	r.do(http.MethodPut, with(session, "digest", sha("content")), text("content")).want(http.StatusCreated)
	r.do(http.MethodPost, "blobs/uploads/", nil).want(http.StatusAccepted) // there is room for one
}
