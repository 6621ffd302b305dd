// Package node is the agent on a machine that runs containers: it puts the
// image store, the runtime and the Docker Engine API together and serves the
// last on a unix socket. Containers do not depend on it: it can be stopped,
// killed and replaced while they run.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"berth.internal/client"
	"berth.internal/internal/datadir"
	"berth.internal/node/container"
	"berth.internal/node/engine"
	"berth.internal/node/host"
	"berth.internal/node/image"
)

// Agent is a node's agent. Make it with Open.
type Agent struct {
	cfg    Config
	log    *slog.Logger
	dir    *datadir.Dir
	run    string // sockets of the shims
	images *image.Store
	rt     *container.Runtime
	host   *host.Host
	engine *engine.Engine
}

// pullsKept is how long the parts of a broken pull wait for it to be tried
// again.
const pullsKept = 24 * time.Hour

// Open takes the node's part of the data directory and finds the containers
// that were made before. ctx bounds Open only.
func Open(ctx context.Context, cfg Config, log *slog.Logger) (_ *Agent, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	a := &Agent{cfg: cfg, log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Close())
		}
	}()
	if a.dir, err = datadir.Open(cfg.Data, "node"); err != nil {
		return nil, err
	}
	runtimes, err := cfg.runtimes(ctx)
	if err != nil {
		return nil, err
	}
	id, err := identity(a.dir.Path("id"))
	if err != nil {
		return nil, err
	}
	registry, err := client.New(client.Options{
		Registry: cfg.Registry, Username: cfg.RegistryUser, PasswordFile: cfg.RegistryPasswordFile, CAFile: cfg.RegistryCA,
		Dial: cfg.Dial, Header: cfg.header(), UserAgent: "berth-node/" + cfg.Version,
	})
	if err != nil {
		return nil, err
	}
	if cfg.RegistryUser != "" && registry.InTheClear() {
		log.Warn("the node's password goes to the registry in the clear: give the registry TLS, and the node its address with https", "registry", cfg.Registry)
	}
	if a.images, err = image.Open(a.dir.Path("images"), image.Options{Logger: log}); err != nil {
		return nil, err
	}
	a.run = filepath.Join("/run/berth", id.short())
	if a.rt, err = container.Open(container.Config{
		Root: a.dir.Path("containers"), Run: a.run, CgroupParent: "berth-" + id.short(), Init: cfg.Init, Spare: true, Log: log,
	}); err != nil {
		return nil, err
	}
	name := cfg.Name
	if name == "" {
		name = registry.Host()
	}
	if a.host, err = host.Open(ctx, host.Options{
		Dir: a.dir.Path("host"), Node: string(id), Registry: name, Endpoints: []string{registry.Host()},
		Images: a.images, Source: registry, Runtime: a.rt, Engines: runtimes, Engine: cfg.Runtime, NoNewPrivs: cfg.NoNewPrivileges, AppArmor: loadAppArmor(log), Log: log,
		SourceAs: func(l host.Login) image.Source { return registry.As(l.Username, l.Password) },
		CheckLogin: func(ctx context.Context, l host.Login) error {
			return registry.As(l.Username, l.Password).Ping(ctx)
		},
	}); err != nil {
		return nil, err
	}
	// The containers hold their images again: what nobody holds may go.
	if err := a.images.Sweep(pullsKept); err != nil {
		return nil, err
	}
	machine, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("read the machine's name: %w", err)
	}
	a.engine = engine.New(a.host, engine.Config{
		ID: string(id), Name: machine, Version: cfg.Version, Registry: name, Data: a.dir.Path(),
		Endpoints: []string{registry.Host()},
	}, log)
	return a, nil
}

// Metrics returns what the node measures.
func (a *Agent) Metrics() []prometheus.Collector {
	return append(a.host.Metrics(), a.images.Metrics()...)
}

// Serve answers the Docker Engine API on the socket until ctx ends. Containers
// run on.
func (a *Agent) Serve(ctx context.Context) error {
	l, err := listen(ctx, a.cfg.Socket)
	if err != nil {
		return err
	}
	connections, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	measured := prometheus.NewRegistry()
	measured.MustRegister(a.Metrics()...)
	metrics := promhttp.HandlerFor(measured, promhttp.HandlerOpts{})
	front := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/metrics" {
			metrics.ServeHTTP(w, r)
			return
		}
		a.engine.ServeHTTP(w, r)
	})
	hs := &http.Server{
		Handler:           front,
		ReadHeaderTimeout: 20 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return connections },
		ErrorLog:          slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
	sweeping, stopSweeping := context.WithCancel(ctx)
	var background sync.WaitGroup
	background.Go(func() { a.sweep(sweeping) })
	defer func() {
		stopSweeping()
		background.Wait()
	}()
	served := make(chan error, 1)
	go func() { served <- hs.Serve(l) }()
	a.log.Info("node is ready", "socket", a.cfg.Socket, "registry", a.cfg.Registry)
	select {
	case err := <-served:
		return fmt.Errorf("serve on %s: %w", a.cfg.Socket, err)
	case <-ctx.Done():
	}
	// Streams of logs and events never end by themselves.
	cut()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err = hs.Shutdown(end)
	if errors.Is(err, context.DeadlineExceeded) {
		err = hs.Close()
	}
	if end := <-served; !errors.Is(end, http.ErrServerClosed) {
		err = errors.Join(err, end)
	}
	a.log.Info("node has stopped; its containers run on")
	return err
}

// sweep removes daily what broken pulls have left.
func (a *Agent) sweep(ctx context.Context) {
	daily := time.NewTicker(24 * time.Hour)
	defer daily.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-daily.C:
		}
		if err := a.images.Sweep(pullsKept); err != nil {
			a.log.Error("parts of broken pulls could not be removed", "error", err)
		}
	}
}

// Close gives back what Open took. Containers run on.
func (a *Agent) Close() error {
	var errs []error
	if a.host != nil {
		errs = append(errs, a.host.Close())
	}
	if a.rt != nil {
		errs = append(errs, a.rt.Close())
		_ = os.Remove(a.run) // stays unless it is empty: shims listen there
	}
	if a.dir != nil {
		errs = append(errs, a.dir.Close())
	}
	return errors.Join(errs...)
}
