package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth.internal/internal/datadir"
	"berth.internal/internal/socket"
	"berth.internal/server"
	"berth.internal/storage"
)

func newServe(std stdio) *cobra.Command {
	return daemon(std, &cobra.Command{
		Use:   "serve [flags]",
		Short: "Serve the registry",
		Long:  "Serve the registry. " + settingsHelp,
		Example: `  berth serve --data /srv/berth
  berth serve --config /etc/berth.yaml
  berth serve --listen :5000                     others log in; makes the first user
  berth serve --listen :5000 --anonymous pull    others may pull`,
	}, defaultServer, serveFlags, func(ctx context.Context, cfg server.Config, again func() (server.Config, error), log *slog.Logger) error {
		cfg.ShowAdmin = showAdmin(std)
		return serve(ctx, cfg, again, log)
	})
}

// showAdmin shows the first administrator's password to who sits at the terminal;
// without one it is nil: what goes elsewhere may be kept there.
func showAdmin(std stdio) func(name, password string) error {
	if !isTerminal(std.in) || !isTerminal(std.err) {
		return nil
	}
	return func(name, password string) error {
		_, err := fmt.Fprintf(std.err, "There are no users yet. The first one, an administrator, is %s, with the password %s\n"+
			"It is shown this once. Make others with berth user add.\n", name, password)
		return err
	}
}

func defaultServer() server.Config {
	cfg := server.DefaultConfig()
	cfg.Version = buildVersion()
	return cfg
}

func serveFlags(f *pflag.FlagSet, cfg *server.Config) {
	f.StringVar(&cfg.Listen, "listen", cfg.Listen, "TCP `address` to serve on")
	f.StringVar(&cfg.TLS.Cert, "tls-cert", cfg.TLS.Cert, "serve HTTPS with the certificate in this `file`; see berth tls init")
	f.StringVar(&cfg.TLS.Key, "tls-key", cfg.TLS.Key, "`file` with the key of --tls-cert")
	f.StringVar(&cfg.TLS.ClientCA, "tls-client-ca", cfg.TLS.ClientCA, "let clients in by certificates of the CAs in this PEM `file`; see berth tls issue")
	f.StringVar(&cfg.Data, "data", cfg.Data, "keep everything in this `directory`")
	f.StringVar((*string)(&cfg.Anonymous), "anonymous", string(cfg.Anonymous), "`what` callers without a name may do: none, pull or push")
	f.StringVar(&cfg.Policy, "policy", cfg.Policy, "`file` that says who may do what; default: what berth policy has set")
	f.StringVar(&cfg.Htpasswd, "htpasswd", cfg.Htpasswd, "let the users of this `file` in, which htpasswd -B has made")
	f.StringVar((*string)(&cfg.Sparse), "sparse", string(cfg.Sparse), "`what` a manifest may name that is not there: none, index or all")
}

// serve runs the registry until ctx ends.
func serve(ctx context.Context, cfg server.Config, again func() (server.Config, error), log *slog.Logger) (err error) {
	cfg.Reread = func() (server.Config, []string, error) {
		cfg, err := again()
		return cfg, nil, err
	}
	r, err := openRegistry(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	return r.serve(ctx)
}

// registry is a registry that is ready to serve.
type registry struct {
	listener net.Listener
	admin    net.Listener
	data     *data
	server   *server.Server
	ballast  []byte
}

// ballast is how many bytes the garbage collector takes to be in use although
// they never are: they get no memory of the machine. It collects when what was
// allocated since the last time reaches what is in use; a registry has so little
// in use that it would collect every few hundred requests.
const ballast = 8 << 20

// openRegistry takes the address before it opens or changes anything, and then
// removes what a crash has left.
func openRegistry(ctx context.Context, cfg server.Config, log *slog.Logger) (_ *registry, err error) {
	r := &registry{ballast: make([]byte, ballast)}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	if _, none := os.Stat(filepath.Join(cfg.Data, datadir.Registry)); errors.Is(none, os.ErrNotExist) {
		if err := cfg.CheckUsers(); err != nil { // before anything is made
			return nil, misuse(err)
		}
	}
	if r.listener, err = listen(ctx, cfg.Listen); err != nil {
		return nil, err
	}
	if r.data, err = openData(cfg.Data, cfg.Reserve); err != nil {
		return nil, err
	}
	if _, err := storage.Sweep(ctx, r.data.Store, r.data.Index, log); err != nil {
		return nil, err
	}
	cfg.Audit.Dir = r.data.dir.Path("audit")
	measured := append(r.data.bolt.Metrics(), r.data.disk.Metrics()...)
	if r.server, err = server.Open(ctx, cfg, r.data.Drivers, log, measured...); errors.Is(err, server.ErrNoUsers) {
		return nil, misuse(err)
	} else if err != nil {
		return nil, err
	}
	r.admin, err = listenAdmin(ctx, r.data.dir.Path(adminSocket), log)
	return r, err
}

// serve runs the registry until ctx ends. SIGHUP makes it read its configuration
// again.
func (r *registry) serve(ctx context.Context) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	ctx, stop := context.WithCancel(ctx)
	var reloading sync.WaitGroup
	reloading.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangup:
				r.server.Hangup(ctx)
			}
		}
	})
	defer func() {
		signal.Stop(hangup)
		stop()
		reloading.Wait()
	}()
	return r.server.Serve(ctx, r.listener, r.admin)
}

// listenAdmin takes the admin socket at path. Where none can be made, since the
// disk is full or its file system has no sockets, the registry serves without.
func listenAdmin(ctx context.Context, path string, log *slog.Logger) (net.Listener, error) {
	l, err := socket.Listen(ctx, path, 0o600)
	switch {
	case errors.Is(err, socket.ErrInUse), errors.Is(err, socket.ErrNotSocket): // by another program: the directory is ours
		return nil, fmt.Errorf("%w: remove what is there, then start again", err)
	case err != nil:
		log.ErrorContext(ctx, "there is no admin socket: berth admin will not reach this server", "path", path, "error", err)
		return nil, nil
	}
	return l, nil
}

// close gives address and data directory back. It comes after Serve.
func (r *registry) close() error {
	var errs []error
	if r.admin != nil { // first: its path belongs to who has the directory
		errs = append(errs, r.admin.Close())
	}
	if r.data != nil {
		errs = append(errs, r.data.Close())
	}
	if r.listener != nil {
		if err := r.listener.Close(); !errors.Is(err, net.ErrClosed) { // Serve closes it
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func listen(ctx context.Context, address string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("the address %s is in use by another program: stop that, or choose another with --listen", address)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("the address %s needs root: choose a port above 1023 with --listen", address)
	case err != nil:
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return l, nil
}
