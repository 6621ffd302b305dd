package protocol_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// behindTLS returns r as seen through a proxy that ends TLS and calls the
// registry by another name. Nothing that comes back may hold that name.
func behindTLS(t *testing.T, r repo, forwarded bool) repo {
	t.Helper()
	to, err := url.Parse(r.url)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httptest.NewTLSServer(&httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(to)
			p.Out.Host = "registry.internal"
			if forwarded {
				p.SetXForwarded()
			}
		},
		ModifyResponse: func(resp *http.Response) error {
			var b bytes.Buffer
			if err := resp.Header.Write(&b); err != nil {
				return err
			}
			for _, inside := range []string{to.Host, "registry.internal", "http:"} {
				if strings.Contains(b.String(), inside) {
					t.Errorf("%s %s answers with a header that holds %s:\n%s", resp.Request.Method, resp.Request.URL.Path, inside, &b)
				}
			}
			return nil
		},
	})
	t.Cleanup(proxy.Close)
	r.url, r.client = proxy.URL, proxy.Client()
	r.client.CheckRedirect = noRedirects.CheckRedirect
	return r
}

// B, POST start, and D: behind a proxy that ends TLS everything works, since the
// registry says its paths only, whatever the proxy tells of its own name.
func TestBehindTLS(t *testing.T) {
	for name, forwarded := range map[string]bool{"proxy that says nothing": false, "proxy that says X-Forwarded": true} {
		t.Run(name, func(t *testing.T) {
			r := behindTLS(t, newRepo(t), forwarded)
			content := large("behind TLS")
			session := r.begin()
			half := len(content) / 2
			session = r.do(http.MethodPatch, session, streamed(content[:half])).want(http.StatusAccepted).location()
			session = r.get(session).want(http.StatusNoContent).location()
			session = r.do(http.MethodPatch, session, text("x"), "Content-Range: 0-0").want(http.StatusRequestedRangeNotSatisfiable).location()
			blob := r.do(http.MethodPut, with(session, "digest", sha(content)), text(content[half:])).want(http.StatusCreated).location()
			if got := r.get(blob).want(http.StatusOK).body; string(got) != content {
				t.Errorf("the blob has %d bytes, want %d", len(got), len(content))
			}
			r.get(blob, "Range: bytes=7-").want(http.StatusPartialContent)
			other := r.called(r.name + "/other")
			mounted := other.do(http.MethodPost, with("blobs/uploads/", "mount", sha(content), "from", r.name), nil).want(http.StatusCreated).location()
			r.head(mounted).want(http.StatusOK)
			tags := []string{"a", "b", "c"}
			for _, tag := range tags {
				r.get(r.put(tag, r.pushed(tag), typeImage).want(http.StatusCreated).location()).want(http.StatusOK)
			}
			var got []string
			for path := "/v2/" + r.name + "/tags/list?n=1"; path != ""; path = r.get(path).next() {
				got = append(got, r.tags(path)...)
			}
			if !slices.Equal(got, tags) {
				t.Errorf("the pages hold %q, want %q", got, tags)
			}
		})
	}
}

// D and F, ns=: containerd says on every request to a mirror whose names it
// means. The answer is the same as without, says so, and its links do so too;
// and whatever the namespace is, it is part of no path.
func TestNamespace(t *testing.T) {
	for name, ns := range map[string]string{
		"host": "docker.io", "port": "registry.example.org:5000", "path": "../../etc", "URL": "a/b?c&d=e#f%2F", "header": "x\r\nX-Injected: 1",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRepo(t)
			echoed := "OCI-Namespace: " + strings.NewReplacer("\r", " ", "\n", " ").Replace(ns)
			asked := func(path string, params ...string) string { return with(path, append(params, "ns", ns)...) }

			session := r.do(http.MethodPost, asked("blobs/uploads/"), nil).want(http.StatusAccepted, echoed).location()
			if strings.Contains(session, "?") || !strings.HasPrefix(session, "/v2/"+r.name+"/blobs/uploads/") {
				t.Errorf("the session is %s", session)
			}
			r.do(http.MethodPatch, asked(session), text("lay")).want(http.StatusAccepted, echoed, "Location: "+session)
			r.get(asked(session)).want(http.StatusNoContent, echoed, "Location: "+session)
			r.do(http.MethodPatch, asked(session), text("lay"), "Content-Range: 0-2").want(http.StatusRequestedRangeNotSatisfiable, echoed)
			blob := "/v2/" + r.name + "/blobs/" + sha("layer")
			r.do(http.MethodPut, asked(session, "digest", sha("layer")), text("er")).want(http.StatusCreated, echoed, "Location: "+blob)
			r.do(http.MethodPost, asked("blobs/uploads/", "digest", sha("content")), text("content")).want(http.StatusCreated, echoed)
			r.called(r.name+"/other").do(http.MethodPost, asked("blobs/uploads/", "mount", sha("content"), "from", r.name), nil).want(http.StatusCreated, echoed)
			r.delete(asked(r.begin())).want(http.StatusNoContent, echoed)
			m := r.image("config", "layer").String()
			path := "/v2/" + r.name + "/manifests/" + sha(m)
			r.put(asked("a"), m, typeImage).want(http.StatusCreated, echoed, "Location: "+path, "Docker-Content-Digest: "+sha(m), "OCI-Tag: a")
			r.put(asked("b"), m, typeImage).want(http.StatusCreated, echoed)

			for _, path := range []string{"/v2/", "/v2/_catalog", "manifests/a", path, blob, "tags/list", "referrers/" + sha(m)} {
				plain := r.get(path).want(http.StatusOK, "OCI-Namespace: ")
				got := r.get(asked(path)).want(http.StatusOK, echoed, "X-Injected: ")
				if path != "/v2/_catalog" && !bytes.Equal(got.body, plain.body) { // which changes under other tests
					t.Errorf("%s = %s, want as without ns %s", got.request, got.body, plain.body)
				}
				r.head(asked(path)).want(http.StatusOK, echoed)
			}
			r.get(asked(blob), "Range: bytes=1-2").want(http.StatusPartialContent, echoed)
			next := r.get(asked("tags/list", "n", "1")).want(http.StatusOK, echoed).next()
			if got := r.tags(next); !slices.Equal(got, []string{"b"}) {
				t.Errorf("the next page holds %q, want b", got)
			}
			r.get(next).want(http.StatusOK, echoed)
			for path, code := range map[string]string{
				"manifests/absent": "MANIFEST_UNKNOWN", "blobs/" + sha("absent"): "BLOB_UNKNOWN", "blobs/uploads/absent": "BLOB_UPLOAD_UNKNOWN",
				"/v2/nobody/pushed/this/tags/list": "NAME_UNKNOWN",
			} {
				r.get(asked(path)).want(http.StatusNotFound, echoed).wantError(http.StatusNotFound, code)
			}
			r.delete(asked("manifests/b")).want(http.StatusAccepted, echoed)
			r.delete(asked(path)).want(http.StatusAccepted, echoed)
			r.delete(asked(blob)).want(http.StatusAccepted, echoed)
		})
	}
	newRepo(t).get("/v2/?ns=").want(http.StatusOK, "OCI-Namespace: ")
}
