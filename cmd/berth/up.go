package main

import (
	"context"
	"errors"
	"log/slog"
	"net"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"berth.internal/internal/socket"
	"berth.internal/node"
	"berth.internal/server"
)

// upConfig is the configuration of a registry and the node beside it.
type upConfig struct {
	Server server.Config `yaml:",inline"`
	Name   string        `yaml:"name"`   // as of the node
	Socket string        `yaml:"socket"` // as of the node

	Runtime         string `yaml:"runtime"`           // as of the node
	NoNewPrivileges bool   `yaml:"no_new_privileges"` // as of the node
}

func newUp(std stdio) *cobra.Command {
	return daemon(std, &cobra.Command{
		Use:   "up [flags]",
		Short: "Serve the registry and run its images on this machine",
		Long: `Serve the registry and run its images on this machine, in one process and with
one data directory. Without root there is only the registry. The node may pull all
images without a login, unless the policy denies it to node:local. ` + settingsHelp,
		Example: `  sudo berth up
  sudo berth up --listen 127.0.0.1:5000 --data /srv/berth`,
	}, defaultUp, upFlags, func(ctx context.Context, cfg upConfig, again func() (upConfig, error), log *slog.Logger) error {
		cfg.Server.ShowAdmin = showAdmin(std)
		return up(ctx, cfg, again, log)
	})
}

func defaultUp() upConfig {
	local := node.DefaultConfig()
	return upConfig{Server: defaultServer(), Socket: local.Socket, Runtime: local.Runtime}
}

func upFlags(f *pflag.FlagSet, cfg *upConfig) {
	serveFlags(f, &cfg.Server)
	nodeOnlyFlags(f, &cfg.Name, &cfg.Socket, &cfg.Runtime, &cfg.NoNewPrivileges)
}

// node is the configuration of the node beside a registry at address.
func (c upConfig) node(address string) node.Config {
	cfg := defaultNode()
	cfg.Registry, cfg.Name, cfg.Data, cfg.Socket, cfg.Runtime = address, c.Name, c.Server.Data, c.Socket, c.Runtime
	cfg.NoNewPrivileges = c.NoNewPrivileges
	return cfg
}

// Validate returns all that is wrong with the configuration.
func (c upConfig) Validate() error {
	return errors.Join(c.Server.Validate(), c.node(c.Server.Listen).Validate())
}

// CheckFiles returns all that is wrong with the files that the configuration names.
func (c upConfig) CheckFiles() error { return c.Server.CheckFiles() }

// up runs the registry, and the node where it may, until ctx ends or one of them
// fails.
func up(ctx context.Context, cfg upConfig, again func() (upConfig, error), log *slog.Logger) (err error) {
	cfg.Server.Reread = func() (server.Config, []string, error) {
		now, err := again()
		var others []string
		if now.Name != cfg.Name {
			others = append(others, "name")
		}
		if now.Socket != cfg.Socket {
			others = append(others, "socket")
		}
		if now.Runtime != cfg.Runtime {
			others = append(others, "runtime")
		}
		if now.NoNewPrivileges != cfg.NoNewPrivileges {
			others = append(others, "no_new_privileges")
		}
		return now.Server, others, err
	}
	// The node reaches the registry within the process: so it needs neither a
	// login nor to trust the registry's certificate, and nobody else can be it.
	loop := socket.NewLoop()
	cfg.Server.LocalNode = loop
	r, err := openRegistry(ctx, cfg.Server, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	both, ctx := errgroup.WithContext(ctx)
	both.Go(func() error { return r.serve(ctx) })
	both.Go(func() error {
		local := cfg.node("http://" + reachable(r.listener.Addr()))
		local.Dial = loop.Dial
		err := runNode(ctx, local, log)
		if errors.Is(err, node.ErrNotRoot) {
			log.Warn("the registry runs without a node", "reason", err)
			return nil
		}
		return err
	})
	return both.Wait()
}

// reachable is the address at which this machine reaches what listens on addr.
func reachable(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return addr.String()
	}
	return (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: tcp.Port}).String()
}
