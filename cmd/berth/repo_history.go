package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"berth.internal/client"
	"berth.internal/client/control"
	wire "berth.internal/internal/control"
	"berth.internal/internal/oci"
)

func newRepoHistory(std stdio, reg *registries) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "history [flags] REPO[:TAG]",
		Short: "Show what tags were on, and what was deleted and can be restored",
		Long: `Show what tags were on, latest first, and the deleted images that can still be
restored. For a repository, each tag has its last two images; for a tag, all that
the server remembers. The registry must be berth's.`,
		Example: `  berth repo history team/app
  berth repo history team/app:latest
  berth repo restore team/app:latest    back to the image before`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: first(reg.complete),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ref, registry, err := reg.find(args[0])
		if err == nil && ref.Digest != "" {
			err = misuse(fmt.Errorf("%q names a digest, which never changes; name a repository or a tag", args[0]))
		}
		if err != nil {
			return err
		}
		past, err := recall(cmd.Context(), registry, ref)
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(std, past)
		}
		return past.print(std)
	}
	return cmd
}

// controlOf makes a client of the control API of registry's server.
func controlOf(registry *client.Registry) (*control.Client, error) {
	return control.New(registry.URL(), registry.Transport())
}

// past is what --json prints. Its field names are kept.
type past struct {
	Repo  string            `json:"repo"`
	Tags  []wire.TagHistory `json:"tags"`
	Trash []wire.Trashed    `json:"trash,omitempty"` // for a repository
}

// recall asks for the history of a tag, or of all tags with the trash.
func recall(ctx context.Context, registry *client.Registry, ref oci.Reference) (past, error) {
	p := past{Repo: ref.Repository, Tags: []wire.TagHistory{}}
	api, err := controlOf(registry)
	if err != nil {
		return p, err
	}
	defer api.Close()
	for q := (wire.HistoryQuery{Repo: ref.Repository, Tag: ref.Tag}); ; {
		var page wire.History
		if err := api.Get(ctx, "/history", q, &page); err != nil {
			return p, err
		}
		p.Tags = append(p.Tags, page.Tags...)
		if q.After = page.Next; q.After == "" {
			break
		}
	}
	if ref.Tag != "" {
		return p, nil
	}
	p.Trash, err = trashOf(ctx, api, ref.Repository)
	return p, err
}

// trashOf lists all manifests in the trash of repo.
func trashOf(ctx context.Context, api *control.Client, repo string) ([]wire.Trashed, error) {
	var list []wire.Trashed
	for q := (wire.TrashQuery{Repo: repo}); ; {
		var page wire.Trash
		if err := api.Get(ctx, "/trash", q, &page); err != nil {
			return nil, err
		}
		list = append(list, page.Manifests...)
		if q.After = page.Next; q.After == "" {
			return list, nil
		}
	}
}

func (p past) print(std stdio) error {
	if len(p.Tags) == 0 && len(p.Trash) == 0 {
		_, err := fmt.Fprintf(std.out, "Nothing has happened in %s, as far as the server remembers.\n", p.Repo)
		return err
	}
	table := tabwriter.NewWriter(std.out, 0, 0, 2, ' ', 0)
	fmt.Fprint(table, "TAG\tSINCE\tIMAGE\tNOW\n")
	for _, tag := range p.Tags {
		for i, c := range tag.Changes {
			image, state := c.Digest, map[string]string{"there": "in the repository", "trash": "in the trash", "gone": "gone for good"}[c.State]
			if image == "" {
				image, state = "deleted", "-"
			} else if i == 0 {
				state = "current"
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", tag.Tag, c.Time.Local().Format(time.DateTime), image, state)
		}
	}
	if err := table.Flush(); err != nil || len(p.Trash) == 0 {
		return err
	}
	table = tabwriter.NewWriter(std.out, 0, 0, 2, ' ', 0)
	fmt.Fprint(table, "\nIN THE TRASH\tDELETED\tUNTIL\tTAGS IT HAD\n")
	for _, m := range p.Trash {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", m.Digest, m.Deleted.Local().Format(time.DateTime), m.Until.Local().Format(time.DateTime), strings.Join(m.Tags, " "))
	}
	return table.Flush()
}

func newRepoRestore(std stdio, reg *registries) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "restore [flags] REPO:TAG | REPO:TAG@DIGEST | REPO@DIGEST",
		Short: "Put a tag back, or bring back a deleted image",
		Long: `Put a tag back, or bring back a deleted image, as long as it is in the trash.

REPO:TAG goes back to the image that the tag was on before its last change;
REPO:TAG@DIGEST goes to that image; REPO@DIGEST brings that image back with the
tags that it was deleted with, as far as they are not on another one now. See
berth repo history for what there is. The registry must be berth's.`,
		Example: `  berth repo restore team/app:latest
  berth repo restore team/app:latest@sha256:…
  berth repo restore team/app@sha256:…`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: first(reg.complete),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ref, registry, err := reg.find(args[0])
		if err == nil && ref.Tag == "" && ref.Digest == "" {
			err = misuse(fmt.Errorf("%q names a whole repository; add :TAG or @DIGEST, which berth repo history shows", args[0]))
		}
		if err != nil {
			return err
		}
		api, err := controlOf(registry)
		if err != nil {
			return err
		}
		defer api.Close()
		var done wire.Restored
		if err := api.Do(cmd.Context(), "POST", "/restore", wire.RestoreRequest{
			Repo: ref.Repository, Tag: ref.Tag, Digest: ref.Digest.String(),
		}, &done); err != nil {
			return fmt.Errorf("restore %s: %w", args[0], err)
		}
		if asJSON {
			return printJSON(std, done)
		}
		_, err = fmt.Fprintf(std.out, "%s@%s\n", ref.Repository, done.Digest)
		for _, tag := range done.Tags {
			if err == nil {
				_, err = fmt.Fprintf(std.out, "%s:%s\n", ref.Repository, tag)
			}
		}
		return err
	}
	return cmd
}

func newRepoPurge(std stdio, reg *registries) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "purge [flags] REPO[@DIGEST]",
		Short: "Empty the trash of a repository, or take one image out of it for good",
		Long: `Empty the trash of a repository, or take one image out of it for good. The space
is free when the collector's grace is over: somebody may be pushing an image with
the same layers right now. The registry must be berth's.`,
		Example: `  berth repo purge team/app
  berth repo purge --yes team/app@sha256:…`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: first(reg.complete),
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ref, registry, err := reg.find(args[0])
		if err == nil && ref.Tag != "" {
			err = misuse(fmt.Errorf("%q names a tag; in the trash are images: REPO or REPO@DIGEST", args[0]))
		}
		if err != nil {
			return err
		}
		api, err := controlOf(registry)
		if err != nil {
			return err
		}
		defer api.Close()
		gone := []wire.Trashed{{Digest: ref.Digest.String()}}
		if ref.Digest == "" {
			if gone, err = trashOf(cmd.Context(), api, ref.Repository); err != nil {
				return err
			}
		}
		if ok, err := confirm(std, yes, fmt.Sprintf("Purge %d images of %s for good?", len(gone), ref.Repository)); err != nil || !ok {
			return err
		}
		for _, m := range gone {
			err := api.Do(cmd.Context(), "DELETE", "/trash", wire.PurgeRequest{Repo: ref.Repository, Digest: m.Digest}, nil)
			if errors.Is(err, wire.NotFound) && ref.Digest == "" {
				continue // its time was over
			}
			if err != nil {
				return fmt.Errorf("purge %s: %w", m.Digest, err)
			}
			if _, err := fmt.Fprintf(std.out, "%s@%s\n", ref.Repository, m.Digest); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}
