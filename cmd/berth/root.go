package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// exit is an error that decides what berth exits with.
type exit struct {
	code int
	err  error // nil: nothing to say
}

func (e *exit) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit %d", e.code)
	}
	return e.err.Error()
}

func (e *exit) Unwrap() error { return e.err }

// misuse marks err as a mistake in how berth was called: exit code 2.
func misuse(err error) error {
	if err == nil {
		return nil
	}
	return &exit{code: 2, err: err}
}

// run is berth without the process around it. It returns what to exit with: 0
// done, 1 failed, 2 misused; run and exec give their container's code.
func run(ctx context.Context, std stdio, args []string) int {
	root := newRoot(std)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	code := 1
	if e, ok := errors.AsType[*exit](err); ok {
		code = e.code
		if e.err == nil {
			return code
		}
	}
	for line := range strings.Lines(strings.TrimSpace(err.Error())) { // several failures, a line each
		fmt.Fprintf(std.err, "berth: %s\n", strings.TrimSuffix(line, "\n"))
	}
	return code
}

// The groups of berth's help.
const (
	groupRun      = "run"
	groupRegistry = "registry"
	groupNode     = "node"
)

func newRoot(std stdio) *cobra.Command {
	root := &cobra.Command{
		Use:   "berth",
		Short: "Keep a site's container images and run them",
		Long: `berth keeps a site's container images and runs them: a registry, the node that
pulls from it, and the tool for both.`,
		Example: `  berth serve --data /srv/berth                serve the registry
  sudo berth node --registry http://HOST:5000  run its images on this machine
  berth repo push oci:./image team/app:1       store an image
  berth run --rm team/app:1                    run it`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetIn(std.in)
	root.SetOut(std.out)
	root.SetErr(std.err)
	root.AddGroup(
		&cobra.Group{ID: groupRun, Title: "Run berth:"},
		&cobra.Group{ID: groupRegistry, Title: "Images in the registry:"},
		&cobra.Group{ID: groupNode, Title: "Containers and images on a node:"},
	)
	root.AddCommand(
		newRun(std), newCreate(std), newExec(std), newAttach(std), newPs(std), newLogs(std), newInspect(std),
		newStart(std), newStop(std), newRestart(std), newKill(std), newPause(std), newUnpause(std), newWait(std), newRm(std), newRename(),
		newStats(std), newTop(std), newDiff(std), newUpdate(std),
		newPull(std), newImages(std), newRmi(std), newInfo(std),
		newServe(std), newNode(std), newUp(std), newAdmin(std), newConfig(std), newPolicy(std), newUser(std), newRobot(std), newTLS(std),
		newLogin(std), newLogout(), newContext(std),
		newRepo(std),
		newVersion(std), newOCI(std),
	)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return misuse(fmt.Errorf("%w%s%s", err, didYouMeanFlag(cmd, err), seeHelp(cmd)))
	})
	strict(root)
	return root
}

// strict makes wrong words and wrong numbers of arguments a misuse, in cmd and
// all below it. A command that only groups others takes no arguments at all.
func strict(cmd *cobra.Command) {
	check := cmd.Args
	if cmd.HasSubCommands() && !cmd.Runnable() {
		check = noSuchWord
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if check == nil {
			return nil
		}
		err := check(cmd, args)
		if err == nil {
			return nil
		}
		return misuse(fmt.Errorf("%w%s", err, seeHelp(cmd)))
	}
	for _, sub := range cmd.Commands() {
		strict(sub)
	}
}

func noSuchWord(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	cmd.SuggestionsMinimumDistance = 2
	return fmt.Errorf("%q is not a command of %s%s", args[0], cmd.CommandPath(), didYouMean(cmd.SuggestionsFor(args[0])))
}

func seeHelp(cmd *cobra.Command) string {
	return fmt.Sprintf("; see %s --help", cmd.CommandPath())
}

func didYouMean(words []string) string {
	if len(words) == 0 {
		return ""
	}
	return " (did you mean " + strings.Join(words, " or ") + "?)"
}

// didYouMeanFlag suggests the flags of cmd that look like the one err did not
// find.
func didYouMeanFlag(cmd *cobra.Command, err error) string {
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok {
		return ""
	}
	// cobra compares a mistyped word with the names of commands; here the
	// flags stand in for them.
	flags := &cobra.Command{SuggestionsMinimumDistance: 2}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		flags.AddCommand(&cobra.Command{Use: f.Name, Run: func(*cobra.Command, []string) {}})
	})
	var words []string
	for _, name := range flags.SuggestionsFor(unknown.GetSpecifiedName()) {
		words = append(words, "--"+name)
	}
	return didYouMean(words)
}
