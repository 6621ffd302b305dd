package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"berth.internal/client/control"
	wire "berth.internal/internal/control"
)

func newRobot(std stdio) *cobra.Command {
	var at adminOf
	cmd := &cobra.Command{
		Use:   "robot",
		Short: "Make, list, change and delete robots",
		Long: `Make, list, change and delete the robots of a server: names and secrets for
programs, good for some repositories only.

` + whereHelp,
		Example: `  berth robot add ci --allow 'team/**=pull,push' --expires 90d
  berth robot set ci --expires 90d
  berth robot ls`,
		GroupID: groupRun,
	}
	at.flags(cmd)
	cmd.AddCommand(newRobotAdd(std, &at), newRobotLs(std, &at), newRobotSet(std, &at),
		newAble(&at, "/robots/", "robot", false), newAble(&at, "/robots/", "robot", true), newRobotRm(std, &at))
	return cmd
}

func newRobotAdd(std stdio, at *adminOf) *cobra.Command {
	var allow []string
	var expires string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "add [flags] NAME",
		Short: "Make a robot and print its secret, once",
		Long: `Make a robot and print its secret, which nobody can learn again. It logs in as
robot+NAME.`,
		Example: `  berth robot add ci --allow 'team/**=pull,push,overwrite' --expires 90d
  berth robot add deploy --allow '**=pull' | docker login -u robot+deploy --password-stdin registry.example.com`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().StringArrayVar(&allow, "allow", nil, "`PATTERN=ACTION,...` of repositories and what it may do there: pull, push, overwrite, delete; may be given several times")
	cmd.Flags().StringVar(&expires, "expires", "", "let it end after this `time`, such as 12h or 90d, or on this date, such as 2030-01-31; default: never")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		q := wire.CreateRobot{Name: args[0]}
		var err error
		if q.Grants, err = parseGrants(allow); err != nil {
			return misuse(err)
		}
		if len(q.Grants) == 0 {
			return misuse(errors.New("a robot that may do nothing is of no use: say what, such as --allow 'team/**=pull'"))
		}
		if q.Expires, err = parseExpiry(expires, time.Now()); err != nil {
			return misuse(err)
		}
		return at.do(cmd.Context(), func(ctx context.Context, client *control.Client) error {
			var made wire.Robot
			if err := client.Do(ctx, "POST", "/robots", q, &made); err != nil {
				return err
			}
			if asJSON {
				return printJSON(std, made)
			}
			fmt.Fprintf(std.err, "It logs in as %s, with this secret:\n", made.Login)
			fmt.Fprintln(std.out, made.Secret)
			return nil
		})
	}
	return cmd
}

func newRobotSet(std stdio, at *adminOf) *cobra.Command {
	var allow []string
	var expires string
	cmd := &cobra.Command{
		Use:   "set [flags] NAME",
		Short: "Change what a robot may do, and when it ends",
		Long: `Change what a robot may do, and when it ends; its secret stays as it is. What is
given with --allow takes the place of all that the robot could do, and ends the tokens
that it has.`,
		Example: `  berth robot set ci --expires 90d
  berth robot set ci --allow 'team/**=pull,push' --allow 'base/**=pull'`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().StringArrayVar(&allow, "allow", nil, "`PATTERN=ACTION,...` of repositories and what it may do there: pull, push, overwrite, delete; may be given several times")
	cmd.Flags().StringVar(&expires, "expires", "", "let it end after this `time`, such as 12h or 90d, or on this date, such as 2030-01-31, or never")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var q struct {
			Grants  []wire.Grant `json:"grants,omitempty"`
			Expires *time.Time   `json:"expires,omitempty"`
		}
		var err error
		if q.Grants, err = parseGrants(allow); err != nil {
			return misuse(err)
		}
		if expires != "" {
			end, err := parseExpiry(expires, time.Now())
			if err != nil {
				return misuse(err)
			}
			q.Expires = &end
		}
		if q.Grants == nil && q.Expires == nil {
			return misuse(errors.New("say what is to change, with --allow or --expires" + seeHelp(cmd)))
		}
		return at.do(cmd.Context(), func(ctx context.Context, client *control.Client) error {
			return client.Do(ctx, "PUT", "/robots/"+url.PathEscape(args[0]), q, nil)
		})
	}
	return cmd
}

// parseGrants reads several times PATTERN=ACTION,...
func parseGrants(allow []string) ([]wire.Grant, error) {
	var grants []wire.Grant
	for _, text := range allow {
		g, err := parseGrant(text)
		if err != nil {
			return nil, err
		}
		grants = append(grants, g)
	}
	return grants, nil
}

// parseGrant reads PATTERN=ACTION,...
func parseGrant(text string) (wire.Grant, error) {
	pattern, actions, ok := strings.Cut(text, "=")
	if !ok || pattern == "" || actions == "" {
		return wire.Grant{}, fmt.Errorf("--allow: %q is not PATTERN=ACTION,... such as team/**=pull,push", text)
	}
	return wire.Grant{Repositories: pattern, Actions: strings.Split(actions, ",")}, nil
}

// parseExpiry reads a date, or a time from now on. Zero is never.
func parseExpiry(text string, now time.Time) (time.Time, error) {
	if text == "" || text == "never" {
		return time.Time{}, nil
	}
	if date, err := time.ParseInLocation(time.DateOnly, text, time.Local); err == nil {
		return date, nil
	}
	var days int
	if n, err := fmt.Sscanf(text+" .", "%dd .", &days); err == nil && n == 1 && days > 0 && days < 36500 {
		return now.AddDate(0, 0, days), nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return time.Time{}, fmt.Errorf("--expires: %q is none of a time such as 12h or 90d, a date such as 2030-01-31, and never", text)
	}
	return now.Add(d), nil
}

func newRobotLs(std stdio, at *adminOf) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "ls [flags]",
		Aliases: []string{"list"},
		Short:   "List the robots",
		Example: "  berth robot ls\n  berth robot ls --json",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return at.do(cmd.Context(), func(ctx context.Context, client *control.Client) error {
			all := []wire.Robot{}
			for after := ""; ; {
				var page wire.Robots
				if err := client.Get(ctx, "/robots", wire.AccountsQuery{After: after}, &page); err != nil {
					return err
				}
				all = append(all, page.Robots...)
				if after = page.Next; after == "" {
					break
				}
			}
			if asJSON {
				return printJSON(std, all)
			}
			table := tabwriter.NewWriter(std.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(table, "NAME\tLOGIN\tMAY\tSTATE\tEXPIRES")
			for _, r := range all {
				state := stateOf(r.Disabled)
				if !r.Expires.IsZero() && r.Expires.Before(time.Now()) {
					state = "expired"
				}
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", r.Name, r.Login, grantsText(r.Grants), state, expiryText(r.Expires))
			}
			return table.Flush()
		})
	}
	return cmd
}

// grantsText is what parseGrants reads.
func grantsText(grants []wire.Grant) string {
	var may []string
	for _, g := range grants {
		may = append(may, g.Repositories+"="+strings.Join(g.Actions, ","))
	}
	return strings.Join(may, " ")
}

func expiryText(end time.Time) string {
	if end.IsZero() {
		return "never"
	}
	return end.Local().Format("2006-01-02 15:04")
}

func newRobotRm(_ stdio, at *adminOf) *cobra.Command {
	return &cobra.Command{
		Use:     "rm NAME...",
		Aliases: []string{"delete"},
		Short:   "Delete robots",
		Long:    "Delete robots. Their secrets are void at once.",
		Example: "  berth robot rm ci",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return deleteEach(cmd.Context(), at, "/robots/", args)
		},
	}
}
