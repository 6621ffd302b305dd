// Package server is the front door of the registry: listener, middleware,
// metrics and health, and its parts on one mux.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"berth.internal/internal/httpx"
	"berth.internal/internal/oci"
	"berth.internal/server/registry"
	"berth.internal/storage"
	"berth.internal/storage/gc"
)

// Server serves a registry. Make it with New.
type Server struct {
	cfg       Config
	storage   storage.Drivers
	log       *slog.Logger
	metrics   *metrics
	collector *gc.Collector
	handler   http.Handler
}

// New returns a server over the drivers. It takes no ownership of them: close
// them after Serve has returned. measured is what other rooms measure, shown in
// /metrics as well.
func New(cfg Config, d storage.Drivers, log *slog.Logger, measured ...prometheus.Collector) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, storage: d, log: log, metrics: newMetrics()}
	s.collector = gc.New(d.Store, d.Index, gc.Config{
		Interval: cfg.Collect.Interval, Rate: cfg.Collect.Rate, SessionExpiry: cfg.UploadExpiry,
		Policy: storage.ReviewPolicy{Untagged: cfg.Collect.Untagged, Grace: cfg.Grace},
	}, log)
	gatherer := prometheus.NewRegistry()
	gatherer.MustRegister(s.metrics.collectors()...)
	gatherer.MustRegister(measured...)
	gatherer.MustRegister(s.collector.Metrics()...)
	api := registry.New(registry.Config{
		Store: d.Store, Index: d.Index,
		Access: s.access, Owner: func(*http.Request) string { return "" },
		Sparse: cfg.Sparse, MaxManifest: int64(cfg.MaxManifest), Grace: cfg.Grace, UploadExpiry: cfg.UploadExpiry,
	})
	// SkipClean: a cleaned path would be answered by a redirect, which clients
	// do not follow with the body of an upload.
	router := mux.NewRouter().SkipClean(true)
	router.Handle("/metrics", promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{})).Methods(http.MethodGet)
	router.HandleFunc("/healthz", s.healthz).Methods(http.MethodGet, http.MethodHead)
	router.HandleFunc("/readyz", s.readyz).Methods(http.MethodGet, http.MethodHead)
	router.NotFoundHandler = httpx.Handle(registry.Render, func(http.ResponseWriter, *http.Request) error {
		return oci.Unsupported.With("there is nothing here: the registry's API begins at /v2/", nil).At(http.StatusNotFound)
	})
	front := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.URL.Path) >= 3 && r.URL.Path[:3] == "/v2" {
			api.ServeHTTP(w, r) // it reads its paths from their end, which no router does
			return
		}
		router.ServeHTTP(w, r)
	})
	s.handler = httpx.Log(log, registry.Render, s.metrics.observe, front)
	return s, nil
}

// Handler returns what answers the requests.
func (s *Server) Handler() http.Handler { return s.handler }

// Serve answers requests on l until ctx ends. Then it accepts no more and
// returns when those under way have ended, or ShutdownTimeout is over.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if s.cfg.Anonymous != AnonymousNone {
		s.log.Warn("everybody who reaches this address may use the registry without a password", "anonymous", string(s.cfg.Anonymous), "address", l.Addr().String())
	}
	hs := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: 20 * time.Second, // bodies may take as long as they make progress
		IdleTimeout:       3 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	collecting, stopCollecting := context.WithCancel(ctx)
	var background sync.WaitGroup
	background.Go(func() { s.collector.Run(collecting) })
	defer func() {
		stopCollecting()
		background.Wait()
	}()
	served := make(chan error, 1)
	go func() { served <- hs.Serve(l) }()
	s.log.Info("registry is ready", "address", l.Addr().String(), "url", "http://"+l.Addr().String())
	select {
	case err := <-served:
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	s.log.Info("registry is stopping; transfers under way may end", "timeout_seconds", s.cfg.ShutdownTimeout.Seconds())
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.ShutdownTimeout)
	defer cancel()
	err := hs.Shutdown(end)
	if errors.Is(err, context.DeadlineExceeded) {
		s.log.Warn("transfers were cut off")
		err = hs.Close()
	}
	if served := <-served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	s.log.Info("registry has stopped")
	return err
}

// access is the policy of a server without users: see AnonymousNone and the
// others. The listener is what keeps other machines out.
func (s *Server) access(_ *http.Request, _ string, a registry.Action) error {
	switch {
	case s.cfg.Anonymous == AnonymousPull && a != registry.Pull:
		return oci.Denied.With(fmt.Sprintf("anonymous callers may only pull here, not %s: the registry was started with --anonymous pull", a), nil)
	case s.cfg.Anonymous == AnonymousNone, s.cfg.Anonymous == AnonymousPull, s.cfg.Anonymous == AnonymousPush:
		return nil
	}
	return oci.Denied
}

// healthz answers whether the process lives.
func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusOK)
}

// readyz answers whether requests would succeed: whether the index answers.
func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	if _, err := s.storage.Index.Repositories(r.Context(), "", 1); err != nil {
		s.log.Error("not ready", "error", err)
		http.Error(w, "the index does not answer; the log says why", http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusOK)
}
