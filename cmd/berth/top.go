package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newTop(std stdio) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "top [flags] CONTAINER [PS-OPTION...]",
		Short: "List the processes of a container",
		Long: `List the processes of a container, with the numbers that they have on the node. The
options of ps are -e, -f, -l, aux and -o COLUMN,…; without any they are -ef.`,
		Example:           "  berth top web\n  berth top web -o pid,user,rss,args\n  berth top --json web",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: first(completeContainers),
	}
	cmd.Flags().SetInterspersed(false) // what follows the container is ps's
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return onNode(cmd, func(ctx context.Context, node *client.Client, args []string) error {
		res, err := node.ContainerTop(ctx, args[0], client.ContainerTopOptions{Arguments: args[1:]})
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(std, res)
		}
		table := tabwriter.NewWriter(std.out, 0, 0, 3, ' ', 0)
		fmt.Fprintln(table, strings.Join(res.Titles, "\t"))
		for _, p := range res.Processes {
			fmt.Fprintln(table, strings.Join(p, "\t"))
		}
		return table.Flush()
	})
}

func newDiff(std stdio) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "diff [flags] CONTAINER",
		Short: "List the files that a container has changed",
		Long: `List the files that a container has added (A), changed (C) or deleted (D) since it was
made from its image.`,
		Example:           "  berth diff web\n  berth diff --json web",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: first(completeContainers),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return onNode(cmd, func(ctx context.Context, node *client.Client, args []string) error {
		res, err := node.ContainerDiff(ctx, args[0], client.ContainerDiffOptions{})
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(std, append([]container.FilesystemChange{}, res.Changes...))
		}
		for _, c := range res.Changes {
			fmt.Fprintf(std.out, "%s %s\n", c.Kind, c.Path)
		}
		return nil
	})
}
