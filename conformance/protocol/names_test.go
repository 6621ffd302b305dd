package protocol_test

import (
	"net/http"
	"strings"
	"testing"
)

// A: names of any depth, with the words of the API anywhere inside.
func TestNames(t *testing.T) {
	for _, name := range []string{
		"a", "0", "a/b/c/d/e/f/g/h/i/j",
		"a.b", "a_b", "a__b", "a-b", "a---b", "a.b/c__d/e--f",
		"blobs", "manifests", "tags", "referrers", "uploads", "list", "v2",
		"blobs/uploads", "x/blobs/uploads", "x/manifests", "x/tags/list", "tags/list/tags", "x/referrers",
		"manifests/blobs/uploads/tags/list/referrers", "uploads/blobs/uploads",
		strings.Repeat("a", 255), strings.Repeat("a/", 127) + "a",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRepo(t).called(name)
			m := r.image("config of "+name, "layer of "+name).String()
			r.put("list", m, typeImage).want(http.StatusCreated, "Location: /v2/"+name+"/manifests/"+sha(m))
			if got := r.get("manifests/list").want(http.StatusOK).body; string(got) != m {
				t.Errorf("the manifest comes back as %q, want %q", got, m)
			}
			r.head("blobs/" + sha("layer of "+name)).want(http.StatusOK)
			var tags struct{ Name string }
			if r.get("tags/list").want(http.StatusOK).decode(&tags); tags.Name != name {
				t.Errorf("the tags are those of %q, want %q", tags.Name, name)
			}
			r.get("referrers/" + sha(m)).want(http.StatusOK)
			session := r.begin()
			if want := "/v2/" + name + "/blobs/uploads/"; !strings.HasPrefix(session, want) {
				t.Errorf("the session is %s, want it below %s", session, want)
			}
			r.delete(session).want(http.StatusNoContent)
			r.delete("manifests/" + sha(m)).want(http.StatusAccepted)
		})
	}
}

// A: any other name is refused with 400 NAME_INVALID.
func TestNamesRefused(t *testing.T) {
	for _, name := range []string{
		"A", "a/B", "a..b", "a._b", "a___b", "-a", "a-", ".a", "a.", "_a", "a_", "a/_b", "a//b", "a/-b", "a b", "é", "a/..", "a+b", "a:b",
		strings.Repeat("a", 256), strings.Repeat("a/", 127) + "ab",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRepo(t).called(strings.ReplaceAll(name, " ", "%20"))
			r.do(http.MethodPost, "blobs/uploads/", nil).wantError(http.StatusBadRequest, "NAME_INVALID")
			r.put("v1", "{}", typeImage).wantError(http.StatusBadRequest, "NAME_INVALID")
			r.get("manifests/v1").wantError(http.StatusBadRequest, "NAME_INVALID")
			r.get("tags/list").wantError(http.StatusBadRequest, "NAME_INVALID")
		})
	}
}

// A: a tag has up to 128 letters, digits, _ . and -, and begins with none of the
// last two.
func TestTagSyntax(t *testing.T) {
	r := newRepo(t)
	m := r.image("config").String()
	for _, tag := range []string{"a", "A", "0", "_", "_._-", "latest", "v1.0-rc_1", strings.Repeat("x", 128)} {
		r.put(tag, m, typeImage).want(http.StatusCreated)
		r.head("manifests/"+tag).want(http.StatusOK, "Docker-Content-Digest: "+sha(m))
	}
	for _, tag := range []string{".a", "-a", "a+b", "a%20b", "é", "a@b", strings.Repeat("x", 129)} {
		r.put(tag, m, typeImage).wantError(http.StatusBadRequest, "MANIFEST_INVALID")
		r.get("manifests/"+tag).wantError(http.StatusNotFound, "MANIFEST_UNKNOWN")
	}
}

// A: some clients escape the colon of a digest.
func TestEscapedColon(t *testing.T) {
	r := newRepo(t)
	m := r.image("config").String()
	for _, colon := range []string{"%3A", "%3a"} {
		escaped := strings.Replace(sha(m), ":", colon, 1)
		r.put(escaped, m, typeImage).want(http.StatusCreated, "Docker-Content-Digest: "+sha(m))
		r.get("manifests/" + escaped).want(http.StatusOK)
		r.get("referrers/" + escaped).want(http.StatusOK)
		r.get("blobs/" + strings.Replace(sha("config"), ":", colon, 1)).want(http.StatusOK)
	}
}

// A: a name that is one only when %2F is a slash is refused, so that nobody
// gets around a proxy's rules.
func TestEscapedSlash(t *testing.T) {
	r := newRepo(t).called("escaped/slash")
	d := r.blob("content")
	for _, name := range []string{"escaped%2Fslash", "escaped%2fslash"} {
		r := r.called(name)
		r.get("blobs/"+d).wantError(http.StatusBadRequest, "NAME_INVALID")
		r.do(http.MethodPost, "blobs/uploads/", nil).wantError(http.StatusBadRequest, "NAME_INVALID")
	}
	r.get("/v2/escaped/slash%2Fblobs/"+d).wantError(http.StatusBadRequest, "NAME_INVALID")
	r.get("/v2%2Fescaped/slash/blobs/"+d).wantError(http.StatusBadRequest, "NAME_INVALID")
	r.get("manifests/a%2Fb").wantError(http.StatusBadRequest, "NAME_INVALID")
	r.called("escaped%252Fslash").get("blobs/"+d).wantError(http.StatusBadRequest, "NAME_INVALID") // twice
}

// A: what is escaped without need is the same name; dots that are escaped climb
// nowhere.
func TestEscapedLetters(t *testing.T) {
	r := newRepo(t).called("escaped/letters")
	d := r.blob("content")
	r.get("/v2/%65scaped/l%65tters/%62lobs/" + d).want(http.StatusOK)
	r.get("/%76%32/escaped/letters/blobs/" + d).want(http.StatusOK)
	for _, dots := range []string{"%2e%2e", "%2E", "..%00"} {
		r.get("/v2/escaped/"+dots+"/letters/blobs/"+d).wantError(http.StatusBadRequest, "NAME_INVALID")
	}
}

// A: a path that could be cleaned is answered as it is: clients do not follow a
// redirect with the body of an upload.
func TestNoRedirects(t *testing.T) {
	r := newRepo(t)
	for _, path := range []string{"/v2/a/../b/blobs/uploads/", "/v2/a/./blobs/uploads/", "/v2//a/blobs/uploads/", "/v2/a/blobs//uploads/"} {
		if a := r.do(http.MethodPost, path, text("content")); a.status != http.StatusBadRequest && a.status != http.StatusNotFound {
			t.Errorf("POST %s = %d, want 400 or 404", path, a.status)
		}
	}
	r.do(http.MethodPost, "/v2/"+r.name+"/blobs/uploads", nil).want(http.StatusAccepted) // no slash at the end
	r.get("/v2").want(http.StatusOK)
}

// A: digests are lower-case hex of the right length, by sha256 or sha512.
func TestDigestSyntax(t *testing.T) {
	r := newRepo(t)
	m := r.image("config").String()
	for _, d := range []string{
		"sha256:", "sha256:abc", "sha256:" + strings.Repeat("0", 63), "sha256:" + strings.Repeat("0", 65),
		"sha256:" + strings.Repeat("A", 64), "sha256:" + strings.Repeat("g", 64), "sha512:" + strings.Repeat("0", 64),
		"md5:" + strings.Repeat("0", 32), "sha384:" + strings.Repeat("0", 96), "sha256:sha256:" + strings.Repeat("0", 64), ":" + strings.Repeat("0", 64),
	} {
		r.do(http.MethodPost, with("blobs/uploads/", "digest", d), text("content")).wantError(http.StatusBadRequest, "DIGEST_INVALID")
		session := r.begin()
		r.do(http.MethodPut, with(session, "digest", d), text("content")).wantError(http.StatusBadRequest, "DIGEST_INVALID")
		r.get(session).want(http.StatusNoContent) // a mistyped request ends nothing
		r.put(d, m, typeImage).wantError(http.StatusBadRequest, "DIGEST_INVALID")
		r.get("referrers/"+d).wantError(http.StatusBadRequest, "DIGEST_INVALID")
		for _, path := range []string{"manifests/" + d, "blobs/" + d} {
			if a := r.get(path); a.status != http.StatusBadRequest && a.status != http.StatusNotFound {
				t.Errorf("GET %s = %d, want 400 or 404", path, a.status)
			}
		}
	}
	r.do(http.MethodPut, r.begin(), text("content")).wantError(http.StatusBadRequest, "DIGEST_INVALID") // none at all
}

// A: a manifest keeps the digest that it was pushed by, also behind a tag.
func TestSHA512Manifest(t *testing.T) {
	r := newRepo(t)
	m := r.image("config").String()
	header := "Docker-Content-Digest: " + sha5(m)
	r.put(with(sha5(m), "tag", "v1"), m, typeImage).want(http.StatusCreated, header, "Location: /v2/"+r.name+"/manifests/"+sha5(m))
	for _, ref := range []string{"v1", sha5(m)} {
		r.get("manifests/"+ref).want(http.StatusOK, header, `Etag: "`+sha5(m)+`"`)
		r.head("manifests/"+ref).want(http.StatusOK, header)
	}
	r.get("manifests/"+sha(m)).wantError(http.StatusNotFound, "MANIFEST_UNKNOWN")
	// The same bytes by another algorithm are another manifest, and a tag is on
	// one of the two.
	r.put("v2", m, typeImage).want(http.StatusCreated, "Docker-Content-Digest: "+sha(m))
	r.head("manifests/v1").want(http.StatusOK, header)
	r.delete("manifests/" + sha5(m)).want(http.StatusAccepted)
	r.get("manifests/v1").wantError(http.StatusNotFound, "MANIFEST_UNKNOWN")
	r.head("manifests/v2").want(http.StatusOK, "Docker-Content-Digest: "+sha(m))
}

// A: config, layers, children and subjects may be named by sha512.
func TestSHA512References(t *testing.T) {
	r := newRepo(t)
	of := func(mediaType, content string) descriptor {
		d := describe(mediaType, content)
		d.Digest = sha5(content)
		return d
	}
	config := of(typeConfig, "config")
	m := manifest{MediaType: typeImage, Config: &config, Layers: []descriptor{of(typeLayer, "layer")}}
	f := r.put(sha5(m.String()), m.String(), typeImage).wantError(http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN")
	if len(f.Errors) != 2 {
		t.Errorf("%d errors, want one each for config and layer", len(f.Errors))
	}
	for _, content := range []string{"config", "layer"} {
		r.do(http.MethodPost, with("blobs/uploads/", "digest", sha5(content)), text(content)).want(http.StatusCreated)
	}
	r.put(sha5(m.String()), m.String(), typeImage).want(http.StatusCreated)
	r.put("index", index(of(typeImage, m.String())).String(), typeIndex).want(http.StatusCreated)
	subject := of(typeImage, m.String())
	x := index()
	x.Subject = &subject
	r.put(sha5(x.String()), x.String(), typeIndex).want(http.StatusCreated, "OCI-Subject: "+subject.Digest)
	if got := r.referrers("referrers/" + subject.Digest); len(got) != 1 || got[0].Digest != sha5(x.String()) {
		t.Errorf("the referrers are %v, want the one by its sha512", got)
	}
}

// A: content pushed by tag has the canonical digest.
func TestTagIsSHA256(t *testing.T) {
	r := newRepo(t)
	m := r.image("config").String()
	r.put("v1", m, typeImage).want(http.StatusCreated, "Docker-Content-Digest: "+sha(m))
}
