package container

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/internal/lazyregexp"
	"berth.internal/node/container/cgroup"
)

// setting is a value for one file of a cgroup.
type setting struct {
	name       string // in the specification, below linux.resources
	controller string // which in version 1 says whose directory it is
	file       string
	value      string

	key   string      // the first word of the line of file that it changes; "": the file has one value
	reset string      // takes that line away
	or    *setting    // instead, if the kernel does not have file
	moot  func() bool // whether a kernel without file does anyway what is asked
}

// settings translates the limits of change. Where one file takes several limits,
// the others are taken from whole, which is change and what was set before. Errors:
// ErrUnsupported.
func settings(only2 bool, change, whole *specs.LinuxResources) ([]setting, error) {
	if change == nil {
		return nil, nil
	}
	t := translation{only2: only2}
	t.memory(change.Memory, whole.Memory)
	t.cpu(change.CPU, whole.CPU)
	if p := change.Pids; p != nil && p.Limit != nil {
		limit := "max"
		if *p.Limit >= 0 {
			limit = strconv.FormatInt(max(*p.Limit, 1), 10) // the first process is there in any case
		}
		t.add("pids.limit", "pids", "pids.max", limit)
	}
	t.blockIO(change.BlockIO)
	t.hugePages(change.HugepageLimits)
	t.network(change.Network)
	t.rdma(change.Rdma)
	t.unified(change.Unified)
	if len(t.errs) > 0 {
		return nil, invalid{errors.Join(t.errs...)}
	}
	return t.list, nil
}

// translation collects settings.
type translation struct {
	only2 bool
	list  []setting
	errs  []error
}

func (t *translation) add(name, controller, file, value string) *setting {
	t.list = append(t.list, setting{name: name, controller: controller, file: file, value: value})
	return &t.list[len(t.list)-1]
}

// addLine adds a setting for one line of a file.
func (t *translation) addLine(name, controller, file, key, value, reset string) *setting {
	s := t.add(name, controller, file, key+" "+value)
	s.key, s.reset = key, key+" "+reset
	return s
}

func (t *translation) fail(format string, args ...any) {
	t.errs = append(t.errs, fmt.Errorf("linux.resources."+format, args...))
}

// refuse refuses by name what is there.
func (t *translation) refuse(there bool, name, why string) {
	if there {
		t.fail("%s (%s): %w", name, why, ErrUnsupported)
	}
}

// byVersion returns the name of a file.
func (t *translation) byVersion(v1, v2 string) string {
	if t.only2 {
		return v2
	}
	return v1
}

// bytes returns a limit in the form of a file. There is none below -1.
func (t *translation) bytes(name string, n int64) string {
	switch {
	case n < -1:
		t.fail("%s is %d", name, n)
	case n == -1:
		return t.byVersion("-1", "max")
	}
	return strconv.FormatInt(n, 10)
}

const goneLimit = "today's kernels have no such limit"

func (t *translation) memory(m, whole *specs.LinuxMemory) {
	if m == nil {
		return
	}
	t.refuse(value(m.Kernel) > 0, "memory.kernel", goneLimit) //nolint:staticcheck // deprecated limits are limits that are refused, too
	t.refuse(value(m.KernelTCP) > 0, "memory.kernelTCP", goneLimit)
	t.refuse(m.UseHierarchy != nil && !*m.UseHierarchy, "memory.useHierarchy false", "limits always hold for all below")
	limit, swap := value(whole.Limit), value(whole.Swap)
	if swap > 0 && (limit == 0 || swap < limit || limit == -1) {
		t.fail("memory.swap, which is of memory and swap together, is %d and the limit of memory %d: it must not be lower", swap, limit)
		return
	}
	if value(m.Limit) != 0 {
		t.add("memory.limit", "memory", t.byVersion("memory.limit_in_bytes", "memory.max"), t.bytes("memory.limit", limit))
	}
	if value(m.Swap) != 0 || value(m.Limit) != 0 && swap > 0 {
		n, file := swap, "memory.memsw.limit_in_bytes"
		if t.only2 {
			file = "memory.swap.max"
			if swap > 0 {
				n = swap - limit
			}
		}
		s := t.add("memory.swap", "memory", file, t.bytes("memory.swap", n))
		s.moot = func() bool { return n == -1 || (n == 0 || n == limit) && !kernelSwaps() }
	}
	if r := value(m.Reservation); r != 0 {
		t.add("memory.reservation", "memory", t.byVersion("memory.soft_limit_in_bytes", "memory.low"), t.bytes("memory.reservation", r))
	}
	if s := m.Swappiness; s != nil && *s != math.MaxUint64 { // Docker's -1
		t.refuse(t.only2, "memory.swappiness", "cgroup version 2 has none")
		if *s > 100 {
			t.fail("memory.swappiness is %d, more than 100", *s)
		}
		t.add("memory.swappiness", "memory", "memory.swappiness", strconv.FormatUint(*s, 10))
	}
	if d := m.DisableOOMKiller; d != nil {
		t.refuse(t.only2 && *d, "memory.disableOOMKiller", "cgroup version 2 has none")
		if !t.only2 {
			s := t.add("memory.disableOOMKiller", "memory", "memory.oom_control", "0")
			if *d {
				s.value = "1"
			}
			s.moot = func() bool { return !*d }
		}
	}
}

// kernelSwaps reports whether this kernel can swap at all.
func kernelSwaps() bool {
	_, err := os.Stat("/proc/swaps")
	return err == nil
}

func (t *translation) cpu(c, whole *specs.LinuxCPU) {
	if c == nil {
		return
	}
	t.refuse(value(c.RealtimePeriod) != 0 || value(c.RealtimeRuntime) != 0, "cpu.realtimePeriod and realtimeRuntime", "they would have to be taken from the whole node's share")
	if s := value(c.Shares); s != 0 {
		if s < 2 || s > 1<<18 {
			t.fail("cpu.shares is %d, not between 2 and %d", s, 1<<18)
		}
		if t.only2 {
			s = cgroups.ConvertCPUSharesToCgroupV2Value(s)
		}
		t.add("cpu.shares", "cpu", t.byVersion("cpu.shares", "cpu.weight"), strconv.FormatUint(s, 10))
	}
	t.quota(c, whole)
	if c.Burst != nil {
		t.add("cpu.burst", "cpu", t.byVersion("cpu.cfs_burst_us", "cpu.max.burst"), strconv.FormatUint(*c.Burst, 10)).moot = func() bool { return *c.Burst == 0 }
	}
	if c.Idle != nil {
		t.add("cpu.idle", "cpu", "cpu.idle", strconv.FormatInt(*c.Idle, 10)).moot = func() bool { return *c.Idle == 0 }
	}
	if c.Cpus != "" {
		t.add("cpu.cpus", "cpuset", "cpuset.cpus", c.Cpus)
	}
	if c.Mems != "" {
		t.add("cpu.mems", "cpuset", "cpuset.mems", c.Mems)
	}
}

// quota sets how much of each period may be used.
func (t *translation) quota(c, whole *specs.LinuxCPU) {
	quota, period := value(c.Quota), value(c.Period)
	switch {
	case quota == 0 && period == 0:
	case quota < -1:
		t.fail("cpu.quota is %d", quota)
	case t.only2:
		quota, period = value(whole.Quota), value(whole.Period)
		if period == 0 {
			period = 100_000 // as the kernel has it
		}
		limit := "max"
		if quota > 0 {
			limit = strconv.FormatInt(quota, 10)
		}
		t.add("cpu.quota", "cpu", "cpu.max", limit+" "+strconv.FormatUint(period, 10))
	default:
		if period != 0 {
			t.add("cpu.period", "cpu", "cpu.cfs_period_us", strconv.FormatUint(period, 10))
		}
		if quota != 0 {
			t.add("cpu.quota", "cpu", "cpu.cfs_quota_us", strconv.FormatInt(quota, 10))
		}
	}
}

func (t *translation) blockIO(b *specs.LinuxBlockIO) {
	if b == nil {
		return
	}
	t.refuse(value(b.LeafWeight) != 0, "blockIO.leafWeight", "its scheduler is gone from today's kernels")
	if w := value(b.Weight); w != 0 && t.weight("blockIO.weight", w) {
		if t.only2 {
			t.add("blockIO.weight", "io", "io.bfq.weight", fmt.Sprint(w)).or = &setting{
				name: "blockIO.weight", file: "io.weight", value: fmt.Sprint(cgroups.ConvertBlkIOToIOWeightValue(w)),
			}
		} else {
			t.add("blockIO.weight", "blkio", "blkio.weight", fmt.Sprint(w)).or = &setting{
				name: "blockIO.weight", controller: "blkio", file: "blkio.bfq.weight", value: fmt.Sprint(w),
			}
		}
	}
	for _, d := range b.WeightDevice {
		t.refuse(value(d.LeafWeight) != 0, "blockIO.weightDevice.leafWeight", "its scheduler is gone from today's kernels")
		if w := value(d.Weight); w != 0 && t.weight("blockIO.weightDevice", w) {
			dev := fmt.Sprintf("%d:%d", d.Major, d.Minor)
			s := t.addLine("blockIO.weightDevice", t.byVersion("blkio", "io"), t.byVersion("blkio.weight_device", "io.bfq.weight"), dev, fmt.Sprint(w), t.byVersion("0", "default"))
			or := *s
			or.file, or.reset = t.byVersion("blkio.bfq.weight_device", "io.weight"), dev+" default"
			if t.only2 {
				or.value = fmt.Sprintf("%s %d", dev, cgroups.ConvertBlkIOToIOWeightValue(w))
			}
			s.or = &or
		}
	}
	for _, l := range []struct {
		name, v1, v2 string
		list         []specs.LinuxThrottleDevice
	}{
		{"blockIO.throttleReadBpsDevice", "read_bps", "rbps", b.ThrottleReadBpsDevice},
		{"blockIO.throttleWriteBpsDevice", "write_bps", "wbps", b.ThrottleWriteBpsDevice},
		{"blockIO.throttleReadIOPSDevice", "read_iops", "riops", b.ThrottleReadIOPSDevice},
		{"blockIO.throttleWriteIOPSDevice", "write_iops", "wiops", b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range l.list {
			dev, rate := fmt.Sprintf("%d:%d", d.Major, d.Minor), strconv.FormatUint(d.Rate, 10)
			if !t.only2 {
				t.addLine(l.name, "blkio", "blkio.throttle."+l.v1+"_device", dev, rate, "0")
				continue
			}
			if d.Rate == 0 {
				rate = "max"
			}
			t.addLine(l.name, "io", "io.max", dev, l.v2+"="+rate, "rbps=max wbps=max riops=max wiops=max")
		}
	}
}

// weight checks a weight for block devices.
func (t *translation) weight(name string, w uint16) bool {
	if w < 10 || w > 1000 {
		t.fail("%s is %d, not between 10 and 1000", name, w)
		return false
	}
	return true
}

var pageSize = lazyregexp.New(`^[1-9][0-9]{0,5}[KMG]B$`)

func (t *translation) hugePages(list []specs.LinuxHugepageLimit) {
	for _, l := range list {
		if !pageSize().MatchString(l.Pagesize) {
			t.fail("hugepageLimits: %q is no page size, such as 2MB", l.Pagesize)
			continue
		}
		name, limit := "hugepageLimits "+l.Pagesize, strconv.FormatUint(l.Limit, 10)
		t.add(name, "hugetlb", "hugetlb."+l.Pagesize+t.byVersion(".limit_in_bytes", ".max"), limit)
		// Pages that a process has reserved and not yet touched; not all kernels count them.
		t.add(name, "hugetlb", "hugetlb."+l.Pagesize+".rsvd"+t.byVersion(".limit_in_bytes", ".max"), limit).moot = func() bool { return true }
	}
}

// word is the name of a network interface or of another device.
var word = lazyregexp.New(`^[!-~]{1,128}$`)

func (t *translation) network(n *specs.LinuxNetwork) {
	if n == nil {
		return
	}
	t.refuse(t.only2 && value(n.ClassID) != 0, "network.classID", "cgroup version 2 has none")
	t.refuse(t.only2 && len(n.Priorities) > 0, "network.priorities", "cgroup version 2 has none")
	if t.only2 {
		return
	}
	if id := value(n.ClassID); id != 0 {
		t.add("network.classID", "net_cls", "net_cls.classid", strconv.FormatUint(uint64(id), 10))
	}
	for _, p := range n.Priorities {
		if !word().MatchString(p.Name) {
			t.fail("network.priorities: %q is no interface", p.Name)
			continue
		}
		t.addLine("network.priorities", "net_prio", "net_prio.ifpriomap", p.Name, strconv.FormatUint(uint64(p.Priority), 10), "0")
	}
}

func (t *translation) rdma(devices map[string]specs.LinuxRdma) {
	for _, name := range sortedKeys(devices) {
		if !word().MatchString(name) {
			t.fail("rdma: %q is no device", name)
			continue
		}
		d, limits := devices[name], []string(nil)
		if d.HcaHandles != nil {
			limits = append(limits, fmt.Sprintf("hca_handle=%d", *d.HcaHandles))
		}
		if d.HcaObjects != nil {
			limits = append(limits, fmt.Sprintf("hca_object=%d", *d.HcaObjects))
		}
		if len(limits) > 0 {
			t.addLine("rdma "+name, "rdma", "rdma.max", name, strings.Join(limits, " "), "hca_handle=max hca_object=max")
		}
	}
}

// unifiedKey is a file of a controller. Those of cgroup itself move and kill
// processes; only its limits may be set.
var unifiedKey = lazyregexp.New(`^[a-z][a-z0-9_]{0,31}\.[a-zA-Z0-9_.]{1,95}$`)

const (
	maxUnified      = 128     // how many
	maxUnifiedValue = 4 << 10 // bytes of one
)

func (t *translation) unified(files map[string]string) {
	t.refuse(len(files) > 0 && !t.only2, "unified", "this node has cgroup version 1")
	t.refuse(len(files) > maxUnified, "unified", fmt.Sprintf("more than %d values", maxUnified))
	for _, file := range sortedKeys(files) {
		controller, _, _ := strings.Cut(file, ".")
		of := controller == "cgroup" && !slices.Contains([]string{"cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure"}, file)
		switch v := files[file]; {
		case !unifiedKey().MatchString(file):
			t.fail("unified: %q is not the name of a controller's file", file)
		case of:
			t.refuse(true, "unified "+file, "it is not a limit")
		case len(v) > maxUnifiedValue || strings.ContainsRune(v, 0):
			t.fail("unified %s: a value of %d bytes", file, len(v))
		default:
			t.add("unified "+file, controller, file, v)
		}
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// value returns what p points at, or zero.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// set writes the settings to the cgroup at path, and returns what undoes it, in
// order. After an error all is as before. What the kernel does not take because of
// another value, a limit of memory above that of memory and swap, is written once
// more after the others.
func (h hierarchies) set(path string, list []setting) (undo []setting, err error) {
	for len(list) > 0 {
		var again []setting
		var first error
		for _, s := range list {
			was, err := h.setOne(path, s)
			switch {
			case err == nil:
				undo = append(was, undo...)
			case errors.Is(err, unix.EINVAL) && len(list) > 1:
				again, first = append(again, s), cmpErr(first, err)
			default:
				return nil, errors.Join(err, h.restore(path, undo))
			}
		}
		if len(again) == len(list) {
			return nil, errors.Join(first, h.restore(path, undo))
		}
		list = again
	}
	return undo, nil
}

func cmpErr(first, other error) error {
	if first != nil {
		return first
	}
	return other
}

// restore writes what undoes settings. All of it is tried.
func (h hierarchies) restore(path string, undo []setting) error {
	var errs []error
	for _, s := range undo {
		if err := writeLines(filepath.Join(h.dir(path, s.controller), s.file), s.value); err != nil {
			errs = append(errs, fmt.Errorf("set linux.resources.%s back to %q: %w", s.name, s.value, err))
		}
	}
	return errors.Join(errs...)
}

// setOne writes one setting.
func (h hierarchies) setOne(path string, s setting) (undo []setting, err error) {
	dir := h.dir(path, s.controller)
	missing := s.moot != nil && s.moot()
	if dir == "" {
		if missing {
			return nil, nil
		}
		return nil, fmt.Errorf("linux.resources.%s: this node has no cgroup controller %s: %w", s.name, s.controller, ErrUnsupported)
	}
	name := filepath.Join(dir, s.file)
	before, err := os.ReadFile(name)
	if err == nil || !errors.Is(err, fs.ErrNotExist) { // not all can be read
		if strings.HasPrefix(s.file, "cpuset.") && strings.TrimSpace(string(before)) == "" {
			// What it takes from above: with processes it cannot be emptied again.
			before, err = os.ReadFile(name + ".effective")
		}
		undo = s.undo(string(before), err)
		err = writeLines(name, s.value)
	}
	switch {
	case err == nil:
		return undo, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, s.explain(dir, err)
	case s.or != nil:
		return h.setOne(path, *s.or)
	case missing:
		return nil, nil
	}
	if h.only2 && !passedOn(dir, s.controller) {
		return nil, fmt.Errorf("linux.resources.%s: this node has no cgroup controller %s, or not in %s: %w", s.name, s.controller, filepath.Dir(dir), ErrUnsupported)
	}
	return nil, fmt.Errorf("linux.resources.%s: this kernel has no %s for cgroups: %w", s.name, s.file, ErrUnsupported)
}

// passedOn reports whether a cgroup of version 2 has the controller from above.
func passedOn(dir, controller string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	return err == nil && slices.Contains(append(strings.Fields(string(b)), "cgroup"), controller)
}

// undo returns what makes the file say again what it said before.
func (s setting) undo(before string, err error) []setting {
	before = strings.TrimRight(before, "\n")
	was := s
	switch {
	case err != nil:
		return nil
	case s.file == "memory.oom_control":
		was.value = strconv.Itoa(strings.Count(before, "oom_kill_disable 1"))
	case s.key != "":
		was.value = s.reset
		for line := range strings.SplitSeq(before, "\n") {
			if strings.HasPrefix(line, s.key+" ") {
				was.value = line
			}
		}
	case before == "":
		was.value = "\n"
	case strings.HasPrefix(before, "default "): // of a weight; those of devices have settings of their own
		was.value, _, _ = strings.Cut(before, "\n")
	default:
		was.value = before
	}
	return []setting{was}
}

// explain says what was attempted, and of a limit below what is used, how much
// that is.
func (s setting) explain(dir string, err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE) || errors.Is(err, unix.EBUSY) {
		err = invalid{err}
	}
	if s.file == "memory.limit_in_bytes" && errors.Is(err, unix.EBUSY) {
		used, _ := os.ReadFile(filepath.Join(dir, "memory.usage_in_bytes"))
		return fmt.Errorf("linux.resources.memory.limit of %s bytes is less than the container uses, %s, and the kernel cannot take it away: %w", s.value, strings.TrimSpace(string(used)), err)
	}
	return fmt.Errorf("set linux.resources.%s to %q: %w", s.name, s.value, err)
}

// writeLines writes to a file of a cgroup, which takes one line at a time.
func writeLines(name, value string) error {
	if value == "" || strings.Count(value, "\n") == 0 || value == "\n" {
		return cgroup.Write(name, value)
	}
	for line := range strings.Lines(value) {
		if err := cgroup.Write(name, line); err != nil {
			return err
		}
	}
	return nil
}
