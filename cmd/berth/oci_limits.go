package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/docker/go-units"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"

	"berth.internal/node/container"
	"berth.internal/node/container/oci"
)

func (o *ociCommand) pause() *cobra.Command {
	return o.with(&cobra.Command{
		Use:     "pause ID",
		Short:   "Freeze all processes of a container",
		Example: "  berth-oci pause web",
		Args:    cobra.ExactArgs(1),
	}, func(ctx context.Context, r *oci.Runtime, args []string) error { return r.Pause(ctx, args[0]) })
}

func (o *ociCommand) resume() *cobra.Command {
	return o.with(&cobra.Command{
		Use:     "resume ID",
		Short:   "Let a paused container go on",
		Example: "  berth-oci resume web",
		Args:    cobra.ExactArgs(1),
	}, func(_ context.Context, r *oci.Runtime, args []string) error { return r.Resume(args[0]) })
}

// updateFlags are limits as flags. They are read only if they were given.
type updateFlags struct {
	resources                                              string
	blkioWeight                                            uint16
	period, share                                          uint64
	quota, rtRuntime, idle, pids                           int64
	burst, rtPeriod                                        uint64
	cpus, mems, memory, reservation, swap, kernel, l3, mem string
}

func (o *ociCommand) update() *cobra.Command {
	var f updateFlags
	cmd := &cobra.Command{
		Use:   "update [flags] ID",
		Short: "Change the limits of a container",
		Example: `  berth-oci update --memory 256M --pids-limit 100 web
  echo '{"cpu":{"quota":50000,"period":100000}}' | berth-oci update --resources - web`,
		Args: cobra.ExactArgs(1),
	}
	f.add(cmd)
	return o.with(cmd, func(_ context.Context, r *oci.Runtime, args []string) error {
		limits, err := f.limits(o.std.in, cmd.Flags().Changed)
		if err != nil {
			return err
		}
		return r.Update(args[0], limits)
	})
}

func (f *updateFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVarP(&f.resources, "resources", "r", "", "`file` with limits as JSON, as linux.resources in config.json; -: stdin")
	flags.Uint16Var(&f.blkioWeight, "blkio-weight", 0, "share of block I/O, 10 to 1000")
	flags.Uint64Var(&f.period, "cpu-period", 0, "`microseconds` that the quota is for")
	flags.Int64Var(&f.quota, "cpu-quota", 0, "`microseconds` of processor time in a period, -1: no limit")
	flags.Uint64Var(&f.burst, "cpu-burst", 0, "`microseconds` that may be saved up")
	flags.Uint64Var(&f.share, "cpu-share", 0, "share of processor time, 1024 is the usual one")
	flags.Uint64Var(&f.rtPeriod, "cpu-rt-period", 0, "`microseconds` that the realtime runtime is for")
	flags.Int64Var(&f.rtRuntime, "cpu-rt-runtime", 0, "`microseconds` of realtime in a period")
	flags.StringVar(&f.cpus, "cpuset-cpus", "", "`processors` it may use, such as 0-1")
	flags.StringVar(&f.mems, "cpuset-mems", "", "memory `nodes` it may use")
	flags.Int64Var(&f.idle, "cpu-idle", 0, "1: run only when nobody else wants to")
	flags.StringVar(&f.memory, "memory", "", "`bytes` of memory, -1: no limit")
	flags.StringVar(&f.reservation, "memory-reservation", "", "`bytes` of memory that are left to it when there is little")
	flags.StringVar(&f.swap, "memory-swap", "", "`bytes` of memory and swap, -1: no limit")
	flags.StringVar(&f.kernel, "kernel-memory", "", "ignored by all kernels that berth runs on")
	_ = flags.MarkHidden("kernel-memory")
	flags.Int64Var(&f.pids, "pids-limit", 0, "`number` of processes, -1: no limit")
	flags.StringVar(&f.l3, "l3-cache-schema", "", "refused: Intel RDT is not supported")
	flags.StringVar(&f.mem, "mem-bw-schema", "", "refused: Intel RDT is not supported")
}

// maxResources is how long limits as JSON may be, in bytes.
const maxResources = 1 << 20

// limits returns what the flags ask for.
func (f *updateFlags) limits(stdin io.Reader, given func(string) bool) (*specs.LinuxResources, error) {
	if given("l3-cache-schema") || given("mem-bw-schema") {
		return nil, errors.New("--l3-cache-schema and --mem-bw-schema are not supported")
	}
	if f.resources != "" {
		return readResources(f.resources, stdin)
	}
	cpu, mem := &specs.LinuxCPU{Cpus: f.cpus, Mems: f.mems}, &specs.LinuxMemory{}
	r := &specs.LinuxResources{CPU: cpu, Memory: mem}
	ifGiven(given("cpu-period"), &cpu.Period, f.period)
	ifGiven(given("cpu-quota"), &cpu.Quota, f.quota)
	ifGiven(given("cpu-burst"), &cpu.Burst, f.burst)
	ifGiven(given("cpu-share"), &cpu.Shares, f.share)
	ifGiven(given("cpu-rt-period"), &cpu.RealtimePeriod, f.rtPeriod)
	ifGiven(given("cpu-rt-runtime"), &cpu.RealtimeRuntime, f.rtRuntime)
	ifGiven(given("cpu-idle"), &cpu.Idle, f.idle)
	if given("blkio-weight") {
		r.BlockIO = &specs.LinuxBlockIO{Weight: &f.blkioWeight}
	}
	if given("pids-limit") {
		r.Pids = &specs.LinuxPids{Limit: &f.pids}
	}
	for _, m := range []struct {
		flag, value string
		to          **int64
	}{{"memory", f.memory, &mem.Limit}, {"memory-reservation", f.reservation, &mem.Reservation}, {"memory-swap", f.swap, &mem.Swap}} {
		if !given(m.flag) {
			continue
		}
		n, err := parseBytes(m.value)
		if err != nil {
			return nil, fmt.Errorf("--%s %q: %w", m.flag, m.value, err)
		}
		*m.to = &n
	}
	return r, nil
}

func ifGiven[T any](given bool, to **T, value T) {
	if given {
		*to = &value
	}
}

// parseBytes reads a size with or without a unit, or -1.
func parseBytes(s string) (int64, error) {
	if s == "-1" {
		return -1, nil
	}
	return units.RAMInBytes(s)
}

func readResources(name string, stdin io.Reader) (*specs.LinuxResources, error) {
	from := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		from = f
	}
	r := new(specs.LinuxResources)
	if err := json.NewDecoder(io.LimitReader(from, maxResources)).Decode(r); err != nil {
		return nil, fmt.Errorf("read limits: %w", err)
	}
	return r, nil
}

func (o *ociCommand) events() *cobra.Command {
	var interval time.Duration
	var once bool
	cmd := o.with(&cobra.Command{
		Use:     "events [flags] ID",
		Short:   "Print what a container uses, again and again, as lines of JSON",
		Example: "  berth-oci events --stats web",
		Args:    cobra.ExactArgs(1),
	}, func(ctx context.Context, r *oci.Runtime, args []string) error {
		if interval <= 0 {
			return errors.New("--interval must be more than 0")
		}
		return o.watch(ctx, r, args[0], interval, once)
	})
	cmd.Flags().DurationVar(&interval, "interval", 5*time.Second, "`time` between two lines")
	cmd.Flags().BoolVar(&once, "stats", false, "print one line")
	return cmd
}

// event is a line of events, as runc prints it.
type event struct {
	Type string    `json:"type"`
	ID   string    `json:"id"`
	Data *ociStats `json:"data,omitempty"`
}

// watch prints statistics until the container has stopped, and a line for each time
// that the kernel killed for memory.
func (o *ociCommand) watch(ctx context.Context, r *oci.Runtime, id string, interval time.Duration, once bool) error {
	enc := json.NewEncoder(o.std.out)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var kills uint64
	for first := true; ; first = false {
		s, err := r.Stats(id)
		if !first && (errors.Is(err, oci.ErrStatus) || errors.Is(err, oci.ErrNotFound)) {
			return nil
		}
		if err != nil {
			return err
		}
		for ; !first && kills < s.OOMKills; kills++ {
			if err := enc.Encode(event{Type: "oom", ID: id}); err != nil {
				return err
			}
		}
		kills = s.OOMKills
		if err := enc.Encode(event{"stats", id, statsOf(s)}); err != nil || once {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// ociStats is what a container uses, in runc's form.
type ociStats struct {
	CPU struct {
		Usage struct {
			Total  uint64   `json:"total,omitempty"` // nanoseconds, all of these
			PerCPU []uint64 `json:"percpu,omitempty"`
			Kernel uint64   `json:"kernel"`
			User   uint64   `json:"user"`
		} `json:"usage"`
		Throttling struct {
			Periods          uint64 `json:"periods,omitempty"`
			ThrottledPeriods uint64 `json:"throttledPeriods,omitempty"`
			ThrottledTime    uint64 `json:"throttledTime,omitempty"`
		} `json:"throttling"`
	} `json:"cpu"`
	Memory struct {
		Cache uint64            `json:"cache,omitempty"`
		Usage memoryEntry       `json:"usage"`
		Swap  memoryEntry       `json:"swap"`
		Raw   map[string]uint64 `json:"raw,omitempty"`
	} `json:"memory"`
	Pids struct {
		Current uint64 `json:"current,omitempty"`
		Limit   uint64 `json:"limit,omitempty"`
	} `json:"pids"`
	Blkio struct {
		Bytes []blkioEntry `json:"ioServiceBytesRecursive,omitempty"`
		Ops   []blkioEntry `json:"ioServicedRecursive,omitempty"`
	} `json:"blkio"`
	Hugetlb map[string]hugetlbEntry `json:"hugetlb"`
}

type memoryEntry struct {
	Limit   uint64 `json:"limit"`
	Usage   uint64 `json:"usage,omitempty"`
	Max     uint64 `json:"max,omitempty"`
	Failcnt uint64 `json:"failcnt"`
}

type blkioEntry struct {
	Major uint64 `json:"major"`
	Minor uint64 `json:"minor"`
	Op    string `json:"op"`
	Value uint64 `json:"value"`
}

type hugetlbEntry struct {
	Usage   uint64 `json:"usage,omitempty"`
	Max     uint64 `json:"max,omitempty"`
	Failcnt uint64 `json:"failcnt"`
}

func statsOf(s container.Stats) *ociStats {
	o := new(ociStats)
	o.CPU.Usage.Total, o.CPU.Usage.Kernel, o.CPU.Usage.User = uint64(s.CPU), uint64(s.CPUSystem), uint64(s.CPUUser)
	for _, d := range s.CPUPerCPU {
		o.CPU.Usage.PerCPU = append(o.CPU.Usage.PerCPU, uint64(d))
	}
	o.CPU.Throttling.Periods, o.CPU.Throttling.ThrottledPeriods, o.CPU.Throttling.ThrottledTime = s.Periods, s.ThrottledRuns, uint64(s.Throttled)
	o.Memory.Cache = max(s.MemoryDetails["cache"], s.MemoryDetails["file"])
	o.Memory.Usage = memoryEntry{Limit: s.MemoryLimit, Usage: s.Memory, Max: s.MemoryMax}
	o.Memory.Swap = memoryEntry{Usage: s.Swap}
	o.Memory.Raw = s.MemoryDetails
	o.Pids.Current, o.Pids.Limit = s.Pids, s.PidsLimit
	for _, b := range s.Blocks {
		major, minor := b.Major, b.Minor
		o.Blkio.Bytes = append(o.Blkio.Bytes, blkioEntry{major, minor, "Read", b.ReadBytes}, blkioEntry{major, minor, "Write", b.WriteBytes})
		o.Blkio.Ops = append(o.Blkio.Ops, blkioEntry{major, minor, "Read", b.ReadOps}, blkioEntry{major, minor, "Write", b.WriteOps})
	}
	o.Hugetlb = map[string]hugetlbEntry{}
	for size, h := range s.HugeTLB {
		o.Hugetlb[size] = hugetlbEntry{h.Usage, h.Max, h.Failed}
	}
	return o
}
