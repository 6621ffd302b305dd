package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"berth.internal/internal/detach"
)

// What Docker's users expect run to exit with when the container did not run.
const (
	exitRefused       = 125 // the node did not start it
	exitNotExecutable = 126 // its command cannot be executed
	exitNotThere      = 127 // its command is not there
)

func newRun(std stdio) *cobra.Command {
	var opts runOptions
	cmd := &cobra.Command{
		Use:   "run [flags] IMAGE [COMMAND] [ARG...]",
		Short: "Run a command in a new container",
		Long: `Run a command in a new container. The image is pulled if the node does not have
it. berth exits with the exit code of the container, or with 125 if the node did
not start it, 126 if its command cannot be executed, 127 if it is not there.`,
		Example: `  berth run --rm busybox echo hello
  berth run -it --rm debian bash
  berth run -d --name web --network host -m 256m --restart unless-stopped team/web:1.4
  echo text | berth run -i --rm busybox wc -c`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: first(completeImages),
	}
	cmd.Flags().SetInterspersed(false) // what follows the image is the container's
	cmd.Flags().BoolVarP(&opts.detach, "detach", "d", false, "leave the container in the background and print its id")
	detachKeysFlag(cmd.Flags(), &opts.detachKeys)
	opts.addFlags(cmd.Flags())
	return onNode(cmd, func(ctx context.Context, node *client.Client, args []string) error {
		keys, err := detach.Parse(opts.detachKeys)
		if err != nil {
			return misuse(fmt.Errorf("--detach-keys: %w", err))
		}
		req, err := opts.request(args[0], args[1:])
		if err != nil {
			return misuse(fmt.Errorf("%w%s", err, seeHelp(cmd)))
		}
		return runContainer(ctx, std, node, &opts, req, keys)
	})
}

func newCreate(std stdio) *cobra.Command {
	opts := runOptions{detach: true}
	cmd := &cobra.Command{
		Use:               "create [flags] IMAGE [COMMAND] [ARG...]",
		Short:             "Make a container without starting it, and print its id",
		Example:           "  berth create --name job team/job:1\n  berth start job",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: first(completeImages),
	}
	cmd.Flags().SetInterspersed(false) // what follows the image is the container's
	opts.addFlags(cmd.Flags())
	return onNode(cmd, func(ctx context.Context, node *client.Client, args []string) error {
		req, err := opts.request(args[0], args[1:])
		if err != nil {
			return misuse(fmt.Errorf("%w%s", err, seeHelp(cmd)))
		}
		id, err := create(ctx, std, node, &opts, req)
		if err != nil {
			return err
		}
		fmt.Fprintln(std.out, id)
		return nil
	})
}

func runContainer(ctx context.Context, std stdio, node *client.Client, opts *runOptions, req client.ContainerCreateOptions, keys []byte) error {
	if opts.tty && !opts.detach {
		t, err := openTerminal(std, opts.interactive)
		if err != nil {
			return err
		}
		size := t.size()
		req.HostConfig.ConsoleSize = [2]uint{size.Height, size.Width}
	}
	id, err := create(ctx, std, node, opts, req)
	if err != nil {
		return &exit{code: exitRefused, err: err}
	}
	start := func() error {
		_, err := node.ContainerStart(ctx, id, client.ContainerStartOptions{})
		return notStarted(err)
	}
	if opts.detach {
		if err := start(); err != nil {
			return err
		}
		fmt.Fprintln(std.out, id)
		return nil
	}
	// The signals that end ctx now belong to the container.
	ctx = context.WithoutCancel(ctx)
	a, err := attach(ctx, std, node, id, attachOptions{stdin: opts.interactive, removed: opts.remove, tty: opts.tty, keys: keys})
	if err != nil {
		return &exit{code: exitRefused, err: err}
	}
	return a.run(ctx, start)
}

// create makes the container, pulling its image as --pull says.
func create(ctx context.Context, std stdio, node *client.Client, opts *runOptions, req client.ContainerCreateOptions) (id string, err error) {
	if opts.pull == pullAlways {
		if err := pull(ctx, stdio{out: std.err, err: std.err}, node, req.Config.Image, opts.quiet); err != nil {
			return "", err
		}
	}
	res, err := node.ContainerCreate(ctx, req)
	// Another container that it names may be missing, too.
	if cerrdefs.IsNotFound(err) && strings.Contains(err.Error(), "No such image") && opts.pull == pullMissing {
		if err := pull(ctx, stdio{out: std.err, err: std.err}, node, req.Config.Image, opts.quiet); err != nil {
			return "", err
		}
		res, err = node.ContainerCreate(ctx, req)
	}
	if err != nil {
		return "", err
	}
	for _, warning := range res.Warnings {
		fmt.Fprintf(std.err, "berth: warning: %s\n", warning)
	}
	if opts.cidfile != "" {
		if err := writeNew(opts.cidfile, res.ID); err != nil {
			_, rmErr := node.ContainerRemove(ctx, res.ID, client.ContainerRemoveOptions{})
			return "", errors.Join(err, rmErr)
		}
	}
	return res.ID, nil
}

// writeNew writes a file that must not be there yet.
func writeNew(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("write the container's id: %w", err)
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// notStarted gives the failure of a start the exit code that a shell gives to
// the same failure.
func notStarted(err error) error {
	if err == nil {
		return nil
	}
	code := exitRefused
	switch msg := err.Error(); {
	case strings.Contains(msg, "no such file or directory"), strings.Contains(msg, "executable file not found"):
		code = exitNotThere
	case strings.Contains(msg, "permission denied"), strings.Contains(msg, "exec format error"),
		strings.Contains(msg, "is a directory"), strings.Contains(msg, "not a directory"):
		code = exitNotExecutable
	}
	return &exit{code: code, err: err}
}
