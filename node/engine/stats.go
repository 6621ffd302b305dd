package engine

import (
	"context"
	"errors"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"

	"berth.internal/node/host"
)

// statsInterval is the time between two samples of a stream, as Docker's.
const statsInterval = time.Second

// statsAnswer is Docker's, and what the kernel says of waiting.
type statsAnswer struct {
	container.StatsResponse
	Pressure map[string]pressure `json:"pressure,omitempty"` // of cpu, memory and io
}

// pressure is the time that some or all processes waited.
type pressure struct {
	Some pressureTimes `json:"some"`
	Full pressureTimes `json:"full"`
}

// pressureTimes are percents over the last 10, 60 and 300 seconds, and nanoseconds
// in total.
type pressureTimes struct {
	Avg10  float64 `json:"avg10"`
	Avg60  float64 `json:"avg60"`
	Avg300 float64 `json:"avg300"`
	Total  uint64  `json:"total"`
}

// newPressure translates what the kernel says of waiting.
func newPressure(from map[string]host.Pressure) map[string]pressure {
	to := map[string]pressure{}
	for kind, p := range from {
		to[kind] = pressure{
			Some: pressureTimes{p.Some.Avg10, p.Some.Avg60, p.Some.Avg300, uint64(p.Some.Total)},
			Full: pressureTimes{p.Full.Avg10, p.Full.Avg60, p.Full.Avg300, uint64(p.Full.Total)},
		}
	}
	return to
}

// containerStats answers GET /containers/{id}/stats: 200, a sample a second until the
// client leaves, or one. One has the sample of a second before beside it, unless it is
// asked for in one shot. Of a container that does not run all is zero.
func (e *Engine) containerStats(w http.ResponseWriter, r *http.Request) error {
	stream := r.FormValue("stream") == "" || boolean(r, "stream")
	once := boolean(r, "one-shot")
	if stream && once {
		return invalid("cannot have stream=true and one-shot=true")
	}
	last, err := e.sample(r.Context(), idOf(r), nil)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	if !stream && (once || last.Read.IsZero()) {
		return writeJSON(w, http.StatusOK, last)
	}
	out := newFlushWriter(w)
	if stream {
		if encode(out, last) != nil {
			return nil // the client is gone
		}
	}
	tick := time.NewTicker(statsInterval)
	defer tick.Stop()
	for {
		select {
		case <-r.Context().Done():
			return nil
		case <-tick.C:
		}
		next, err := e.sample(r.Context(), last.ID, last)
		if errors.Is(err, host.ErrNotFound) {
			return nil // removed meanwhile
		}
		if err != nil {
			e.log.Warn("statistics ended early", "container", last.ID, "error", err)
			return nil
		}
		if encode(out, next) != nil || !stream {
			return nil
		}
		last = next
	}
}

// sample returns what a container has used until now. before is the sample before.
func (e *Engine) sample(ctx context.Context, ref string, before *statsAnswer) (*statsAnswer, error) {
	c, s, err := e.host.Stats(ctx, ref)
	if err != nil {
		return nil, err
	}
	a := &statsAnswer{StatsResponse: container.StatsResponse{ID: c.ID, Name: "/" + c.Name, OSType: "linux", Read: s.Read}}
	if before != nil {
		a.PreRead, a.PreCPUStats = before.Read, before.CPUStats
	}
	if s.Read.IsZero() {
		return a, nil
	}
	system, err := systemCPU()
	if err != nil {
		return nil, err
	}
	a.CPUStats = container.CPUStats{
		CPUUsage: container.CPUUsage{
			TotalUsage: uint64(s.CPU), UsageInKernelmode: uint64(s.CPUSystem), UsageInUsermode: uint64(s.CPUUser),
		},
		SystemUsage: system, OnlineCPUs: uint32(runtime.NumCPU()),
		ThrottlingData: container.ThrottlingData{Periods: s.Periods, ThrottledPeriods: s.ThrottledRuns, ThrottledTime: uint64(s.Throttled)},
	}
	for _, used := range s.CPUPerCPU {
		a.CPUStats.CPUUsage.PercpuUsage = append(a.CPUStats.CPUUsage.PercpuUsage, uint64(used))
	}
	a.MemoryStats = container.MemoryStats{Usage: s.Memory, MaxUsage: s.MemoryMax, Stats: s.MemoryDetails, Failcnt: s.OOMKills, Limit: s.MemoryLimit}
	if total := totalMemory(); s.MemoryLimit == 0 || s.MemoryLimit > total {
		a.MemoryStats.Limit = total
	}
	a.PidsStats = container.PidsStats{Current: s.Pids, Limit: s.PidsLimit}
	for _, b := range s.Blocks {
		entry := func(op string, value uint64) container.BlkioStatEntry {
			return container.BlkioStatEntry{Major: b.Major, Minor: b.Minor, Op: op, Value: value}
		}
		bl := &a.BlkioStats
		bl.IoServiceBytesRecursive = append(bl.IoServiceBytesRecursive, entry("read", b.ReadBytes), entry("write", b.WriteBytes))
		bl.IoServicedRecursive = append(bl.IoServicedRecursive, entry("read", b.ReadOps), entry("write", b.WriteOps))
	}
	a.Pressure = newPressure(s.Pressure)
	return a, nil
}

// systemCPU is the time that all processors of the node have had, in nanoseconds.
func systemCPU() (uint64, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	f := strings.Fields(line)
	const used = 8 // user nice system idle iowait irq softirq steal; guests are in them
	if len(f) <= used || f[0] != "cpu" {
		return 0, errors.New("read /proc/stat: it does not begin with the sum of all processors")
	}
	var sum uint64
	for _, n := range f[1 : used+1] {
		v, err := strconv.ParseUint(n, 10, 64)
		if err != nil {
			return 0, errors.New("read /proc/stat: " + err.Error())
		}
		sum += v
	}
	const perTick = uint64(time.Second) / 100 // USER_HZ
	return sum * perTick, nil
}
