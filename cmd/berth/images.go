package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newImages(std stdio) *cobra.Command {
	var quiet, noTrunc, asJSON bool
	cmd := &cobra.Command{
		Use:     "images [flags] [NAME]",
		Short:   "List the node's images",
		Example: "  berth images\n  berth images --json",
		Args:    cobra.MaximumNArgs(1),
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print only ids")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "print ids in full")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return onNode(cmd, func(ctx context.Context, node *client.Client, args []string) error {
		var opts client.ImageListOptions
		if len(args) == 1 {
			opts.Filters = client.Filters{}.Add("reference", args[0])
		}
		res, err := node.ImageList(ctx, opts)
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(std, res.Items)
		}
		table := tabwriter.NewWriter(std.out, 0, 0, 3, ' ', 0)
		if !quiet {
			fmt.Fprintln(table, "REPOSITORY\tTAG\tIMAGE ID\tCREATED\tSIZE")
		}
		for _, image := range res.Items {
			id := short(image.ID, noTrunc)
			if quiet {
				fmt.Fprintln(table, id)
				continue
			}
			for _, row := range imageRows(image.RepoTags, image.RepoDigests) {
				fmt.Fprintf(table, "%s\t%s\t%s\t%s ago\t%s\n", row.repo, row.tag, id,
					units.HumanDuration(time.Since(time.Unix(image.Created, 0))), units.HumanSize(float64(image.Size)))
			}
		}
		return table.Flush()
	})
}

type imageRow struct{ repo, tag string }

// imageRows are the names under which an image is listed: all its tags, or the
// repositories it was pulled from by digest.
func imageRows(tags, digests []string) []imageRow {
	var rows []imageRow
	for _, ref := range tags {
		colon := strings.LastIndex(ref, ":") // a tag has none, so it is the last
		rows = append(rows, imageRow{ref[:max(colon, 0)], ref[colon+1:]})
	}
	if len(rows) > 0 {
		return rows
	}
	for _, ref := range digests {
		repo, _, _ := strings.Cut(ref, "@")
		rows = append(rows, imageRow{repo, "<none>"})
	}
	if len(rows) > 0 {
		return rows
	}
	return []imageRow{{"<none>", "<none>"}}
}

// short is an id as people read it.
func short(id string, full bool) string {
	if full {
		return id
	}
	_, hex, ok := strings.Cut(id, ":")
	if !ok {
		hex = id
	}
	return hex[:min(12, len(hex))]
}

func newRmi(std stdio) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "rmi [flags] IMAGE...",
		Short:             "Remove images from the node",
		Long:              "Remove images from the node. The registry keeps them; see berth repo rm.",
		Example:           "  berth rmi team/app:1.1",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeImages,
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also if stopped containers use it")
	return onNode(cmd, func(ctx context.Context, node *client.Client, args []string) error {
		var errs []error
		for _, image := range args {
			res, err := node.ImageRemove(ctx, image, client.ImageRemoveOptions{Force: force, PruneChildren: true})
			if err != nil {
				errs = append(errs, err)
				continue
			}
			for _, item := range res.Items {
				if item.Untagged != "" {
					fmt.Fprintf(std.out, "Untagged: %s\n", item.Untagged)
				}
				if item.Deleted != "" {
					fmt.Fprintf(std.out, "Deleted: %s\n", item.Deleted)
				}
			}
		}
		return errors.Join(errs...)
	})
}
