package main

import (
	"context"
	"fmt"
	"text/tabwriter"

	"github.com/docker/go-units"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newInfo(std stdio) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "info [flags]",
		Short:   "Print what the node says about itself",
		Example: "  berth info",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return onNode(cmd, func(ctx context.Context, node *client.Client, _ []string) error {
		res, err := node.Info(ctx, client.InfoOptions{})
		if err != nil {
			return err
		}
		info := res.Info
		if asJSON {
			return printJSON(std, info)
		}
		table := tabwriter.NewWriter(std.out, 0, 0, 2, ' ', 0)
		for _, row := range []struct {
			name  string
			value any
		}{
			{"Name", info.Name},
			{"Id", info.ID},
			{"Version", info.ServerVersion},
			{"Containers", fmt.Sprintf("%d, %d of them running", info.Containers, info.ContainersRunning)},
			{"Images", info.Images},
			{"Data directory", info.DockerRootDir},
			{"Storage", info.Driver},
			{"Runtime", info.DefaultRuntime},
			{"Cgroups", fmt.Sprintf("v%s, %s", info.CgroupVersion, info.CgroupDriver)},
			{"System", fmt.Sprintf("%s, kernel %s, %s", info.OperatingSystem, info.KernelVersion, info.Architecture)},
			{"Processors", info.NCPU},
			{"Memory", units.BytesSize(float64(info.MemTotal))},
		} {
			fmt.Fprintf(table, "%s\t%v\n", row.name, row.value)
		}
		if err := table.Flush(); err != nil {
			return err
		}
		for _, warning := range info.Warnings {
			fmt.Fprintf(std.err, "berth: warning: %s\n", warning)
		}
		return nil
	})
}
