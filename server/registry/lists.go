package registry

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.internal/internal/oci"
	"berth.internal/storage"
)

// maxPage is how many names one answer holds at most, also if the client asks
// for more.
const maxPage = 10_000

// tags answers end-8a and end-8b.
func (h *Handler) tags(w http.ResponseWriter, r *http.Request, t target) error {
	page, err := readPage(r.URL.Query())
	if err != nil {
		return err
	}
	tags, err := h.Index.Tags(r.Context(), t.name, page.last, page.n+1)
	if errors.Is(err, storage.ErrNotFound) {
		return oci.NameUnknown.Because(err)
	} else if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, "application/json", struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{t.name, page.cut(w, r, tags)})
}

// catalog answers GET /v2/_catalog, which is not of the spec, but which
// Docker's tools use: the repositories that the caller may pull from.
func (h *Handler) catalog(w http.ResponseWriter, r *http.Request, _ target) error {
	page, err := readPage(r.URL.Query())
	if err != nil {
		return err
	}
	names := make([]string, 0, min(page.n, 100)+1)
	for after := page.last; len(names) <= page.n; {
		some, err := h.Index.Repositories(r.Context(), after, page.n+1-len(names))
		if err != nil {
			return err
		}
		if len(some) == 0 {
			break
		}
		after = some[len(some)-1]
		for _, name := range some {
			if h.lists(r, name) {
				names = append(names, name)
			}
		}
	}
	return writeJSON(w, http.StatusOK, "application/json", struct {
		Repositories []string `json:"repositories"`
	}{page.cut(w, r, names)})
}

// lists tells whether the catalog shows the name to the caller.
func (h *Handler) lists(r *http.Request, name string) bool {
	if h.Lists != nil {
		return h.Lists(r, name)
	}
	return h.Access(r, name, Pull) == nil
}

// page is a part of a list: at most n names after last.
type page struct {
	n    int
	last string
}

func readPage(q url.Values) (page, error) {
	p := page{n: maxPage, last: q.Get("last")}
	if q.Has("n") {
		n, err := strconv.Atoi(q.Get("n"))
		if err != nil || n < 0 {
			return p, oci.Unsupported.With("n must be a whole number, not negative", nil).At(http.StatusBadRequest)
		}
		p.n = min(n, maxPage)
	}
	return p, nil
}

// cut returns the names that are asked for. names holds one more, if there is
// one; then the answer links to the rest.
func (p page) cut(w http.ResponseWriter, r *http.Request, names []string) []string {
	if len(names) > p.n {
		names = names[:p.n]
		if p.n > 0 {
			link(w, r, url.Values{"n": {strconv.Itoa(p.n)}, "last": {names[p.n-1]}})
		}
	}
	if names == nil {
		return []string{} // in JSON, null is no list
	}
	return names
}

// link says where the list goes on (RFC 5988). It is relative, since we may be
// behind a proxy, and keeps the namespace that a client asks a mirror for.
func link(w http.ResponseWriter, r *http.Request, q url.Values) {
	if ns := r.URL.Query().Get("ns"); ns != "" {
		q.Set("ns", ns)
	}
	w.Header().Set("Link", "<"+r.URL.EscapedPath()+"?"+q.Encode()+`>; rel="next"`)
}

// maxReferrers bounds the size of one page of referrers, in bytes: clients read
// no larger index. Some of them are for the index around the descriptors.
const maxReferrers = 4<<20 - 128

// referrers answers end-12a and end-12b: an index of the manifests whose
// subject is the digest.
func (h *Handler) referrers(w http.ResponseWriter, r *http.Request, t target) error {
	d, err := oci.ParseDigest(t.ref)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	wanted := q.Get("artifactType")
	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{}}
	after := digest.Digest(q.Get("last"))
	for size := 0; ; {
		const batch = 16 // few, since each may be as large as a manifest
		some, err := h.Index.Referrers(r.Context(), t.name, d, wanted, after, batch)
		if err != nil {
			return err
		}
		for _, desc := range some {
			b, err := json.Marshal(desc)
			if err != nil {
				return err
			}
			if size += len(b) + 1; size > maxReferrers && len(index.Manifests) > 0 {
				next := url.Values{"last": {after.String()}}
				if wanted != "" {
					next.Set("artifactType", wanted)
				}
				link(w, r, next)
				some = nil
				break
			}
			index.Manifests = append(index.Manifests, desc)
			after = desc.Digest
		}
		if len(some) < batch {
			break
		}
	}
	if wanted != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	return writeJSON(w, http.StatusOK, v1.MediaTypeImageIndex, index)
}
