package registry

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
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
	if err != nil {
		return blobUnknown(err)
	}
	if r.Header["Range"] == nil && r.Header["If-None-Match"] == nil { // no need to open anything
		describeBlob(w, c)
		w.Header()["Content-Length"] = []string{strconv.FormatInt(c.Size, 10)}
		w.WriteHeader(http.StatusOK)
		return nil
	}
	return h.sendBlob(w, r, c)
}

func (h *Handler) sendBlob(w http.ResponseWriter, r *http.Request, c storage.Content) error {
	content, err := h.open(r, c)
	if err != nil {
		return err
	}
	defer content.Close()
	describeBlob(w, c)
	http.ServeContent(w, r, "", time.Time{}, content)
	if rec, ok := w.(*httpx.Recorder); ok && rec.Broken != nil {
		return fmt.Errorf("send blob %s: %w", c.Digest, rec.Broken)
	}
	return nil
}

func describeBlob(w http.ResponseWriter, c storage.Content) {
	head := w.Header()
	d := c.Digest.String()
	head["Content-Type"] = []string{"application/octet-stream"}
	head["Docker-Content-Digest"] = []string{d}
	head["Etag"] = []string{`"` + d + `"`}
	head["Accept-Ranges"] = []string{"bytes"}
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
	if errors.Is(err, storage.ErrNotFound) {
		return oci.BlobUnknown.Because(err)
	}
	return err
}

func blobPath(name string, d digest.Digest) string { return "/v2/" + name + "/blobs/" + d.String() }
