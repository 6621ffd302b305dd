package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"berth.internal/client/control"
	wire "berth.internal/internal/control"
)

func newUserKey(std stdio, at *adminOf) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Make, list and delete API keys",
		Long: `Make, list and delete API keys: passwords beside the password, each for one machine
or purpose, which can be limited and deleted one by one. Programs show them with the
user's name. Users may do this with their own, after berth login; administrators
with everybody's. A new password, and being disabled, ends all keys of a user.`,
		Example: `  berth user key add --description laptop
  berth user key add --description nightly --allow 'team/**=pull' --expires 90d ann
  berth user key ls
  berth user key rm --user ann 7F3KQ2ZB`,
	}
	cmd.AddCommand(newKeyAdd(std, at), newKeyLs(std, at), newKeyRm(at))
	return cmd
}

// myself names who asks, at the control API.
const myself = "~"

func keysPath(user string) string { return "/users/" + url.PathEscape(cmp.Or(user, myself)) + "/keys" }

func newKeyAdd(std stdio, at *adminOf) *cobra.Command {
	var q struct {
		Description string       `json:"description,omitempty"`
		Grants      []wire.Grant `json:"grants,omitempty"`
		Expires     time.Time    `json:"expires,omitzero"`
	}
	var allow []string
	var expires string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "add [flags] [USER]",
		Short: "Make an API key and print it, once",
		Long: `Make an API key for USER, or for who has logged in, and print it; nobody can learn it
again. With --allow it is good for these repositories only.`,
		Example: `  berth user key add --description laptop
  berth user key add --allow 'team/**=pull' ann | docker login -u ann --password-stdin registry.example.com`,
		Args: cobra.MaximumNArgs(1),
	}
	f := cmd.Flags()
	f.StringVar(&q.Description, "description", "", "`text` that says what it is for")
	f.StringArrayVar(&allow, "allow", nil, "`PATTERN=ACTION,...` of repositories and what it is good for there: pull, push, overwrite, delete; may be given several times; default: all that the user may do")
	f.StringVar(&expires, "expires", "", "let it end after this `time`, such as 12h or 90d, or on this date, such as 2030-01-31; default: never")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var err error
		if q.Grants, err = parseGrants(allow); err == nil {
			q.Expires, err = parseExpiry(expires, time.Now())
		}
		if err != nil {
			return misuse(err)
		}
		return at.do(cmd.Context(), func(ctx context.Context, client *control.Client) error {
			var made wire.Key
			if err := client.Do(ctx, "POST", keysPath(only(args)), q, &made); err != nil {
				return err
			}
			if asJSON {
				return printJSON(std, made)
			}
			fmt.Fprintf(std.err, "Key %s of %s, which ends: %s. It is the password:\n", made.ID, made.User, expiryText(made.Expires))
			fmt.Fprintln(std.out, made.Secret)
			return nil
		})
	}
	return cmd
}

// only returns the one argument that there may be.
func only(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

func newKeyLs(std stdio, at *adminOf) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "ls [flags] [USER]",
		Aliases: []string{"list"},
		Short:   "List the API keys of a user",
		Long:    "List the API keys of USER, or of who has logged in, without the keys themselves.",
		Example: "  berth user key ls\n  berth user key ls --json ann",
		Args:    cobra.MaximumNArgs(1),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return at.do(cmd.Context(), func(ctx context.Context, client *control.Client) error {
			var list wire.Keys
			if err := client.Get(ctx, keysPath(only(args)), nil, &list); err != nil {
				return err
			}
			if asJSON {
				return printJSON(std, list.Keys)
			}
			table := tabwriter.NewWriter(std.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(table, "ID\tDESCRIPTION\tGOOD FOR\tCREATED\tEXPIRES")
			for _, k := range list.Keys {
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", k.ID, k.Description, cmp.Or(grantsText(k.Grants), "everything"),
					k.Created.Local().Format("2006-01-02 15:04"), expiryText(k.Expires))
			}
			return table.Flush()
		})
	}
	return cmd
}

func newKeyRm(at *adminOf) *cobra.Command {
	var user string
	cmd := &cobra.Command{
		Use:     "rm [flags] ID...",
		Aliases: []string{"delete"},
		Short:   "Delete API keys",
		Long:    "Delete API keys by their ids, which are also a part of the keys. Who has logged in with one is logged out at once.",
		Example: "  berth user key rm 7F3KQ2ZB\n  berth user key rm --user ann 7F3KQ2ZB",
		Args:    cobra.MinimumNArgs(1),
	}
	cmd.Flags().StringVar(&user, "user", "", "the `user` whose they are; default who has logged in")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return at.do(cmd.Context(), func(ctx context.Context, client *control.Client) error {
			var errs []error
			for _, id := range args {
				errs = append(errs, client.Do(ctx, "DELETE", keysPath(user)+"/"+url.PathEscape(id), nil, nil))
			}
			return errors.Join(errs...)
		})
	}
	return cmd
}
