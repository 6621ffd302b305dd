package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"berth.internal/auth"
	"berth.internal/auth/policy"
	"berth.internal/client/control"
	wire "berth.internal/internal/control"
)

func newPolicy(std stdio) *cobra.Command {
	var at adminOf
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Say who may do what in the registry",
		Long: `Say who may do what in the registry. A policy is a list of rules. Each allows or
denies a subject some actions on some repositories:

  subject       user:NAME, group:NAME, robot:NAME, node:NAME, claim:ISSUER+KEY=PATTERN
                (CI jobs whose token says so), anonymous, or everyone who has logged in
  actions       pull, push, overwrite (move a tag), delete, admin
  repositories  a pattern: * is any text without a slash, ** any number of words

What no rule allows is denied. Of the rules that match, the one with the longest
pattern decides; of equally long ones, one that denies.

` + whereHelp,
		Example: `  berth policy allow group:dev pull,push 'team/**'
  berth policy test --as user:ann --group dev push team/app:1
  berth policy show`,
		GroupID: groupRun,
	}
	at.flags(cmd)
	cmd.AddCommand(newPolicyShow(std, &at), newPolicySet(std, &at), newPolicyTest(std, &at),
		newPolicyAdd(std, &at, "allow", "Allow somebody something"), newPolicyAdd(std, &at, "deny", "Deny somebody something"))
	return cmd
}

func newPolicyShow(std stdio, at *adminOf) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "show [flags]",
		Short:   "Print the policy in force",
		Long:    "Print the policy in force, as YAML that berth policy set takes.",
		Example: "  berth policy show >policy.yaml",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return at.do(cmd.Context(), func(ctx context.Context, client *control.Client) error {
			var p wire.Policy
			if err := client.Get(ctx, "/policy", nil, &p); err != nil {
				return err
			}
			if asJSON {
				return printJSON(std, p)
			}
			return printPolicy(std, p)
		})
	}
	return cmd
}

func printPolicy(std stdio, p wire.Policy) error {
	where := map[string]string{
		policy.SourceDefault: "the default, until one is set",
		policy.SourceFile:    "from the file of the server's configuration",
		policy.SourceAPI:     fmt.Sprintf("revision %d", p.Revision),
	}
	fmt.Fprintf(std.out, "# The policy in force: %s.\n", cmp.Or(where[p.Source], p.Source))
	if p.Problem != "" {
		fmt.Fprintf(std.out, "# A LATER VERSION IS NOT IN FORCE: %s\n", strings.ReplaceAll(p.Problem, "\n", "\n#   "))
	}
	for _, r := range policy.FromWire(p.Added) {
		fmt.Fprintf(std.out, "# Also in force, by the server's configuration (%s): %s\n", r.Comment, r)
	}
	text, err := policy.Policy{Rules: policy.FromWire(p.Rules)}.YAML()
	if err == nil {
		_, err = std.out.Write(text)
	}
	return err
}

func newPolicySet(std stdio, at *adminOf) *cobra.Command {
	return &cobra.Command{
		Use:   "set FILE",
		Short: "Replace the policy",
		Long: `Replace the policy by that of a YAML file; - is standard input. It is in force on
all servers within a second.`,
		Example: "  berth policy set policy.yaml",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := readPolicy(std, args[0])
			if err != nil {
				return err
			}
			return at.do(cmd.Context(), func(ctx context.Context, client *control.Client) error {
				return changePolicy(ctx, std, client, func([]policy.Rule) []policy.Rule { return p.Rules })
			})
		},
	}
}

// readPolicy reads the policy in a file. Its mistakes are told here, since the
// server would not know the lines.
func readPolicy(std stdio, file string) (policy.Policy, error) {
	in := std.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return policy.Policy{}, fmt.Errorf("read the policy: %w", err)
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, policy.MaxBytes+1))
	if err != nil {
		return policy.Policy{}, fmt.Errorf("read the policy: %w", err)
	}
	return policy.Parse(file, text)
}

// changePolicy replaces the rules of the policy by what change makes of them.
func changePolicy(ctx context.Context, std stdio, client *control.Client, change func([]policy.Rule) []policy.Rule) error {
	for tries := 0; ; tries++ {
		var p wire.Policy
		if err := client.Get(ctx, "/policy", nil, &p); err != nil {
			return err
		}
		update := wire.PolicyUpdate{Rules: policy.Wire(change(policy.FromWire(p.Rules)))}
		err := client.Replace(ctx, "/policy", p.Revision, update, &p)
		if e, ok := errors.AsType[*wire.Error](err); ok && e.Status == http.StatusPreconditionFailed && tries < 5 {
			continue // somebody else was faster
		}
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(std.out, "The policy has %d rules and is in force, revision %d.\n", len(p.Rules), p.Revision)
		return err
	}
}

func newPolicyAdd(std stdio, at *adminOf, verb, short string) *cobra.Command {
	var comment string
	cmd := &cobra.Command{
		Use:     verb + " [flags] SUBJECT ACTION[,ACTION...] REPOSITORIES",
		Short:   short,
		Long:    short + ": adds a rule to the policy. See berth policy --help for subjects, actions and patterns.",
		Example: fmt.Sprintf("  berth policy %[1]s user:ann push team/app\n  berth policy %[1]s group:dev pull,push 'team/**'", verb),
		Args:    cobra.ExactArgs(3),
	}
	cmd.Flags().StringVar(&comment, "comment", "", "`text` that says what the rule is for")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r := policy.Rule{Subject: args[0], Repositories: args[2], Comment: comment}
		list := &r.Allow
		if verb == "deny" {
			list = &r.Deny
		}
		for word := range strings.SplitSeq(args[1], ",") {
			*list = append(*list, auth.Action(word))
		}
		err := policy.Policy{Rules: []policy.Rule{r}}.Validate()
		if wrong, ok := errors.AsType[policy.Problems](err); ok {
			return misuse(fmt.Errorf("%s: %s", wrong[0].Field, wrong[0].Says))
		}
		return at.do(cmd.Context(), func(ctx context.Context, client *control.Client) error {
			return changePolicy(ctx, std, client, func(rules []policy.Rule) []policy.Rule { return append(rules, r) })
		})
	}
	return cmd
}

func newPolicyTest(std stdio, at *adminOf) *cobra.Command {
	var q wire.PolicyQuestion
	var claims []string
	var file string
	cmd := &cobra.Command{
		Use:   "test --as SUBJECT [flags] ACTION [REPOSITORY[:TAG]]",
		Short: "Print whether somebody may do something, and why",
		Long: `Print whether somebody may do something, and the rule that decides. It exits with
1 if it is denied. SUBJECT is a user's name, or user:NAME, robot:NAME, node:NAME,
job:ISSUER with the claims of its token, or anonymous.`,
		Example: `  berth policy test --as ann --group dev push team/app:1
  berth policy test --as anonymous pull public/app
  berth policy test --as ann admin
  berth policy test --as job:gitlab --claim project_path=team/app push team/app:1
  berth policy test --file new-policy.yaml --as ann pull team/app`,
		Args: cobra.RangeArgs(1, 2),
	}
	f := cmd.Flags()
	f.StringVar(&q.Subject, "as", "", "`who` asks")
	f.StringSliceVar(&q.Groups, "group", nil, "a `group` that the user is in; may be repeated; default those that the server knows")
	f.StringArrayVar(&claims, "claim", nil, "`KEY=VALUE` that the token of a CI job says; may be repeated")
	f.StringVar(&file, "file", "", "ask the policy in this `file` instead of the one in force")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if q.Subject == "" {
			return misuse(errors.New("say who asks, such as --as ann" + seeHelp(cmd)))
		}
		if q.Subject != string(auth.Anonymous) && !strings.Contains(q.Subject, ":") {
			q.Subject = "user:" + q.Subject
		}
		for _, claim := range claims {
			key, value, ok := strings.Cut(claim, "=")
			if !ok {
				return misuse(fmt.Errorf("--claim %s: want KEY=VALUE", claim))
			}
			if q.Claims == nil {
				q.Claims = map[string]string{}
			}
			q.Claims[key] = value
		}
		q.Action = args[0]
		if len(args) == 2 {
			q.Repo, _, _ = strings.Cut(args[1], ":") // rules are for all tags
		}
		if file != "" {
			p, err := readPolicy(std, file)
			if err != nil {
				return err
			}
			q.Rules = policy.Wire(p.Rules)
		}
		return at.do(cmd.Context(), func(ctx context.Context, client *control.Client) error {
			var a wire.PolicyAnswer
			if err := client.Do(ctx, http.MethodPost, "/policy/test", q, &a); err != nil {
				return err
			}
			verdict := "allowed"
			if !a.Allowed {
				verdict = "denied"
			}
			if _, err := fmt.Fprintf(std.out, "%s: %s\n", verdict, a.Why); err != nil {
				return err
			}
			if !a.Allowed {
				return &exit{code: 1}
			}
			return nil
		})
	}
	return cmd
}
