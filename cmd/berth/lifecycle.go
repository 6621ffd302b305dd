package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"berth.internal/internal/detach"
)

func newStart(std stdio) *cobra.Command {
	var join, interactive bool
	var keys string
	cmd := &cobra.Command{
		Use:   "start [flags] CONTAINER...",
		Short: "Start containers that have stopped, or were created",
		Long: `Start containers that have stopped, or were created. With --attach berth joins the one
container's output and exits with its exit code.`,
		Example:           "  berth start web\n  berth start -ai shell",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeContainers,
	}
	cmd.Flags().BoolVarP(&join, "attach", "a", false, "join the container's output, and wait for its end")
	cmd.Flags().BoolVarP(&interactive, "interactive", "i", false, "give the container our stdin, too")
	detachKeysFlag(cmd.Flags(), &keys)
	return onNode(cmd, func(ctx context.Context, node *client.Client, args []string) error {
		if join || interactive {
			if len(args) > 1 {
				return misuse(fmt.Errorf("only one container can be joined%s", seeHelp(cmd)))
			}
			return startAttached(ctx, std, node, args[0], interactive, keys)
		}
		return forEach(std, args, func(name string) error {
			_, err := node.ContainerStart(ctx, name, client.ContainerStartOptions{})
			return err
		})
	})
}

// startAttached joins a container and starts it.
func startAttached(ctx context.Context, std stdio, node *client.Client, name string, stdin bool, keys string) error {
	seq, err := detach.Parse(keys)
	if err != nil {
		return misuse(fmt.Errorf("--detach-keys: %w", err))
	}
	res, err := node.ContainerInspect(ctx, name, client.ContainerInspectOptions{})
	if err != nil {
		return err
	}
	c := res.Container
	ctx = context.WithoutCancel(ctx) // the signals that end it belong to the container
	a, err := attach(ctx, std, node, c.ID, attachOptions{
		stdin: stdin && c.Config.OpenStdin, removed: c.HostConfig.AutoRemove, tty: c.Config.Tty, keys: seq,
	})
	if err != nil {
		return err
	}
	return a.run(ctx, func() error {
		_, err := node.ContainerStart(ctx, c.ID, client.ContainerStartOptions{})
		return notStarted(err)
	})
}

func newRename() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "rename CONTAINER NAME",
		Short:             "Give a container another name",
		Example:           "  berth rename web web-old",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: first(completeContainers),
	}
	return onNode(cmd, func(ctx context.Context, node *client.Client, args []string) error {
		_, err := node.ContainerRename(ctx, args[0], client.ContainerRenameOptions{NewName: args[1]})
		return err
	})
}

func newStop(std stdio) *cobra.Command {
	return stopping(std, &cobra.Command{
		Use:     "stop [flags] CONTAINER...",
		Short:   "Stop containers: ask, wait, then kill",
		Example: "  berth stop -t 30 web",
	}, func(ctx context.Context, node *client.Client, name string, opts client.ContainerStopOptions) error {
		_, err := node.ContainerStop(ctx, name, opts)
		return err
	})
}

func newRestart(std stdio) *cobra.Command {
	return stopping(std, &cobra.Command{
		Use:     "restart [flags] CONTAINER...",
		Short:   "Stop containers and start them again",
		Example: "  berth restart web",
	}, func(ctx context.Context, node *client.Client, name string, opts client.ContainerStopOptions) error {
		_, err := node.ContainerRestart(ctx, name, client.ContainerRestartOptions(opts))
		return err
	})
}

// stopping makes a command that stops containers from what it does to each.
func stopping(std stdio, cmd *cobra.Command, each func(context.Context, *client.Client, string, client.ContainerStopOptions) error) *cobra.Command {
	var opts client.ContainerStopOptions
	var seconds int
	cmd.Flags().IntVarP(&seconds, "time", "t", 0, "`seconds` to wait before killing; default is the container's own, or 10")
	cmd.Flags().StringVarP(&opts.Signal, "signal", "s", "", "`signal` to ask with; default is the container's own, or SIGTERM")
	return onEach(std, cmd, func(ctx context.Context, node *client.Client, name string) error {
		if cmd.Flags().Changed("time") {
			opts.Timeout = &seconds
		}
		return each(ctx, node, name, opts)
	})
}

// onEach makes cmd a command that does the same to each of the containers that it is
// given.
func onEach(std stdio, cmd *cobra.Command, do func(ctx context.Context, node *client.Client, name string) error) *cobra.Command {
	cmd.Args, cmd.ValidArgsFunction = cobra.MinimumNArgs(1), completeContainers
	return onNode(cmd, func(ctx context.Context, node *client.Client, args []string) error {
		return forEach(std, args, func(name string) error { return do(ctx, node, name) })
	})
}

func newPause(std stdio) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "pause CONTAINER...",
		Short:   "Freeze all processes of containers",
		Example: "  berth pause web",
	}
	return onEach(std, cmd, func(ctx context.Context, node *client.Client, name string) error {
		_, err := node.ContainerPause(ctx, name, client.ContainerPauseOptions{})
		return err
	})
}

func newUnpause(std stdio) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "unpause CONTAINER...",
		Short:   "Let paused containers go on",
		Example: "  berth unpause web",
	}
	return onEach(std, cmd, func(ctx context.Context, node *client.Client, name string) error {
		_, err := node.ContainerUnpause(ctx, name, client.ContainerUnpauseOptions{})
		return err
	})
}

func newKill(std stdio) *cobra.Command {
	var opts client.ContainerKillOptions
	cmd := &cobra.Command{
		Use:     "kill [flags] CONTAINER...",
		Short:   "Send a signal to containers",
		Example: "  berth kill -s HUP web",
	}
	cmd.Flags().StringVarP(&opts.Signal, "signal", "s", "KILL", "`signal` to send")
	return onEach(std, cmd, func(ctx context.Context, node *client.Client, name string) error {
		_, err := node.ContainerKill(ctx, name, opts)
		return err
	})
}

func newRm(std stdio) *cobra.Command {
	var opts client.ContainerRemoveOptions
	cmd := &cobra.Command{
		Use:     "rm [flags] CONTAINER...",
		Short:   "Remove containers",
		Example: "  berth rm web\n  berth rm -f $(berth ps -aq)",
	}
	cmd.Flags().BoolVarP(&opts.Force, "force", "f", false, "also if it runs: kill it first")
	return onEach(std, cmd, func(ctx context.Context, node *client.Client, name string) error {
		_, err := node.ContainerRemove(ctx, name, opts)
		return err
	})
}

func newWait(std stdio) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "wait CONTAINER...",
		Short:             "Wait until containers have ended and print their exit codes",
		Example:           "  berth wait job",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeContainers,
	}
	return onNode(cmd, func(ctx context.Context, node *client.Client, args []string) error {
		var errs []error
		for _, name := range args {
			code, err := ended(ctx, node, name)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			fmt.Fprintln(std.out, code)
		}
		return errors.Join(errs...)
	})
}

// ended waits until the container does not run and returns its exit code.
func ended(ctx context.Context, node *client.Client, name string) (int64, error) {
	wait := node.ContainerWait(ctx, name, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
	select {
	case err := <-wait.Error:
		return 0, err
	case res := <-wait.Result:
		if res.Error != nil {
			return 0, fmt.Errorf("wait for %s: %s", name, res.Error.Message)
		}
		return res.StatusCode, nil
	}
}
