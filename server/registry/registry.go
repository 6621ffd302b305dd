// Package registry is the OCI distribution API: blobs, uploads, manifests,
// tags and referrers over the storage contract.
package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth.internal/internal/httpx"
	"berth.internal/internal/oci"
	"berth.internal/server/audit"
	"berth.internal/storage"
)

// Action is something that a caller may or may not do with a repository.
type Action string

// The actions of the distribution API. Who may push, but not overwrite, may put
// tags where none are, and not move them.
const (
	Pull      Action = "pull"
	Push      Action = "push"
	Overwrite Action = "overwrite"
	Delete    Action = "delete"
)

// Sparse says which content a manifest may name that its repository lacks.
type Sparse string

// The sparse modes.
const (
	SparseNone  Sparse = "none"  // everything named must be there
	SparseIndex Sparse = "index" // an index may lack children, as with images of a few platforms
	SparseAll   Sparse = "all"   // an image may lack its config and layers, too
)

// Config is what the API is built from. Every field but Lists, Wider and Audit is
// needed.
type Config struct {
	Store storage.Store
	Index storage.Index

	// Access returns nil if the caller may do a with repo. repo is empty for
	// what concerns no repository: the catalog and GET /v2/.
	Access func(r *http.Request, repo string, a Action) error

	// Wider returns the error that asks the caller to come again with a token that
	// is good for pulling from source, too, for a mount into repo; nil if no token
	// of theirs could be. If it is nil, mounts ask nobody.
	Wider func(r *http.Request, repo, source string) error

	// Lists tells whether the catalog shows repo to the caller; nil: if Access lets
	// them pull.
	Lists func(r *http.Request, repo string) bool

	// Owner names the caller, so that an upload goes on only for who began it.
	Owner func(r *http.Request) string

	// Suspect is asked about content of which the Store does not have the bytes,
	// or as many as the Index says. It quarantines what is damaged and says why;
	// empty: it is not, or has changed meanwhile.
	Suspect func(ctx context.Context, c storage.Content) (why string, err error)

	// Rules returns those under which names change in repo.
	Rules func(repo string) storage.Rules

	Audit *audit.Log

	// Limits returns those that hold now.
	Limits func() Limits

	UploadExpiry time.Duration // how long an idle upload is kept
}

// Limits are what can be changed while the API is served.
type Limits struct {
	Sparse      Sparse
	MaxManifest int64 // bytes; a larger manifest is refused with 413
}

// Handler answers the distribution API. Make it with New.
type Handler struct {
	Config
	uploads *uploads
	http    http.Handler
}

// New returns a handler for the API.
func New(cfg Config) *Handler {
	h := &Handler{Config: cfg, uploads: newUploads(cfg.UploadExpiry)}
	h.http = httpx.Handle(Render, h.serve)
	return h
}

// endpoint answers one kind of request.
type endpoint func(h *Handler, w http.ResponseWriter, r *http.Request, t target) error

// operation is an endpoint and what it takes to use it.
type operation struct {
	needs Action
	serve endpoint

	// does is what the audit log calls it; empty: it changes nothing, or its endpoint
	// knows more.
	does string
}

// Names of the audit log.
const (
	doesPull     = "pull"
	doesPushBlob = "blob.push"
)

// lookup returns what method does with a kind of path; serve is nil if it does
// nothing.
func lookup(k kind, method string) operation {
	read := method == http.MethodGet || method == http.MethodHead
	switch {
	case k == kindBase && read:
		return operation{needs: Pull, serve: (*Handler).base}
	case k == kindCatalog && read:
		return operation{needs: Pull, serve: (*Handler).catalog}
	case k == kindTags && read:
		return operation{needs: Pull, serve: (*Handler).tags}
	case k == kindReferrers && read:
		return operation{needs: Pull, serve: (*Handler).referrers}
	case k == kindManifest && read:
		return operation{Pull, (*Handler).getManifest, doesPull}
	case k == kindManifest && method == http.MethodPut:
		return operation{Push, (*Handler).putManifest, "manifest.push"}
	case k == kindManifest && method == http.MethodDelete:
		return operation{Delete, (*Handler).deleteManifest, "manifest.delete"}
	case k == kindBlob && method == http.MethodHead:
		return operation{needs: Pull, serve: (*Handler).headBlob}
	case k == kindBlob && method == http.MethodGet:
		return operation{Pull, (*Handler).getBlob, doesPull}
	case k == kindBlob && method == http.MethodDelete:
		return operation{Delete, (*Handler).deleteBlob, "blob.delete"}
	case k == kindUploads && method == http.MethodPost:
		return operation{needs: Push, serve: (*Handler).postUpload}
	case k == kindUpload && read:
		return operation{needs: Push, serve: (*Handler).getUpload}
	case k == kindUpload && method == http.MethodPatch:
		return operation{needs: Push, serve: (*Handler).patchUpload}
	case k == kindUpload && method == http.MethodPut:
		return operation{Push, (*Handler).putUpload, doesPushBlob}
	case k == kindUpload && method == http.MethodDelete:
		return operation{needs: Push, serve: (*Handler).deleteUpload}
	}
	return operation{}
}

var methods = [...]string{"DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"}

// Operation is something that the API does.
type Operation struct {
	Method string
	Path   string // with <name>, <reference>, <digest> and <id>, as in the spec
	Needs  Action // on the repository, if the path names one
}

// Operations returns all that the API does.
func Operations() []Operation {
	var all []Operation
	for k, path := range paths {
		for _, m := range methods {
			if op := lookup(kind(k), m); op.serve != nil {
				all = append(all, Operation{Method: m, Path: path, Needs: op.needs})
			}
		}
	}
	return all
}

// allowed is the Allow header of a kind of path.
func allowed(k kind) string {
	var list []string
	for _, m := range methods {
		if lookup(k, m).serve != nil {
			list = append(list, m)
		}
	}
	return strings.Join(list, ", ")
}

// ServeHTTP answers every path below /v2/.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.http.ServeHTTP(w, r)
}

var apiVersion = []string{"registry/2.0"}

func (h *Handler) serve(w http.ResponseWriter, r *http.Request) error {
	head := w.Header()
	head["Docker-Distribution-Api-Version"] = apiVersion
	t, err := route(r.URL)
	if err != nil {
		return err
	}
	op := lookup(t.kind, r.Method)
	if op.serve == nil {
		head.Set("Allow", allowed(t.kind))
		return oci.Unsupported.With(fmt.Sprintf("%s is not supported here", r.Method), nil)
	}
	if op.needs != Pull || op.does != "" && h.Audit.Pulls() {
		n := h.Audit.Note(r)
		if n.Repo = t.name; op.does != "" {
			n.Does(op.does)
		}
		if t.kind == kindManifest || t.kind == kindBlob { // not the id of an upload
			n.Names(t.ref)
		}
	}
	if err := h.Access(r, t.name, op.needs); err != nil {
		return err
	}
	if r.URL.RawQuery != "" {
		if ns := r.URL.Query().Get("ns"); ns != "" {
			head.Set("OCI-Namespace", ns) // spec, "Registry proxying"
		}
	}
	err = op.serve(h, w, r, t)
	for tries := 0; errors.Is(err, errGone) && tries < 3; tries++ {
		err = op.serve(h, w, r, t)
	}
	return err
}

// errGone is what an endpoint returns, before it has answered anything, if the
// store did not have what the index had just named. Most likely the content
// was deleted and collected in between, and the index knows that by now.
var errGone = errors.New("the index named bytes that the store did not have")

// open opens content for reading. Errors: errGone; *storage.QuarantinedError if
// its bytes are not there, or are not what the index says.
func (h *Handler) open(r *http.Request, c storage.Content) (io.ReadSeekCloser, error) {
	if c.Key == "" {
		return inline{bytes.NewReader(c.Inline)}, nil
	}
	b, err := h.Store.Open(r.Context(), c.Key)
	if err == nil && b.Size() != c.Size {
		err = errors.Join(fmt.Errorf("%w: %d of %d", errSize, b.Size(), c.Size), b.Close())
	}
	if err == nil {
		return b, nil
	}
	if !errors.Is(err, errSize) && !errors.Is(err, storage.ErrNotFound) {
		return nil, err
	}
	why, suspected := h.Suspect(durable(r), c)
	switch {
	case suspected != nil:
		return nil, fmt.Errorf("open %s: %v: %w", c.Digest, err, suspected) //nolint:errorlint // whether it is there is what could not be found out
	case why != "":
		return nil, &storage.QuarantinedError{Digest: c.Digest, Why: why, Since: time.Now()}
	}
	return nil, fmt.Errorf("%w: %w", errGone, err) // the next look finds what it is now
}

// errSize is bytes that are fewer or more than the index says.
var errSize = errors.New("the store has another number of bytes")

// inline is content that the index keeps.
type inline struct{ *bytes.Reader }

func (inline) Close() error { return nil }

// base answers end-1: this is a registry.
func (h *Handler) base(w http.ResponseWriter, _ *http.Request, _ target) error {
	return writeJSON(w, http.StatusOK, "application/json", struct{}{})
}

// Render writes err as the spec's JSON. What has no code of its own is the
// server's failure, and its reason is for the log only.
func Render(w http.ResponseWriter, r *http.Request, err error) {
	var e *oci.Error
	var missing *storage.MissingError
	var tooLarge *http.MaxBytesError
	var errs []*oci.Error
	switch {
	case errors.As(err, &missing): // one error for each, as clients expect
		for _, d := range slices.Compact(slices.Sorted(slices.Values(missing.Digests))) {
			errs = append(errs, oci.ManifestBlobUnknown.With("", d))
		}
		e = oci.ManifestBlobUnknown
	case errors.As(err, &e):
		if damaged, ok := errors.AsType[*storage.QuarantinedError](err); ok { // beneath an error that says only that nothing is there
			e = e.With("the registry's copy of "+damaged.Digest.String()+" is damaged and quarantined ("+damaged.Why+"): push it again", nil)
		}
	case errors.Is(err, storage.ErrImmutable):
		e = oci.Denied.With(immutableMessage(err), nil).At(http.StatusConflict)
	case errors.Is(err, storage.ErrNoSpace):
		e = oci.Unknown.With("the registry's disk is full: pulls and deletes go on; delete images and purge them from the trash, or give it a larger disk, then push again", nil).At(http.StatusInsufficientStorage)
	case errors.Is(err, storage.ErrMedium) && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		e = oci.Unknown.With("the registry's disk failed to read this: try again, and if that fails too, its administrator must look at the disk", nil)
	case errors.Is(err, storage.ErrMedium):
		e = oci.Unknown.With("the registry's disk failed: the change is done or not; try again, and if that fails too, its administrator must look at the disk", nil)
	case errors.As(err, &tooLarge):
		e = oci.SizeInvalid.With("the body is too large", nil).At(http.StatusRequestEntityTooLarge)
	default:
		e = oci.Unknown
	}
	if errs == nil {
		errs = []*oci.Error{e}
	}
	body := struct {
		Errors []*oci.Error `json:"errors"`
	}{errs}
	w.Header().Del("Content-Length")
	w.Header().Del("ETag")
	if e.HTTPStatus() == http.StatusTooManyRequests && w.Header().Get("Retry-After") == "" {
		w.Header().Set("Retry-After", "60") // seconds; without it clients give up or come at once
	}
	_ = writeJSON(w, e.HTTPStatus(), "application/json", body) // the client has gone: nobody to tell
}

func writeJSON(w http.ResponseWriter, status int, mediaType string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	_, err = w.Write(b)
	return err
}

// durable is the context of work that must end even if the client goes away.
func durable(r *http.Request) context.Context { return context.WithoutCancel(r.Context()) }
