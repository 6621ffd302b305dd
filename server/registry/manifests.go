package registry

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"berth.internal/internal/oci"
	"berth.internal/server/audit"
	"berth.internal/storage"
)

// maxTagParams is how many tags one PUT may set (spec, "Pushing manifests with
// tags").
const maxTagParams = 100

// getManifest answers end-3, GET and HEAD: 200 or 304 with the bytes as they
// were pushed.
func (h *Handler) getManifest(w http.ResponseWriter, r *http.Request, t target) error {
	m, err := h.manifest(r, t)
	if err != nil {
		return err
	}
	if m, err = h.choose(r, t, m); err != nil {
		return err
	}
	content, err := h.open(r, m.Content)
	if err != nil {
		return manifestUnknown(t, err)
	}
	defer content.Close()
	d := m.Digest.String()
	if h.Audit.Pulls() {
		h.Audit.Note(r).Digest = d
	}
	v := []string{d, `"` + d + `"`, m.MediaType, strconv.FormatInt(m.Size, 10)} // one allocation for all
	head := w.Header()
	head["Docker-Content-Digest"], head["Etag"] = v[0:1:1], v[1:2:2]
	if match := r.Header.Get("If-None-Match"); match != "" && etagMatches(match, d) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	head["Content-Type"], head["Content-Length"] = v[2:3:3], v[3:4:4]
	if r.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		return nil
	}
	if m.Key == "" {
		_, err = w.Write(m.Inline)
	} else {
		_, err = io.CopyN(w, content, m.Size)
	}
	if err != nil {
		return fmt.Errorf("send manifest %s: %w", d, err)
	}
	return nil
}

// manifest returns the manifest that the path names by tag or digest.
func (h *Handler) manifest(r *http.Request, t target) (storage.Manifest, error) {
	var m storage.Manifest
	var err error
	if strings.Contains(t.ref, ":") {
		d, bad := oci.ParseDigest(t.ref)
		if bad != nil {
			return m, bad
		}
		// Who is told that it is there does not push it: an index of it may follow.
		m, err = h.Index.PromiseManifest(r.Context(), t.name, d, h.Rules(t.name).Grace)
		if unwritten(err) {
			m, err = h.Index.Manifest(r.Context(), t.name, d)
		}
	} else {
		if _, bad := oci.ParseTag(t.ref); bad != nil {
			return m, oci.ManifestUnknown.Because(bad)
		}
		m, err = h.Index.Tagged(r.Context(), t.name, t.ref)
	}
	return m, manifestUnknown(t, err)
}

func manifestUnknown(t target, err error) error {
	if errors.Is(err, storage.ErrNotFound) && !errors.Is(err, errGone) {
		return oci.ManifestUnknown.With(fmt.Sprintf("repository %s does not hold %s", t.name, t.ref), nil).Because(err)
	}
	return err
}

// choose serves a manifest as it is stored, with one exception: a client that
// asks for a tag, lists the types it reads, and does not read indexes, gets the
// linux/amd64 image of an index, as Docker before 1.10 and its like expect.
func (h *Handler) choose(r *http.Request, t target, m storage.Manifest) (storage.Manifest, error) {
	if !isIndex(m.MediaType) || strings.Contains(t.ref, ":") || accepts(r.Header["Accept"], m.MediaType) {
		return m, nil
	}
	body, err := h.content(r, m.Content)
	if err != nil {
		return m, manifestUnknown(t, err)
	}
	child := linuxAMD64(body)
	if child == "" {
		return m, nil
	}
	image, err := h.Index.Manifest(r.Context(), t.name, child)
	switch {
	case errors.Is(err, storage.ErrNotFound): // a sparse index
		return m, nil
	case err != nil:
		return m, err
	case accepts(r.Header["Accept"], image.MediaType):
		return image, nil
	}
	return m, nil
}

func (h *Handler) content(r *http.Request, c storage.Content) ([]byte, error) {
	b, err := h.open(r, c)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return io.ReadAll(b) // no larger than what putManifest let in
}

// putManifest answers end-7: it stores the exact bytes and puts the tag, or the
// tags of the query, on them. With If-Match it moves a tag only from that
// manifest; with If-None-Match: * it only sets tags that are not there.
func (h *Handler) putManifest(w http.ResponseWriter, r *http.Request, t target) error {
	put, err := h.manifestPut(r, t)
	if err != nil {
		return err
	}
	limits := h.Limits()
	content, err := io.ReadAll(body{http.MaxBytesReader(w, r.Body, limits.MaxManifest)})
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return oci.ManifestInvalid.With(fmt.Sprintf("the manifest is larger than %d bytes", limits.MaxManifest), nil).At(http.StatusRequestEntityTooLarge)
		}
		return err
	}
	m, err := parseManifest(content, r.Header.Get("Content-Type"), limits.Sparse)
	if err != nil {
		return err
	}
	d := put.Manifest.Digest
	if d == "" {
		d = digest.FromBytes(content)
	} else if got := d.Algorithm().FromBytes(content); got != d {
		return oci.DigestInvalid.With(fmt.Sprintf("the manifest has digest %s, not %s", got, d), nil)
	}
	h.note(r, t.name, d, put.Tags)
	m.Content = storage.Content{Digest: d, Size: int64(len(content)), Inline: content}
	put.Manifest = m
	var denied error
	if len(put.Tags) > 0 {
		// To this caller tags are immutable: so it is decided in the transaction, and
		// nobody can put a tag there in between.
		if denied = h.Access(r, t.name, Overwrite); denied != nil {
			put.Rules.Immutable = func(string) bool { return true }
		}
	}
	err = storage.PutManifest(durable(r), h.Store, h.Index, put)
	if denied != nil && errors.Is(err, storage.ErrImmutable) {
		return errors.Join(denied, err)
	} else if errors.Is(err, storage.ErrImmutable) {
		h.denyMove(r, t.name)
		return err
	} else if errors.Is(err, storage.ErrConflict) {
		return oci.Denied.With("the tag is not on the manifest that If-Match names, or exists in spite of If-None-Match", nil).At(http.StatusPreconditionFailed).Because(err)
	} else if err != nil {
		return err
	}
	if m.Subject != "" {
		w.Header().Set("OCI-Subject", m.Subject.String())
	}
	if d := h.notHeld(r, t.name, m); d != "" {
		// One warning of this length is far below the 4096 bytes that the spec
		// allows to all.
		w.Header().Set("Warning", fmt.Sprintf("299 - %q", fmt.Sprintf("the repository does not hold all that this manifest names, such as %s: clients need another source for it", d)))
	}
	for _, tag := range put.Tags {
		w.Header().Add("OCI-Tag", tag)
	}
	w.Header().Set("Location", "/v2/"+t.name+"/manifests/"+d.String())
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header()["Content-Length"] = []string{"0"}
	w.WriteHeader(http.StatusCreated)
	return nil
}

// note tells the audit log which manifest the request is about, and what the tags
// were on just before it.
func (h *Handler) note(r *http.Request, repo string, d digest.Digest, tags []string) {
	if !h.Audit.On() {
		return
	}
	n := h.Audit.Note(r)
	n.Digest, n.Tags = d.String(), make([]audit.Tag, len(tags))
	for i, tag := range tags {
		n.Tags[i].Name = tag
		if was, err := h.Index.Tagged(r.Context(), repo, tag); err == nil {
			n.Tags[i].Was = was.Digest.String()
		}
	}
}

// denyMove tells the audit log that a tag is immutable.
func (h *Handler) denyMove(r *http.Request, repo string) {
	h.Audit.Note(r).Deny(string(Overwrite), repo, "immutable_tags", "the tag is immutable")
}

// notHeld returns a digest of what the manifest names that need not be here and
// is not, or "". It is for people, who want to know before they pull.
func (h *Handler) notHeld(r *http.Request, repo string, m storage.Manifest) digest.Digest {
	for _, ref := range m.References {
		if !ref.Optional {
			continue
		}
		err := storage.ErrNotFound
		if ref.Manifest {
			_, err = h.Index.Manifest(r.Context(), repo, ref.Digest)
		}
		if errors.Is(err, storage.ErrNotFound) {
			_, err = h.Index.Blob(r.Context(), repo, ref.Digest)
		}
		if errors.Is(err, storage.ErrNotFound) {
			return ref.Digest
		}
	}
	return ""
}

// manifestPut reads from the path, the query and the header what is to be done
// with the manifest. Its digest is set if the path names it.
func (h *Handler) manifestPut(r *http.Request, t target) (storage.ManifestPut, error) {
	put := storage.ManifestPut{Repo: t.name, Rules: h.Rules(t.name), Tags: r.URL.Query()["tag"]}
	if len(put.Tags) > maxTagParams {
		return put, oci.ManifestInvalid.With(fmt.Sprintf("at most %d tags can be set at once", maxTagParams), nil).At(http.StatusRequestURITooLong)
	}
	if strings.Contains(t.ref, ":") {
		d, err := oci.ParseDigest(t.ref)
		if err != nil {
			return put, err
		}
		put.Manifest.Digest = d
	} else {
		put.Tags = append([]string{t.ref}, put.Tags...)
	}
	for _, tag := range put.Tags {
		if _, err := oci.ParseTag(tag); err != nil {
			return put, err
		}
	}
	match, none := r.Header.Get("If-Match"), r.Header.Get("If-None-Match")
	if (match != "" || none != "") && len(put.Tags) == 0 {
		return put, oci.Unsupported.With("If-Match and If-None-Match say what a tag must be on before, and this request names no tag", nil).At(http.StatusBadRequest)
	}
	if put.IfAbsent = none == "*"; none != "" && !put.IfAbsent {
		return put, oci.Unsupported.With("of If-None-Match only * is supported here: the tag must not exist", nil).At(http.StatusBadRequest)
	}
	if match != "" {
		d, err := oci.ParseDigest(strings.Trim(match, `"`))
		if err != nil {
			return put, err
		}
		put.IfMatch = d
	}
	return put, nil
}

// deleteManifest answers end-9: by tag it removes the tag only, by digest the
// manifest and all tags on it.
func (h *Handler) deleteManifest(w http.ResponseWriter, r *http.Request, t target) error {
	var err error
	if strings.Contains(t.ref, ":") {
		d, bad := oci.ParseDigest(t.ref)
		if bad != nil {
			return bad
		}
		err = h.Index.DeleteManifest(r.Context(), t.name, d, h.Rules(t.name))
	} else {
		if _, bad := oci.ParseTag(t.ref); bad != nil {
			return oci.ManifestUnknown.Because(bad)
		}
		h.note(r, t.name, "", []string{t.ref})
		h.Audit.Note(r).Does("tag.delete")
		err = h.Index.DeleteTag(r.Context(), t.name, t.ref, h.Rules(t.name))
	}
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return oci.ManifestUnknown.Because(err)
	case errors.Is(err, storage.ErrImmutable):
		h.denyMove(r, t.name)
		return err
	case errors.Is(err, storage.ErrReferenced):
		return oci.Denied.With("an index of the repository names this manifest; delete that first", nil).Because(err)
	case err != nil:
		return err
	}
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// immutableMessage is what the client is told about a tag that stays.
func immutableMessage(err error) string {
	said := err.Error()
	if i := strings.Index(said, "tag "); i >= 0 { // without what we attempted, which it knows
		said = said[i:]
	}
	return strings.TrimSuffix(said, ": "+storage.ErrImmutable.Error()) + ", and is immutable here: push under another tag"
}

// etagMatches reports whether the value of If-None-Match names d.
func etagMatches(header, d string) bool {
	for tag := range strings.SplitSeq(header, ",") {
		tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/")
		if tag == "*" || strings.Trim(tag, `"`) == d {
			return true
		}
	}
	return false
}
