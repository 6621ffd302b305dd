// Package control is the control API, below /berth/v1: what administrators and
// nodes ask of a server beside images. Everything that it answers is a row of
// the table in table.go. The reasons are in docs/design/0002-control-api.md.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"

	"berth.internal/auth"
	"berth.internal/auth/policy"
	"berth.internal/internal/control"
	"berth.internal/internal/httpx"
	"berth.internal/internal/oci"
	"berth.internal/server/audit"
	"berth.internal/storage"
	"berth.internal/storage/backup"
	"berth.internal/storage/care"
	"berth.internal/storage/gc"
)

// Right is what a caller needs for an operation.
type Right string

// The rights.
const (
	Everyone Right = "everyone" // none
	Pull     Right = "pull"     // on the repository that the request names
	Push     Right = "push"
	Delete   Right = "delete"
	Admin    Right = "admin" // on the server as a whole
	Self     Right = "self"  // to be the user that the path names, or to have Admin

	// Overwrite is what it takes beside Push to move a tag.
	Overwrite Right = "overwrite"
)

// Config is what the API is built from. Every field is needed.
type Config struct {
	// Access returns nil if the caller has the right to repo. repo is empty for
	// Admin, and for Pull of what concerns no repository; for Self it is the name of
	// a user, or Myself.
	Access func(r *http.Request, repo string, needs Right) error

	// Caller returns who sent the request.
	Caller func(r *http.Request) auth.Caller

	// Address returns the address that the request came from, without port.
	Address func(r *http.Request) string

	// Ready tells what the server consists of, and what of it is ready.
	Ready func(ctx context.Context) []control.Part

	// Settings returns the configuration in force; Reload reads it again.
	Settings func() control.Settings
	Reload   func(ctx context.Context) (control.Reloaded, error)

	// Name is that of the registry, as soon as it is known.
	Name func() string

	Version string

	// Policy is what can be changed of what decides; Decider is all of it.
	Policy  *policy.Live
	Decider auth.Decider

	Index      storage.Index
	Rules      func(repo string) storage.Rules // under which names change in repo
	Collector  *gc.Collector
	Identities *auth.Service
	Store      storage.Store
	Scrub      *care.Scrub
	Backup     backup.Source // but for Hold, Tell and Version
	Audit      *audit.Log
	Log        *slog.Logger
}

// Handler answers the control API. Make it with New.
type Handler struct {
	Config
	table []Operation
	jobs  *jobs
	http  http.Handler
}

// New returns a handler for the API.
func New(cfg Config) *Handler {
	h := &Handler{Config: cfg, table: Table(), jobs: &jobs{log: cfg.Log}}
	h.http = httpx.Handle(Render, h.serve)
	return h
}

// ServeHTTP answers every path below control.Base.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.http.ServeHTTP(w, r) }

// Close cancels the jobs that run and returns when they have ended. Requests
// that come later start none.
func (h *Handler) Close() { h.jobs.close() }

// serve finds the row of the request and asks its function.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Cache-Control", "no-store")
	if err := http.NewCrossOriginProtection().Check(r); err != nil {
		return control.Denied.With("a page of another site sent this request: the control API is not for browsers").Because(err)
	}
	op, values, allow := route(h.table, r)
	switch {
	case op.do == nil && allow == nil:
		return control.Unsupported.With("this server has no such path; GET " + control.Base + "/server says what it supports").At(http.StatusNotFound)
	case op.do == nil:
		w.Header().Set("Allow", strings.Join(allow, ", "))
		return control.Unsupported.With(r.Method + " is not supported here").At(http.StatusMethodNotAllowed)
	}
	// Who may not know what the server holds is not told either what a request
	// should look like, as far as that can be said before it is read.
	if op.does != "" {
		h.Audit.Note(r).Does(op.does)
	}
	if op.Needs == Admin || op.Needs == Self {
		if err := h.Access(r, values[fieldUser], op.Needs); err != nil {
			if n := audit.Noted(r); n != nil {
				n.Object = op.Method + " " + op.Path
			}
			return err
		}
	}
	request, err := op.read(w, r, values)
	if err != nil {
		return err
	}
	if op.does != "" {
		op.note(h.Audit.Note(r), request)
	}
	if repo, ok := op.repository(request); ok {
		if _, err := oci.ParseName(repo); err != nil {
			return control.Invalid.With(messageOf(err)).In(fieldRepo)
		}
		if err := h.Access(r, repo, op.Needs); err != nil {
			return err
		}
	}
	answer, err := op.do(h, r, request)
	if err != nil {
		return err
	}
	return write(w, op.Status, answer)
}

// Render writes err as the API's JSON. What has no code of its own is the
// server's failure, and its reason is for the log only.
func Render(w http.ResponseWriter, r *http.Request, err error) {
	e := *failure(err)
	e.RequestID = httpx.RequestID(r.Context())
	w.Header().Del("Content-Length")
	if (e.Status == http.StatusTooManyRequests || e.Status == http.StatusServiceUnavailable) && w.Header().Get("Retry-After") == "" {
		w.Header().Set("Retry-After", "5") // seconds
	}
	_ = write(w, e.Status, control.Failure{Error: &e}) // the client has gone: nobody to tell
}

// failure is err in the words of the API.
func failure(err error) *control.Error {
	var ours *control.Error
	var registry *oci.Error
	switch {
	case errors.As(err, &ours):
		if ours.Status == 0 {
			return ours.At(http.StatusInternalServerError)
		}
		return ours
	case errors.As(err, &registry):
		return translate(registry)
	case errors.Is(err, storage.ErrNoSpace):
		return control.Unavailable.With("the server's disk is full: free space on it, then try again").At(http.StatusInsufficientStorage)
	case errors.Is(err, storage.ErrMedium):
		return control.Internal.With("the server's disk failed: the change is done or not; try again, and if that fails too, look at the disk; the log says more")
	}
	return control.Internal
}

// translate is for what the registry's access policy says.
func translate(e *oci.Error) *control.Error {
	switch status := e.HTTPStatus(); status {
	case http.StatusUnauthorized:
		return control.Unauthenticated.With(e.Message)
	case http.StatusForbidden:
		return control.Denied.With(e.Message)
	case http.StatusNotFound:
		return control.NotFound.With(e.Message)
	case http.StatusBadRequest:
		return control.Invalid.With(e.Message)
	case http.StatusTooManyRequests:
		return control.TooMany.With(e.Message)
	case http.StatusServiceUnavailable:
		return control.Unavailable.With(e.Message)
	}
	return control.Internal
}

// messageOf is what an error of package oci tells the client.
func messageOf(err error) string {
	if e, ok := errors.AsType[*oci.Error](err); ok {
		return e.Message
	}
	return err.Error()
}

func write(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	_, err = w.Write(b)
	return err
}
