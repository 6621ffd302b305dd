package main

import (
	"context"
	"fmt"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"berth.internal/internal/units"
)

func newUpdate(std stdio) *cobra.Command {
	var (
		memory, reservation units.Bytes
		swap                limitOrNone
		cpus                float64
		pids                int64
		restart             string
		res                 container.Resources
		blkio               blkioOptions
	)
	cmd := &cobra.Command{
		Use:   "update [flags] CONTAINER...",
		Short: "Change the limits and the restart policy of containers",
		Long: `Change the limits and the restart policy of containers, at once and for their next
starts. What no flag names stays as it is.`,
		Example: `  berth update -m 512m --memory-swap 1g web
  berth update --cpus 1.5 --restart unless-stopped web db`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeContainers,
	}
	fs := cmd.Flags()
	fs.VarP(&memory, "memory", "m", "limit of memory")
	fs.Var(&swap, "memory-swap", "limit of memory and swap together; -1 for none")
	fs.Var(&reservation, "memory-reservation", "memory to leave to the container when it is short")
	fs.Float64Var(&cpus, "cpus", 0, "limit of `processors`, such as 1.5")
	fs.Int64VarP(&res.CPUShares, "cpu-shares", "c", 0, "`weight` against other containers; 1024 is usual")
	fs.Int64Var(&res.CPUQuota, "cpu-quota", 0, "`microseconds` of processor time in a period")
	fs.Int64Var(&res.CPUPeriod, "cpu-period", 0, "`microseconds` of a period")
	fs.StringVar(&res.CpusetCpus, "cpuset-cpus", "", "`processors` to run on, such as 0-3,5")
	fs.StringVar(&res.CpusetMems, "cpuset-mems", "", "memory `nodes` to use, such as 0-1")
	fs.Int64Var(&pids, "pids-limit", 0, "limit of processes and threads; -1 for none")
	fs.StringVar(&restart, "restart", "", "begin again `when` it ends: no, always, unless-stopped or on-failure[:MAX]")
	blkio.addFlags(fs)
	return onNode(cmd, func(ctx context.Context, node *client.Client, args []string) error {
		if fs.NFlag() == 0 {
			return misuse(fmt.Errorf("no limit is named%s", seeHelp(cmd)))
		}
		var err error
		if res.NanoCPUs, err = nanoCPUs(cpus); err != nil {
			return misuse(err)
		}
		if err := blkio.apply(&res); err != nil {
			return misuse(err)
		}
		res.Memory, res.MemorySwap, res.MemoryReservation = int64(memory), int64(swap), int64(reservation)
		if fs.Changed("pids-limit") {
			res.PidsLimit = &pids
		}
		opts := client.ContainerUpdateOptions{Resources: &res}
		if fs.Changed("restart") {
			policy, err := parseRestart(restart)
			if err != nil {
				return misuse(err)
			}
			opts.RestartPolicy = &policy
		}
		return forEach(std, args, func(name string) error {
			done, err := node.ContainerUpdate(ctx, name, opts)
			for _, w := range done.Warnings {
				fmt.Fprintf(std.err, "berth: warning: %s: %s\n", name, w)
			}
			return err
		})
	})
}
