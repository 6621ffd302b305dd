package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"berth.internal/client/control"
	wire "berth.internal/internal/control"
	"berth.internal/internal/datadir"
	"berth.internal/server"
	api "berth.internal/server/control"
)

// adminSocket is the name of a server's admin socket in its part of the data
// directory.
const adminSocket = "admin.sock"

func newAdmin(std stdio) *cobra.Command {
	var at adminOf
	cmd := &cobra.Command{
		Use:   "admin",
		Short: "Look after a server and its data",
		Long: `Look after a server and its data, on the server's own machine: commands go through
the socket registry/admin.sock in its data directory, which belongs to the user
that the server runs as.`,
		Example: `  berth admin server
  berth admin gc --dry-run
  berth admin fsck
  berth admin api`,
		GroupID: groupRun,
	}
	at.flags(cmd)
	cmd.AddCommand(newAdminServer(std, &at), newAdminGC(std, &at), newAdminFsck(std, &at), newAdminScrub(std, &at),
		newAdminBackup(std, &at), newAdminRestore(std, &at), newAdminAPI(std))
	return cmd
}

// adminOf says which server a command is for.
type adminOf struct {
	data string
}

func (a *adminOf) flags(cmd *cobra.Command) {
	cmd.PersistentFlags().StringVar(&a.data, "data", cmp.Or(os.Getenv("BERTH_DATA"), server.DefaultConfig().Data),
		"data `directory` of the server; default from BERTH_DATA")
}

// do lets a command speak with the server, and explains what goes wrong.
func (a *adminOf) do(ctx context.Context, speak func(context.Context, *control.Client) error) error {
	path, err := filepath.Abs(filepath.Join(a.data, datadir.Registry, adminSocket))
	if err != nil {
		return misuse(err)
	}
	client := control.Socket(path)
	defer client.Close()
	err = speak(ctx, client)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("the admin socket %s is not yours to use: try again with sudo, or as the user that the server runs as", path)
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no server runs with the data directory %s: start one with berth serve --data %s, or name another directory with --data", a.data, a.data)
	}
	if e, ok := errors.AsType[*wire.Error](err); ok && e.RequestID != "" && errors.Is(err, wire.Internal) {
		return fmt.Errorf("%w (request_id %s)", err, e.RequestID)
	}
	return err
}

func newAdminServer(std stdio, at *adminOf) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "server [flags]",
		Aliases: []string{"status"},
		Short:   "Print what the server says about itself",
		Example: "  berth admin server\n  berth admin server --data /srv/berth --json",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return at.do(cmd.Context(), func(ctx context.Context, client *control.Client) error {
			var s wire.Server
			if err := client.Get(ctx, "/server", nil, &s); err != nil {
				return err
			}
			if asJSON {
				return printJSON(std, s)
			}
			return printServer(std, s)
		})
	}
	return cmd
}

func printServer(std stdio, s wire.Server) error {
	table := tabwriter.NewWriter(std.out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "Name\t%s\nVersion\t%s\nSupports\t%s\nReady\t%s\n", s.Name, s.Version, strings.Join(s.Features, ", "), yesNo(s.Ready))
	for _, part := range s.Parts {
		state := yesNo(part.Ready)
		if part.Reason != "" {
			state += ": " + part.Reason
		}
		fmt.Fprintf(table, "  %s\t%s\n", part.Name, state)
	}
	return table.Flush()
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func newAdminAPI(std stdio) *cobra.Command {
	return &cobra.Command{
		Use:   "api",
		Short: "Print the reference of the control API",
		Long: `Print the reference of the control API, which every server answers below
/berth/v1, on its address and on its admin socket.`,
		Example: `  berth admin api
  curl --unix-socket /var/lib/berth/registry/admin.sock http://berth/berth/v1/server`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return api.Reference(std.out) },
	}
}
