package host

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// limits translates the container's limits. defaults has the rules of devices.
func limits(defaults *specs.LinuxResources, r Resources) (*specs.LinuxResources, error) {
	out := specs.LinuxResources{}
	if defaults != nil {
		out = *defaults
	}
	out.Memory, out.CPU = r.memory(), r.cpu()
	if r.Pids != 0 {
		out.Pids = &specs.LinuxPids{Limit: ptr(r.Pids)}
	}
	var err error
	out.BlockIO, err = r.Blkio.translate()
	return &out, err
}

// ptr returns a pointer to v, nil for nothing.
func ptr[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

func (r Resources) memory() *specs.LinuxMemory {
	if r.Memory == 0 && r.MemoryReservation == 0 && r.Swappiness == nil && !r.OOMKillDisable {
		return nil
	}
	swap := r.MemorySwap
	if swap == 0 {
		swap = 2 * r.Memory // as much again, as Docker gives
	}
	m := &specs.LinuxMemory{Limit: ptr(r.Memory), Swap: ptr(swap), Reservation: ptr(r.MemoryReservation), DisableOOMKiller: ptr(r.OOMKillDisable)}
	if r.Swappiness != nil {
		m.Swappiness = ptr(uint64(*r.Swappiness))
		if *r.Swappiness == 0 {
			m.Swappiness = new(uint64(0))
		}
	}
	return m
}

func (r Resources) cpu() *specs.LinuxCPU {
	c := specs.LinuxCPU{
		Shares: ptr(uint64(r.CPUShares)), Quota: ptr(r.CPUQuota), Period: ptr(uint64(r.CPUPeriod)), Cpus: r.CpusetCPUs, Mems: r.CpusetMems,
		RealtimePeriod: ptr(uint64(r.CPURealtimePeriod)), RealtimeRuntime: ptr(r.CPURealtimeRuntime),
	}
	if c == (specs.LinuxCPU{}) {
		return nil
	}
	return &c
}

// translate finds the numbers of the devices that the limits name.
func (b Blkio) translate() (*specs.LinuxBlockIO, error) {
	out := &specs.LinuxBlockIO{Weight: ptr(b.Weight)}
	for _, w := range b.Weights {
		major, minor, err := blockDevice(w.Path)
		if err != nil {
			return nil, err
		}
		d := specs.LinuxWeightDevice{Weight: ptr(uint16(w.Value))}
		d.Major, d.Minor = major, minor
		out.WeightDevice = append(out.WeightDevice, d)
	}
	for _, list := range []struct {
		from []DeviceLimit
		to   *[]specs.LinuxThrottleDevice
	}{
		{b.ReadBps, &out.ThrottleReadBpsDevice},
		{b.WriteBps, &out.ThrottleWriteBpsDevice},
		{b.ReadIOPS, &out.ThrottleReadIOPSDevice},
		{b.WriteIOPS, &out.ThrottleWriteIOPSDevice},
	} {
		for _, l := range list.from {
			major, minor, err := blockDevice(l.Path)
			if err != nil {
				return nil, err
			}
			d := specs.LinuxThrottleDevice{Rate: l.Value}
			d.Major, d.Minor = major, minor
			*list.to = append(*list.to, d)
		}
	}
	if b.empty() {
		return nil, nil
	}
	return out, nil
}

// blockDevice returns the number of a block device of the node's.
func blockDevice(path string) (major, minor int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, invalid("limit of device %s: %v", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, 0, invalid("limit of device %s: it is not a block device", path)
	}
	return int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev)), nil
}

// Blkio limits transfers of block devices.
type Blkio struct {
	Weight    uint16        `json:"weight,omitempty"` // 10 to 1000
	Weights   []DeviceLimit `json:"weights,omitempty"`
	ReadBps   []DeviceLimit `json:"read_bps,omitempty"` // bytes a second
	WriteBps  []DeviceLimit `json:"write_bps,omitempty"`
	ReadIOPS  []DeviceLimit `json:"read_iops,omitempty"` // operations a second
	WriteIOPS []DeviceLimit `json:"write_iops,omitempty"`
}

// DeviceLimit is a limit or weight of one device.
type DeviceLimit struct {
	Path  string `json:"path"` // on the node
	Value uint64 `json:"value"`
}

// empty reports whether there is no limit.
func (b Blkio) empty() bool {
	return b.Weight == 0 && len(b.Weights)+len(b.ReadBps)+len(b.WriteBps)+len(b.ReadIOPS)+len(b.WriteIOPS) == 0
}

// check follows Docker's words.
func (b Blkio) check() error {
	if b.Weight != 0 && (b.Weight < 10 || b.Weight > 1000) {
		return invalid("Range of blkio weight is from 10 to 1000")
	}
	for _, w := range b.Weights {
		if w.Value < 10 || w.Value > 1000 {
			return invalid("Range of blkio weight is from 10 to 1000: device %s has %d", w.Path, w.Value)
		}
	}
	return nil
}

// check follows Docker's words.
func (r Resources) check() error {
	switch {
	case r.Memory < 0 || r.Memory != 0 && r.Memory < minMemory:
		return invalid("Minimum memory limit allowed is 6MB")
	case r.Memory == 0 && r.MemorySwap > 0:
		return invalid("You should always set the Memory limit when using Memoryswap limit, see usage")
	case r.MemorySwap > 0 && r.MemorySwap < r.Memory:
		return invalid("Minimum memoryswap limit should be larger than memory limit, see usage")
	case r.MemorySwap < -1:
		return invalid("invalid memoryswap limit %d", r.MemorySwap)
	case r.MemoryReservation < 0 || r.Memory > 0 && r.MemoryReservation > r.Memory:
		return invalid("Minimum memory limit can not be less than memory reservation limit, see usage")
	case r.Swappiness != nil && (*r.Swappiness < 0 || *r.Swappiness > 100):
		return invalid("Invalid value: %d, valid memory swappiness range is 0-100", *r.Swappiness)
	case r.OOMKillDisable && r.Memory == 0:
		return invalid("OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources")
	case r.CPUShares < 0:
		return invalid("invalid CPU shares (%d): value must be a positive integer", r.CPUShares)
	case r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1000000):
		return invalid("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	case r.CPUQuota > 0 && r.CPUQuota < 1000:
		return invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	case r.CPURealtimePeriod < 0 || r.CPURealtimeRuntime < 0 || r.CPURealtimePeriod > 0 && r.CPURealtimeRuntime > r.CPURealtimePeriod:
		return invalid("cpu real-time runtime cannot be higher than cpu real-time period, and neither below 0")
	case r.Pids < 0:
		return invalid("invalid pids limit %d", r.Pids)
	}
	for _, set := range []struct{ name, value string }{{"cpus", r.CpusetCPUs}, {"mems", r.CpusetMems}} {
		if err := checkSet(set.value); err != nil {
			return invalid("Invalid value %s for cpuset %s: %v", set.value, set.name, err)
		}
	}
	return r.Blkio.check()
}

// checkSet reads a list of numbers and ranges: 0-3,5.
func checkSet(list string) error {
	const most = 8192 // processors that Linux can have
	if list == "" {
		return nil
	}
	for part := range splitComma(list) {
		first, last, ranged := cutNumber(part)
		if first < 0 || ranged && last < first || first >= most || last >= most {
			return fmt.Errorf("%q is no number or range", part)
		}
	}
	return nil
}
