package registry

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"berth.internal/internal/httpx"
	"berth.internal/internal/oci"
	"berth.internal/storage"
)

// getBlob answers end-2: 200, 304, or 206 and 416 for a Range request (RFC
// 9110, section 14).
func (h *Handler) getBlob(w http.ResponseWriter, r *http.Request, t target) error {
	d, err := oci.ParseDigest(t.ref)
	if err != nil {
		return err
	}
	c, err := h.Index.Blob(r.Context(), t.name, d)
	if err != nil {
		return blobUnknown(err)
	}
	return h.sendBlob(w, r, c)
}

// headBlob answers end-2. A client that is told that the blob is there skips
// its upload, so the answer is a promise that the collector keeps.
func (h *Handler) headBlob(w http.ResponseWriter, r *http.Request, t target) error {
	d, err := oci.ParseDigest(t.ref)
	if err != nil {
		return err
	}
	c, err := h.Index.Promise(r.Context(), t.name, d, h.Rules(t.name).Grace)
	if unwritten(err) {
		c, err = h.Index.Blob(r.Context(), t.name, d)
	}
	if err != nil {
		return blobUnknown(err)
	}
	if c.Key != "" { // look, since who is told that it is there does not push it again
		content, err := h.open(r, c)
		if err != nil {
			return blobUnknown(err)
		}
		if err := content.Close(); err != nil {
			return err
		}
	}
	describeBlob(w, c)
	if match := r.Header["If-None-Match"]; match != nil && etagMatches(match[0], c.Digest.String()) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	w.Header()["Content-Length"] = []string{strconv.FormatInt(c.Size, 10)} // whatever Range says: that is for GET only
	w.WriteHeader(http.StatusOK)
	return nil
}

// unwritten tells whether a promise was not made because the disk takes no
// changes. Then the answer comes without it: pulls go on, and a push that relies
// on it is told so by the PUT of its manifest, which looks again.
func unwritten(err error) bool {
	return errors.Is(err, storage.ErrMedium) || errors.Is(err, storage.ErrNoSpace)
}

func (h *Handler) sendBlob(w http.ResponseWriter, r *http.Request, c storage.Content) error {
	content, err := h.open(r, c)
	if err != nil {
		return blobUnknown(err)
	}
	defer content.Close()
	describeBlob(w, c)
	if header := r.Header.Get("Range"); header == "" {
		http.ServeContent(w, r, "", time.Time{}, content)
	} else if !servePart(w, r, plainRange(header, c.Size), content) {
		return oci.SizeInvalid.With(fmt.Sprintf("%.100q asks for nothing that is in the blob, which has %d bytes", header, c.Size), nil).
			At(http.StatusRequestedRangeNotSatisfiable)
	}
	if rec, ok := w.(*httpx.Recorder); ok && rec.Broken != nil {
		return fmt.Errorf("send blob %s: %w", c.Digest, rec.Broken)
	}
	return nil
}

// servePart answers a request with that Range header, or nothing if what it asks
// for is not there.
func servePart(w http.ResponseWriter, r *http.Request, header string, content io.ReadSeeker) bool {
	r.Header.Set("Range", header)
	part := &partWriter{ResponseWriter: w}
	http.ServeContent(part, r, "", time.Time{}, content)
	if part.refused {
		w.Header().Del("X-Content-Type-Options")
	}
	return !part.refused
}

// plainRange returns a Range header that net/http reads as RFC 9110, sections
// 14.1 and 14.2, want it: a unit that is not known is ignored, bytes may be
// written in capitals, and the last 0 bytes are nowhere. size is that of the
// blob; of nothing there is no part, and no header to say that it comes.
func plainRange(header string, size int64) string {
	unit, ranges, ok := strings.Cut(header, "=")
	if !ok || !strings.EqualFold(unit, "bytes") || size == 0 {
		return ""
	}
	if !strings.Contains(ranges, "-0") {
		return "bytes=" + ranges
	}
	specs := strings.Split(ranges, ",")
	for i, spec := range specs {
		if last, ok := strings.CutPrefix(strings.TrimSpace(spec), "-"); ok && last != "" && strings.Trim(last, "0") == "" {
			specs[i] = strconv.Itoa(math.MaxInt64) + "-" // past the end of every blob
		}
	}
	return "bytes=" + strings.Join(specs, ",")
}

// partWriter keeps back what net/http says of ranges that it refuses, so that it
// can be said in the API's way.
type partWriter struct {
	http.ResponseWriter
	refused bool
}

func (w *partWriter) WriteHeader(status int) {
	if w.refused = status == http.StatusRequestedRangeNotSatisfiable; !w.refused {
		w.ResponseWriter.WriteHeader(status)
	}
}

func (w *partWriter) Write(p []byte) (int, error) {
	if w.refused {
		return len(p), nil
	}
	return w.ResponseWriter.Write(p)
}

// ReadFrom lets files go out by sendfile.
func (w *partWriter) ReadFrom(r io.Reader) (int64, error) { return io.Copy(w.ResponseWriter, r) }

func describeBlob(w http.ResponseWriter, c storage.Content) {
	d := c.Digest.String()
	v := []string{"application/octet-stream", d, `"` + d + `"`, "bytes"} // one allocation for all
	head := w.Header()
	head["Content-Type"], head["Docker-Content-Digest"], head["Etag"], head["Accept-Ranges"] = v[0:1:1], v[1:2:2], v[2:3:3], v[3:4:4]
}

// deleteBlob answers end-10: the repository does not hold the blob any more.
// Its bytes are the collector's business.
func (h *Handler) deleteBlob(w http.ResponseWriter, r *http.Request, t target) error {
	d, err := oci.ParseDigest(t.ref)
	if err != nil {
		return err
	}
	if err := h.Index.DeleteBlob(r.Context(), t.name, d); err != nil {
		if errors.Is(err, storage.ErrReferenced) {
			return oci.Denied.With("a manifest of the repository names this blob; delete that first", nil).Because(err)
		}
		return blobUnknown(err)
	}
	w.WriteHeader(http.StatusAccepted)
	return nil
}

func blobUnknown(err error) error {
	if errors.Is(err, storage.ErrNotFound) && !errors.Is(err, errGone) {
		return oci.BlobUnknown.Because(err)
	}
	return err
}

func blobPath(name string, d digest.Digest) string { return "/v2/" + name + "/blobs/" + d.String() }
