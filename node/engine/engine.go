// Package engine serves the Docker Engine API, the node's only local API: it
// translates HTTP onto node/host and nothing else. What the API knows and the
// node does not do is refused by name.
package engine

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"

	"github.com/gorilla/mux"

	"berth.internal/internal/lazyregexp"
	"berth.internal/node/host"
)

// The versions of the API that are served. From 1.52 on the answers lack fields
// that older clients read.
const (
	minVersion = version(1_41)
	maxVersion = version(1_51)
)

// version is a version of the API, 141 for 1.41.
type version int

func (v version) String() string {
	return strconv.Itoa(int(v)/100) + "." + strconv.Itoa(int(v)%100)
}

// Config is what the engine says about the node it serves.
type Config struct {
	ID       string // node id
	Name     string // of the machine
	Version  string // of berth
	Commit   string // of berth's source
	Registry string // canonical name
	Data     string // directory of the node

	Endpoints []string // addresses of the registry, host:port
}

// Engine is an http.Handler for the whole API.
type Engine struct {
	host   *host.Host
	cfg    Config
	log    *slog.Logger
	routes *mux.Router
}

// New returns the API of the node's containers.
func New(h *host.Host, cfg Config, log *slog.Logger) *Engine {
	e := &Engine{host: h, cfg: cfg, log: log, routes: mux.NewRouter().SkipClean(true)}
	for _, rt := range e.table() {
		e.routes.Path(rt.path).Methods(rt.methods...).Handler(e.handle(rt.serve))
	}
	e.routes.NotFoundHandler = e.handle(pageNotFound)
	e.routes.MethodNotAllowedHandler = e.handle(pageNotFound)
	return e
}

type route struct {
	methods []string
	path    string
	serve   handler
}

// handler answers a request, or returns an error and has written nothing.
type handler func(w http.ResponseWriter, r *http.Request) error

func pageNotFound(http.ResponseWriter, *http.Request) error {
	return &failure{http.StatusNotFound, "page not found"}
}

// handle is the one place that writes failures.
func (e *Engine) handle(fn handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := fn(w, r)
		if err == nil {
			return
		}
		code := status(err)
		switch {
		case errors.Is(err, context.Canceled) && r.Context().Err() != nil:
			return // nobody reads the answer
		case code >= http.StatusInternalServerError && code != http.StatusNotImplemented:
			e.log.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
		default:
			e.log.Debug("request refused", "method", r.Method, "path", r.URL.Path, "status", code, "error", err)
		}
		writeError(w, code, err.Error())
	})
}

// versioned matches the version in front of a path. The API can be called
// without one, which means the newest.
var versioned = lazyregexp.New(`^/v([0-9]{1,3})\.([0-9]{1,3})(/.*)$`)

type versionKey struct{}

// versionOf returns the version of the API that the client speaks.
func versionOf(r *http.Request) version {
	v, _ := r.Context().Value(versionKey{}).(version)
	return v
}

// ServeHTTP checks the version and routes the request.
func (e *Engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer func() {
		if p := recover(); p != nil {
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
			e.log.Error("request panicked", "method", r.Method, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
			writeError(w, http.StatusInternalServerError, "the node made a mistake; its log says which")
		}
	}()
	hdr := w.Header()
	hdr.Set("Api-Version", maxVersion.String())
	hdr.Set("Docker-Experimental", "false")
	hdr.Set("Ostype", "linux")
	hdr.Set("Server", "berth/"+e.cfg.Version+" (linux)")

	v, path := maxVersion, r.URL.Path
	if m := versioned().FindStringSubmatch(r.URL.Path); m != nil {
		major, _ := strconv.Atoi(m[1]) // at most three digits
		minor, _ := strconv.Atoi(m[2])
		asked := m[1] + "." + m[2]
		v, path = version(major*100+min(minor, 99)), m[3]
		switch {
		case v < minVersion:
			writeError(w, http.StatusBadRequest, "client version "+asked+" is too old. Minimum supported API version is "+minVersion.String()+", please upgrade your client to a newer version")
			return
		case v > maxVersion:
			writeError(w, http.StatusBadRequest, "client version "+asked+" is too new. Maximum supported API version is "+maxVersion.String())
			return
		}
	}
	r = r.WithContext(context.WithValue(r.Context(), versionKey{}, v))
	u := *r.URL
	u.Path, u.RawPath = path, ""
	r.URL = &u
	e.routes.ServeHTTP(w, r)
}
