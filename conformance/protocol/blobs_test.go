package protocol_test

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

// sizes are contents that a registry may keep in different places.
func sizes() map[string]string {
	return map[string]string{"empty": "", "small": "hello, berth", "large": large("hello")}
}

// B, HEAD/GET blob: the headers that clients go by.
func TestReadBlob(t *testing.T) {
	for name, content := range sizes() {
		t.Run(name, func(t *testing.T) {
			r := newRepo(t)
			d := r.blob(content)
			headers := []string{
				"Content-Length: " + strconv.Itoa(len(content)), "Content-Type: application/octet-stream",
				"Docker-Content-Digest: " + d, `Etag: "` + d + `"`, "Accept-Ranges: bytes", "Content-Encoding: ",
			}
			// A client that would take compressed content gets it as it is, too.
			if got := r.get("blobs/"+d, "Accept-Encoding: gzip, zstd").want(http.StatusOK, headers...).body; string(got) != content {
				t.Errorf("GET answers %d bytes that are not the blob's %d", len(got), len(content))
			}
			if got := r.head("blobs/"+d).want(http.StatusOK, headers...).body; len(got) != 0 {
				t.Errorf("HEAD answers %d bytes of body", len(got))
			}
			r.get("blobs/"+d, `If-None-Match: "`+d+`"`).want(http.StatusNotModified)
			r.head("blobs/"+d, `If-None-Match: "`+d+`"`).want(http.StatusNotModified)
			r.get("blobs/"+d, `If-None-Match: "other"`).want(http.StatusOK)
		})
	}
}

// B, Range: RFC 9110, section 14.
func TestRange(t *testing.T) {
	for _, content := range []string{"hello, berth", large("hello")} {
		n := len(content)
		size := strconv.Itoa(n)
		r := newRepo(t)
		d := r.blob(content)
		for _, tc := range []struct {
			name, header string
			first, last  int // of what comes, both inclusive
		}{
			{"from to", "bytes=1-4", 1, 4},
			{"one byte", "bytes=0-0", 0, 0},
			{"from", "bytes=7-", 7, n - 1},
			{"suffix", "bytes=-5", n - 5, n - 1},
			{"long suffix", "bytes=-" + size + "0", 0, n - 1},
			{"clipped", "bytes=7-" + size + "0", 7, n - 1},
			{"all", "bytes=0-", 0, n - 1},
			{"capitals", "Bytes=1-4", 1, 4},
			{"one of two is there", "bytes=1-4,99999999-", 1, 4},
		} {
			t.Run(size+"/"+tc.name, func(t *testing.T) {
				a := r.in(t).get("blobs/"+d, "Range: "+tc.header).want(http.StatusPartialContent,
					"Content-Range: bytes "+strconv.Itoa(tc.first)+"-"+strconv.Itoa(tc.last)+"/"+size,
					"Content-Length: "+strconv.Itoa(tc.last-tc.first+1), "Docker-Content-Digest: "+d)
				if want := content[tc.first : tc.last+1]; string(a.body) != want {
					t.Errorf("Range %s = %.40q, want %.40q", tc.header, a.body, want)
				}
			})
		}
		for _, header := range []string{"bytes=500-0", "bytes=" + size + "-", "bytes=" + size + "0-" + size + "1", "bytes=-0", "bytes=x", "bytes=1-2-3"} {
			a := r.get("blobs/"+d, "Range: "+header).want(http.StatusRequestedRangeNotSatisfiable, "Etag: ")
			a.wantError(http.StatusRequestedRangeNotSatisfiable, "SIZE_INVALID")
			if strings.HasPrefix(header, "bytes="+size) { // the client did not know the size
				a.want(http.StatusRequestedRangeNotSatisfiable, "Content-Range: bytes */"+size)
			}
		}
		for _, header := range []string{"lines=1-4", "bytes", "1-4"} { // no unit that anybody knows
			r.get("blobs/"+d, "Range: "+header).want(http.StatusOK, "Content-Length: "+size)
		}
		// A resuming client says which content it has the beginning of.
		r.get("blobs/"+d, "Range: bytes=7-", `If-Range: "`+d+`"`).want(http.StatusPartialContent)
		r.get("blobs/"+d, "Range: bytes=7-", `If-Range: "other"`).want(http.StatusOK)
		r.get("blobs/"+d, "Range: bytes=7-", `If-None-Match: "`+d+`"`).want(http.StatusNotModified)
		// Range is for GET: to HEAD it means nothing (section 14.2).
		for _, header := range []string{"bytes=1-4", "bytes=" + size + "-"} {
			r.head("blobs/"+d, "Range: "+header).want(http.StatusOK, "Content-Length: "+size, "Content-Range: ")
		}
	}
	r := newRepo(t)
	for _, header := range []string{"bytes=0-", "bytes=-5", "bytes=1-"} { // of nothing there is no part
		r.get("blobs/"+r.blob(""), "Range: "+header).want(http.StatusOK, "Content-Length: 0", "Content-Range: ")
	}
}

// B, Range: several ranges come as the parts of one body.
func TestRanges(t *testing.T) {
	r := newRepo(t)
	content := large("hello")
	a := r.get("blobs/"+r.blob(content), "Range: bytes=0-4, 10-19,-3").want(http.StatusPartialContent)
	mediaType, params, err := mime.ParseMediaType(a.header.Get("Content-Type"))
	if err != nil || mediaType != "multipart/byteranges" {
		t.Fatalf("several ranges are of type %q, want multipart/byteranges", a.header.Get("Content-Type"))
	}
	parts := multipart.NewReader(bytes.NewReader(a.body), params["boundary"])
	for _, span := range [][2]int{{0, 5}, {10, 20}, {len(content) - 3, len(content)}} {
		part, err := parts.NextPart()
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(part)
		if err != nil || string(got) != content[span[0]:span[1]] {
			t.Errorf("one part is %.40q (%v), want %q", got, err, content[span[0]:span[1]])
		}
		if want := fmt.Sprintf("bytes %d-%d/%d", span[0], span[1]-1, len(content)); part.Header.Get("Content-Range") != want {
			t.Errorf("one part is %s, want %s", part.Header.Get("Content-Range"), want)
		}
	}
	if _, err := parts.NextPart(); err != io.EOF {
		t.Errorf("after the last part comes %v", err)
	}
}

// B, HEAD/GET blob: a repository shows what it holds, not what the registry
// does.
func TestBlobIsOfItsRepository(t *testing.T) {
	r := newRepo(t)
	d := r.blob("of one repository")
	other := r.called(r.name + "/other")
	other.blob("so that it exists")
	other.head("blobs/" + d).want(http.StatusNotFound)
	other.get("blobs/"+d).wantError(http.StatusNotFound, "BLOB_UNKNOWN")
	other.delete("blobs/"+d).wantError(http.StatusNotFound, "BLOB_UNKNOWN")
	r.called("nobody/pushed/this").get("blobs/"+d).wantError(http.StatusNotFound, "BLOB_UNKNOWN")
}

// B, DELETE blob: gone from this repository at once, and from no other.
func TestDeleteBlob(t *testing.T) {
	for name, content := range sizes() {
		t.Run(name, func(t *testing.T) {
			r := newRepo(t)
			d := r.blob(content)
			other := r.called(r.name + "/other")
			other.blob(content)
			r.delete("blobs/" + d).want(http.StatusAccepted)
			other.get("blobs/" + d).want(http.StatusOK)
			r.head("blobs/" + d).want(http.StatusNotFound) // not taken over from the other
			r.get("blobs/"+d).wantError(http.StatusNotFound, "BLOB_UNKNOWN")
			r.delete("blobs/"+d).wantError(http.StatusNotFound, "BLOB_UNKNOWN")
			r.blob(content)
			r.get("blobs/" + d).want(http.StatusOK)
		})
	}
}

// B, DELETE blob: one that a manifest of the repository names stays.
func TestDeleteBlobInUse(t *testing.T) {
	r := newRepo(t)
	m := r.image("config", "layer").String()
	r.put("v1", m, typeImage).want(http.StatusCreated)
	r.delete("blobs/"+sha("layer")).wantError(http.StatusForbidden, "DENIED")
	r.head("blobs/" + sha("layer")).want(http.StatusOK)
	r.delete("manifests/" + sha(m)).want(http.StatusAccepted)
	r.delete("blobs/" + sha("layer")).want(http.StatusAccepted)
	// Also one that is the child of an index, as in BuildKit's cache.
	r.blob("cached")
	r.put("cache", index(describe(typeLayer, "cached")).String(), typeIndex).want(http.StatusCreated)
	r.delete("blobs/"+sha("cached")).wantError(http.StatusForbidden, "DENIED")
}
