package main

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newLogs(std stdio) *cobra.Command {
	opts := client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true}
	cmd := &cobra.Command{
		Use:               "logs [flags] CONTAINER",
		Short:             "Print what a container wrote",
		Example:           "  berth logs -f --tail 100 web",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: first(completeContainers),
	}
	cmd.Flags().BoolVarP(&opts.Follow, "follow", "f", false, "go on until the container ends")
	cmd.Flags().BoolVarP(&opts.Timestamps, "timestamps", "t", false, "begin each line with its time")
	cmd.Flags().StringVarP(&opts.Tail, "tail", "n", "all", "begin with the last `number` of lines")
	cmd.Flags().StringVar(&opts.Since, "since", "", "begin at a `time`, or so long ago, such as 10m")
	cmd.Flags().StringVar(&opts.Until, "until", "", "end at a `time`, or so long ago")
	return onNode(cmd, func(ctx context.Context, node *client.Client, args []string) error {
		// The API takes anything else for all, as Docker's does.
		if n, err := strconv.Atoi(opts.Tail); opts.Tail != "all" && (err != nil || n < 0) {
			return misuse(fmt.Errorf("--tail %s: write a number of lines, or all", opts.Tail))
		}
		logs, err := node.ContainerLogs(ctx, args[0], opts)
		if err != nil {
			return err
		}
		defer logs.Close()
		res, err := node.ContainerInspect(ctx, args[0], client.ContainerInspectOptions{})
		if err != nil {
			return err
		}
		if res.Container.Config.Tty { // one stream, as it is
			_, err = io.Copy(std.out, logs)
		} else {
			_, err = stdcopy.StdCopy(std.out, std.err, logs)
		}
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("read the log of %s: %w", args[0], err)
		}
		return nil
	})
}
