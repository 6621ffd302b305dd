package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"berth.internal/client/control"
	wire "berth.internal/internal/control"
)

func newUser(std stdio) *cobra.Command {
	var at adminOf
	cmd := &cobra.Command{
		Use:   "user",
		Short: "Make, list, change and delete users",
		Long: `Make, list, change and delete the users of a server. As soon as there is one,
everybody has to log in. Users in the group admins may do everything.

` + whereHelp,
		Example: `  berth user add --group admins ann
  berth user passwd ann
  berth user set ann --group admins --group dev
  berth user key add --description laptop ann
  berth user ls`,
		GroupID: groupRun,
	}
	at.flags(cmd)
	cmd.AddCommand(newUserAdd(std, &at), newUserLs(std, &at), newUserShow(std, &at), newUserPasswd(std, &at), newUserSet(std, &at),
		newAble(&at, "/users/", "user", false), newAble(&at, "/users/", "user", true), newUserRm(std, &at), newUserKey(std, &at))
	return cmd
}

func newUserAdd(std stdio, at *adminOf) *cobra.Command {
	var groups []string
	var fromStdin, generate bool
	cmd := &cobra.Command{
		Use:   "add [flags] NAME",
		Short: "Make a user",
		Long:  "Make a user. The password is asked for, or read from the first line of the input with --password-stdin.",
		Example: `  berth user add --group admins ann
  berth user add --password-stdin bob < password
  berth user add --generate bob                   print a password, once`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().StringArrayVar(&groups, "group", nil, "put the user in this `group`; may be given several times")
	cmd.Flags().BoolVar(&fromStdin, "password-stdin", false, "read the password from the input")
	cmd.Flags().BoolVar(&generate, "generate", false, "make a password and print it")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if fromStdin && generate {
			return misuse(errors.New("--generate makes a password, and --password-stdin reads one: give one of them"))
		}
		q := wire.CreateUser{Name: args[0], Groups: groups}
		if !generate {
			var err error
			if q.Password, err = readPassword(std, fromStdin); err != nil {
				return err
			}
		}
		return at.do(cmd.Context(), func(ctx context.Context, client *control.Client) error {
			var made wire.User
			if err := client.Do(ctx, "POST", "/users", q, &made); err != nil {
				return err
			}
			if generate {
				fmt.Fprintln(std.out, made.Password)
			}
			return nil
		})
	}
	return cmd
}

func newUserPasswd(std stdio, at *adminOf) *cobra.Command {
	var fromStdin bool
	cmd := &cobra.Command{
		Use:   "passwd [flags] [NAME]",
		Short: "Change a user's password, or one's own",
		Long: `Change the password of NAME, as an administrator, or without NAME that of who has
logged in with berth login, who is asked for the old one. What was logged in with the
old one is logged out, and the user's API keys are void; but the login of berth login
that is used here goes on.`,
		Example: `  berth user passwd
  berth user passwd ann
  berth user passwd --password-stdin ann < password
  printf '%s\n' "$OLD" "$NEW" | berth user passwd --password-stdin`,
		Args: cobra.MaximumNArgs(1),
	}
	cmd.Flags().BoolVar(&fromStdin, "password-stdin", false, "read the password from the input; one's own: the old one, and the new one in the next line")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return changeOwnPassword(cmd.Context(), std, at, fromStdin)
		}
		password, err := readPassword(std, fromStdin)
		if err != nil {
			return err
		}
		return at.do(cmd.Context(), func(ctx context.Context, client *control.Client) error {
			return client.Do(ctx, "PUT", "/users/"+url.PathEscape(args[0]), struct {
				Password string `json:"password"`
			}{password}, nil)
		})
	}
	return cmd
}

// changeOwnPassword changes the password of who has logged in, and makes another API
// key for the login, whose key is void then.
func changeOwnPassword(ctx context.Context, std stdio, at *adminOf, fromStdin bool) error {
	c, ok, err := at.login()
	if err != nil {
		return err
	}
	if !ok {
		return misuse(errors.New("say whose password is to change, or log in with berth login to change your own"))
	}
	var q struct {
		Old string `json:"password"`
		New string `json:"new_password"`
	}
	if fromStdin {
		lines := bufio.NewReader(io.LimitReader(std.in, 8192))
		for _, into := range []*string{&q.Old, &q.New} {
			line, _ := lines.ReadString('\n') // the second may end without
			if *into = strings.TrimRight(line, "\r\n"); *into == "" {
				return misuse(errors.New("the input must have the old password in its first line and the new one in its second"))
			}
		}
	} else {
		if q.Old, err = readSecret(std, false, "Old password: "); err != nil {
			return err
		}
		if q.New, err = readSecret(std, false, "New password: ", "Once more: "); err != nil {
			return err
		}
	}
	err = at.do(ctx, func(ctx context.Context, client *control.Client) error {
		return client.Do(ctx, "POST", "/users/"+myself+"/password", q, nil)
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(std.err, "The password of %s is changed.\n", c.User)
	return at.again(ctx, c, q.New)
}

func newUserSet(std stdio, at *adminOf) *cobra.Command {
	var groups []string
	var none bool
	cmd := &cobra.Command{
		Use:     "set [flags] NAME",
		Short:   "Change the groups of a user",
		Long:    "Change the groups of a user: those that are given take the place of those that the user is in. It counts at once.",
		Example: "  berth user set ann --group admins --group dev\n  berth user set ann --no-groups",
		Args:    cobra.ExactArgs(1),
	}
	cmd.Flags().StringArrayVar(&groups, "group", nil, "put the user in this `group`; may be given several times")
	cmd.Flags().BoolVar(&none, "no-groups", false, "take the user out of all groups")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if none == (len(groups) > 0) {
			return misuse(errors.New("say which groups, with --group, or --no-groups" + seeHelp(cmd)))
		}
		q := struct {
			Groups []string `json:"groups"`
		}{append([]string{}, groups...)}
		return at.do(cmd.Context(), func(ctx context.Context, client *control.Client) error {
			return client.Do(ctx, "PUT", "/users/"+url.PathEscape(args[0]), q, nil)
		})
	}
	return cmd
}

func newUserShow(std stdio, at *adminOf) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show [flags] [NAME]",
		Short: "Show a user, and the groups that count in policies",
		Long: `Show a user, or who has logged in, with the groups that count in policies. Users of an
htpasswd file or an LDAP server are shown, too.`,
		Example: "  berth user show\n  berth user show ann",
		Args:    cobra.MaximumNArgs(1),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return at.do(cmd.Context(), func(ctx context.Context, client *control.Client) error {
			var u wire.User
			if err := client.Get(ctx, "/users/"+url.PathEscape(cmp.Or(only(args), myself)), nil, &u); err != nil {
				return err
			}
			if asJSON {
				return printJSON(std, u)
			}
			kept := map[string]string{"": "by the server", wire.SourceHtpasswd: "in the htpasswd file", wire.SourceDirectory: "in the directory (LDAP)"}
			table := tabwriter.NewWriter(std.out, 0, 0, 2, ' ', 0)
			fmt.Fprintf(table, "Name\t%s\nGroups\t%s\nState\t%s\nKept\t%s\n", u.Name, cmp.Or(strings.Join(u.Groups, ", "), "none"), stateOf(u.Disabled), cmp.Or(kept[u.Source], u.Source))
			if u.Issuer != "" {
				fmt.Fprintf(table, "Logs in by\t%s, next before %s\n", u.Issuer, u.Until.Local().Format("2006-01-02 15:04"))
			}
			if !u.Created.IsZero() {
				fmt.Fprintf(table, "Created\t%s\n", u.Created.Local().Format("2006-01-02 15:04"))
			}
			return table.Flush()
		})
	}
	return cmd
}

// newAble makes the command that disables or enables what is below path.
func newAble(at *adminOf, path, what string, disable bool) *cobra.Command {
	verb, long := "enable", "Let disabled %ss log in again. What they had before they were disabled, such as tokens, stays void."
	if disable {
		verb, long = "disable", "Shut out %ss without deleting them. They are logged out at once."
	}
	return &cobra.Command{
		Use:     verb + " NAME...",
		Short:   strings.ToUpper(verb[:1]) + verb[1:] + " " + what + "s",
		Long:    fmt.Sprintf(long, what),
		Example: fmt.Sprintf("  berth %s %s NAME", what, verb),
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := struct {
				Disabled bool `json:"disabled"`
			}{disable}
			return at.do(cmd.Context(), func(ctx context.Context, client *control.Client) error {
				var errs []error
				for _, name := range args {
					errs = append(errs, client.Do(ctx, "PUT", path+url.PathEscape(name), q, nil))
				}
				return errors.Join(errs...)
			})
		},
	}
}

func newUserLs(std stdio, at *adminOf) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "ls [flags]",
		Aliases: []string{"list"},
		Short:   "List the users",
		Example: "  berth user ls\n  berth user ls --json",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return at.do(cmd.Context(), func(ctx context.Context, client *control.Client) error {
			all := []wire.User{}
			for after := ""; ; {
				var page wire.Users
				if err := client.Get(ctx, "/users", wire.AccountsQuery{After: after}, &page); err != nil {
					return err
				}
				all = append(all, page.Users...)
				if after = page.Next; after == "" {
					break
				}
			}
			if asJSON {
				return printJSON(std, all)
			}
			table := tabwriter.NewWriter(std.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(table, "NAME\tGROUPS\tSTATE\tCREATED")
			for _, u := range all {
				state := stateOf(u.Disabled)
				if !u.Disabled && !u.Until.IsZero() && time.Now().After(u.Until) {
					state = "login is due"
				}
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", u.Name, strings.Join(u.Groups, ","), state, u.Created.Local().Format("2006-01-02 15:04"))
			}
			return table.Flush()
		})
	}
	return cmd
}

func stateOf(disabled bool) string {
	if disabled {
		return "disabled"
	}
	return "active"
}

func newUserRm(_ stdio, at *adminOf) *cobra.Command {
	return &cobra.Command{
		Use:     "rm NAME...",
		Aliases: []string{"delete"},
		Short:   "Delete users",
		Long:    "Delete users. They are logged out at once; what they have pushed stays.",
		Example: "  berth user rm ann",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return deleteEach(cmd.Context(), at, "/users/", args)
		},
	}
}

// deleteEach deletes what is below path under each of the names.
func deleteEach(ctx context.Context, at *adminOf, path string, names []string) error {
	return at.do(ctx, func(ctx context.Context, client *control.Client) error {
		var errs []error
		for _, name := range names {
			errs = append(errs, client.Do(ctx, "DELETE", path+url.PathEscape(name), nil, nil))
		}
		return errors.Join(errs...)
	})
}

// readPassword asks for a new password on the terminal, twice, or reads the first
// line of the input.
func readPassword(std stdio, fromStdin bool) (string, error) {
	return readSecret(std, fromStdin, "Password: ", "Once more: ")
}

// readSecret asks for a password on the terminal with each of the prompts, or reads
// the first line of the input. It is never an argument, which every user of the
// machine can read.
func readSecret(std stdio, fromStdin bool, prompts ...string) (string, error) {
	if fromStdin {
		const most = 4096
		line, err := bufio.NewReader(io.LimitReader(std.in, most)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("read the password: %w", err)
		}
		if line = strings.TrimRight(line, "\r\n"); line == "" {
			return "", misuse(errors.New("the input has no password in its first line"))
		}
		return line, nil
	}
	tty, ok := std.in.(*os.File)
	if !ok || !term.IsTerminal(int(tty.Fd())) {
		return "", misuse(errors.New("the input is no terminal to ask for a password on: give it with --password-stdin"))
	}
	secret := ""
	for i, prompt := range prompts {
		fmt.Fprint(std.err, prompt)
		b, err := term.ReadPassword(int(tty.Fd()))
		fmt.Fprintln(std.err)
		if err != nil {
			return "", fmt.Errorf("read the password: %w", err)
		}
		if i > 0 && secret != string(b) {
			return "", errors.New("the passwords differ: try again")
		}
		secret = string(b)
	}
	if secret == "" {
		return "", misuse(errors.New("a password is needed"))
	}
	return secret, nil
}
