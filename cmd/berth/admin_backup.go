package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"berth.internal/client/control"
	wire "berth.internal/internal/control"
	api "berth.internal/server/control"
	"berth.internal/storage/backup"
)

func newAdminBackup(std stdio, at *adminOf) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "backup [flags] DIR",
		Short: "Copy all data into a directory, while the server serves",
		Long: `Copy all data of the registry, as of one moment, into a directory on the server's
machine, while the server goes on. DIR is empty or new, or holds an earlier
backup: then only what is new is copied, what is no longer needed is removed, and
the earlier backup can be restored until the new one is complete. The server
writes it, as the user that it runs as.

On the file system of the data directory, blobs are hard links, which costs almost
nothing: such a backup protects from mistakes, not from the loss of the disk. On
another file system they are copied and verified.

Nothing that the collector frees is deleted until the backup has ended. What a
node keeps, and uploads that have not ended, are not part of it.`,
		Example: `  berth admin backup /mnt/backup/berth
  berth admin restore /mnt/backup/berth --data /srv/new`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		dir, err := filepath.Abs(args[0])
		if err != nil {
			return misuse(err)
		}
		return at.do(cmd.Context(), func(ctx context.Context, client *control.Client) error {
			show := newJobProgress(std.err)
			job, err := client.Run(ctx, "/backup", wire.BackupRequest{Dir: dir}, show.update)
			show.close()
			var report wire.BackupReport
			if job.Result != nil {
				if failed := json.Unmarshal(job.Result, &report); failed != nil {
					return fmt.Errorf("read what the backup came to: %w", errors.Join(failed, err))
				}
			}
			if e, ok := errors.AsType[*wire.Error](err); ok && e.Field == "dir" {
				err = errors.New(e.Message)
			}
			if report.Time.IsZero() {
				return err
			}
			if asJSON {
				return errors.Join(err, printJSON(std, report))
			}
			return errors.Join(err, printBackup(std, report))
		})
	}
	return cmd
}

func printBackup(std stdio, r wire.BackupReport) error {
	fmt.Fprintf(std.out, "Backed up %s with %s, and an index of %s, as of %s.\n",
		count(r.Blobs, "blob"), size(r.SizeBytes), size(r.IndexBytes), r.Time.Format(time.RFC3339))
	fmt.Fprintf(std.out, "New are %s with %s; %s no longer needed went.\n", count(r.New, "blob"), size(r.NewBytes), count(r.Removed, "blob"))
	printDamage(std, r)
	kind := "It is on another file system than the registry, and nothing in it is shared with that.\n"
	if r.SameDisk {
		kind = fmt.Sprintf("It is on the registry's own file system, %d of its blobs as hard links: it protects from mistakes, not from the loss of the disk.\n", r.Linked)
	}
	_, err := fmt.Fprint(std.out, kind)
	return err
}

func printDamage(std stdio, r wire.BackupReport) {
	for _, d := range r.Damage {
		fmt.Fprintf(std.out, "Missing: %s, %s.\n", d.Digest, d.Why)
	}
	if more := r.Damaged - int64(len(r.Damage)); more > 0 {
		fmt.Fprintf(std.out, "Missing: %d more.\n", more)
	}
}

func size(bytes int64) string { return units.HumanSize(float64(bytes)) }

func newAdminRestore(std stdio, at *adminOf) *cobra.Command {
	var link, asJSON bool
	cmd := &cobra.Command{
		Use:   "restore [flags] BACKUP",
		Short: "Make a data directory of a backup",
		Long: `Make a data directory of what berth admin backup wrote, and verify every byte. It
needs no server, and nothing is restored over what is there: --data names a
directory that is empty or new. Interrupted, it is done again, and goes on; until
it has ended no server serves the directory.

With --link, blobs are hard links where both are on one file system.`,
		Example: `  berth admin restore /mnt/backup/berth --data /srv/new
  berth serve --data /srv/new`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().BoolVar(&link, "link", false, "do not copy blobs, but link them where that is possible")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		from, err := filepath.Abs(args[0])
		if err != nil {
			return misuse(err)
		}
		if at.context != "" {
			return misuse(errors.New("--context: a restore needs no server: name a directory of this machine with --data"))
		}
		data, err := filepath.Abs(at.data)
		if err != nil {
			return misuse(err)
		}
		began := time.Now()
		show, shown := newJobProgress(std.err), time.Time{}
		did, err := backup.Restore(cmd.Context(), backup.Restoration{
			Opener: opener(), From: from, Data: data, Link: link,
			Tell: func(p backup.Progress) {
				if time.Since(shown) < 100*time.Millisecond {
					return
				}
				shown = time.Now()
				show.update(wire.Job{State: wire.JobRunning, Progress: wire.Progress{Doing: p.Doing, Done: p.Done, Total: p.Total, Unit: "bytes"}})
			},
		})
		show.close()
		if err != nil {
			return err
		}
		report := api.BackupReport(data, did, time.Since(began))
		if report.Damaged > 0 {
			err = fmt.Errorf("all is restored but for %s that the backup does not have: what is missing is answered 404 until it is pushed again", count(report.Damaged, "blob"))
		}
		if asJSON {
			return errors.Join(err, printJSON(std, report))
		}
		return errors.Join(err, printRestore(std, report))
	}
	return cmd
}

func printRestore(std stdio, r wire.BackupReport) error {
	fmt.Fprintf(std.out, "Restored %s with %s, verified, as of %s.\n", count(r.Blobs, "blob"), size(r.SizeBytes), r.Time.Format(time.RFC3339))
	printDamage(std, r)
	_, err := fmt.Fprintf(std.out, "Serve it with: berth serve --data %s, as the user that owns the directory.\n", r.Dir)
	return err
}
