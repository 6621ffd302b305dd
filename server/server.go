// Package server is the front door of the registry: listener, middleware,
// metrics and health, and its parts on one mux.
package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"berth.internal/auth"
	"berth.internal/auth/ldap"
	"berth.internal/auth/oidc"
	"berth.internal/auth/policy"
	wire "berth.internal/internal/control"
	"berth.internal/internal/httpx"
	"berth.internal/internal/oci"
	"berth.internal/server/audit"
	"berth.internal/server/control"
	"berth.internal/server/registry"
	"berth.internal/storage"
	"berth.internal/storage/backup"
	"berth.internal/storage/care"
	"berth.internal/storage/gc"
)

// Server serves a registry. Make it with New.
type Server struct {
	cfg       Config
	storage   storage.Drivers
	log       *slog.Logger
	metrics   *metrics
	collector *gc.Collector
	scrub     *care.Scrub
	policy    *policy.Live
	cert      keeper   // nil: plain HTTP
	clients   *clients // nil: their certificates do not count
	patience  patience
	control   *control.Handler
	name      string // of the registry
	handler   http.Handler

	identities *auth.Service
	issuers    *oidc.Issuers
	decider    auth.Decider
	audit      *audit.Log

	now       atomic.Pointer[current]
	reloading sync.Mutex // held while now is replaced
}

// Open returns a server over the drivers. It takes no ownership of them: close
// them after Serve has returned. measured is what other rooms measure, shown in
// /metrics as well. Errors: ErrNoUsers; what is wrong with cfg, or cannot be read.
func Open(ctx context.Context, cfg Config, d storage.Drivers, log *slog.Logger, measured ...prometheus.Collector) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, storage: d, log: log, metrics: newMetrics(), name: cfg.Listen, patience: usualPatience}
	var err error
	if err = s.adopt(cfg); err != nil {
		return nil, err
	}
	directory := auth.DirectoryConfig{Recheck: cfg.LDAP.Recheck, Outage: cfg.LDAP.Outage}
	if cfg.LDAP.URL != "" {
		if directory.Directory, err = ldap.Open(cfg.LDAP, log); err != nil {
			return nil, fmt.Errorf("ldap.%w", err)
		}
	}
	if s.issuers, err = oidc.New(cfg.OIDC, log); err != nil {
		return nil, err
	}
	s.audit = audit.New(audit.Config{Dir: cfg.Audit.Dir, Settings: cfg.Audit.settings(), Who: s.sender, Log: log})
	s.identities, err = auth.Open(ctx, auth.Config{
		Records: d.Records, Htpasswd: cfg.Htpasswd, AdminPasswordFile: cfg.AdminPasswordFile, SecretKeyFile: cfg.SecretKeyFile, Issuers: s.issuers,
		Directory: directory, Log: log,
	})
	if err != nil {
		return nil, err
	}
	if cfg.Public() && !s.identities.InUse() {
		if cfg.ShowAdmin == nil {
			return nil, cfg.noUsers()
		}
		if err := s.identities.MakeAdmin(ctx, cfg.ShowAdmin); err != nil {
			return nil, err
		}
	}
	s.collector = gc.New(d.Store, d.Index, gc.Config{
		Records:  d.Records,
		Interval: cfg.Collect.Interval, Rate: cfg.Collect.Rate, SessionExpiry: cfg.UploadExpiry,
		Policy: storage.ReviewPolicy{Untagged: cfg.Collect.Untagged, Dangling: cfg.Collect.Dangling, Rules: cfg.rules("")},
	}, log)
	s.scrub = care.NewScrub(d, care.ScrubConfig{Interval: cfg.Scrub.Interval, Rate: int64(cfg.Scrub.Rate)}, log)
	s.policy = policy.New(policy.LiveConfig{Records: d.Records, File: cfg.Policy, Base: cfg.base(), Changed: s.policyChanged, Log: log})
	s.decider = policy.WithRobots{Decider: s.policy}
	gatherer := prometheus.NewRegistry()
	if cfg.TLS.on() {
		s.cert = newKeeper(cfg, log)
		gatherer.MustRegister(expiry(s.cert))
	}
	if cfg.TLS.ClientCA != "" {
		s.clients = newClients(cfg.TLS.ClientCA, log)
	}
	gatherer.MustRegister(s.metrics.collectors()...)
	gatherer.MustRegister(measured...)
	gatherer.MustRegister(s.identities.Metrics()...)
	gatherer.MustRegister(s.collector.Metrics()...)
	gatherer.MustRegister(s.scrub.Metrics()...)
	gatherer.MustRegister(s.audit.Metrics()...)
	s.handler = httpx.Log(log, render, s.metrics.observe, s.front(gatherer))
	return s, nil
}

// front answers all requests: it hands those of the two APIs to them, after it has found
// out who asks and how often, and the rest to routes.
func (s *Server) front(gatherer prometheus.Gatherer) http.Handler {
	cfg, d := s.cfg, s.storage
	api := registry.New(registry.Config{
		Store: d.Store, Index: d.Index,
		Access: s.access, Wider: s.wider, Lists: s.lists, Owner: s.owner, Suspect: s.scrub.Suspect, Audit: s.audit,
		Limits: s.limits, Rules: s.rules, UploadExpiry: cfg.UploadExpiry,
	})
	s.control = control.New(control.Config{
		Access: s.controlAccess, Caller: func(r *http.Request) auth.Caller { return visitorOf(r).Owner }, Address: s.client, Ready: s.ready, Name: func() string { return s.name }, Version: cfg.Version, Policy: s.policy, Decider: s.decider,
		Settings: s.settings, Reload: s.Reload, Index: d.Index, Rules: s.rules, Collector: s.collector, Store: d.Store, Scrub: s.scrub,
		Backup: backup.Source{Drivers: d, Data: cfg.Data}, Identities: s.identities, Audit: s.audit, Log: s.log,
	})
	router := s.routes(gatherer)
	byCaller := func() *limiter { return s.now.Load().byCaller }
	byAddress := func() *limiter { return s.now.Load().byAddress }
	limitedAPI := limited(byCaller, s.callerOf, api) // it reads its paths from their end, which no router does
	limitedControl := limited(byCaller, s.callerOf, s.control)
	pages := http.NewCrossOriginProtection()
	distribution := httpx.Handle(registry.Render, func(w http.ResponseWriter, r *http.Request) error {
		if err := pages.Check(r); err != nil {
			return oci.Denied.With("a page of another site sent this request: only programs, and pages of this one, change anything here", nil).Because(err)
		}
		s.identify(r)
		limitedAPI.ServeHTTP(w, r)
		return nil
	})
	return limited(byAddress, s.addressOf, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/v2"):
			distribution.ServeHTTP(w, r)
		case isControl(r):
			s.identify(r)
			limitedControl.ServeHTTP(w, r)
		default:
			router.ServeHTTP(w, r)
		}
	}))
}

// routes are the paths beside those of the two APIs.
func (s *Server) routes(gatherer prometheus.Gatherer) *mux.Router {
	// SkipClean: a cleaned path would be answered by a redirect, which clients
	// do not follow with the body of an upload.
	router := mux.NewRouter().SkipClean(true)
	router.Handle("/metrics", s.guard(promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{}))).Methods(http.MethodGet)
	router.HandleFunc("/healthz", s.healthz).Methods(http.MethodGet, http.MethodHead)
	router.HandleFunc("/readyz", s.readyz).Methods(http.MethodGet, http.MethodHead)
	router.Handle(tokenPath, httpx.Handle(registry.Render, s.token))
	router.Handle(keysPath, httpx.Handle(registry.Render, s.jwks))
	router.NotFoundHandler = httpx.Handle(registry.Render, func(http.ResponseWriter, *http.Request) error {
		return oci.Unsupported.With("there is nothing here: the registry's API begins at /v2/, and tokens are at "+tokenPath, nil).At(http.StatusNotFound)
	})
	return router
}

func isControl(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, wire.Base+"/") }

// render writes err in the words of the API that was asked.
func render(w http.ResponseWriter, r *http.Request, err error) {
	if isControl(r) {
		control.Render(w, r, err)
		return
	}
	registry.Render(w, r, err)
}

// Handler returns what answers the requests.
func (s *Server) Handler() http.Handler { return s.handler }

// Serve answers requests on l, and on admin with every right, until ctx ends.
// Then it accepts no more and returns when those under way have ended, or
// ShutdownTimeout is over. It is called once; admin may be nil.
func (s *Server) Serve(ctx context.Context, l, admin net.Listener) error {
	if s.cfg.Anonymous != AnonymousNone {
		s.log.Warn("everybody who reaches this address may use the registry without a password", "anonymous", string(s.cfg.Anonymous), "address", l.Addr().String())
	}
	// Read to the end: who is asked to stop meanwhile has not failed, and stops
	// right after.
	reading := context.WithoutCancel(ctx)
	if err := s.policy.Load(reading); err != nil {
		return err
	}
	if s.cert != nil {
		if err := s.cert.load(reading); err != nil {
			return err
		}
	}
	if s.clients != nil {
		if err := s.clients.load(reading); err != nil {
			return err
		}
	}
	s.name = l.Addr().String()
	if host, _, err := net.SplitHostPort(s.cfg.Listen); s.cert == nil && s.now.Load().proxies == nil && s.identities.InUse() && (err != nil || !loopback(host)) {
		s.log.Warn("passwords come to this address in the clear: set tls.cert and tls.key, or name the proxy that speaks TLS for it as trusted_proxies", "address", s.name)
	}
	hs := s.httpServer(ctx, admin)
	auditing, stopAuditing := context.WithCancel(context.WithoutCancel(ctx))
	var audited sync.WaitGroup
	audited.Go(func() { s.audit.Run(auditing) })
	s.audit.Add(nil, wire.AuditRecord{Who: "server", Action: "server.start", Detail: s.cfg.Version, Decision: wire.AuditAllowed})
	defer func() { // after all that it records
		s.audit.Add(nil, wire.AuditRecord{Who: "server", Action: "server.stop", Decision: wire.AuditAllowed})
		stopAuditing()
		audited.Wait()
	}()
	working, stopWorking := context.WithCancel(ctx)
	var background sync.WaitGroup
	background.Go(func() { s.collector.Run(working) })
	background.Go(func() { s.policy.Run(working) })
	scheme, serve := "http", hs.Serve
	if s.cert != nil {
		scheme, hs.TLSConfig = "https", s.tlsConfig()
		serve = func(l net.Listener) error { return hs.ServeTLS(l, "", "") }
		background.Go(func() { s.cert.run(working) })
	}
	if s.clients != nil {
		background.Go(func() { s.clients.run(working) })
	}
	background.Go(func() { s.scrub.Run(working) })
	background.Go(func() { s.identities.Run(working) })
	background.Go(func() {
		<-working.Done()
		s.control.Close() // before the requests that watch its jobs have to end
	})
	defer func() {
		stopWorking()
		s.issuers.Close()
		background.Wait()
	}()
	served := make(chan error)
	listeners, public := 0, l
	for _, l := range []net.Listener{l, admin, s.cfg.LocalNode} {
		if l != nil {
			listeners++
			serve := serve
			if l != public {
				serve = hs.Serve
			}
			go func() { served <- fmt.Errorf("serve on %s: %w", l.Addr(), serve(l)) }()
		}
	}
	s.log.Info("registry is ready", "address", l.Addr().String(), "url", scheme+"://"+l.Addr().String())
	var err error
	select {
	case err = <-served:
		listeners--
		err = errors.Join(err, hs.Close())
	case <-ctx.Done():
		s.log.Info("registry is stopping; transfers under way may end", "timeout_seconds", s.now.Load().ShutdownTimeout.Seconds())
		err = s.shutdown(context.WithoutCancel(ctx), hs)
	}
	for range listeners {
		if served := <-served; !errors.Is(served, http.ErrServerClosed) {
			err = errors.Join(err, served)
		}
	}
	s.log.Info("registry has stopped")
	return err
}

// httpServer makes what speaks HTTP. What comes by admin, or from the node in this
// process, is marked as such.
func (s *Server) httpServer(ctx context.Context, admin net.Listener) *http.Server {
	return &http.Server{
		Handler:           limitBodies(s.patience.body, s.handler),
		ReadHeaderTimeout: s.patience.header,
		IdleTimeout:       s.patience.idle,
		MaxHeaderBytes:    64 << 10,
		HTTP2:             &http.HTTP2Config{SendPingTimeout: s.patience.ping, PingTimeout: s.patience.ping / 2, WriteByteTimeout: s.patience.body},
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			_ = takeAnswers(c, s.patience.body) // unsupported: then its client may be as slow as it likes
			if s.clients != nil {
				ctx = s.clients.remember(ctx)
			}
			return context.WithValue(ctx, lastKey{}, new(lastToken))
		},
		BaseContext: func(from net.Listener) context.Context {
			switch from {
			case admin:
				return asAdmin(context.WithoutCancel(ctx))
			case s.cfg.LocalNode:
				return asNode(context.WithoutCancel(ctx))
			}
			return context.WithoutCancel(ctx)
		},
	}
}

// readFiles reads again what the configuration names: the certificate, the CAs of
// clients, and the policy, if that is in a file. What cannot be read stays as it was.
func (s *Server) readFiles() {
	s.policy.Reload()
	if s.cert != nil {
		s.cert.reload()
	}
	if s.clients != nil {
		s.clients.files.Ask()
	}
}

// shutdown lets requests under way end, for ShutdownTimeout.
func (s *Server) shutdown(ctx context.Context, hs *http.Server) error {
	ctx, cancel := context.WithTimeout(ctx, s.now.Load().ShutdownTimeout)
	defer cancel()
	err := hs.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		s.log.Warn("transfers were cut off")
		return hs.Close()
	}
	return err
}

// healthz answers whether the process lives.
func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusOK)
}

// readyz answers whether requests would succeed.
func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	var amiss []string
	for _, part := range s.ready(r.Context()) {
		if part.Ready && part.Reason != "" {
			amiss = append(amiss, "the "+part.Name+" needs an administrator: berth admin server and the log say why\n")
		}
		if !part.Ready {
			s.log.Error("not ready", "part", part.Name, "error", part.Reason)
			reason := "the " + part.Name + " does not answer; the log says why"
			if part.Name == writing {
				reason = "the index takes no changes since its disk failed; pulls go on; the log says more"
			}
			http.Error(w, reason, http.StatusServiceUnavailable)
			return
		}
	}
	_, _ = io.WriteString(w, strings.Join(amiss, "")) // the client has gone: nobody to tell
}

// writing is the part of a server that a failing disk stops first.
const writing = "changes of the index"

// ready tells what requests need, and what of it answers: the index, and where
// that can refuse changes alone, these.
func (s *Server) ready(ctx context.Context) []wire.Part {
	part := func(name string, err error) wire.Part {
		if err != nil {
			return wire.Part{Name: name, Reason: err.Error()}
		}
		return wire.Part{Name: name, Ready: true}
	}
	_, err := s.storage.Index.Repositories(ctx, "", 1)
	parts := []wire.Part{part("index", err)}
	if x, ok := s.storage.Index.(interface{ Ready() error }); ok {
		parts = append(parts, part(writing, x.Ready()))
	}
	parts = append(parts, amiss("policy", s.policy.Version().Problem))
	trouble := s.issuers.Trouble()
	for _, name := range slices.Sorted(maps.Keys(trouble)) {
		parts = append(parts, amiss("issuer of tokens "+name, trouble[name]))
	}
	if s.cfg.LDAP.URL != "" {
		parts = append(parts, amiss("directory of users", s.identities.Amiss()))
	}
	if s.cert != nil {
		parts = append(parts, amiss("certificate", s.cert.amiss(time.Now())))
	}
	if s.clients != nil {
		parts = append(parts, amiss("CAs of clients", s.clients.amiss()))
	}
	if problem := s.now.Load().problem; problem != "" {
		parts = append(parts, amiss("configuration", errors.New(problem)))
	}
	if s.audit.On() {
		parts = append(parts, amiss("audit log", s.audit.Problem()))
	}
	return parts
}

// amiss is a part that is ready; err is why it needs an administrator all the
// same, such as a new version that could not be put in force.
func amiss(name string, err error) wire.Part {
	p := wire.Part{Name: name, Ready: true}
	if err != nil {
		p.Reason = err.Error()
	}
	return p
}
