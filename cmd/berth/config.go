package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth.internal/client/control"
	"berth.internal/internal/config"
	wire "berth.internal/internal/control"
)

func newConfig(std stdio) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check and print the configuration of servers and nodes",
		Long: `Check and print the configuration of servers and nodes, as their file and the
environment give it. What a running server has is printed by berth admin config.`,
		Example: `  berth config check /etc/berth.yaml
  berth config print /etc/berth.yaml`,
		GroupID: groupRun,
	}
	cmd.AddCommand(newConfigCheck(std), newConfigPrint(std))
	return cmd
}

// program is one of berth's that has a configuration file.
type program struct {
	name string
	keys []string                            // at the top of the file
	read func(file string) (settings, error) // what is wrong with its values is the error
}

// settings are a configuration struct.
type settings interface{ CheckFiles() error }

func programOf[C interface {
	Validate() error
	CheckFiles() error
}](name string, defaults func() C, flags func(*pflag.FlagSet, *C)) program {
	p := program{name: name, read: func(file string) (settings, error) {
		return settle(pflag.NewFlagSet("", pflag.ContinueOnError), file, defaults, flags)
	}}
	for _, key := range config.Keys(defaults()) {
		top, _, _ := strings.Cut(key, ".")
		p.keys = append(p.keys, top)
	}
	return p
}

func programs() []program {
	return []program{programOf("serve", defaultServer, serveFlags), programOf("node", defaultNode, nodeFlags), programOf("up", defaultUp, upFlags)}
}

// programFor returns the program of that name; of none, the one that knows most of
// the keys of the file.
func programFor(name, file string) (program, error) {
	all := programs()
	if name != "" {
		for _, p := range all {
			if p.name == name {
				return p, nil
			}
		}
		return program{}, misuse(fmt.Errorf("--for %s: it is none of serve, node, up", name))
	}
	if file == "" {
		return all[0], nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return program{}, fmt.Errorf("read configuration: %w", err)
	}
	keys := config.Top(text)
	unknown := func(p program) (n int) {
		for _, key := range keys {
			if !slices.Contains(p.keys, key) {
				n++
			}
		}
		return n
	}
	return slices.MinFunc(all, func(a, b program) int { return cmp.Compare(unknown(a), unknown(b)) }), nil // of equal ones the first
}

// fileArgs are those of commands for a file, by default that of BERTH_CONFIG.
func fileArgs(cmd *cobra.Command) (file, which *string) {
	file, which = new(string), new(string)
	cmd.Flags().StringVar(which, "for", "", "`program` that the file is for: serve, node or up; default: the one that knows its keys")
	check := cobra.MaximumNArgs(1)
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if *file = os.Getenv("BERTH_CONFIG"); len(args) > 0 {
			*file = args[0]
		}
		return check(cmd, args)
	}
	return file, which
}

func newConfigCheck(std stdio) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check [flags] [FILE]",
		Short: "Say all that is wrong with a configuration",
		Long: `Say all that is wrong with a configuration file, each mistake with its key and
line, and with the files that it names: certificates, policy, passwords. Variables
of the environment such as BERTH_DATA count as for the program itself. Exit code 1:
there are mistakes.`,
		Example: `  berth config check /etc/berth.yaml
  berth config check --for node /etc/berth-node.yaml`,
	}
	file, which := fileArgs(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		p, err := programFor(*which, *file)
		if err != nil {
			return err
		}
		cfg, err := p.read(*file)
		var text []byte
		if err == nil && *file != "" {
			text, err = os.ReadFile(*file)
		}
		if err == nil {
			err = config.Locate(cfg.CheckFiles(), *file, text, os.LookupEnv, cfg, nil)
		}
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(std.out, "%s: nothing is wrong with it for berth %s\n", cmp.Or(*file, "the environment"), p.name)
		return err
	}
	return cmd
}

func newConfigPrint(std stdio) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "print [flags] [FILE]",
		Short: "Print every key with the value that counts",
		Long: `Print every key of a configuration with the value that counts, by default, file and
environment, as a file that can be edited. Passwords are hidden.`,
		Example: `  berth config print > /etc/berth.yaml      every key with its default
  berth config print /etc/berth.yaml
  berth config print --for node`,
	}
	file, which := fileArgs(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		p, err := programFor(*which, *file)
		if err != nil {
			return err
		}
		cfg, wrong := p.read(*file)
		text, err := config.YAML(cfg)
		if err == nil && wrong == nil {
			_, err = std.out.Write(text)
		}
		return errors.Join(wrong, err)
	}
	return cmd
}

func newAdminConfig(std stdio, at *adminOf) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "config [flags]",
		Short: "Print the configuration that a server has in force",
		Long: `Print the configuration that a server has in force, every key, as YAML. Passwords
are hidden.`,
		Example: "  berth admin config\n  berth admin config --json | jq .config.audit",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return at.do(cmd.Context(), func(ctx context.Context, client *control.Client) error {
			var s wire.Settings
			if err := client.Get(ctx, "/config", nil, &s); err != nil {
				return err
			}
			if asJSON {
				return printJSON(std, s)
			}
			if s.Problem != "" {
				fmt.Fprintf(std.out, "# WHAT WAS READ LAST IS NOT IN FORCE:\n#   %s\n", strings.ReplaceAll(s.Problem, "\n", "\n#   "))
			}
			if len(s.NeedRestart) > 0 {
				fmt.Fprintf(std.out, "# Changed, and in force after a restart: %s\n", strings.Join(s.NeedRestart, ", "))
			}
			text, err := config.FromJSON(s.Config)
			if err == nil {
				_, err = std.out.Write(text)
			}
			return err
		})
	}
	return cmd
}

func newAdminReload(std stdio, at *adminOf) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "reload [flags]",
		Short: "Let a server read its configuration again",
		Long: `Let a server read its configuration file and the files that it names again, as
SIGHUP does. Keys that can change while it runs are in force at once, for all
requests that come; the others are named, and count after a restart. A
configuration with mistakes changes nothing.`,
		Example: "  berth config check /etc/berth.yaml && berth admin reload",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return at.do(cmd.Context(), func(ctx context.Context, client *control.Client) error {
			var did wire.Reloaded
			if err := client.Do(ctx, "POST", "/config/reload", nil, &did); err != nil {
				return err
			}
			if asJSON {
				return printJSON(std, did)
			}
			fmt.Fprintf(std.out, "In force now: %s.\n", cmp.Or(strings.Join(did.Changed, ", "), "the same as before"))
			if len(did.NeedRestart) > 0 {
				fmt.Fprintf(std.out, "In force after a restart: %s.\n", strings.Join(did.NeedRestart, ", "))
			}
			return nil
		})
	}
	return cmd
}
