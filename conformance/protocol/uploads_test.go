package protocol_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

// B, POST start: an open session and where it is.
func TestPostStart(t *testing.T) {
	r := newRepo(t)
	// A least length of chunks would be a burden that no store of berth needs.
	a := r.do(http.MethodPost, "blobs/uploads/", nil).want(http.StatusAccepted, "Range: 0-0", "Content-Length: 0", "OCI-Chunk-Min-Length: ")
	id := a.header.Get("Docker-Upload-UUID")
	if want := "/v2/" + r.name + "/blobs/uploads/" + id; id == "" || a.location() != want {
		t.Errorf("POST answers Location %q with Docker-Upload-UUID %q, want the one to end in the other", a.location(), id)
	}
}

// B, POST ?digest=: all in one request, or the begin of a session.
func TestPostDigest(t *testing.T) {
	for name, content := range sizes() {
		for way, body := range map[string]string{"known length": "", "chunked": "chunked"} {
			t.Run(name+"/"+way, func(t *testing.T) {
				r := newRepo(t)
				send := text(content)
				if body == "chunked" {
					send = streamed(content)
				}
				r.do(http.MethodPost, with("blobs/uploads/", "digest", sha(content)), send).want(http.StatusCreated,
					"Location: /v2/"+r.name+"/blobs/"+sha(content), "Docker-Content-Digest: "+sha(content))
				if got := r.get("blobs/" + sha(content)).want(http.StatusOK).body; string(got) != content {
					t.Errorf("the blob has %d bytes, want %d", len(got), len(content))
				}
			})
		}
	}
	r := newRepo(t)
	session := r.do(http.MethodPost, with("blobs/uploads/", "digest", sha("later")), nil).want(http.StatusAccepted).location()
	r.do(http.MethodPut, with(session, "digest", sha("later")), text("later")).want(http.StatusCreated)
	r.get("blobs/" + sha("later")).want(http.StatusOK)
}

// B, PUT ?digest=: a wrong digest is refused and leaves neither blob nor session.
func TestWrongDigest(t *testing.T) {
	right, wrong := sha("right"), large("wrong")
	registry := own(t)
	for _, tc := range []struct {
		name string
		send func(r repo) answer
	}{
		{"POST", func(r repo) answer {
			return r.do(http.MethodPost, with("blobs/uploads/", "digest", right), text("wrong"))
		}},
		{"POST large", func(r repo) answer {
			return r.do(http.MethodPost, with("blobs/uploads/", "digest", right), text(wrong))
		}},
		{"PUT", func(r repo) answer { return putWrong(r, "", "wrong") }},
		{"PUT large", func(r repo) answer { return putWrong(r, "", wrong) }},
		{"PATCH, PUT", func(r repo) answer { return putWrong(r, "wrong", "") }},
		{"PATCH large, PUT", func(r repo) answer { return putWrong(r, wrong, "end") }},
		{"nothing", func(r repo) answer { return putWrong(r, "", "") }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := repoIn(t, registry)
			tc.send(r).wantError(http.StatusBadRequest, "DIGEST_INVALID")
			r.head("blobs/" + right).want(http.StatusNotFound)
			r.head("blobs/" + sha("wrong")).want(http.StatusNotFound)
			r.head("blobs/" + sha(wrong)).want(http.StatusNotFound)
			if got := registry.holding(t, wrong); len(got) > 0 {
				t.Errorf("what was refused is still in %q", got)
			}
		})
	}
}

// putWrong ends a session with the digest of "right". The session is then gone.
func putWrong(r repo, patch, put string) answer {
	r.t.Helper()
	session := r.begin()
	if patch != "" {
		r.do(http.MethodPatch, session, text(patch)).want(http.StatusAccepted)
	}
	a := r.do(http.MethodPut, with(session, "digest", sha("right")), text(put))
	r.get(session).wantError(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
	r.do(http.MethodPatch, session, text("more")).wantError(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
	return a
}

// B, POST ?mount=&from=: 201 if the blob is there, else a session; never 4xx.
func TestMount(t *testing.T) {
	for name, content := range sizes() {
		t.Run(name, func(t *testing.T) {
			from := newRepo(t)
			content += "of " + t.Name() // for a registry-wide search, its own
			d := from.blob(content)
			absent := sha("absent from " + t.Name())
			for i, tc := range []struct {
				name   string
				params []string
				status int
			}{
				{"from", []string{"mount", d, "from", from.name}, http.StatusCreated},
				{"without from", []string{"mount", d}, http.StatusCreated},
				{"from an empty name", []string{"mount", d, "from", ""}, http.StatusCreated},
				{"from a repository without it", []string{"mount", d, "from", from.name + "/nothing"}, http.StatusAccepted},
				{"from what is no name", []string{"mount", d, "from", "../UPPER"}, http.StatusAccepted},
				{"absent", []string{"mount", absent, "from", from.name}, http.StatusAccepted},
				{"absent, without from", []string{"mount", absent}, http.StatusAccepted},
				{"no digest", []string{"mount", "x", "from", from.name}, http.StatusAccepted},
				{"an unknown algorithm", []string{"mount", "md5:d41d8cd98f00b204e9800998ecf8427e"}, http.StatusAccepted},
				{"nothing", []string{"mount", "", "from", from.name}, http.StatusAccepted},
				{"absent, with a digest to come", []string{"mount", absent, "from", from.name, "digest", d}, http.StatusAccepted},
			} {
				t.Run(tc.name, func(t *testing.T) {
					to := from.in(t).called(from.name + "/to" + strconv.Itoa(i))
					a := to.do(http.MethodPost, with("blobs/uploads/", tc.params...), nil).want(tc.status)
					if tc.status == http.StatusCreated {
						a.want(tc.status, "Location: /v2/"+to.name+"/blobs/"+d, "Docker-Content-Digest: "+d)
						if got := to.get("blobs/" + d).want(http.StatusOK).body; string(got) != content {
							t.Errorf("the mounted blob has %d bytes, want %d", len(got), len(content))
						}
						return
					}
					to.head("blobs/" + d).want(http.StatusNotFound)
					to.do(http.MethodPut, with(a.location(), "digest", d), text(content)).want(http.StatusCreated)
				})
			}
		})
	}
}

// B, POST ?digest-algorithm=: the hash of the session; and a PUT may name
// another.
func TestDigestAlgorithm(t *testing.T) {
	content := large("sha512")
	for name, start := range map[string]string{
		"none": "blobs/uploads/", "sha512": "blobs/uploads/?digest-algorithm=sha512", "sha256": "blobs/uploads/?digest-algorithm=sha256",
	} {
		for _, d := range []string{sha(content), sha5(content)} {
			t.Run(name+"/"+d[:6], func(t *testing.T) {
				r := newRepo(t)
				session := r.do(http.MethodPost, start, nil).want(http.StatusAccepted).location()
				r.do(http.MethodPatch, session, text(content[:100_000])).want(http.StatusAccepted)
				r.do(http.MethodPut, with(session, "digest", d), text(content[100_000:])).want(http.StatusCreated, "Docker-Content-Digest: "+d)
				if got := r.get("blobs/"+d).want(http.StatusOK, "Docker-Content-Digest: "+d).body; string(got) != content {
					t.Errorf("the blob has %d bytes, want %d", len(got), len(content))
				}
			})
		}
	}
	newRepo(t).do(http.MethodPost, "blobs/uploads/?digest-algorithm=md5", nil).wantError(http.StatusBadRequest, "DIGEST_INVALID")
}

// B, PATCH: chunks that say where they go, in every form that clients write.
func TestPatchWithContentRange(t *testing.T) {
	r := newRepo(t)
	session := r.begin()
	for _, chunk := range []struct{ body, header, held string }{
		{"01234", "0-4", "0-4"},
		{"5", "5-5", "0-5"},
		{"67", "bytes 6-7/*", "0-7"},
		{"89", "8-9/10", "0-9"},
	} {
		r.do(http.MethodPatch, session, text(chunk.body), "Content-Range: "+chunk.header).want(http.StatusAccepted,
			"Location: "+session, "Range: "+chunk.held)
	}
	r.do(http.MethodPut, with(session, "digest", sha("0123456789")), nil).want(http.StatusCreated)
	r.get("blobs/" + sha("0123456789")).want(http.StatusOK)
}

// B, PATCH: a body without Content-Range is appended, whatever its type, also if
// its length is not known.
func TestPatchStreamed(t *testing.T) {
	r := newRepo(t)
	content := large("streamed")
	session := r.begin()
	r.do(http.MethodPatch, session, streamed(content)).want(http.StatusAccepted, "Range: 0-"+strconv.Itoa(len(content)-1))
	r.do(http.MethodPatch, session, streamed("and"), "Content-Type: text/plain").want(http.StatusAccepted)
	r.do(http.MethodPatch, session, text("more"), "Content-Type: application/octet-stream").want(http.StatusAccepted)
	r.do(http.MethodPut, with(session, "digest", sha(content+"andmore")), nil).want(http.StatusCreated)
	if got := r.get("blobs/" + sha(content+"andmore")).want(http.StatusOK).body; string(got) != content+"andmore" {
		t.Errorf("the blob has %d bytes, want %d", len(got), len(content)+7)
	}
}

// B, PATCH and PUT: a chunk that does not continue what is there is refused with
// 416, which says where to go on, and changes nothing.
func TestChunkOutOfOrder(t *testing.T) {
	r := newRepo(t)
	session := r.begin()
	r.do(http.MethodPatch, session, text("12345"), "Content-Range: 5-9").wantError(http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID")
	r.do(http.MethodPatch, session, text("01234"), "Content-Range: 0-4").want(http.StatusAccepted)
	for _, header := range []string{"0-4", "4-8", "6-10", "5-8", "5-10", "9-5", "5-", "-5", "x", "bytes=5-9", "5-18446744073709551616"} {
		for method, path := range map[string]string{http.MethodPatch: session, http.MethodPut: with(session, "digest", sha("0123456789"))} {
			r.do(method, path, text("56789"), "Content-Range: "+header).
				want(http.StatusRequestedRangeNotSatisfiable, "Range: 0-4", "Location: "+session).
				wantError(http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID")
		}
	}
	r.get(session).want(http.StatusNoContent, "Range: 0-4")
	r.do(http.MethodPut, with(session, "digest", sha("0123456789")), text("56789"), "Content-Range: 5-9").want(http.StatusCreated)
}

// B, PUT ?digest=: everything, the last chunk, or nothing may be its body.
func TestPut(t *testing.T) {
	for name, content := range sizes() {
		for _, patched := range []int{0, len(content) / 2, len(content)} {
			t.Run(name+"/after "+strconv.Itoa(patched), func(t *testing.T) {
				r := newRepo(t)
				session := r.begin()
				if patched > 0 {
					r.do(http.MethodPatch, session, text(content[:patched])).want(http.StatusAccepted)
				}
				d := sha(content)
				r.do(http.MethodPut, with(session, "digest", d), text(content[patched:])).want(http.StatusCreated,
					"Location: /v2/"+r.name+"/blobs/"+d, "Docker-Content-Digest: "+d)
				if got := r.get("blobs/" + d).want(http.StatusOK).body; string(got) != content {
					t.Errorf("the blob has %d bytes, want %d", len(got), len(content))
				}
				r.get(session).wantError(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
				r.do(http.MethodPut, with(session, "digest", d), nil).wantError(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
			})
		}
	}
}

// B, PUT ?digest=: an empty blob needs no PATCH, and is found after an empty one.
func TestEmptyBlob(t *testing.T) {
	r := newRepo(t)
	session := r.begin()
	r.do(http.MethodPatch, session, text("")).want(http.StatusAccepted, "Range: 0-0")
	r.do(http.MethodPut, with(session, "digest", sha("")), nil).want(http.StatusCreated)
	r.get("blobs/"+sha("")).want(http.StatusOK, "Content-Length: 0")
}

// B: a name that was never pushed to can be, and what is of one client's
// session is not in the repository before its end.
func TestUploadIsInvisible(t *testing.T) {
	r := newRepo(t)
	content := large("invisible")
	session := r.begin()
	r.do(http.MethodPatch, session, text(content)).want(http.StatusAccepted)
	r.head("blobs/" + sha(content)).want(http.StatusNotFound)
	r.get("tags/list").wantError(http.StatusNotFound, "NAME_UNKNOWN")
	r.do(http.MethodPut, with(session, "digest", sha(strings.ToUpper(content))), nil).wantError(http.StatusBadRequest, "DIGEST_INVALID")
	r.head("blobs/" + sha(content)).want(http.StatusNotFound)
}

// zeros is a body of n bytes.
func zeros(n int64) io.Reader { return io.LimitReader(zero{}, n) }

type zero struct{}

func (zero) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// B, PATCH: no body is ever held in memory, on its way in or out.
func TestMemory(t *testing.T) {
	const size = 128 << 20
	r := repoIn(t, own(t))
	hash := sha256.New()
	if _, err := io.Copy(hash, zeros(size)); err != nil {
		t.Fatal(err)
	}
	d := fmt.Sprintf("sha256:%x", hash.Sum(nil))
	session := r.begin()
	r.do(http.MethodPatch, session, zeros(size/2)).want(http.StatusAccepted)
	r.do(http.MethodPut, with(session, "digest", d), zeros(size/2)).want(http.StatusCreated)
	r.called(r.name+"/other").do(http.MethodPost, with("blobs/uploads/", "digest", d), zeros(size)).want(http.StatusCreated)
	if n := len(r.get("blobs/" + d).want(http.StatusOK).body); n != size {
		t.Errorf("the blob has %d bytes, want %d", n, size)
	}
	if peak := r.registry.peakMemory(t); peak > size/2 {
		t.Errorf("the registry used %d MiB of memory for a blob of %d MiB", peak>>20, size>>20)
	} else {
		t.Logf("the registry used %d MiB of memory", peak>>20)
	}
}
