package container

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Stats returns what the container has used. Errors: ErrNotFound; ErrStatus if it is
// stopped.
func (r *Runtime) Stats(ctx context.Context, id string) (Stats, error) {
	s, err := r.State(ctx, id)
	if err == nil && s.Status == StatusStopped {
		err = fmt.Errorf("%w: it is stopped", ErrStatus)
	}
	if err != nil {
		return Stats{}, fmt.Errorf("measure container %s: %w", id, err)
	}
	return r.groups.measure(r.cgroupPath(id)), nil
}

// measure reads what the cgroup at path has used. A file that is not there, or not
// any more, counts as zeros.
func (h hierarchies) measure(path string) Stats {
	s := Stats{Read: time.Now()}
	if h.only2 {
		dir := h.dir(path, "")
		s.cpu2(read(dir, "cpu.stat"))
		s.memory2(dir)
		s.Blocks = parseIOStat(read(dir, "io.stat"))
		s.hugeTLB(dir, ".current", "", ".events")
	} else {
		s.cpu1(h.dir(path, "cpu"), h.dir(path, "cpuacct"))
		s.memory1(h.dir(path, "memory"))
		s.blocks1(h.dir(path, "blkio"))
		s.hugeTLB(h.dir(path, "hugetlb"), ".usage_in_bytes", ".max_usage_in_bytes", ".failcnt")
	}
	pids := h.dir(path, "pids")
	s.Pids = number(read(pids, "pids.current"))
	s.PidsLimit = number(read(pids, "pids.max"))
	s.OOMKills = uint64(h.group(path).OOMKills())
	if h.unified != "" {
		for _, kind := range []string{"cpu", "memory", "io"} {
			if p, ok := parsePressure(read(filepath.Join(h.unified, path), kind+".pressure")); ok {
				if s.Pressure == nil {
					s.Pressure = map[string]Pressure{}
				}
				s.Pressure[kind] = p
			}
		}
	}
	return s
}

// read reads a file of a cgroup, nothing if there is none.
func read(dir, name string) []byte {
	if dir == "" {
		return nil
	}
	b, _ := os.ReadFile(filepath.Join(dir, name))
	return b
}

// readNumber reads a file with one number.
func readNumber(name string) uint64 { return number(read(filepath.Dir(name), filepath.Base(name))) }

// number reads one number. What is no number, such as "max", is zero.
func number(b []byte) uint64 {
	n, err := strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func usec(n uint64) time.Duration { return duration(n, time.Microsecond) }

// duration returns n units, or the longest time there is.
func duration(n uint64, unit time.Duration) time.Duration {
	return time.Duration(min(n, math.MaxInt64/uint64(unit))) * unit
}

func (s *Stats) cpu2(stat []byte) {
	d := parseKeyed(stat)
	s.CPU, s.CPUUser, s.CPUSystem = usec(d["usage_usec"]), usec(d["user_usec"]), usec(d["system_usec"])
	s.Periods, s.ThrottledRuns, s.Throttled = d["nr_periods"], d["nr_throttled"], usec(d["throttled_usec"])
}

func (s *Stats) cpu1(cpu, acct string) {
	d := parseKeyed(read(cpu, "cpu.stat"))
	s.Periods, s.ThrottledRuns, s.Throttled = d["nr_periods"], d["nr_throttled"], duration(d["throttled_time"], 1)
	s.CPU = duration(number(read(acct, "cpuacct.usage")), 1)
	s.CPUUser = duration(number(read(acct, "cpuacct.usage_user")), 1)
	s.CPUSystem = duration(number(read(acct, "cpuacct.usage_sys")), 1)
	for f := range bytes.FieldsSeq(read(acct, "cpuacct.usage_percpu")) {
		s.CPUPerCPU = append(s.CPUPerCPU, duration(number(f), 1))
	}
}

func (s *Stats) memory2(dir string) {
	s.Memory = number(read(dir, "memory.current"))
	s.MemoryMax = number(read(dir, "memory.peak"))
	s.MemoryLimit = number(read(dir, "memory.max"))
	s.Swap = number(read(dir, "memory.swap.current"))
	s.MemoryDetails = parseKeyed(read(dir, "memory.stat"))
}

// noLimit1 is where version 1 says that there is no limit: the largest number of
// pages of any size, in bytes.
const noLimit1 = math.MaxInt64 - 1<<16

func (s *Stats) memory1(dir string) {
	s.Memory = number(read(dir, "memory.usage_in_bytes"))
	s.MemoryMax = number(read(dir, "memory.max_usage_in_bytes"))
	if l := number(read(dir, "memory.limit_in_bytes")); l < noLimit1 {
		s.MemoryLimit = l
	}
	s.MemoryDetails = parseKeyed(read(dir, "memory.stat"))
	s.Swap = s.MemoryDetails["swap"]
}

func (s *Stats) blocks1(dir string) {
	bytes, ops := read(dir, "blkio.throttle.io_service_bytes_recursive"), read(dir, "blkio.throttle.io_serviced_recursive")
	s.Blocks = parseBlkio(bytes, ops)
}

// hugeTLB reads what there is for each size of huge pages.
func (s *Stats) hugeTLB(dir, usage, most, failed string) {
	if dir == "" {
		return
	}
	names, _ := filepath.Glob(filepath.Join(dir, "hugetlb.*"+usage)) // the pattern is well-formed
	for _, name := range names {
		size := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(name), "hugetlb."), usage)
		if strings.Contains(size, ".") {
			continue // of reservations
		}
		prefix := "hugetlb." + size
		t := HugeTLBStats{Usage: readNumber(name)}
		if most != "" {
			t.Max = number(read(dir, prefix+most))
			t.Failed = number(read(dir, prefix+failed))
		} else {
			t.Failed = parseKeyed(read(dir, prefix+failed))["max"]
		}
		if s.HugeTLB == nil {
			s.HugeTLB = map[string]HugeTLBStats{}
		}
		s.HugeTLB[size] = t
	}
}

// parseKeyed parses lines of a word and a number.
func parseKeyed(b []byte) map[string]uint64 {
	m := map[string]uint64{}
	for line := range bytes.Lines(b) {
		key, val, ok := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		if n, err := strconv.ParseUint(string(val), 10, 64); ok && err == nil {
			m[string(key)] = n
		}
	}
	return m
}

// parsePressure parses a file of PSI. ok is false if it has no line of one.
func parsePressure(b []byte) (p Pressure, ok bool) {
	for line := range bytes.Lines(b) {
		kind, rest, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		t := &p.Some
		switch kind {
		case "some":
		case "full":
			t = &p.Full
		default:
			continue
		}
		ok = true
		for f := range strings.FieldsSeq(rest) {
			key, val, _ := strings.Cut(f, "=")
			switch key {
			case "avg10":
				t.Avg10 = percent(val)
			case "avg60":
				t.Avg60 = percent(val)
			case "avg300":
				t.Avg300 = percent(val)
			case "total":
				t.Total = usec(number([]byte(val)))
			}
		}
	}
	return p, ok
}

// percent parses a share that JSON can say.
func percent(s string) float64 {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
		return 0
	}
	return f
}

// parseDevice parses "8:16".
func parseDevice(s string) (major, minor uint64, ok bool) {
	a, b, ok := strings.Cut(s, ":")
	major, err1 := strconv.ParseUint(a, 10, 32)
	minor, err2 := strconv.ParseUint(b, 10, 32)
	return major, minor, ok && err1 == nil && err2 == nil
}

// parseIOStat parses io.stat of version 2: "8:0 rbytes=1 wbytes=2 rios=3 wios=4".
func parseIOStat(b []byte) []BlockStats {
	var list []BlockStats
	for line := range bytes.Lines(b) {
		dev, rest, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		major, minor, ok := parseDevice(dev)
		if !ok {
			continue
		}
		d := BlockStats{Major: major, Minor: minor}
		for f := range strings.FieldsSeq(rest) {
			key, val, _ := strings.Cut(f, "=")
			n := number([]byte(val))
			switch key {
			case "rbytes":
				d.ReadBytes = n
			case "wbytes":
				d.WriteBytes = n
			case "rios":
				d.ReadOps = n
			case "wios":
				d.WriteOps = n
			}
		}
		list = append(list, d)
	}
	return list
}

// parseBlkio parses two files of version 1 with lines such as "8:0 Read 4096".
func parseBlkio(transferred, operations []byte) []BlockStats {
	var list []BlockStats
	at := map[[2]uint64]int{}
	each := func(b []byte, set func(d *BlockStats, op string, n uint64)) {
		for line := range bytes.Lines(b) {
			f := strings.Fields(string(line))
			if len(f) != 3 {
				continue // the sum
			}
			major, minor, ok := parseDevice(f[0])
			if !ok {
				continue
			}
			key := [2]uint64{major, minor}
			if _, there := at[key]; !there {
				at[key] = len(list)
				list = append(list, BlockStats{Major: major, Minor: minor})
			}
			set(&list[at[key]], f[1], number([]byte(f[2])))
		}
	}
	each(transferred, func(d *BlockStats, op string, n uint64) {
		switch op {
		case "Read":
			d.ReadBytes = n
		case "Write":
			d.WriteBytes = n
		}
	})
	each(operations, func(d *BlockStats, op string, n uint64) {
		switch op {
		case "Read":
			d.ReadOps = n
		case "Write":
			d.WriteOps = n
		}
	})
	return list
}
