package registry

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/opencontainers/go-digest"

	"berth.internal/internal/oci"
	"berth.internal/storage"
)

// postUpload answers end-4a, end-4b and end-11: 202 with a new session, or 201
// if the blob is mounted or its bytes are the body.
func (h *Handler) postUpload(w http.ResponseWriter, r *http.Request, t target) error {
	q := r.URL.Query()
	if q.Has("mount") {
		done, err := h.mount(w, r, t, q.Get("mount"), q.Get("from"))
		if done || err != nil {
			return err
		}
	}
	if q.Has("digest") && !q.Has("mount") {
		want, err := oci.ParseDigest(q.Get("digest"))
		if err != nil {
			return err
		}
		// Else the body is to come.
		if r.ContentLength != 0 || want == want.Algorithm().FromBytes(nil) {
			n := h.Audit.Note(r)
			n.Does(doesPushBlob)
			n.Digest = want.String()
			if err := h.store(r, t.name, want, nil, storage.Session{}); err != nil {
				return err
			}
			return created(w, t.name, want)
		}
	}
	alg, err := oci.ParseAlgorithm(cmp.Or(q.Get("digest-algorithm"), "sha256"))
	if err != nil {
		return err
	}
	// Now the client still listens; in the middle of a body it may not.
	if err := storage.Room(h.Store, storage.KindBlob, 0); err != nil {
		return err
	}
	id, err := h.uploads.begin(t.name, h.Owner(r), alg)
	if err != nil {
		return err
	}
	return progress(w, http.StatusAccepted, t.name, id, 0)
}

// mount answers end-11: it lets the repository hold a blob of another one that
// the caller may pull, or of any such if from is empty. If there is none, or
// mount is no digest, it does nothing, and the client uploads. The error is one
// of Wider if there is one that the caller could pull with another token.
func (h *Handler) mount(w http.ResponseWriter, r *http.Request, t target, mount, from string) (bool, error) {
	d, err := oci.ParseDigest(mount)
	if err != nil {
		return false, nil // clients take a refusal to mount for the end of their push
	}
	sources := []string{from}
	if from == "" {
		const most = 100 // a blob that many repositories hold is one that the caller holds, too
		if sources, err = h.Index.Holders(r.Context(), d, "", most); err != nil {
			return false, err
		}
	}
	var wider error
	for _, source := range sources {
		if _, err := oci.ParseName(source); err != nil {
			continue
		}
		if h.Access(r, source, Pull) != nil {
			if h.Wider == nil || wider != nil {
				continue
			}
			if err := h.Wider(r, t.name, source); err == nil {
				continue
			} else if _, missing := h.Index.Blob(r.Context(), source, d); missing == nil {
				wider = err
			}
			continue
		}
		switch _, err := h.Index.Mount(r.Context(), t.name, source, d, h.Rules(t.name).Grace); {
		case err == nil:
			n := h.Audit.Note(r)
			n.Does("blob.mount")
			n.Digest, n.Object = d.String(), source
			return true, created(w, t.name, d)
		case !errors.Is(err, storage.ErrNotFound):
			return false, err
		}
	}
	return false, wider
}

// getUpload answers end-13: how much of the upload has arrived.
func (h *Handler) getUpload(w http.ResponseWriter, r *http.Request, t target) error {
	s, err := h.session(r, t)
	if err != nil {
		return err
	}
	return progress(w, http.StatusNoContent, t.name, t.ref, s.State.Size)
}

// patchUpload answers end-5: it appends the body to the upload. With a
// Content-Range that does not go on where the upload ends it answers 416 and
// says where that is. When the client breaks off, what has arrived stays.
func (h *Handler) patchUpload(w http.ResponseWriter, r *http.Request, t target) error {
	s, release, err := h.take(w, r, t)
	if err != nil {
		return err
	}
	defer release(false)
	if err := checkRange(w, r, t, s.State.Size); err != nil {
		return err
	}
	up, err := h.openUpload(r.Context(), s)
	if err != nil {
		return err
	}
	defer up.Close()
	if err := reserve(r, up); err != nil {
		return err
	}
	_, copyErr := io.Copy(up, h.arriving(r, s))
	// What has arrived is kept, also for a client that broke off: it will ask.
	first := s.State.ID == ""
	state, err := up.Save(durable(r))
	if err == nil {
		s.State = state
		err = h.touch(r, s)
	}
	if err == nil {
		h.uploads.stored(s)
	} else if first {
		_ = up.Abort() // no session leads to it
	}
	if err = errors.Join(copyErr, err); err != nil {
		return err
	}
	return progress(w, http.StatusAccepted, t.name, t.ref, s.State.Size)
}

// putUpload answers end-6: it appends the body, if any, and gives the upload
// its digest. A body that does not fit is refused as in patchUpload. An upload
// with a wrong digest is gone.
func (h *Handler) putUpload(w http.ResponseWriter, r *http.Request, t target) error {
	want, err := oci.ParseDigest(r.URL.Query().Get("digest"))
	if err != nil {
		return err
	}
	h.Audit.Note(r).Digest = want.String()
	s, release, err := h.take(w, r, t)
	if err != nil {
		return err
	}
	ended := false
	defer func() { release(ended) }()
	if err := checkRange(w, r, t, s.State.Size); err != nil {
		return err
	}
	var up storage.Upload
	if s.State.ID != "" {
		if up, err = h.openUpload(r.Context(), s); err != nil {
			return err
		}
	}
	err = h.store(r, t.name, want, up, s)
	ended = err == nil || errors.Is(err, oci.DigestInvalid)
	if err != nil {
		if ended && s.State.ID != "" {
			err = errors.Join(err, h.Index.EndSession(durable(r), s.ID))
		}
		return err
	}
	return created(w, t.name, want)
}

// deleteUpload answers end-14: the upload and its bytes are gone.
func (h *Handler) deleteUpload(w http.ResponseWriter, r *http.Request, t target) error {
	s, release, err := h.take(w, r, t)
	if err != nil {
		return err
	}
	defer release(true)
	if s.State.ID != "" {
		if err := h.Store.Discard(durable(r), s.State.ID); err != nil {
			return err
		}
		if err := h.Index.EndSession(durable(r), s.ID); err != nil {
			return err
		}
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// store reads the rest of the blob from the request, after what up holds if it
// is not nil, and lets the repository hold it. Small content never touches the
// Store. It uses up up.
func (h *Handler) store(r *http.Request, name string, want digest.Digest, up storage.Upload, s storage.Session) error {
	rules := h.Rules(name)
	put := storage.BlobPut{Repo: name, Session: s.ID, Grace: rules.Grace, Orphan: rules.Orphan}
	if up == nil && r.ContentLength >= 0 && r.ContentLength <= storage.InlineMax {
		return h.storeInline(r, want, put)
	}
	if up == nil {
		var err error
		if up, err = h.Store.Create(r.Context(), want.Algorithm()); err != nil {
			return err
		}
		defer up.Abort() // nobody knows of it: an error leaves nothing
	}
	defer up.Close()
	if err := reserve(r, up); err != nil {
		return err
	}
	if _, err := io.Copy(up, h.arriving(r, s)); err != nil {
		return err
	}
	// The bytes are here: the commit no longer depends on the client.
	_, err := storage.Commit(durable(r), h.Store, h.Index, up, want, put)
	switch {
	case errors.Is(err, storage.ErrMismatch):
		return oci.DigestInvalid.With("the content does not match the digest; the upload is discarded", nil).Because(err)
	case errors.Is(err, storage.ErrNotFound):
		return oci.BlobUploadUnknown.With("the upload took so long that it was given up: begin again", nil).Because(err)
	}
	return err
}

func (h *Handler) storeInline(r *http.Request, want digest.Digest, put storage.BlobPut) error {
	if err := storage.Room(h.Store, storage.KindBlob, r.ContentLength); err != nil {
		return err
	}
	data := make([]byte, r.ContentLength)
	if _, err := io.ReadFull(body{r.Body}, data); err != nil {
		return err
	}
	if got := want.Algorithm().FromBytes(data); got != want {
		return oci.DigestInvalid.With(fmt.Sprintf("the content has digest %s, not %s", got, want), nil)
	}
	put.Content = storage.Content{Digest: want, Size: int64(len(data)), Inline: data}
	_, err := h.Index.PutBlob(durable(r), put)
	return err
}

// reserve refuses a body that is known not to fit before its first byte.
func reserve(r *http.Request, up storage.Upload) error {
	if room, ok := up.(interface{ Reserve(n int64) error }); ok && r.ContentLength > 0 {
		return room.Reserve(r.ContentLength)
	}
	return nil
}

// body is what the client sends. A failure to read it is the client's, and none
// of the store's.
type body struct{ io.Reader }

func (b body) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = oci.BlobUploadInvalid.With("the body broke off or is not well-formed", nil).At(http.StatusBadRequest).Because(err)
	}
	return n, err
}

// checkRange compares the Content-Range of a chunk with what has arrived.
func checkRange(w http.ResponseWriter, r *http.Request, t target, size int64) error {
	head := r.Header.Get("Content-Range")
	if head == "" {
		return nil
	}
	first, last, err := parseContentRange(head)
	if err != nil {
		locate(w, t.name, t.ref, size)
		return oci.BlobUploadInvalid.With(err.Error(), nil).At(http.StatusRequestedRangeNotSatisfiable)
	}
	if first != size || (r.ContentLength >= 0 && last-first+1 != r.ContentLength) {
		locate(w, t.name, t.ref, size)
		return oci.BlobUploadInvalid.With(fmt.Sprintf("the chunk %q does not continue the upload, which has %d bytes", head, size), nil).
			At(http.StatusRequestedRangeNotSatisfiable)
	}
	return nil
}

// locate tells the client where to go on. A range cannot say "nothing yet": 0-0
// is both none and one byte (spec, "Pushing a blob in chunks").
func locate(w http.ResponseWriter, name, id string, size int64) {
	w.Header().Set("Location", "/v2/"+name+"/blobs/uploads/"+id) // relative: we may be behind a proxy
	w.Header().Set("Range", "0-"+strconv.FormatInt(max(size-1, 0), 10))
	w.Header().Set("Docker-Upload-UUID", id)
}

func progress(w http.ResponseWriter, status int, name, id string, size int64) error {
	locate(w, name, id, size)
	w.Header()["Content-Length"] = []string{"0"}
	if status == http.StatusNoContent {
		w.Header().Del("Content-Length")
	}
	w.WriteHeader(status)
	return nil
}

func created(w http.ResponseWriter, name string, d digest.Digest) error {
	w.Header().Set("Location", blobPath(name, d))
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header()["Content-Length"] = []string{"0"}
	w.WriteHeader(http.StatusCreated)
	return nil
}

// parseContentRange reads first-last, with or without "bytes " before and a
// total behind it, as clients send it (spec, "Pushing a blob in chunks").
func parseContentRange(s string) (first, last int64, err error) {
	b := []byte(s)
	b = bytes.TrimPrefix(b, []byte("bytes "))
	b, _, _ = bytes.Cut(b, []byte("/"))
	a, z, ok := bytes.Cut(b, []byte("-"))
	if ok {
		var errA, errZ error
		first, errA = parseOffset(a)
		last, errZ = parseOffset(z)
		ok = errA == nil && errZ == nil && last >= first
	}
	if !ok {
		return 0, 0, fmt.Errorf("%.60q is not a range such as 0-1023", s)
	}
	return first, last, nil
}

func parseOffset(b []byte) (int64, error) {
	n, err := strconv.ParseUint(string(b), 10, 62)
	return int64(n), err
}
