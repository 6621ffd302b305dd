package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// statsInterval is the time between two tables.
const statsInterval = time.Second

func newStats(std stdio) *cobra.Command {
	var all, once, asJSON, noTrunc bool
	cmd := &cobra.Command{
		Use:   "stats [flags] [CONTAINER...]",
		Short: "Show what containers use of the machine",
		Long: `Show what containers use of the machine: those named, or all that run. On a terminal
the table is drawn anew every second until you press ctrl-c. With --json each sample is
a line, as the Docker Engine API has it.`,
		Example: `  berth stats
  berth stats --no-stream web db
  berth stats --no-stream --json | jq .memory_stats.usage`,
		ValidArgsFunction: completeContainers,
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those that do not run")
	cmd.Flags().BoolVar(&once, "no-stream", false, "print one table and end")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "print ids in full")
	return onNode(cmd, func(ctx context.Context, node *client.Client, args []string) error {
		s := statsTable{std: std, node: node, names: args, all: all, full: noTrunc}
		switch {
		case once:
			rows, err := s.collect(ctx)
			if err == nil && asJSON {
				return errors.Join(s.printJSON(rows), s.missed)
			}
			if err == nil {
				err = s.print(std.out, rows)
			}
			return errors.Join(err, s.missed)
		case asJSON:
			return s.stream(ctx, func(rows []statsRow) error { return s.printJSON(rows) })
		}
		return s.draw(ctx)
	})
}

// statsRow is what one container uses.
type statsRow struct {
	container.StatsResponse
	raw json.RawMessage
}

// statsTable shows what containers use.
type statsTable struct {
	std       stdio
	node      *client.Client
	names     []string // none: those that run
	all, full bool
	missed    error // of containers that are not there
}

// collect asks about all containers at once: each answer takes a second.
func (s *statsTable) collect(ctx context.Context) ([]statsRow, error) {
	names := s.names
	if len(names) == 0 {
		list, err := s.node.ContainerList(ctx, client.ContainerListOptions{All: s.all})
		if err != nil {
			return nil, err
		}
		for _, c := range list.Items {
			names = append(names, c.ID)
		}
	}
	rows, errs := make([]statsRow, len(names)), make([]error, len(names))
	var asking sync.WaitGroup
	for i, name := range names {
		asking.Go(func() { rows[i], errs[i] = s.one(ctx, name) })
	}
	asking.Wait()
	var failed []error
	s.missed = nil
	found := rows[:0]
	for i, err := range errs {
		switch {
		case err == nil:
			found = append(found, rows[i])
		case cerrdefs.IsNotFound(err) && len(s.names) == 0: // it has just been removed
		case cerrdefs.IsNotFound(err):
			s.missed = errors.Join(s.missed, err)
		default:
			failed = append(failed, err)
		}
	}
	return found, errors.Join(failed...)
}

func (s *statsTable) one(ctx context.Context, name string) (row statsRow, err error) {
	res, err := s.node.ContainerStats(ctx, name, client.ContainerStatsOptions{IncludePreviousSample: true})
	if err != nil {
		return row, err
	}
	defer res.Body.Close()
	const most = 4 << 20
	if row.raw, err = io.ReadAll(io.LimitReader(res.Body, most)); err != nil {
		return row, fmt.Errorf("read the statistics of %s: %w", name, err)
	}
	if err := json.Unmarshal(row.raw, &row.StatsResponse); err != nil {
		return row, fmt.Errorf("read the statistics of %s: %w", name, err)
	}
	return row, nil
}

func (s *statsTable) printJSON(rows []statsRow) error {
	for _, r := range rows {
		if _, err := fmt.Fprintf(s.std.out, "%s\n", bytes.TrimSpace(r.raw)); err != nil {
			return err
		}
	}
	return nil
}

// stream shows sample after sample until ctx ends, or nobody reads any more.
func (s *statsTable) stream(ctx context.Context, show func([]statsRow) error) error {
	for {
		began := time.Now()
		rows, err := s.collect(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			err = show(rows)
		}
		if err == nil && len(rows) == 0 {
			err = s.missed
		}
		if err != nil {
			return err
		}
		select { // what was asked took a second, unless nothing runs
		case <-time.After(statsInterval - time.Since(began)):
		case <-ctx.Done():
			return nil
		}
	}
}

// draw draws the table anew on a terminal; elsewhere it prints one after the other.
func (s *statsTable) draw(ctx context.Context) error {
	out, ok := s.std.out.(*os.File)
	if !ok || !term.IsTerminal(int(out.Fd())) {
		return s.stream(ctx, func(rows []statsRow) error { return s.print(s.std.out, rows) })
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return s.stream(ctx, func(rows []statsRow) error {
		var table bytes.Buffer
		if err := s.print(&table, rows); err != nil {
			return err
		}
		// Home, each line with what was behind it erased, and what was below.
		_, err := fmt.Fprint(out, "\x1b[H", strings.ReplaceAll(table.String(), "\n", "\x1b[K\n"), "\x1b[J")
		return err
	})
}

// print writes a table.
func (s *statsTable) print(w io.Writer, rows []statsRow) error {
	slices.SortStableFunc(rows, func(a, b statsRow) int { return strings.Compare(a.Name, b.Name) })
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "CONTAINER ID\tNAME\tCPU %\tMEM USAGE / LIMIT\tMEM %\tBLOCK I/O\tPIDS")
	for _, r := range rows {
		if r.Read.IsZero() {
			fmt.Fprintf(table, "%s\t%s\t--\t-- / --\t--\t-- / --\t--\n", short(r.ID, s.full), strings.TrimPrefix(r.Name, "/"))
			continue
		}
		used, share := memoryUsed(r.MemoryStats), 0.0
		if limit := r.MemoryStats.Limit; limit > 0 {
			share = 100 * float64(used) / float64(limit)
		}
		read, written := blockBytes(r.BlkioStats)
		fmt.Fprintf(table, "%s\t%s\t%.2f%%\t%s / %s\t%.2f%%\t%s / %s\t%d\n", short(r.ID, s.full), strings.TrimPrefix(r.Name, "/"),
			cpuPercent(r.StatsResponse), units.BytesSize(float64(used)), units.BytesSize(float64(r.MemoryStats.Limit)), share,
			units.HumanSize(float64(read)), units.HumanSize(float64(written)), r.PidsStats.Current)
	}
	return table.Flush()
}

// cpuPercent is the use of processors since the sample before; 100 is one of them.
func cpuPercent(s container.StatsResponse) float64 {
	used := float64(s.CPUStats.CPUUsage.TotalUsage) - float64(s.PreCPUStats.CPUUsage.TotalUsage)
	took := s.Read.Sub(s.PreRead)
	if used <= 0 || took <= 0 || s.PreRead.IsZero() {
		return 0
	}
	return 100 * used / float64(took)
}

// memoryUsed is without what the kernel only keeps of files as long as nobody needs
// the memory, as docker shows it.
func memoryUsed(m container.MemoryStats) uint64 {
	for _, cache := range []string{"total_inactive_file", "inactive_file"} { // version 1, version 2
		if v, ok := m.Stats[cache]; ok && v < m.Usage {
			return m.Usage - v
		}
	}
	return m.Usage
}

func blockBytes(b container.BlkioStats) (read, written uint64) {
	for _, e := range b.IoServiceBytesRecursive {
		switch strings.ToLower(e.Op) {
		case "read":
			read += e.Value
		case "write":
			written += e.Value
		}
	}
	return read, written
}
