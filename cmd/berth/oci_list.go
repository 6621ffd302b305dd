package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"berth.internal/node/container/oci"
)

func (o *ociCommand) list() *cobra.Command {
	var format string
	var quiet bool
	cmd := o.with(&cobra.Command{
		Use:     "list [flags]",
		Short:   "List containers",
		Example: "  berth-oci list --format json",
		Args:    cobra.NoArgs,
	}, func(_ context.Context, r *oci.Runtime, _ []string) error {
		list, err := r.List()
		if err != nil {
			return err
		}
		switch {
		case quiet:
			for _, s := range list {
				fmt.Fprintln(o.std.out, s.ID)
			}
			return nil
		case format == "json":
			return json.NewEncoder(o.std.out).Encode(list)
		case format != "table":
			return fmt.Errorf("unknown format %q: table and json are known", format)
		}
		w := tabwriter.NewWriter(o.std.out, 12, 1, 3, ' ', 0)
		fmt.Fprintln(w, "ID\tPID\tSTATUS\tBUNDLE\tCREATED\tOWNER")
		for _, s := range list {
			fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", s.ID, s.Pid, s.Status, s.Bundle, s.Created.Format(time.RFC3339Nano), s.Owner)
		}
		return w.Flush()
	})
	cmd.Flags().StringVarP(&format, "format", "f", "table", "`form`: table or json")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	return cmd
}

func (o *ociCommand) ps() *cobra.Command {
	var format string
	cmd := o.with(&cobra.Command{
		Use:   "ps [flags] ID [OPTION...]",
		Short: "List the processes of a container",
		Example: `  berth-oci ps web
  berth-oci ps --format json web
  berth-oci ps web -o pid,args`,
		Args: cobra.MinimumNArgs(1),
	}, func(ctx context.Context, r *oci.Runtime, args []string) error {
		pids, err := r.Pids(args[0])
		if err != nil {
			return err
		}
		slices.Sort(pids)
		switch format {
		case "json":
			if pids == nil {
				pids = []int{}
			}
			return json.NewEncoder(o.std.out).Encode(pids)
		case "table":
			return o.psTable(ctx, pids, args[1:])
		}
		return fmt.Errorf("unknown format %q: table and json are known", format)
	})
	cmd.Flags().SetInterspersed(false) // what follows the container is for ps
	cmd.Flags().StringVarP(&format, "format", "f", "table", "`form`: table or json")
	return cmd
}

// psTable prints the lines of ps for these processes.
func (o *ociCommand) psTable(ctx context.Context, pids []int, options []string) error {
	if len(options) == 0 {
		options = []string{"-ef"}
	}
	out, err := exec.CommandContext(ctx, "ps", options...).Output()
	if err != nil {
		if failed, ok := errors.AsType[*exec.ExitError](err); ok {
			return fmt.Errorf("ps %s: %w: %s", strings.Join(options, " "), err, failed.Stderr)
		}
		return err
	}
	column := -1
	for i, line := range strings.Split(strings.TrimSuffix(string(out), "\n"), "\n") {
		fields := strings.Fields(line)
		if i == 0 {
			if column = slices.Index(fields, "PID"); column < 0 {
				return fmt.Errorf("ps %s prints no column PID", strings.Join(options, " "))
			}
			fmt.Fprintln(o.std.out, line)
			continue
		}
		if column < len(fields) {
			if pid, err := strconv.Atoi(fields[column]); err == nil && slices.Contains(pids, pid) {
				fmt.Fprintln(o.std.out, line)
			}
		}
	}
	return nil
}
