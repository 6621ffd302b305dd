package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"berth.internal/client/control"
	wire "berth.internal/internal/control"
)

const auditPage = 10_000 // records of a request, at most

func newAdminAudit(std stdio, at *adminOf) *cobra.Command {
	var q wire.AuditQuery
	var since, until string
	var tail int
	var follow, asJSON bool
	cmd := &cobra.Command{
		Use:   "audit [flags]",
		Short: "Print who did what, was denied, or logged in",
		Long: `Print the audit log: who pushed, deleted, logged in, was denied, changed users or
the policy, from where, and by which rule. Without other options it prints the
last 100 records, oldest first.

Actions are login and token; blob.push, blob.mount, blob.delete; manifest.push,
manifest.delete, manifest.restore, manifest.purge; tag.delete; pull, push, delete,
overwrite and admin where that was denied; and those of the control API, such as
user.add, robot.change, key.delete, policy.change, gc.start, config.reload. Pulls
are recorded if the configuration says so (audit.pulls).

Patterns are those of the policy: * is any text without a slash, ** any text. A
time is one of RFC 3339, a date, or how long ago, such as 2h or 7d.`,
		Example: `  berth admin audit --denied
  berth admin audit --repo 'team/**' --action 'manifest.*' --since 2d
  berth admin audit --who robot:ci --tail 0 --json | jq -r .digest
  berth admin audit --follow`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	f.StringVar(&q.Who, "who", "", "only what `somebody` did: a user, robot:NAME, anonymous, socket; or a pattern")
	f.StringVar(&q.Repo, "repo", "", "only what was done to repositories of this `pattern`")
	f.StringVar(&q.Action, "action", "", "only actions of this `pattern`")
	f.BoolVar(&q.Denied, "denied", false, "only what was denied")
	f.StringVar(&since, "since", "", "only from this `time` on")
	f.StringVar(&until, "until", "", "only before this `time`")
	f.IntVarP(&tail, "tail", "n", 100, "print the last `N` records at most; 0: all")
	f.BoolVarP(&follow, "follow", "f", false, "go on to print what is recorded")
	f.BoolVar(&asJSON, "json", false, "print each record as a line of JSON, as in the log")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		now := time.Now()
		for _, t := range []struct {
			flag, text string
			into       *time.Time
		}{{"since", since, &q.Since}, {"until", until, &q.Until}} {
			if t.text == "" {
				continue
			}
			var err error
			if *t.into, err = moment(t.text, now); err != nil {
				return misuse(fmt.Errorf("--%s: %w", t.flag, err))
			}
		}
		if tail < 0 {
			return misuse(fmt.Errorf("--tail %d: must not be negative", tail))
		}
		if !cmd.Flags().Changed("tail") && (since != "" || until != "") {
			tail = 0
		}
		show := auditText
		if asJSON {
			show = auditJSON
		}
		return at.do(cmd.Context(), func(ctx context.Context, client *control.Client) error {
			return printAudit(ctx, std, client, q, tail, follow, show)
		})
	}
	return cmd
}

// moment reads a point in time: of RFC 3339, a date, or so long before now.
func moment(s string, now time.Time) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t.UTC(), nil
	}
	for _, layout := range []string{time.DateOnly, time.DateTime, "2006-01-02T15:04:05", "2006-01-02 15:04"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t.UTC(), nil
		}
	}
	var n int
	ago, err := time.ParseDuration(s)
	if _, failed := fmt.Sscanf(s+" .", "%dd .", &n); failed == nil && n < 36500 {
		ago, err = time.Duration(n)*24*time.Hour, nil
	}
	if err != nil || ago < 0 {
		return time.Time{}, fmt.Errorf("%q is not a time such as 2026-01-31T12:00:00Z, 2026-01-31, 90m or 7d", s)
	}
	return now.Add(-ago).UTC(), nil
}

// printAudit prints the last records that q asks for, tail of them if that is not
// zero, and then those that come.
func printAudit(ctx context.Context, std stdio, client *control.Client, q wire.AuditQuery, tail int, follow bool, show func(io.Writer, wire.AuditRecord) error) error {
	damaged := 0
	ask := func() (page wire.AuditPage, err error) {
		err = client.Get(ctx, "/audit", q, &page)
		for _, rec := range page.Records {
			if err == nil {
				err = show(std.out, rec)
			}
		}
		damaged += page.Damaged
		return page, err
	}
	q.Limit = auditPage
	if q.Tail = tail > 0 && tail <= auditPage; q.Tail {
		q.Limit = tail
	} else if tail > auditPage {
		return misuse(fmt.Errorf("--tail %d: the last %d records at most can be asked for; 0 is all", tail, auditPage))
	}
	for {
		page, err := ask()
		if err != nil {
			return err
		}
		q.After, q.Tail, q.Limit = page.Next, false, auditPage
		if page.More {
			continue
		}
		if !follow {
			break
		}
		select {
		case <-ctx.Done(): // by the user
			return nil
		case <-time.After(time.Second):
		}
	}
	if damaged > 0 {
		fmt.Fprintf(std.err, "%s of the log cannot be read, such as one that was being written when the power went.\n", count(int64(damaged), "line"))
	}
	return nil
}

func auditJSON(to io.Writer, rec wire.AuditRecord) error {
	enc := json.NewEncoder(to)
	enc.SetEscapeHTML(false)
	return enc.Encode(rec)
}

// auditText prints a record in one line, for people.
func auditText(to io.Writer, rec wire.AuditRecord) error {
	on := rec.Repo
	if rec.Tag != "" {
		on += ":" + rec.Tag
	}
	if rec.Digest != "" {
		on += "@" + shortID(rec.Digest)
	}
	words := []string{
		rec.Time.Local().Format(time.DateTime), fmt.Sprintf("%-7s", rec.Decision), fmt.Sprintf("%-15s", cmp.Or(rec.From, "-")), rec.Who, rec.Action, on,
		rec.Object, rec.Detail, given("was", shortID(rec.Was)), given("by the rule", rec.Rule), given("because", rec.Reason),
	}
	if rec.Repeats > 0 {
		words = append(words, fmt.Sprintf("(%d times more)", rec.Repeats))
	}
	words = slices.DeleteFunc(words, func(w string) bool { return w == "" })
	_, err := fmt.Fprintln(to, printable(strings.Join(words, " ")))
	return err
}

// given is text behind a word, or nothing without a text.
func given(word, text string) string {
	if text == "" {
		return ""
	}
	return word + " " + text
}

// printable replaces what a terminal would take for an order.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}
