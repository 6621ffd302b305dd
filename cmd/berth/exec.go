package main

import (
	"context"
	"fmt"

	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newExec(std stdio) *cobra.Command {
	var opts client.ExecCreateOptions
	var detach bool
	var env, envFiles []string
	cmd := &cobra.Command{
		Use:   "exec [flags] CONTAINER COMMAND [ARG...]",
		Short: "Run a command in a running container",
		Long:  "Run a command in a running container. berth exits with the command's exit code.",
		Example: `  berth exec web cat /etc/os-release
  berth exec -i db psql < dump.sql`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: first(completeContainers),
	}
	cmd.Flags().SetInterspersed(false) // what follows the container is the command's
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "leave the command in the background")
	cmd.Flags().BoolVarP(&opts.AttachStdin, "interactive", "i", false, "give the command our stdin")
	cmd.Flags().StringVarP(&opts.User, "user", "u", "", "`user[:group]`, names or numbers")
	cmd.Flags().StringVarP(&opts.WorkingDir, "workdir", "w", "", "`directory` to start in")
	cmd.Flags().StringArrayVarP(&env, "env", "e", nil, "set `NAME=VALUE`, or pass NAME on from here")
	cmd.Flags().StringArrayVar(&envFiles, "env-file", nil, "read variables from a `file`, one a line")
	return onNode(cmd, func(ctx context.Context, node *client.Client, args []string) (err error) {
		if opts.Env, err = environment(envFiles, env); err != nil {
			return misuse(err)
		}
		opts.Cmd = args[1:]
		opts.AttachStdout, opts.AttachStderr = !detach, !detach
		return execIn(ctx, std, node, args[0], opts, detach)
	})
}

func execIn(ctx context.Context, std stdio, node *client.Client, id string, opts client.ExecCreateOptions, detach bool) error {
	created, err := node.ExecCreate(ctx, id, opts)
	if err != nil {
		return err
	}
	if detach {
		_, err := node.ExecStart(ctx, created.ID, client.ExecStartOptions{Detach: true})
		return err
	}
	conn, err := node.ExecAttach(ctx, created.ID, client.ExecAttachOptions{})
	if err != nil {
		return notStarted(err)
	}
	if err := streams(std, conn.HijackedResponse, opts.AttachStdin)(); err != nil {
		return fmt.Errorf("read the output of %s: %w", opts.Cmd[0], err)
	}
	done, err := node.ExecInspect(ctx, created.ID, client.ExecInspectOptions{})
	if err != nil {
		return err
	}
	return exitCode(done.ExitCode)
}
