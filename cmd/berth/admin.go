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
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth.internal/client/contexts"
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
		Long:  "Look after a server and its data.\n\n" + whereHelp,
		Example: `  berth admin server
  berth admin gc --dry-run
  berth admin fsck
  berth admin api`,
		GroupID: groupRun,
	}
	at.flags(cmd)
	cmd.AddCommand(newAdminServer(std, &at), newAdminGC(std, &at), newAdminFsck(std, &at), newAdminScrub(std, &at),
		newAdminBackup(std, &at), newAdminRestore(std, &at), newAdminAudit(std, &at), newAdminConfig(std, &at), newAdminReload(std, &at), newAdminAPI(std))
	return cmd
}

// whereHelp says which server a command is for.
const whereHelp = `Commands go to the server that berth login has logged in to, as its user; or with
--data, or where nobody has logged in, to the one with that data directory on this
machine, through its socket registry/admin.sock, which belongs to the user that the
server runs as. Of flags, BERTH_CONTEXT, BERTH_DATA and the current context the first
that is given counts.`

// adminOf says which server a command is for.
type adminOf struct {
	data    string
	context string
	given   *pflag.FlagSet
}

func (a *adminOf) flags(cmd *cobra.Command) {
	a.given = cmd.PersistentFlags()
	a.given.StringVar(&a.data, "data", cmp.Or(os.Getenv("BERTH_DATA"), server.DefaultConfig().Data),
		"data `directory` of the server on this machine; default from BERTH_DATA")
	contextFlag(a.given, &a.context)
	_ = cmd.RegisterFlagCompletionFunc("context", completeContexts) // the flag is there
}

// login returns the context that the command is for; ok is false if it is for the
// data directory.
func (a *adminOf) login() (c contexts.Context, ok bool, err error) {
	data, named := a.given.Changed("data"), cmp.Or(a.context, os.Getenv(contextVar))
	switch {
	case data && a.context != "":
		return c, false, misuse(errors.New("--data names a server on this machine and --context a login: give one of them"))
	case data:
		return c, false, nil
	case named != "":
		c, err = namedContext(named)
		return c, true, err
	case os.Getenv("BERTH_DATA") != "":
		return c, false, nil
	}
	file, err := loadContexts()
	if err != nil || file.Current == "" {
		return c, false, err
	}
	_, c, err = file.Find("")
	return c, true, err
}

// again logs in once more in the context that the command is for, which has c's server,
// with another password.
func (a *adminOf) again(ctx context.Context, old contexts.Context, password string) error {
	fail := func(err error) error {
		return fmt.Errorf("the login that was used is void, and no other could be made: %w; log in again with berth login", err)
	}
	c := old
	c.LogOut()
	c.User, c.Secret = old.User, password
	end, err := parseExpiry(loginLife, time.Now())
	if err != nil {
		return fail(err)
	}
	reg, err := registryOf(c)
	if err == nil {
		c, err = makeKey(ctx, reg, c, end)
	}
	if err == nil {
		err = changeContexts(func(f *contexts.File) error {
			name, _, err := f.Find(cmp.Or(a.context, os.Getenv(contextVar)))
			if err == nil {
				f.Contexts[name] = c
			}
			return err
		})
	}
	if err != nil {
		return fail(err)
	}
	return nil
}

// do lets a command speak with the server, and explains what goes wrong.
func (a *adminOf) do(ctx context.Context, speak func(context.Context, *control.Client) error) error {
	login, ok, err := a.login()
	if err != nil {
		return err
	}
	if ok {
		return withRequestID(speakIn(ctx, login, speak))
	}
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
		return fmt.Errorf("no server runs with the data directory %s: start one with berth serve --data %s, name another directory with --data, or log in at a server with berth login", a.data, a.data)
	}
	return withRequestID(err)
}

// withRequestID says where the log of the server has more about a failure of its.
func withRequestID(err error) error {
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
