package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth.internal/internal/config"
	"berth.internal/server"
)

func newServe(std stdio) *cobra.Command {
	cfg := server.DefaultConfig()
	var file string
	var logs logOptions
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve the registry",
		Long: `Serve the registry. Its settings come from the configuration file, then from
variables of the environment such as BERTH_LISTEN, then from flags; the last
one given counts.`,
		Example: `  berth serve --data /srv/berth
  berth serve --config /etc/berth.yaml
  berth serve --listen :5000 --anonymous pull    others may pull`,
		GroupID: groupRun,
		Args:    cobra.NoArgs,
	}
	serveFlags(cmd.Flags(), &cfg)
	cmd.Flags().StringVar(&file, "config", "", "read settings from this YAML `file`")
	logs.flags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := settle(cmd.Flags(), file, &cfg, serveFlags); err != nil {
			return misuse(err)
		}
		if err := cfg.Validate(); err != nil {
			return misuse(err)
		}
		log, err := logs.logger(std)
		if err != nil {
			return misuse(err)
		}
		return serve(cmd.Context(), cfg, log)
	}
	return cmd
}

func serveFlags(f *pflag.FlagSet, cfg *server.Config) {
	f.StringVar(&cfg.Listen, "listen", cfg.Listen, "TCP `address` to serve on")
	f.StringVar(&cfg.Data, "data", cfg.Data, "keep everything in this `directory`")
	f.StringVar((*string)(&cfg.Anonymous), "anonymous", string(cfg.Anonymous), "what callers without a name may do: none, pull or `push`")
	f.StringVar((*string)(&cfg.Sparse), "sparse", string(cfg.Sparse), "what a manifest may name that is not there: none, index or `all`")
}

// settle fills cfg from the file, the environment, and again from the flags
// that were given, which flags defines.
func settle(given *pflag.FlagSet, file string, cfg *server.Config, flags func(*pflag.FlagSet, *server.Config)) error {
	fresh := server.DefaultConfig()
	if file != "" {
		if err := config.File(file, &fresh); err != nil {
			return err
		}
	}
	if err := config.Environment(os.LookupEnv, &fresh); err != nil {
		return err
	}
	again := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags(again, &fresh)
	var err error
	given.Visit(func(f *pflag.Flag) {
		if again.Lookup(f.Name) != nil {
			err = errors.Join(err, again.Set(f.Name, f.Value.String()))
		}
	})
	*cfg = fresh
	return err
}

// serve runs the registry until ctx ends.
func serve(ctx context.Context, cfg server.Config, log *slog.Logger) (err error) {
	l, err := listen(ctx, cfg.Listen)
	if err != nil {
		return err
	}
	defer func() {
		if e := l.Close(); !errors.Is(e, net.ErrClosed) {
			err = errors.Join(err, e)
		}
	}()
	d, err := openData(ctx, cfg.Data, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	s, err := server.New(cfg, d.Drivers, log)
	if err != nil {
		return err
	}
	return s.Serve(ctx, l)
}

// listen takes the address, before anything is opened or changed.
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
