package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth.internal/internal/detach"
)

// detachKeysFlag gives a command the flag that says by which keys its user leaves.
func detachKeysFlag(fs *pflag.FlagSet, keys *string) {
	fs.StringVar(keys, "detach-keys", detach.Default, "`keys` that leave a terminal, such as ctrl-x,x")
}

func newExec(std stdio) *cobra.Command {
	var opts client.ExecCreateOptions
	var detached bool
	var env, envFiles []string
	var keys string
	cmd := &cobra.Command{
		Use:   "exec [flags] CONTAINER COMMAND [ARG...]",
		Short: "Run a command in a running container",
		Long: `Run a command in a running container. berth exits with the command's exit code, or
with 126 if it cannot be executed, 127 if it is not there.`,
		Example: `  berth exec web cat /etc/os-release
  berth exec -it web sh
  berth exec -i db psql < dump.sql`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: first(completeContainers),
	}
	cmd.Flags().SetInterspersed(false) // what follows the container is the command's
	cmd.Flags().BoolVarP(&detached, "detach", "d", false, "leave the command in the background")
	cmd.Flags().BoolVarP(&opts.AttachStdin, "interactive", "i", false, "give the command our stdin")
	cmd.Flags().BoolVarP(&opts.TTY, "tty", "t", false, "give the command a terminal")
	cmd.Flags().BoolVar(&opts.Privileged, "privileged", false, "give the command all capabilities")
	cmd.Flags().StringVarP(&opts.User, "user", "u", "", "`user[:group]`, names or numbers")
	cmd.Flags().StringVarP(&opts.WorkingDir, "workdir", "w", "", "`directory` to start in")
	cmd.Flags().StringArrayVarP(&env, "env", "e", nil, "set `NAME=VALUE`, or pass NAME on from here")
	cmd.Flags().StringArrayVar(&envFiles, "env-file", nil, "read variables from a `file`, one a line")
	detachKeysFlag(cmd.Flags(), &keys)
	return onNode(cmd, func(ctx context.Context, node *client.Client, args []string) (err error) {
		if opts.Env, err = environment(envFiles, env); err != nil {
			return misuse(err)
		}
		seq, err := detach.Parse(keys)
		if err != nil {
			return misuse(fmt.Errorf("--detach-keys: %w", err))
		}
		opts.Cmd = args[1:]
		opts.AttachStdout, opts.AttachStderr = !detached, !detached
		return execIn(ctx, std, node, args[0], opts, detached, seq)
	})
}

func execIn(ctx context.Context, std stdio, node *client.Client, id string, opts client.ExecCreateOptions, detached bool, keys []byte) error {
	var tty *terminal
	if opts.TTY && !detached {
		var err error
		if tty, err = openTerminal(std, opts.AttachStdin); err != nil {
			return err
		}
		opts.ConsoleSize = tty.size()
	}
	created, err := node.ExecCreate(ctx, id, opts)
	if err != nil {
		return err
	}
	if detached {
		_, err := node.ExecStart(ctx, created.ID, client.ExecStartOptions{Detach: true, TTY: opts.TTY})
		return err
	}
	conn, err := node.ExecAttach(ctx, created.ID, client.ExecAttachOptions{TTY: opts.TTY, ConsoleSize: opts.ConsoleSize})
	if err != nil {
		return notStarted(err)
	}
	if opts.TTY {
		s := session{std: std, term: tty, keys: keys, stdin: opts.AttachStdin, resize: func(ctx context.Context, size client.ConsoleSize) error {
			_, err := node.ExecResize(ctx, created.ID, client.ExecResizeOptions(size))
			return err
		}}
		err = s.run(context.WithoutCancel(ctx), conn.HijackedResponse, nil)
	} else {
		err = streams(std, conn.HijackedResponse, opts.AttachStdin)()
	}
	switch {
	case errors.Is(err, errLeft):
		fmt.Fprintf(std.err, "\nberth: %s goes on in container %s\n", opts.Cmd[0], id)
		return nil
	case err != nil:
		return fmt.Errorf("read the output of %s: %w", opts.Cmd[0], err)
	}
	done, err := node.ExecInspect(ctx, created.ID, client.ExecInspectOptions{})
	if err != nil {
		return err
	}
	return exitCode(done.ExitCode)
}
