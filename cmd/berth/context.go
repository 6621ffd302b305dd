package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth.internal/client"
	"berth.internal/client/contexts"
	"berth.internal/client/control"
	wire "berth.internal/internal/control"
)

// contextVar names the context for commands that are told nothing else.
const contextVar = "BERTH_CONTEXT"

// contextFlag adds --context to flags.
func contextFlag(flags *pflag.FlagSet, into *string) {
	flags.StringVar(into, "context", "", "`name` of the login to use, of those that berth context ls shows; default from "+contextVar+", else the current one")
}

// loadContexts reads what berth login has kept.
func loadContexts() (contexts.File, error) {
	path, err := contexts.Path()
	if err != nil {
		return contexts.File{}, err
	}
	return contexts.Load(path)
}

func changeContexts(change func(*contexts.File) error) error {
	path, err := contexts.Path()
	if err != nil {
		return err
	}
	return contexts.Change(path, change)
}

// namedContext returns the context that somebody has named.
func namedContext(name string) (contexts.Context, error) {
	file, err := loadContexts()
	if err != nil {
		return contexts.Context{}, err
	}
	_, c, err := file.Find(name)
	if errors.Is(err, contexts.ErrUnknown) {
		return c, misuse(fmt.Errorf("%w; berth context ls shows those that there are, berth login makes one", err))
	}
	return c, err
}

// registryOf makes a client of a context's server, with its login.
func registryOf(c contexts.Context) (*client.Registry, error) {
	return client.New(client.Options{
		Registry: c.Server, Username: c.User, Password: c.Secret, CA: []byte(c.CA), UserAgent: "berth/" + buildVersion(),
	})
}

func newContext(std stdio) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "context",
		Short: "Choose between servers that berth login has logged in to",
		Long: `Choose between servers that berth login has logged in to. A context is a server's
address, the CA to trust there, and a login; the current one counts for commands that
are told nothing else. They are kept in ~/.config/berth/contexts.yaml.`,
		Example: "  berth context ls\n  berth context use prod\n  berth context rm old",
		GroupID: groupRun,
	}
	cmd.AddCommand(newContextLs(std), newContextUse(std), newContextRm())
	return cmd
}

// shownContext is what --json prints. Its field names are kept.
type shownContext struct {
	Name    string    `json:"name"`
	Current bool      `json:"current"`
	Server  string    `json:"server"`
	User    string    `json:"user,omitempty"` // absent: logged out
	Key     string    `json:"key,omitempty"`  // id of the API key
	Expires time.Time `json:"expires,omitzero"`
}

func newContextLs(std stdio) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "ls [flags]",
		Aliases: []string{"list"},
		Short:   "List the contexts",
		Long:    "List the contexts; * is the current one.",
		Example: "  berth context ls\n  berth context ls --json",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(*cobra.Command, []string) error {
		file, err := loadContexts()
		if err != nil {
			return err
		}
		list := []shownContext{}
		for _, name := range file.Names() {
			c := file.Contexts[name]
			list = append(list, shownContext{name, name == file.Current, c.Server, c.User, c.Key, c.Expires})
		}
		if asJSON {
			return printJSON(std, list)
		}
		table := tabwriter.NewWriter(std.out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(table, "\tNAME\tSERVER\tUSER\tEXPIRES")
		for _, c := range list {
			mark, expires := "", ""
			if c.Current {
				mark = "*"
			}
			if c.User != "" {
				expires = expiryText(c.Expires)
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", mark, c.Name, c.Server, cmp.Or(c.User, "(logged out)"), expires)
		}
		return table.Flush()
	}
	return cmd
}

// completeContexts offers the names that there are.
func completeContexts(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	file, err := loadContexts()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return file.Names(), cobra.ShellCompDirectiveNoFileComp
}

func newContextUse(std stdio) *cobra.Command {
	return &cobra.Command{
		Use:               "use NAME",
		Short:             "Make a context the current one",
		Example:           "  berth context use prod",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: first(completeContexts),
		RunE: func(_ *cobra.Command, args []string) error {
			if _, err := namedContext(args[0]); err != nil {
				return err
			}
			err := changeContexts(func(f *contexts.File) error {
				name, _, err := f.Find(args[0])
				f.Current = name
				return err
			})
			if err == nil && os.Getenv(contextVar) != "" && os.Getenv(contextVar) != args[0] {
				fmt.Fprintf(std.err, "%s is set to %s, which counts more.\n", contextVar, os.Getenv(contextVar))
			}
			return err
		},
	}
}

func newContextRm() *cobra.Command {
	return &cobra.Command{
		Use:               "rm NAME...",
		Aliases:           []string{"delete"},
		Short:             "Log out and forget contexts",
		Example:           "  berth context rm old",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeContexts,
		RunE: func(cmd *cobra.Command, args []string) error {
			var errs []error
			for _, name := range args {
				_, err := namedContext(name)
				if err == nil {
					err = logOut(cmd.Context(), name, true)
				}
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		},
	}
}

// logOut deletes the key of a context on its server, and forgets the login, or with
// forget the whole context. It forgets them also if the server does not answer, but
// says so.
func logOut(ctx context.Context, name string, forget bool) error {
	var old contexts.Context
	err := changeContexts(func(f *contexts.File) error {
		found, c, err := f.Find(name)
		if err != nil {
			return err
		}
		old = c
		c.LogOut()
		f.Contexts[found] = c
		if forget {
			delete(f.Contexts, found)
			if f.Current == found {
				f.Current = ""
			}
		}
		return nil
	})
	if err != nil || old.Key == "" {
		return err
	}
	if err := deleteKey(ctx, old, old.Key); err != nil {
		return fmt.Errorf("the login is forgotten here, but its key %s is still good at %s: %w; delete it there with berth user key rm %s", old.Key, old.Server, err, old.Key)
	}
	return nil
}

// deleteKey deletes an API key of who has logged in with c. One that is not good any
// more is no error.
func deleteKey(ctx context.Context, c contexts.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	reg, err := registryOf(c)
	if err != nil {
		return err
	}
	server, err := controlOf(reg)
	if err != nil {
		return err
	}
	defer server.Close()
	err = server.Do(ctx, "DELETE", keysPath("")+"/"+id, nil, nil)
	if errors.Is(err, wire.NotFound) || errors.Is(err, wire.Unauthenticated) {
		return nil
	}
	return err
}

// speakIn lets a command speak with the server of a context, and explains what goes
// wrong.
func speakIn(ctx context.Context, c contexts.Context, speak func(context.Context, *control.Client) error) error {
	if c.Secret == "" {
		return fmt.Errorf("nobody is logged in at %s: berth login %s", c.Server, c.Server)
	}
	reg, err := registryOf(c)
	if err != nil {
		return err
	}
	server, err := controlOf(reg)
	if err != nil {
		return err
	}
	defer server.Close()
	err = speak(ctx, server)
	if errors.Is(err, wire.Unauthenticated) {
		return fmt.Errorf("the login of %s at %s is not good any more: berth login %s", c.User, c.Server, c.Server)
	}
	return explainTLS(err, c.Server)
}
