package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"berth.internal/client/control"
	wire "berth.internal/internal/control"
)

func newAdminGC(std stdio, at *adminOf) *cobra.Command {
	var dryRun, all, noTrunc, asJSON bool
	cmd := &cobra.Command{
		Use:   "gc [flags]",
		Short: "Take away now what nothing needs any more",
		Long: `Take away now what nothing needs any more: uploads that nobody went on with,
blobs that no manifest names, manifests by the rules of the configuration, and
the bytes of all these. The server does the same by itself, all the time; what is
not due yet stays.

With --dry-run nothing changes: it lists what would go, and why.`,
		Example: `  berth admin gc --dry-run          what would go, and why
  berth admin gc --dry-run --all    and what was looked at and stays
  berth admin gc`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing; list what would go, and why")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also list what was looked at and stays")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "print digests and ids in full")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !dryRun && (all || noTrunc) {
			return misuse(fmt.Errorf("--all and --no-trunc go with --dry-run; see %s --help", cmd.CommandPath()))
		}
		return at.do(cmd.Context(), func(ctx context.Context, client *control.Client) error {
			if !dryRun {
				return collect(ctx, std, client, asJSON)
			}
			plan, err := planGC(ctx, client, all)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(std, plan)
			}
			return printPlan(std, plan, noTrunc)
		})
	}
	return cmd
}

// collect does a round of the server's collector and prints what it did.
func collect(ctx context.Context, std stdio, client *control.Client, asJSON bool) error {
	show := newJobProgress(std.err)
	job, err := client.Run(ctx, "/gc", nil, show.update)
	show.close()
	if err != nil && job.Result == nil {
		return err
	}
	var report wire.GCReport
	if err := json.Unmarshal(job.Result, &report); err != nil {
		return fmt.Errorf("read what the collector did: %w", err)
	}
	if asJSON {
		if failed := printJSON(std, report); failed != nil {
			return failed
		}
		return err
	}
	fmt.Fprintf(std.out, "Took away %s, %s and %s, and looked at %d more that stay.\n",
		count(report.Uploads, "upload"), count(report.Blobs, "blob"), count(report.Manifests, "manifest"), report.Kept)
	fmt.Fprintf(std.out, "Deleted %s with %s.\n", count(report.Deleted, "file"), units.HumanSize(float64(report.FreedBytes)))
	return err
}

// gcPlan is what --dry-run --json prints. Its field names are kept.
type gcPlan struct {
	Entries    []wire.GCEntry `json:"entries"`
	Goes       int            `json:"goes"`
	Stays      int            `json:"stays"`
	FreesBytes int64          `json:"frees_bytes"` // at least
}

// planGC collects all pages of what the server's collector would do. What stays
// is counted, and listed with all.
func planGC(ctx context.Context, client *control.Client, all bool) (gcPlan, error) {
	plan := gcPlan{Entries: []wire.GCEntry{}}
	going := map[string]int{} // repositories that a digest goes from
	for after := ""; ; {
		var page wire.GCPlan
		if err := client.Get(ctx, "/gc", wire.GCQuery{After: after}, &page); err != nil {
			return plan, err
		}
		for _, e := range page.Entries {
			if !e.Goes {
				plan.Stays++
				if all {
					plan.Entries = append(plan.Entries, e)
				}
				continue
			}
			plan.Goes++
			plan.Entries = append(plan.Entries, e)
			// The bytes of a digest go with the last repository that holds it.
			if e.Digest != "" {
				going[e.Digest]++
			}
			if e.Digest == "" || going[e.Digest] == max(e.Holders, 1) {
				plan.FreesBytes += e.SizeBytes
			}
		}
		if after = page.Next; after == "" {
			return plan, nil
		}
	}
}

func printPlan(std stdio, plan gcPlan, noTrunc bool) error {
	if len(plan.Entries) > 0 {
		table := tabwriter.NewWriter(std.out, 0, 0, 3, ' ', 0)
		fmt.Fprintln(table, "WHAT\tREPOSITORY\tID\tSIZE\tWHY")
		for _, e := range plan.Entries {
			what, id := e.Kind, e.Digest+e.Upload+e.Key
			if !noTrunc {
				id = shortID(id)
			}
			if !e.Goes {
				what += " stays"
			}
			why := e.Why
			if e.Holders > 1 {
				why += fmt.Sprintf("; %d repositories hold it", e.Holders)
			}
			repo := e.Repo
			if repo == "" {
				repo = "-"
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", what, repo, id, units.HumanSize(float64(e.SizeBytes)), why)
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	goes := "Nothing would go"
	if plan.Goes > 0 {
		goes = fmt.Sprintf("%s would go and free %s", count(int64(plan.Goes), "entry"), units.HumanSize(float64(plan.FreesBytes)))
	}
	_, err := fmt.Fprintf(std.out, "%s; %d more were looked at and stay.\n", goes, plan.Stays)
	return err
}

// shortID is a digest, an id or a key as people read it.
func shortID(id string) string {
	algorithm, hex, ok := strings.Cut(id, ":")
	if ok {
		return algorithm + ":" + hex[:min(12, len(hex))]
	}
	return id[:min(30, len(id))]
}

// count says how many there are of something.
func count(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	if base, ok := strings.CutSuffix(what, "y"); ok {
		return fmt.Sprintf("%d %sies", n, base)
	}
	return fmt.Sprintf("%d %ss", n, what)
}
