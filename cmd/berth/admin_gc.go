package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"berth.internal/client/control"
	wire "berth.internal/internal/control"
)

func newAdminGC(std stdio, at *adminOf) *cobra.Command {
	var dryRun, asJSON bool
	var show planFlags
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
  berth admin gc --dry-run --queued and what will go, and when
  berth admin gc`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing; list what would go, and why")
	cmd.Flags().BoolVarP(&show.all, "all", "a", false, "with --dry-run: also list what was looked at and stays")
	cmd.Flags().BoolVar(&show.queued, "queued", false, "with --dry-run: also look at what is not due yet")
	cmd.Flags().BoolVar(&show.noTrunc, "no-trunc", false, "with --dry-run: print digests and ids in full")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !dryRun && show != (planFlags{}) {
			return misuse(fmt.Errorf("--all, --queued and --no-trunc go with --dry-run; see %s --help", cmd.CommandPath()))
		}
		return at.do(cmd.Context(), func(ctx context.Context, client *control.Client) error {
			if !dryRun {
				return collect(ctx, std, client, asJSON)
			}
			plan, err := planGC(ctx, client, show)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(std, plan)
			}
			return printPlan(std, plan, show)
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
	away := []string{count(report.Uploads, "upload"), count(report.Blobs, "blob"), count(report.Manifests, "manifest")}
	if report.Histories > 0 {
		away = append(away, "the past of "+count(report.Histories, "deleted tag"))
	}
	last := len(away) - 1
	fmt.Fprintf(std.out, "Took away %s and %s, and looked at %d more that stay.\n", strings.Join(away[:last], ", "), away[last], report.Kept)
	if report.Held {
		fmt.Fprintln(std.out, "More files will be deleted when the backup that is being made has ended.")
	}
	fmt.Fprintf(std.out, "Deleted %s with %s.\n", count(report.Deleted, "file"), units.HumanSize(float64(report.FreedBytes)))
	return err
}

// planFlags say what of a plan is shown.
type planFlags struct{ all, queued, noTrunc bool }

// gcPlan is what --dry-run --json prints. Its field names are kept.
type gcPlan struct {
	Entries    []wire.GCEntry `json:"entries"`
	Now        time.Time      `json:"now"` // to compare the entries' times with
	Goes       int            `json:"goes"`
	GoesNow    int            `json:"goes_now"` // of these
	Stays      int            `json:"stays"`
	FreesBytes int64          `json:"frees_bytes"` // by all that goes, at least
}

// planGC collects all pages of what the server's collector would do. What stays
// is counted, and listed only if it is to be shown.
func planGC(ctx context.Context, client *control.Client, show planFlags) (gcPlan, error) {
	plan := gcPlan{Entries: []wire.GCEntry{}}
	going := map[string]int{} // repositories that a digest goes from
	for ask := (wire.GCQuery{Queued: show.queued, Limit: 10000}); ; {
		var page wire.GCPlan
		if err := client.Get(ctx, "/gc", ask, &page); err != nil {
			return plan, err
		}
		plan.Now = page.Now
		for _, e := range page.Entries {
			if e.Goes || show.all {
				plan.Entries = append(plan.Entries, e)
			}
			if !e.Goes {
				plan.Stays++
				continue
			}
			plan.Goes++
			if !e.Due.After(page.Now) {
				plan.GoesNow++
			}
			// The bytes of a digest go with the last repository that holds it.
			if e.Digest != "" {
				going[e.Digest]++
			}
			if e.Digest == "" || going[e.Digest] == max(e.Holders, 1) {
				plan.FreesBytes += e.SizeBytes
			}
		}
		if ask.After = page.Next; ask.After == "" {
			return plan, nil
		}
	}
}

func printPlan(std stdio, plan gcPlan, show planFlags) error {
	if len(plan.Entries) > 0 {
		table := tabwriter.NewWriter(std.out, 0, 0, 3, ' ', 0)
		when := ""
		if show.queued {
			when = "WHEN\t"
		}
		fmt.Fprintf(table, "WHAT\tREPOSITORY\tID\tSIZE\t%sWHY\n", when)
		for _, e := range plan.Entries {
			fmt.Fprintln(table, planRow(e, plan.Now, show))
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	goes := "Nothing would go"
	if plan.Goes > 0 {
		goes = fmt.Sprintf("%s would go and free %s", count(int64(plan.Goes), "entry"), units.HumanSize(float64(plan.FreesBytes)))
	}
	if show.queued && plan.Goes > 0 {
		goes += fmt.Sprintf(", %d of them now", plan.GoesNow)
	}
	_, err := fmt.Fprintf(std.out, "%s; %d more were looked at and stay.\n", goes, plan.Stays)
	return err
}

// planRow is one entry of a plan, its columns divided by tabs.
func planRow(e wire.GCEntry, now time.Time, show planFlags) string {
	what, why := e.Kind, e.Why
	if !e.Goes {
		what += " stays"
	}
	if e.Holders > 1 {
		why += fmt.Sprintf("; %d repositories hold it", e.Holders)
	}
	id := e.Digest + e.Tag + e.Upload + e.Key // of which it has one
	if !show.noTrunc {
		id = shortID(id)
	}
	columns := []string{what, cmp.Or(e.Repo, "-"), id, units.HumanSize(float64(e.SizeBytes))}
	if show.queued {
		when := "now"
		if e.Due.After(now) {
			when = "in " + strings.ToLower(units.HumanDuration(e.Due.Sub(now)))
		}
		columns = append(columns, when)
	}
	return strings.Join(append(columns, why), "\t")
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
