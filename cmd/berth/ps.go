package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newPs(std stdio) *cobra.Command {
	var opts client.ContainerListOptions
	var quiet, noTrunc, asJSON bool
	var filters []string
	cmd := &cobra.Command{
		Use:     "ps [flags]",
		Short:   "List containers",
		Example: "  berth ps -a\n  berth ps --filter name=web --json",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().BoolVarP(&opts.All, "all", "a", false, "also those that do not run")
	cmd.Flags().IntVarP(&opts.Limit, "last", "n", 0, "only the `number` made last, running or not")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print only ids")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "print ids and commands in full")
	cmd.Flags().StringArrayVarP(&filters, "filter", "f", nil, "only those with `NAME=VALUE`, such as status=running")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return onNode(cmd, func(ctx context.Context, node *client.Client, _ []string) error {
		opts.Filters = client.Filters{}
		for _, f := range filters {
			name, value, ok := strings.Cut(f, "=")
			if !ok {
				return misuse(fmt.Errorf("--filter %s: write NAME=VALUE", f))
			}
			opts.Filters.Add(name, value)
		}
		res, err := node.ContainerList(ctx, opts)
		switch {
		case err != nil:
			return err
		case asJSON:
			return printJSON(std, res.Items)
		case quiet:
			for _, c := range res.Items {
				fmt.Fprintln(std.out, short(c.ID, noTrunc))
			}
			return nil
		}
		return printContainers(std, res.Items, noTrunc)
	})
}

func printContainers(std stdio, list []container.Summary, noTrunc bool) error {
	table := tabwriter.NewWriter(std.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "CONTAINER ID\tIMAGE\tCOMMAND\tCREATED\tSTATUS\tNAMES")
	for _, c := range list {
		command := []rune(c.Command)
		if len(command) > 20 && !noTrunc {
			command = append(command[:19], '…')
		}
		names := strings.ReplaceAll(strings.Join(c.Names, ","), "/", "")
		fmt.Fprintf(table, "%s\t%s\t%q\t%s ago\t%s\t%s\n", short(c.ID, noTrunc), c.Image, string(command),
			units.HumanDuration(time.Since(time.Unix(c.Created, 0))), c.Status, names)
	}
	return table.Flush()
}

// printJSON prints v for scripts.
func printJSON(std stdio, v any) error {
	enc := json.NewEncoder(std.out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
