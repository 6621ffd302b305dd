package protocol_test

import (
	"net/http"
	"strconv"
	"strings"
	"testing"
)

// C, GET/HEAD: the bytes as they were pushed, with the type they were pushed
// with, and in HEAD everything by which containerd and docker resolve a tag.
func TestReadManifest(t *testing.T) {
	r := newRepo(t)
	small := r.image("config").String()
	spaced := strings.Replace(small, "{", "{\n\t  ", 1) // no registry may tidy up
	long := strings.Replace(small, "{", "{"+strings.Repeat(" ", 200_000), 1)
	for _, content := range []string{small, spaced, long} {
		r.put("v1", content, typeImage).want(http.StatusCreated)
		for _, ref := range []string{"v1", sha(content)} {
			headers := []string{
				"Content-Type: " + typeImage, "Content-Length: " + strconv.Itoa(len(content)),
				"Docker-Content-Digest: " + sha(content), `Etag: "` + sha(content) + `"`,
			}
			if got := r.get("manifests/"+ref).want(http.StatusOK, headers...).body; string(got) != content {
				t.Errorf("the manifest comes back changed: %.100q, want %.100q", got, content)
			}
			if got := r.head("manifests/"+ref).want(http.StatusOK, headers...).body; len(got) != 0 {
				t.Errorf("HEAD answers %d bytes of body", len(got))
			}
		}
	}
	r.get("manifests/absent").wantError(http.StatusNotFound, "MANIFEST_UNKNOWN")
	r.head("manifests/absent").want(http.StatusNotFound)
	r.get("manifests/"+sha("absent")).wantError(http.StatusNotFound, "MANIFEST_UNKNOWN")
	r.called("nobody/pushed/this").get("manifests/v1").want(http.StatusNotFound)
	r.called(r.name + "/other").get("manifests/" + sha(small)).want(http.StatusNotFound)
}

// C, Accept: served as stored, unless a tag is asked for, the index is not
// accepted, and its linux/amd64 image is. Never 406.
func TestAccept(t *testing.T) {
	r := newRepo(t)
	m := r.pushed("image")
	child := describe(typeImage, m)
	child.Platform = &platform{Architecture: "amd64", OS: "linux"}
	x := index(child).String()
	r.put("index", x, typeIndex).want(http.StatusCreated)
	child.Platform = &platform{Architecture: "arm64", OS: "linux"}
	arm := index(child).String()
	r.put("arm", arm, typeIndex).want(http.StatusCreated)
	for _, tc := range []struct {
		name, ref string
		accept    []string
		want      string
	}{
		{"no header", "index", nil, x},
		{"index", "index", []string{typeIndex}, x},
		{"anything", "index", []string{"*/*"}, x},
		{"any application", "index", []string{"application/*"}, x},
		{"comma list", "index", []string{typeImage + ", " + typeIndex + ";q=0.5,text/html"}, x},
		{"two headers", "index", []string{typeImage, typeIndex}, x},
		{"two headers with lists", "index", []string{typeDocker + "," + typeImage, "text/html , " + typeIndex}, x},
		{"images only", "index", []string{typeImage}, m},
		{"images only, in a list", "index", []string{typeDocker + "," + typeImage}, m},
		{"images only, by digest", sha(x), []string{typeImage}, x},
		{"images only, but none for amd64", "arm", []string{typeImage}, arm},
		{"nothing that is there", "index", []string{"text/html"}, x},
		{"capitals", "index", []string{strings.ToUpper(typeIndex)}, x},
		{"index refused by q=0", "index", []string{typeIndex + ";q=0, " + typeImage}, m},
		{"index refused by q=0.000", "index", []string{typeImage, typeIndex + " ; q=0.000"}, m},
		{"index refused, anything else", "index", []string{typeIndex + ";q=0, */*;q=0.1"}, m},
		{"index, anything else refused", "index", []string{"*/*;q=0, " + typeIndex}, x},
		{"index, no weight above 0 too small", "index", []string{typeImage + ", " + typeIndex + ";q=0.001"}, x},
		{"everything refused", "index", []string{"*/*;q=0"}, x},
		{"image refused", "image", []string{typeImage + ";q=0"}, m},
		{"of no shape", "index", []string{";;,q=1,/", ","}, x},
		{"image, index accepted only", "image", []string{typeIndex}, m},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var headers []string
			for _, a := range tc.accept {
				headers = append(headers, "Accept: "+a)
			}
			digest := "Docker-Content-Digest: " + sha(tc.want)
			if got := r.in(t).get("manifests/"+tc.ref, headers...).want(http.StatusOK, digest).body; string(got) != tc.want {
				t.Errorf("GET %s = %s, want %s", tc.ref, got, tc.want)
			}
			r.in(t).head("manifests/"+tc.ref, headers...).want(http.StatusOK, digest, "Content-Length: "+strconv.Itoa(len(tc.want)))
		})
	}
}

// C, Accept: a child that is not there is not chosen.
func TestAcceptSparse(t *testing.T) {
	r := repoIn(t, own(t, "--sparse", "all"))
	child := describe(typeImage, "absent")
	child.Platform = &platform{Architecture: "amd64", OS: "linux"}
	x := index(child).String()
	r.put("index", x, typeIndex).want(http.StatusCreated)
	if got := r.get("manifests/index", "Accept: "+typeImage).want(http.StatusOK).body; string(got) != x {
		t.Errorf("GET = %s, want the index", got)
	}
}

// C, If-None-Match: 304 saves the body.
func TestIfNoneMatch(t *testing.T) {
	r := newRepo(t)
	m := r.pushed("v1")
	for _, tc := range []struct {
		header string
		status int
	}{
		{`"` + sha(m) + `"`, http.StatusNotModified},
		{`W/"` + sha(m) + `"`, http.StatusNotModified},
		{`"other", "` + sha(m) + `"`, http.StatusNotModified},
		{`*`, http.StatusNotModified},
		{`"` + sha("other") + `"`, http.StatusOK},
	} {
		for _, ref := range []string{"v1", sha(m)} {
			r.get("manifests/"+ref, "If-None-Match: "+tc.header).want(tc.status, "Docker-Content-Digest: "+sha(m))
			r.head("manifests/"+ref, "If-None-Match: "+tc.header).want(tc.status, "Docker-Content-Digest: "+sha(m))
		}
	}
}

// C, If-Match: a tag moves only from the manifest that its mover has seen.
func TestIfMatch(t *testing.T) {
	r := newRepo(t)
	first := r.pushed("v1")
	second, third := r.image("second").String(), r.image("third").String()
	r.put("v1", second, typeImage, `If-Match: "`+sha(first)+`"`).want(http.StatusCreated)
	r.put("v1", third, typeImage, `If-Match: "`+sha(first)+`"`).want(http.StatusPreconditionFailed)
	r.head("manifests/v1").want(http.StatusOK, "Docker-Content-Digest: "+sha(second))
	r.head("manifests/" + sha(third)).want(http.StatusNotFound) // nothing is half done
	r.put("new", third, typeImage, `If-Match: "`+sha(first)+`"`).want(http.StatusPreconditionFailed)
	r.put(with(sha(third), "tag", "v1"), third, typeImage, `If-Match: "`+sha(second)+`"`).want(http.StatusCreated)
	r.head("manifests/v1").want(http.StatusOK, "Docker-Content-Digest: "+sha(third))
	// What cannot be compared is refused, not ignored.
	r.put(sha(third), third, typeImage, `If-Match: "`+sha(second)+`"`).want(http.StatusBadRequest)
	r.put("v1", first, typeImage, `If-Match: "what is this"`).want(http.StatusBadRequest)
	r.head("manifests/v1").want(http.StatusOK, "Docker-Content-Digest: "+sha(third))
}

// C, If-None-Match: a tag is set only if it is not there.
func TestIfAbsent(t *testing.T) {
	r := newRepo(t)
	first, second := r.image("first").String(), r.image("second").String()
	r.put("v1", first, typeImage, "If-None-Match: *").want(http.StatusCreated)
	r.put("v1", second, typeImage, "If-None-Match: *").want(http.StatusPreconditionFailed)
	r.put("v1", first, typeImage, "If-None-Match: *").want(http.StatusPreconditionFailed)
	r.head("manifests/v1").want(http.StatusOK, "Docker-Content-Digest: "+sha(first))
	r.head("manifests/" + sha(second)).want(http.StatusNotFound)
	r.put("v2", second, typeImage, `If-None-Match: "`+sha(first)+`"`).want(http.StatusBadRequest)
	r.put(sha(second), second, typeImage, "If-None-Match: *").want(http.StatusBadRequest)
}

// C, If-Match: of those who move a tag at once from what they all saw, one does.
func TestIfMatchAtOnce(t *testing.T) {
	r := newRepo(t)
	seen := sha(r.pushed("v1"))
	moves := make([]string, 8)
	for i := range moves {
		moves[i] = r.image("move " + strconv.Itoa(i)).String()
	}
	got := atOnce(t, len(moves), func(i int) (answer, error) {
		return r.try(http.MethodPut, "manifests/v1", text(moves[i]), "Content-Type: "+typeImage, `If-Match: "`+seen+`"`)
	})
	if got[http.StatusCreated] != 1 || got[http.StatusPreconditionFailed] != len(moves)-1 {
		t.Errorf("%d moves at once have statuses %v, want one 201 and the others 412", len(moves), got)
	}
}

// C, DELETE by tag: the tag goes, the manifest and its other tags stay.
func TestDeleteTag(t *testing.T) {
	r := newRepo(t)
	m := r.pushed("one")
	r.put("two", m, typeImage).want(http.StatusCreated)
	r.delete("manifests/one").want(http.StatusAccepted)
	r.get("manifests/one").wantError(http.StatusNotFound, "MANIFEST_UNKNOWN")
	r.get("manifests/two").want(http.StatusOK)
	r.get("manifests/" + sha(m)).want(http.StatusOK)
	r.delete("manifests/one").wantError(http.StatusNotFound, "MANIFEST_UNKNOWN")
	r.delete("manifests/two").want(http.StatusAccepted)
	r.get("manifests/" + sha(m)).want(http.StatusOK)
	if got := r.tags("tags/list"); len(got) > 0 {
		t.Errorf("the tags are %q, want none", got)
	}
	for _, ref := range []string{"one", sha(m), sha("absent"), "-not-a-tag"} {
		r.called("nobody/pushed/this").delete("manifests/"+ref).wantError(http.StatusNotFound, "MANIFEST_UNKNOWN")
	}
	r.delete("manifests/sha256:x").wantError(http.StatusBadRequest, "DIGEST_INVALID")
}

// C, DELETE by digest: the manifest goes and every tag on it, at once.
func TestDeleteManifest(t *testing.T) {
	r := newRepo(t)
	m, other := r.pushed("one"), r.pushed("other")
	r.put("two", m, typeImage).want(http.StatusCreated)
	r.delete("manifests/" + sha(m)).want(http.StatusAccepted)
	for _, ref := range []string{"one", "two", sha(m)} {
		r.get("manifests/"+ref).wantError(http.StatusNotFound, "MANIFEST_UNKNOWN")
		r.head("manifests/" + ref).want(http.StatusNotFound)
		r.delete("manifests/"+ref).wantError(http.StatusNotFound, "MANIFEST_UNKNOWN")
	}
	r.get("manifests/" + sha(other)).want(http.StatusOK)
	if got := r.tags("tags/list"); strings.Join(got, " ") != "other" {
		t.Errorf("the tags are %q, want other", got)
	}
	r.put("one", m, typeImage).want(http.StatusCreated) // its config and layers have a while
	r.get("manifests/one").want(http.StatusOK)
}

// C, DELETE: the children of an index stay when it goes, and cannot go before.
func TestDeleteIndex(t *testing.T) {
	r := newRepo(t)
	m := r.pushed("image")
	x := index(describe(typeImage, m)).String()
	r.put("index", x, typeIndex).want(http.StatusCreated)
	r.delete("manifests/"+sha(m)).wantError(http.StatusForbidden, "DENIED")
	r.get("manifests/image").want(http.StatusOK)
	r.delete("manifests/" + sha(x)).want(http.StatusAccepted)
	r.get("manifests/" + sha(m)).want(http.StatusOK)
	r.delete("manifests/" + sha(m)).want(http.StatusAccepted)
}
