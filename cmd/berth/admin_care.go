package main

import (
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

func newAdminFsck(std stdio, at *adminOf) *cobra.Command {
	var deep, asJSON bool
	cmd := &cobra.Command{
		Use:   "fsck [flags]",
		Short: "Compare what the index says with the bytes on the disk",
		Long: `Compare what the index says with itself, with the bytes on the disk, and the other
way round, while the server serves. Nothing is changed. Without --deep, bytes on
the disk are counted; with it, all are read and hashed.

Exit code 0: all is well; 1: there are findings, each with what to do about it.`,
		Example: `  berth admin fsck
  berth admin fsck --deep
  berth admin fsck --json | jq -r '.findings[].digest'`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&deep, "deep", false, "read and hash every byte")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return at.do(cmd.Context(), func(ctx context.Context, client *control.Client) error {
			report, err := runJob[wire.FsckReport](ctx, std, client, "/fsck", wire.FsckRequest{Deep: deep})
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(std, report)
			} else {
				err = printFsck(std, report)
			}
			if err == nil && len(report.Findings) > 0 {
				return &exit{code: 1}
			}
			return err
		})
	}
	return cmd
}

// runJob starts the job at path, shows how far it is, and returns its result. A
// job that failed returns only its error.
func runJob[R any](ctx context.Context, std stdio, client *control.Client, path string, request any) (R, error) {
	var result R
	show := newJobProgress(std.err)
	job, err := client.Run(ctx, path, request, show.update)
	show.close()
	if err != nil {
		return result, err
	}
	if err := json.Unmarshal(job.Result, &result); err != nil {
		return result, fmt.Errorf("read the result of %s: %w", path, err)
	}
	return result, nil
}

func printFsck(std stdio, r wire.FsckReport) error {
	for _, f := range r.Findings {
		subject := f.Digest + f.Key
		if subject != "" {
			subject += ": "
		}
		if _, err := fmt.Fprintf(std.out, "%s: %s%s\n  %s\n", f.Kind, subject, f.What, f.Next); err != nil {
			return err
		}
	}
	how := "counted; --deep reads them"
	if r.Deep {
		how = "read and hashed"
	}
	verdict := "All is well."
	if n := int64(len(r.Findings)) + r.More; n > 0 {
		verdict = count(n, "finding") + "."
	}
	_, err := fmt.Fprintf(std.out, "%s %s with %s in %s (%s), %.1f s.\n", verdict, count(r.Contents, "blob"),
		units.HumanSize(float64(r.Bytes)), count(r.Files, "file"), how, r.TookSeconds)
	return err
}

func newAdminScrub(std stdio, at *adminOf) *cobra.Command {
	var now, asJSON bool
	cmd := &cobra.Command{
		Use:   "scrub [flags]",
		Short: "Say how far the scrub is, and what is damaged",
		Long: `Say how far the scrub is, and what is damaged. The scrub reads everything again
and again, slowly (scrub.interval and scrub.rate in the configuration). What it
finds damaged is quarantined: pulls are answered 404 with the reason instead of
wrong bytes, until somebody pushes the same content again.

With --now everything is read now, at full speed. Exit code 1: something is
damaged.`,
		Example: "  berth admin scrub\n  berth admin scrub --now",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&now, "now", false, "read everything now")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return at.do(cmd.Context(), func(ctx context.Context, client *control.Client) error {
			seen, err := scrub(ctx, std, client, now)
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(std, seen)
			} else {
				err = seen.print(std)
			}
			if err == nil && len(seen.Quarantined) > 0 {
				return &exit{code: 1}
			}
			return err
		})
	}
	return cmd
}

// scrubbed is what --json prints. Its field names are kept.
type scrubbed struct {
	wire.ScrubState
	Quarantined []wire.Quarantined `json:"quarantined"`
}

func scrub(ctx context.Context, std stdio, client *control.Client, now bool) (s scrubbed, err error) {
	if now {
		s.ScrubState, err = runJob[wire.ScrubState](ctx, std, client, "/scrub", nil)
	} else {
		err = client.Get(ctx, "/scrub", nil, &s.ScrubState)
	}
	s.Quarantined = []wire.Quarantined{}
	for q := (wire.QuarantineQuery{}); err == nil; {
		var page wire.Quarantine
		if err = client.Get(ctx, "/quarantine", q, &page); err != nil {
			break
		}
		s.Quarantined = append(s.Quarantined, page.Contents...)
		if q.After = page.Next; q.After == "" {
			break
		}
	}
	return s, err
}

func (s scrubbed) print(std stdio) error {
	read := fmt.Sprintf("%s with %s", count(s.Contents, "blob"), units.HumanSize(float64(s.Bytes)))
	when := "Nothing was read yet."
	switch {
	case !s.Ended.IsZero():
		when = fmt.Sprintf("The last pass ended %s: it read %s.", s.Ended.Local().Format(time.DateTime), read)
	case !s.Began.IsZero():
		when = fmt.Sprintf("A pass is under way since %s: it has read %s.", s.Began.Local().Format(time.DateTime), read)
	}
	fmt.Fprintln(std.out, when)
	if len(s.Quarantined) == 0 {
		_, err := fmt.Fprintln(std.out, "Nothing is damaged.")
		return err
	}
	table := tabwriter.NewWriter(std.out, 0, 0, 2, ' ', 0)
	fmt.Fprint(table, "DAMAGED\tSIZE\tSINCE\tHELD BY\tWHY\n")
	for _, c := range s.Quarantined {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", c.Digest, units.HumanSize(float64(c.SizeBytes)),
			c.Since.Local().Format(time.DateTime), strings.Join(c.Holders, " "), c.Why)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(std.out, "Pulls of these are answered 404. Push an image that has them again, or restore them from a backup.")
	return err
}
