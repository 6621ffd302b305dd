package main

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth.internal/node"
)

func newNode(std stdio) *cobra.Command {
	return daemon(std, &cobra.Command{
		Use:   "node [flags]",
		Short: "Run the registry's images on this machine",
		Long: `Run the registry's images on this machine. The node answers the Docker Engine API
on a socket, for berth's own commands and for docker -H unix://PATH. It needs
root. When it stops, its containers run on. ` + settingsHelp,
		Example: `  sudo berth node --registry http://10.0.0.1:5000
  sudo berth node --registry http://10.0.0.1:5000 --name registry.example.com
  sudo berth node --registry http://10.0.0.1:5000 --runtime crun
  sudo berth node --registry https://registry.example.com:5000 --registry-ca ca.crt --registry-user robot+node --registry-password-file secret`,
	}, defaultNode, nodeFlags, func(ctx context.Context, cfg node.Config, _ func() (node.Config, error), log *slog.Logger) error {
		return runNode(ctx, cfg, log)
	})
}

func defaultNode() node.Config {
	cfg := node.DefaultConfig()
	cfg.Init, cfg.Version = initProgram, buildVersion()
	return cfg
}

func nodeFlags(f *pflag.FlagSet, cfg *node.Config) {
	f.StringVar(&cfg.Registry, "registry", cfg.Registry, "`URL` of the registry to pull from")
	f.StringVar(&cfg.RegistryCA, "registry-ca", cfg.RegistryCA, "PEM `file` of the registry's CA, to trust beside the system's")
	f.StringVar(&cfg.RegistryUser, "registry-user", cfg.RegistryUser, "`name` to log in to the registry with, such as robot+node")
	f.StringVar(&cfg.RegistryPasswordFile, "registry-password-file", cfg.RegistryPasswordFile, "`file` with the password of --registry-user; read again each time")
	f.StringVar(&cfg.Data, "data", cfg.Data, "keep images and containers in this `directory`")
	f.StringVar(&cfg.Runc, "runc", cfg.Runc, "`path` of runc; default is where PATH finds it")
	f.StringVar(&cfg.Crun, "crun", cfg.Crun, "`path` of crun; default is where PATH finds it")
	nodeOnlyFlags(f, &cfg.Name, &cfg.Socket, &cfg.Runtime, &cfg.NoNewPrivileges)
}

// nodeOnlyFlags are those that up has of a node.
func nodeOnlyFlags(f *pflag.FlagSet, name, socket, runtime *string, noNewPrivs *bool) {
	f.StringVar(name, "name", *name, "`name` of the registry in the names of images; default is its address")
	f.StringVar(socket, "socket", *socket, "`path` of the socket to serve the Docker Engine API on")
	f.StringVar(runtime, "runtime", *runtime, "`name` of what makes containers that do not say: berth, runc or crun")
	f.BoolVar(noNewPrivs, "no-new-privileges", *noNewPrivs, "keep set-user-ID programs in containers that do not say from gaining privileges")
}

// runNode runs the node until ctx ends.
func runNode(ctx context.Context, cfg node.Config, log *slog.Logger) (err error) {
	// What starts and processes of exec leave behind would be collected every few of
	// them, which is felt on two processors. It costs some 10 MiB.
	debug.SetGCPercent(400)
	agent, err := node.Open(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, agent.Close()) }()
	return agent.Serve(ctx)
}
