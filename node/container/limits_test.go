package container_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container"
)

// only2 reports whether this machine has cgroup version 2 alone.
func only2() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// cgroupFile is a file of both versions, "" where one has none.
type cgroupFile struct{ controller, v1, v2 string }

// readCgroup reads a file of a container's cgroup.
func (n *node) readCgroup(t testing.TB, id string, f cgroupFile) string {
	t.Helper()
	name := filepath.Join("/sys/fs/cgroup", f.controller, n.cfg.CgroupParent, id, f.v1)
	if only2() {
		name = filepath.Join("/sys/fs/cgroup", n.cfg.CgroupParent, id, f.v2)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// disk returns the numbers of a block device of this machine.
func disk(t testing.TB) (major, minor int64) {
	t.Helper()
	devs, err := filepath.Glob("/sys/block/[vsn]*/dev")
	if err != nil || len(devs) == 0 {
		t.Fatalf("this machine has no disk: %v, %v", devs, err)
	}
	b, err := os.ReadFile(devs[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(string(b), "%d:%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	return major, minor
}

// limitCase is a limit, how it is asked for, and what the kernel then says.
type limitCase struct {
	name     string
	set      specs.LinuxResources
	file     cgroupFile
	v1, v2   string
	v1s, v2s []string // errors: it is refused with one of these
}

func limitCases(t testing.TB) []limitCase {
	major, minor := disk(t)
	dev := func(rate uint64) []specs.LinuxThrottleDevice {
		d := specs.LinuxThrottleDevice{Rate: rate}
		d.Major, d.Minor = major, minor
		return []specs.LinuxThrottleDevice{d}
	}
	weight := specs.LinuxWeightDevice{Weight: new(uint16(300))}
	weight.Major, weight.Minor = major, minor
	at := fmt.Sprintf("%d:%d ", major, minor)
	memory := func(m specs.LinuxMemory) specs.LinuxResources { return specs.LinuxResources{Memory: &m} }
	cpu := func(c specs.LinuxCPU) specs.LinuxResources { return specs.LinuxResources{CPU: &c} }
	blockIO := func(b specs.LinuxBlockIO) specs.LinuxResources { return specs.LinuxResources{BlockIO: &b} }
	limit, more := int64(64<<20), int64(96<<20)
	return []limitCase{
		{
			name: "memory", set: memory(specs.LinuxMemory{Limit: &limit}),
			file: cgroupFile{"memory", "memory.limit_in_bytes", "memory.max"}, v1: "67108864", v2: "67108864",
		},
		{
			name: "swap", set: memory(specs.LinuxMemory{Limit: &limit, Swap: &more}),
			file: cgroupFile{"memory", "memory.memsw.limit_in_bytes", "memory.swap.max"}, v1: "100663296", v2: "33554432",
		},
		{
			name: "no swap", set: memory(specs.LinuxMemory{Limit: &limit, Swap: &limit}),
			file: cgroupFile{"memory", "memory.memsw.limit_in_bytes", "memory.swap.max"}, v1: "67108864", v2: "0",
		},
		{
			name: "swap without end", set: memory(specs.LinuxMemory{Limit: &limit, Swap: new(int64(-1))}),
			file: cgroupFile{"memory", "memory.memsw.limit_in_bytes", "memory.swap.max"}, v1: "9223372036854771712", v2: "max",
		},
		{
			name: "swap below memory", set: memory(specs.LinuxMemory{Limit: &more, Swap: &limit}),
			v1s: []string{"memory.swap"}, v2s: []string{"memory.swap"},
		},
		{
			name: "reservation", set: memory(specs.LinuxMemory{Reservation: &limit}),
			file: cgroupFile{"memory", "memory.soft_limit_in_bytes", "memory.low"}, v1: "67108864", v2: "67108864",
		},
		{
			name: "swappiness", set: memory(specs.LinuxMemory{Swappiness: new(uint64(7))}),
			file: cgroupFile{"memory", "memory.swappiness", ""}, v1: "7", v2s: []string{"memory.swappiness"},
		},
		{
			name: "no OOM killer", set: memory(specs.LinuxMemory{DisableOOMKiller: new(true)}),
			file: cgroupFile{"memory", "memory.oom_control", ""}, v1: "oom_kill_disable 1\nunder_oom 0\noom_kill 0", v2s: []string{"memory.disableOOMKiller"},
		},
		{
			name: "kernel memory", set: memory(specs.LinuxMemory{Kernel: &limit}), //nolint:staticcheck // deprecated limits are limits that are refused, too
			v1s: []string{"memory.kernel"}, v2s: []string{"memory.kernel"},
		},
		{
			name: "memory of TCP", set: memory(specs.LinuxMemory{KernelTCP: &limit}),
			v1s: []string{"memory.kernelTCP"}, v2s: []string{"memory.kernelTCP"},
		},
		{
			name: "shares", set: cpu(specs.LinuxCPU{Shares: new(uint64(512))}),
			file: cgroupFile{"cpu", "cpu.shares", "cpu.weight"}, v1: "512", v2: "59",
		},
		{name: "too few shares", set: cpu(specs.LinuxCPU{Shares: new(uint64(1))}), v1s: []string{"cpu.shares"}, v2s: []string{"cpu.shares"}},
		{
			name: "quota", set: cpu(specs.LinuxCPU{Quota: new(int64(20000))}),
			file: cgroupFile{"cpu", "cpu.cfs_quota_us", "cpu.max"}, v1: "20000", v2: "20000 100000",
		},
		{
			name: "period", set: cpu(specs.LinuxCPU{Quota: new(int64(20000)), Period: new(uint64(50000))}),
			file: cgroupFile{"cpu", "cpu.cfs_period_us", "cpu.max"}, v1: "50000", v2: "20000 50000",
		},
		{
			name: "burst", set: cpu(specs.LinuxCPU{Quota: new(int64(20000)), Burst: new(uint64(10000))}),
			file: cgroupFile{"cpu", "cpu.cfs_burst_us", "cpu.max.burst"}, v1: "10000", v2: "10000",
		},
		{
			name: "idle", set: cpu(specs.LinuxCPU{Idle: new(int64(1))}),
			file: cgroupFile{"cpu", "cpu.idle", "cpu.idle"}, v1: "1", v2: "1",
		},
		{name: "realtime", set: cpu(specs.LinuxCPU{RealtimeRuntime: new(int64(1000))}), v1s: []string{"cpu.realtime"}, v2s: []string{"cpu.realtime"}},
		{
			name: "processors", set: cpu(specs.LinuxCPU{Cpus: "1"}),
			file: cgroupFile{"cpuset", "cpuset.cpus", "cpuset.cpus"}, v1: "1", v2: "1",
		},
		{
			name: "memory nodes", set: cpu(specs.LinuxCPU{Mems: "0"}),
			file: cgroupFile{"cpuset", "cpuset.mems", "cpuset.mems"}, v1: "0", v2: "0",
		},
		{name: "missing processors", set: cpu(specs.LinuxCPU{Cpus: "77"}), v1s: []string{"cpu.cpus"}, v2s: []string{"cpu.cpus"}},
		{
			name: "pids", set: specs.LinuxResources{Pids: &specs.LinuxPids{Limit: new(int64(7))}},
			file: cgroupFile{"pids", "pids.max", "pids.max"}, v1: "7", v2: "7",
		},
		{
			name: "pids without end", set: specs.LinuxResources{Pids: &specs.LinuxPids{Limit: new(int64(-1))}},
			file: cgroupFile{"pids", "pids.max", "pids.max"}, v1: "max", v2: "max",
		},
		{
			name: "bytes read per second", set: blockIO(specs.LinuxBlockIO{ThrottleReadBpsDevice: dev(1 << 20)}),
			file: cgroupFile{"blkio", "blkio.throttle.read_bps_device", "io.max"}, v1: at + "1048576", v2: at + "rbps=1048576 wbps=max riops=max wiops=max",
		},
		{
			name: "bytes written per second", set: blockIO(specs.LinuxBlockIO{ThrottleWriteBpsDevice: dev(1 << 20)}),
			file: cgroupFile{"blkio", "blkio.throttle.write_bps_device", "io.max"}, v1: at + "1048576", v2: at + "rbps=max wbps=1048576 riops=max wiops=max",
		},
		{
			name: "reads per second", set: blockIO(specs.LinuxBlockIO{ThrottleReadIOPSDevice: dev(100)}),
			file: cgroupFile{"blkio", "blkio.throttle.read_iops_device", "io.max"}, v1: at + "100", v2: at + "rbps=max wbps=max riops=100 wiops=max",
		},
		{
			name: "writes per second", set: blockIO(specs.LinuxBlockIO{ThrottleWriteIOPSDevice: dev(100)}),
			file: cgroupFile{"blkio", "blkio.throttle.write_iops_device", "io.max"}, v1: at + "100", v2: at + "rbps=max wbps=max riops=max wiops=100",
		},
		{name: "leaf weight", set: blockIO(specs.LinuxBlockIO{LeafWeight: new(uint16(300))}), v1s: []string{"blockIO.leafWeight"}, v2s: []string{"blockIO.leafWeight"}},
		{name: "weight out of range", set: blockIO(specs.LinuxBlockIO{Weight: new(uint16(5))}), v1s: []string{"blockIO.weight is 5"}, v2s: []string{"blockIO.weight is 5"}},
		{
			name: "huge pages of no size", set: specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "../2MB"}}},
			v1s: []string{"hugepageLimits"}, v2s: []string{"hugepageLimits"},
		},
		{
			name: "class of packets", set: specs.LinuxResources{Network: &specs.LinuxNetwork{ClassID: new(uint32(7))}},
			v1s: []string{"network.classID: this node has no cgroup controller net_cls"}, v2s: []string{"network.classID"},
		},
		{
			name: "priority of an interface", set: specs.LinuxResources{Network: &specs.LinuxNetwork{Priorities: []specs.LinuxInterfacePriority{{Name: "lo", Priority: 1}}}},
			v1s: []string{"network.priorities"}, v2s: []string{"network.priorities"},
		},
		{
			name: "rdma", set: specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{"mlx5_1": {HcaHandles: new(uint32(3))}}},
			v1s: []string{"rdma mlx5_1"}, v2s: []string{"rdma mlx5_1"},
		},
		{
			name: "by file", set: specs.LinuxResources{Unified: map[string]string{"memory.high": "64M"}},
			file: cgroupFile{"", "", "memory.high"}, v2: "67108864", v1s: []string{"unified"},
		},
		{
			name: "by file of another cgroup", set: specs.LinuxResources{Unified: map[string]string{"memory/../../pids.max": "1"}},
			v1s: []string{"unified"}, v2s: []string{"unified"},
		},
		{
			name: "by file that moves processes", set: specs.LinuxResources{Unified: map[string]string{"cgroup.procs": "1"}},
			v1s: []string{"unified"}, v2s: []string{"unified cgroup.procs"},
		},
		{
			name: "by file that is not there", set: specs.LinuxResources{Unified: map[string]string{"memory.none": "1"}},
			v1s: []string{"unified"}, v2s: []string{"unified memory.none"},
		},
	}
}

// TestEachLimit sets limits one at a time, for a new container and for a running
// one, and reads them back.
func TestEachLimit(t *testing.T) {
	n := newNode(t)
	running := n.bundle(t, "sleep", "1000")
	n.create(t, running)
	n.start(t, running.ID)
	for _, tc := range append(limitCases(t), n.weights(t)...) {
		t.Run(tc.name, func(t *testing.T) {
			want, refused := tc.v1, tc.v1s
			if only2() {
				want, refused = tc.v2, tc.v2s
			}
			b := n.bundle(t, "true")
			set := tc.set
			set.Devices = b.Spec.Linux.Resources.Devices
			b.Spec.Linux.Resources = &set
			cerr := n.Create(testContext(t), b)
			uerr := n.Update(testContext(t), running.ID, &tc.set)
			for what, err := range map[string]error{"Create": cerr, "Update": uerr} {
				if refused == nil && err != nil || refused != nil && (err == nil || !slices.ContainsFunc(refused, func(s string) bool { return strings.Contains(err.Error(), s) })) {
					t.Errorf("%s = %v, want an error with %q", what, err, refused)
				}
			}
			if refused != nil || t.Failed() {
				return
			}
			for _, id := range []string{b.ID, running.ID} {
				if got := n.readCgroup(t, id, tc.file); got != want && !strings.Contains(got, want+"\n") {
					t.Errorf("%s of %s is %q, want %q", tc.file, id, got, want)
				}
			}
			// For the next case.
			if err := n.Update(testContext(t), running.ID, &specs.LinuxResources{
				Memory: &specs.LinuxMemory{Limit: new(int64(-1)), Swap: new(int64(-1))},
				CPU:    &specs.LinuxCPU{Burst: new(uint64(0)), Quota: new(int64(-1)), Period: new(uint64(100000)), Idle: new(int64(0))},
				BlockIO: &specs.LinuxBlockIO{
					ThrottleReadBpsDevice: unthrottle(t), ThrottleWriteBpsDevice: unthrottle(t),
					ThrottleReadIOPSDevice: unthrottle(t), ThrottleWriteIOPSDevice: unthrottle(t),
				},
			}); err != nil {
				t.Error(err)
			}
		})
	}
}

func unthrottle(t testing.TB) []specs.LinuxThrottleDevice {
	major, minor := disk(t)
	d := specs.LinuxThrottleDevice{}
	d.Major, d.Minor = major, minor
	return []specs.LinuxThrottleDevice{d}
}

// weights are limits that hang on the schedulers of this kernel.
func (n *node) weights(t *testing.T) []limitCase {
	t.Helper()
	set := specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: new(uint16(300))}}
	b := n.bundle(t, "true")
	n.create(t, b)
	for _, f := range []cgroupFile{{"blkio", "blkio.bfq.weight", "io.bfq.weight"}, {"blkio", "blkio.weight", "io.weight"}} {
		dir := filepath.Join("/sys/fs/cgroup", f.controller, n.cfg.CgroupParent, b.ID, f.v1)
		if only2() {
			dir = filepath.Join("/sys/fs/cgroup", n.cfg.CgroupParent, b.ID, f.v2)
		}
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		v2 := "default 300"
		if f.v2 == "io.weight" {
			v2 = "default 2930"
		}
		return []limitCase{{name: "weight", set: set, file: f, v1: "300", v2: v2}}
	}
	return []limitCase{{name: "weight", set: set, v1s: []string{"blockIO.weight"}, v2s: []string{"blockIO.weight"}}}
}

// TestUpdateIsAllOrNone asks for several limits the last of which cannot be set.
func TestUpdateIsAllOrNone(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sleep", "1000")
	r := b.Spec.Linux.Resources
	r.Memory = &specs.LinuxMemory{Limit: new(int64(64 << 20)), Swap: new(int64(64 << 20)), Reservation: new(int64(32 << 20))}
	r.CPU = &specs.LinuxCPU{Quota: new(int64(50000)), Shares: new(uint64(512)), Burst: new(uint64(1000))}
	r.BlockIO = &specs.LinuxBlockIO{ThrottleReadBpsDevice: unthrottle(t)}
	r.BlockIO.ThrottleReadBpsDevice[0].Rate = 1 << 20
	r.Pids = &specs.LinuxPids{Limit: new(int64(50))}
	n.create(t, b)
	n.start(t, b.ID)
	files := []cgroupFile{
		{"memory", "memory.limit_in_bytes", "memory.max"},
		{"memory", "memory.memsw.limit_in_bytes", "memory.swap.max"},
		{"memory", "memory.soft_limit_in_bytes", "memory.low"},
		{"cpu", "cpu.cfs_quota_us", "cpu.max"},
		{"cpu", "cpu.cfs_period_us", "cpu.max"},
		{"cpu", "cpu.cfs_burst_us", "cpu.max.burst"},
		{"cpu", "cpu.shares", "cpu.weight"},
		{"blkio", "blkio.throttle.read_bps_device", "io.max"},
		{"blkio", "blkio.throttle.write_iops_device", "io.max"},
		{"pids", "pids.max", "pids.max"},
		{"cpuset", "cpuset.cpus", "cpuset.cpus.effective"},
		{"devices", "devices.list", "cpuset.mems"},
	}
	look := func() (all []string) {
		for _, f := range files {
			all = append(all, f.v1+"/"+f.v2+": "+n.readCgroup(t, b.ID, f))
		}
		return all
	}
	record := func() string {
		data, err := os.ReadFile(filepath.Join(n.cfg.Root, b.ID, "bundle.json"))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	before, wrote := look(), record()
	throttle := unthrottle(t)
	throttle[0].Rate = 7
	change := &specs.LinuxResources{
		Memory:  &specs.LinuxMemory{Limit: new(int64(128 << 20)), Swap: new(int64(256 << 20)), Reservation: new(int64(1 << 20))},
		CPU:     &specs.LinuxCPU{Quota: new(int64(20000)), Period: new(uint64(40000)), Burst: new(uint64(2000)), Shares: new(uint64(1024)), Cpus: "0"},
		BlockIO: &specs.LinuxBlockIO{ThrottleReadBpsDevice: throttle, ThrottleWriteIOPSDevice: throttle},
		Pids:    &specs.LinuxPids{Limit: new(int64(60))},
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
		Rdma:    map[string]specs.LinuxRdma{"none0": {HcaHandles: new(uint32(1))}},
	}
	if err := n.Update(testContext(t), b.ID, change); err == nil || !strings.Contains(err.Error(), "rdma none0") {
		t.Fatalf("Update = %v, want an error about rdma", err)
	}
	if after := look(); !slices.Equal(after, before) {
		t.Errorf("after an update that failed\n%q, before\n%q", after, before)
	}
	if record() != wrote {
		t.Error("the update that failed is in the record")
	}
	change.Rdma = nil
	if err := n.Update(testContext(t), b.ID, change); err != nil {
		t.Fatal(err)
	}
	after := look()
	for i := range after {
		if after[i] == before[i] && files[i].controller != "devices" {
			t.Errorf("%q did not change", after[i])
		}
	}
	if !strings.Contains(record(), "134217728") {
		t.Error("the update is not in the record")
	}
	e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *processWith(b, "sh", "-c", "echo 2>/dev/null x >/dev/null")})
	if err == nil {
		code, werr := e.Wait(testContext(t))
		if code == 0 || werr != nil {
			t.Errorf("after its rules are exchanged, the container opens /dev/null: exit code %d, %v", code, werr)
		}
	}
	// All of it back, the sums of memory and swap in the other order.
	before64 := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(64 << 20)), Swap: new(int64(64 << 20))}}
	if err := n.Update(testContext(t), b.ID, before64); err != nil {
		t.Error(err)
	}
	if after := look(); after[0] != before[0] || after[1] != before[1] {
		t.Errorf("lowered to %q, want %q", after[:2], before[:2])
	}
}

// TestUpdateBelowUsage lowers the limit of memory to less than the container
// holds: it lives on.
func TestUpdateBelowUsage(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sh", "-c", "head -c 6000000 /dev/zero >/dev/shm/x; echo full; read y; echo $y $(wc -c </dev/shm/x)")
	b.Stdin = true
	b.Spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: new(int64(256 << 20)), Swap: new(int64(256 << 20))}
	n.create(t, b)
	s := n.attach(t, b.ID, container.AttachOptions{Stdin: true})
	n.start(t, b.ID)
	waitLog(t, b.Log.Path, "full")
	err := n.Update(testContext(t), b.ID, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(4 << 20)), Swap: new(int64(4 << 20))}})
	if err == nil || !strings.Contains(err.Error(), "less than the container uses") {
		t.Errorf("Update = %v, want an error that says how much is used", err)
	}
	err = n.Update(testContext(t), b.ID, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(5 << 20)), Swap: new(int64(5 << 20)), CheckBeforeUpdate: new(true)}})
	if err == nil || !strings.Contains(err.Error(), "not more than the container uses") {
		t.Errorf("Update with checkBeforeUpdate = %v, want an error", err)
	}
	if _, err := s.Stdin.Write([]byte("alive\n")); err != nil {
		t.Fatal(err)
	}
	if s, err := n.Wait(testContext(t), b.ID); err != nil || s.ExitCode != 0 {
		t.Errorf("Wait = %+v, %v", s, err)
	}
	waitLog(t, b.Log.Path, "alive 6000000")
}

func TestUpdateOfNone(t *testing.T) {
	n := newNode(t)
	pids := &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: new(int64(5))}}
	if err := n.Update(testContext(t), "none", pids); !errors.Is(err, container.ErrNotFound) {
		t.Errorf("Update of no container = %v", err)
	}
	b := n.bundle(t, "true")
	n.create(t, b)
	if err := n.Update(testContext(t), b.ID, pids); err != nil {
		t.Errorf("Update of a created container = %v", err)
	}
	n.start(t, b.ID)
	if _, err := n.Wait(testContext(t), b.ID); err != nil {
		t.Fatal(err)
	}
	if err := n.Update(testContext(t), b.ID, pids); !errors.Is(err, container.ErrStatus) {
		t.Errorf("Update of a stopped container = %v", err)
	}
}

// pressure returns a function that returns when the container has waited for a
// processor, and then every two seconds at most.
func (n *node) pressure(t *testing.T, id string) (await func()) {
	t.Helper()
	path := filepath.Join(n.cfg.CgroupParent, id, "cpu.pressure")
	file := filepath.Join("/sys/fs/cgroup/unified", path)
	if only2() {
		file = filepath.Join("/sys/fs/cgroup", path)
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if _, err := f.WriteString("some 1000 2000000"); err != nil { // microseconds, of so many
		t.Fatalf("ask to be told of pressure: %v", err)
	}
	end := time.Now().Add(20 * time.Second)
	return func() {
		t.Helper()
		if !poll(t, int(f.Fd()), unix.POLLPRI, end) {
			t.Fatal("no pressure within 20 s")
		}
	}
}

// TestStats reads what a container has used.
func TestStats(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sh", "-c", "head -c 1000000 /dev/zero >/dev/shm/x; sleep 1000 & echo up; while :; do :; done")
	limit := int64(128 << 20)
	b.Spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
	b.Spec.Linux.Resources.CPU = &specs.LinuxCPU{Quota: new(int64(2000)), Period: new(uint64(10000))}
	b.Spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: new(int64(11))}
	n.create(t, b)
	n.start(t, b.ID)
	waitLog(t, b.Log.Path, "up")
	var s container.Stats
	// The kernel may say that there is pressure before it adds up what it shows.
	for await := n.pressure(t, b.ID); s.Pressure["cpu"].Some.Total == 0; {
		await()
		var err error
		if s, err = n.Stats(testContext(t), b.ID); err != nil {
			t.Fatal(err)
		}
	}
	switch {
	case s.Memory < 1000000 || s.MemoryMax < s.Memory && s.MemoryMax != 0 || s.MemoryLimit != uint64(limit) || len(s.MemoryDetails) < 5:
		t.Errorf("memory of %+v", s)
	case s.Pids != 2 || s.PidsLimit != 11:
		t.Errorf("pids of %+v", s)
	case s.CPU == 0 || s.CPUUser > s.CPU+time.Second || s.Periods < s.ThrottledRuns || s.ThrottledRuns == 0 || s.Throttled == 0:
		t.Errorf("processors of %+v", s)
	case !only2() && len(s.CPUPerCPU) == 0:
		t.Errorf("single processors of %+v", s)
	}
	for _, kind := range []string{"cpu", "memory", "io"} {
		if _, ok := s.Pressure[kind]; !ok {
			t.Errorf("no pressure of %s in %+v", kind, s.Pressure)
		}
	}
	if p := s.Pressure["cpu"]; p.Some.Total == 0 {
		t.Errorf("a container over its quota has pressure %+v", p)
	}
	if err := n.Kill(testContext(t), b.ID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Wait(testContext(t), b.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Stats(testContext(t), b.ID); !errors.Is(err, container.ErrStatus) {
		t.Errorf("Stats of a stopped container = %v", err)
	}
	if _, err := n.Stats(testContext(t), "none"); !errors.Is(err, container.ErrNotFound) {
		t.Errorf("Stats of no container = %v", err)
	}
}

// TestChosenCgroup puts a container where its caller says.
func TestChosenCgroup(t *testing.T) {
	n := newNode(t)
	for _, tc := range []struct{ path, at string }{
		{"/" + n.cfg.CgroupParent + "/a/b", "a/b"},
		{"relative/c", "relative/c"},
	} {
		b := n.bundle(t, "sleep", "1000")
		b.Cgroup = tc.path
		b.Spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: new(int64(9))}
		n.create(t, b)
		n.start(t, b.ID)
		if got := n.readCgroup(t, tc.at, cgroupFile{"pids", "pids.max", "pids.max"}); got != "9" {
			t.Errorf("%s: limit of pids %q", tc.path, got)
		}
		s, err := n.State(testContext(t), b.ID)
		if err != nil {
			t.Fatal(err)
		}
		if got := n.readCgroup(t, tc.at, cgroupFile{"pids", "cgroup.procs", "cgroup.procs"}); got != fmt.Sprint(s.Pid) {
			t.Errorf("%s: processes %q, want %d", tc.path, got, s.Pid)
		}
		// Another one must not take it with it.
		other := n.bundle(t, "true")
		other.Cgroup = tc.path
		if err := n.Create(testContext(t), other); err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("Create in the same cgroup = %v", err)
		}
		n.open(t) // another agent
		if err := n.Kill(testContext(t), b.ID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Wait(testContext(t), b.ID); err != nil {
			t.Fatal(err)
		}
		if err := n.Delete(testContext(t), b.ID); err != nil {
			t.Fatal(err)
		}
		if left, _ := filepath.Glob("/sys/fs/cgroup/*/" + n.cfg.CgroupParent + "/" + tc.at); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
		for _, d := range []string{"a", "relative"} { // it was the test that asked for them
			made, _ := filepath.Glob("/sys/fs/cgroup/*/" + n.cfg.CgroupParent + "/" + d)
			for _, dir := range append(made, filepath.Join("/sys/fs/cgroup", n.cfg.CgroupParent, d)) {
				_ = os.Remove(dir)
			}
		}
	}
	for _, path := range []string{"/", "..", "/../x", "a/../../b", "."} {
		b := n.bundle(t, "true")
		b.Cgroup = path
		if err := n.Create(testContext(t), b); err == nil || !strings.Contains(err.Error(), "cgroup path") {
			t.Errorf("Create in cgroup %q = %v", path, err)
		}
	}
}

// TestExecBeyondLimit looks into a container that has as many processes as it may.
func TestExecBeyondLimit(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sleep", "1000")
	b.Spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: new(int64(1))}
	n.create(t, b)
	n.start(t, b.ID)
	e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *processWith(b, "cat", "/proc/self/cgroup"), AttachOptions: container.AttachOptions{Stdout: true}})
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(readAll(t, e.Stdout)) {
		if !strings.HasSuffix(line, ":/\n") {
			t.Errorf("what is executed is in cgroup %q", line)
		}
	}
	if code, err := e.Wait(testContext(t)); code != 0 || err != nil {
		t.Errorf("exec: %d, %v", code, err)
	}
}
