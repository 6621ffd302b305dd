package oci_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/oci"
)

// ownNetwork gives the test a network namespace of its own, which ends with it: its
// thread is nobody else's any more.
func ownNetwork(t *testing.T) {
	t.Helper()
	goruntime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

// otherNetwork makes a network namespace, and returns its path.
func otherNetwork(t *testing.T) string {
	t.Helper()
	made := make(chan *os.File)
	go func() {
		goruntime.LockOSThread()
		var f *os.File
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			f, err = os.Open("/proc/thread-self/ns/net")
		}
		if err != nil {
			t.Error(err)
		}
		made <- f
	}()
	f := <-made
	if f == nil {
		t.FailNow()
	}
	t.Cleanup(func() { _ = f.Close() })
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
}

// shell runs commands in the namespaces of this thread, and returns what they print.
func shell(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "/bin/sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// newDevice makes dev0, with everything that goes along and some that does not.
func newDevice(t *testing.T) {
	t.Helper()
	shell(t, `sysctl -qw net.ipv6.conf.default.accept_dad=0
		ip link add dev0 address 02:00:00:00:00:07 mtu 1789 txqueuelen 77 type veth peer name peer0
		ip link set dev dev0 alias "of the test"
		ip link set peer0 up
		ip link set dev0 up
		ip addr add 192.0.2.1/24 broadcast 192.0.2.255 label dev0:one metric 77 dev dev0
		ip addr add 192.0.2.2/24 dev dev0
		ip addr add 198.51.100.1 peer 198.51.100.2/32 dev dev0
		ip addr add 203.0.113.1/24 scope link dev dev0
		ip addr add 203.0.114.1/24 valid_lft 10000 preferred_lft 5000 dev dev0
		ip addr add 2001:db8::1/64 dev dev0
		ip addr add 2001:db8::2/64 nodad noprefixroute preferred_lft 0 dev dev0
		ip addr add 2001:db8:1::1 peer 2001:db8:1::2 dev dev0
		ip addr add 2001:db8:2::1/64 valid_lft 10000 preferred_lft 5000 dev dev0`)
}

// passing is what changes by itself: times, and the queue of a device that was never up.
var passing = regexp.MustCompile(`[1-9][0-9]*sec|qdisc no[a-z]*`)

// show returns what there is to know of a device, without its number, from the network
// namespace at a path.
func show(t *testing.T, path, device string) string {
	t.Helper()
	out := shell(t, strings.ReplaceAll(`nsenter --net=`+path+` sh -ec "
		ip -o link show dev DEV | cut -d: -f2-
		ip -o addr show dev DEV | cut -d: -f2-
		ip -4 route show dev DEV
		ip -6 route show dev DEV"`, "DEV", device))
	return passing.ReplaceAllString(out, "")
}

// here is the network namespace of the shell that is asked.
const here = "/proc/self/ns/net"

// TestNetDevices gives a container two devices.
func TestNetDevices(t *testing.T) {
	ownNetwork(t)
	newDevice(t)
	shell(t, "ip link add dev1 type veth peer name peer1")
	r := newRuntime(t, "busybox", "cat", "/sys/class/net/eth0/operstate", "/sys/class/net/eth0/mtu", "/proc/sys/net/ipv4/conf/eth0/forwarding")
	r.spec.Linux.NetDevices = map[string]specs.LinuxNetDevice{"dev0": {Name: "eth0"}, "dev1": {}}
	r.spec.Linux.Sysctl = map[string]string{"net.ipv4.conf.eth0.forwarding": "1"}
	log := filepath.Join(r.bundle, "log")
	r.spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sh", Env: []string{"PATH=" + os.Getenv("PATH")}, Args: []string{
		"sh", "-ec", `pid=$(sed 's/.*"pid":\([0-9]*\).*/\1/'); nsenter --net=/proc/$pid/ns/net ip link show up dev eth0 >` + log,
	}}}}
	held := namespacesHeld(t)
	out := r.create(t, "c1")
	if now := namespacesHeld(t); now != held {
		t.Errorf("%d network namespaces are held open, want %d", now, held)
	}
	if b, err := os.ReadFile(log); err != nil || !strings.Contains(string(b), "eth0") {
		t.Errorf("a hook saw %q, %v", b, err)
	}
	pid := r.state(t, "c1").Pid
	network := fmt.Sprintf("/proc/%d/ns/net", pid)
	got := show(t, network, "eth0")
	for _, want := range []string{
		"<BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1789", "state UP", "qlen 77", "link/ether 02:00:00:00:00:07", "alias of the test",
		"192.0.2.0/24 proto kernel scope link src 192.0.2.1 metric 77", "2001:db8::/64 proto kernel",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the container's eth0 is\n%s\nwithout %q", got, want)
		}
	}
	var addresses []string
	for _, line := range lines(got) {
		if a, ok := strings.CutPrefix(line, " eth0    inet"); ok && !strings.Contains(a, "fe80") {
			addresses = append(addresses, strings.Join(strings.Fields(strings.NewReplacer("tentative", "", `\`, "").Replace(a)), " "))
		}
	}
	if want := []string{
		"192.0.2.1/24 metric 77 brd 192.0.2.255 scope global eth0:one valid_lft forever preferred_lft forever",
		"198.51.100.1 peer 198.51.100.2/32 scope global eth0 valid_lft forever preferred_lft forever",
		"192.0.2.2/24 scope global secondary eth0 valid_lft forever preferred_lft forever",
		"6 2001:db8:1::1 peer 2001:db8:1::2/128 scope global valid_lft forever preferred_lft forever",
		"6 2001:db8::2/64 scope global nodad deprecated noprefixroute valid_lft forever preferred_lft 0sec",
		"6 2001:db8::1/64 scope global valid_lft forever preferred_lft forever",
	}; !slices.Equal(addresses, want) {
		t.Errorf("eth0 has the addresses\n%s\nwant\n%s", strings.Join(addresses, "\n"), strings.Join(want, "\n"))
	}
	if got := show(t, network, "dev1"); !strings.Contains(got, ",UP> ") {
		t.Errorf("dev1 is %s, want it up", got)
	}
	if got := shell(t, "ip -br link"); strings.Contains(got, "dev0@") || strings.Contains(got, "dev1@") {
		t.Errorf("the runtime still has\n%s", got)
	}
	r.start(t, "c1")
	waitPid(t, pid)
	if got := content(t, out); got != "up\n1789\n1\n" {
		t.Errorf("the container saw %q", got)
	}
}

// namespacesHeld counts the network namespaces that this process holds open.
func namespacesHeld(t *testing.T) (n int) {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "net:") {
			n++
		}
	}
	return n
}

// TestNetDevicesOfJoined moves devices into a network namespace that is there before
// the container and after it, and has devices with the same numbers and names.
func TestNetDevicesOfJoined(t *testing.T) {
	ownNetwork(t)
	newDevice(t)
	index := strings.TrimSpace(shell(t, "ip -o link show dev dev0 | cut -d: -f1"))
	other := otherNetwork(t)
	shell(t, "nsenter --net="+other+" sysctl -qw net.ipv6.conf.default.accept_dad=0")
	shell(t, "nsenter --net="+other+" ip link add dev0 index "+index+" type veth peer name eth0")
	r := newRuntime(t, "sleep", "1000")
	r.join(other)
	r.spec.Linux.NetDevices = map[string]specs.LinuxNetDevice{"dev0": {Name: "eth%d"}, "peer0": {Name: "eth1"}}
	r.create(t, "c1")
	if err := r.Delete(t.Context(), "c1", true); err != nil {
		t.Fatal(err)
	}
	// The kernel leaves out a number when the device's own name is taken, too.
	name := strings.TrimSpace(shell(t, "nsenter --net="+other+" ip -br link show | grep 02:00:00:00:00:07 | cut -d@ -f1"))
	if got := show(t, other, name); !strings.HasPrefix(name, "eth") || !strings.Contains(got, "192.0.2.1/24 metric 77 brd 192.0.2.255 scope global "+name+":one") || !strings.Contains(got, "2001:db8:1::2 proto kernel") {
		t.Errorf("dev0 is now %q:\n%s", name, got)
	}
	if got := show(t, other, "eth1"); !strings.Contains(got, ",UP,LOWER_UP>") {
		t.Errorf("eth1 is\n%s", got)
	}
}

// join puts the container into the network namespace at a path.
func (r *runtime) join(path string) {
	for i, n := range r.spec.Linux.Namespaces {
		if n.Type == specs.NetworkNamespace {
			r.spec.Linux.Namespaces[i].Path = path
		}
	}
}

// TestNetDevicesBack lets creations fail, after which all devices are what they were.
func TestNetDevicesBack(t *testing.T) {
	type devices = map[string]specs.LinuxNetDevice
	dev0 := devices{"dev0": {Name: "eth0"}}
	bad := []specs.Hook{{Path: "/bin/false"}}
	for _, tc := range []struct {
		name    string
		devices devices
		set     func(t *testing.T, r *runtime, o *oci.CreateOptions)
		err     string
	}{
		{"prestart hook", dev0, func(_ *testing.T, r *runtime, _ *oci.CreateOptions) {
			r.spec.Hooks = &specs.Hooks{Prestart: bad} //nolint:staticcheck // deprecated hooks are hooks
		}, "prestart hook #0"},
		{"createContainer hook, and another eth0", dev0, func(t *testing.T, r *runtime, _ *oci.CreateOptions) {
			shell(t, "ip link add eth0 type veth peer name x")
			r.spec.Hooks = &specs.Hooks{CreateContainer: bad}
		}, "createContainer hook #0"},
		{"sysctl", dev0, func(_ *testing.T, r *runtime, _ *oci.CreateOptions) {
			r.spec.Linux.Sysctl = map[string]string{"net.ipv4.conf.dev0.forwarding": "1"} // it is eth0
		}, "net.ipv4.conf.dev0.forwarding"},
		{"pid file", dev0, func(_ *testing.T, _ *runtime, o *oci.CreateOptions) { o.PidFile = "/no/such/directory/pid" }, "write pid file"},
		{"absent", devices{"dev0": {}, "nodev": {}}, nil, "network device nodev: it does not exist in the runtime's network namespace"},
		{"name in use", devices{"dev0": {Name: "lo"}}, nil, "network device dev0: the name lo, or one that it has beside, is taken"},
		{"loopback", devices{"dev0": {}, "lo": {Name: "lo1"}}, nil, "network device lo: move it into the container's network namespace as lo1"},
		{"own name in use", devices{"dev0": {}}, func(t *testing.T, r *runtime, _ *oci.CreateOptions) {
			other := otherNetwork(t)
			shell(t, "nsenter --net="+other+" ip link add dev0 type veth peer name x")
			r.join(other)
		}, "network device dev0: the name dev0, or"},
		{"number in use", devices{"dev0": {}, "nodev": {}}, func(t *testing.T, r *runtime, _ *oci.CreateOptions) {
			other := otherNetwork(t)
			index := strings.TrimSpace(shell(t, "ip -o link show dev dev0 | cut -d: -f1"))
			shell(t, "nsenter --net="+other+" ip link add x index "+index+" type veth peer name y")
			r.join(other)
		}, "network device nodev"},
		{"no IPv6", dev0, func(t *testing.T, r *runtime, _ *oci.CreateOptions) {
			other := otherNetwork(t)
			shell(t, "nsenter --net="+other+" sysctl -qw net.ipv6.conf.default.disable_ipv6=1")
			r.join(other)
		}, "network device dev0: add its address 2001:db8::1/64 in the container's network namespace"},
		{"the runtime's", dev0, func(_ *testing.T, r *runtime, _ *oci.CreateOptions) {
			r.join(fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid()))
		}, "network namespace of the container's own"},
		{"a port, and down", dev0, func(t *testing.T, r *runtime, _ *oci.CreateOptions) {
			shell(t, "ip link add br0 type bridge; ip link set dev dev0 down; ip link set dev dev0 master br0; ip addr flush dev dev0; ip addr add 192.0.2.1/24 dev dev0")
			r.spec.Hooks = &specs.Hooks{CreateRuntime: bad}
		}, "createRuntime hook #0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ownNetwork(t)
			newDevice(t)
			r := newRuntime(t, "sleep", "1000")
			r.spec.Linux.NetDevices = tc.devices
			var o oci.CreateOptions
			if tc.set != nil {
				tc.set(t, r, &o)
			}
			with, _ := r.options(t, "c1")
			with.PidFile = o.PidFile
			before := show(t, here, "dev0")
			err := r.Create(t.Context(), with)
			if err == nil || !strings.Contains(err.Error(), tc.err) || strings.Contains(err.Error(), "not as it was") {
				t.Errorf("Create: %v, want an error with %q", err, tc.err)
			}
			if after := show(t, here, "dev0"); after != before {
				t.Errorf("dev0 was\n%s\nand is\n%s", before, after)
			}
			if list, err := r.List(); err != nil && !errors.Is(err, fs.ErrNotExist) || len(list) > 0 {
				t.Errorf("List afterwards = %v, %v", list, err)
			}
		})
	}
}

// TestNetDeviceLost lets a hook delete a device, which then cannot come back.
func TestNetDeviceLost(t *testing.T) {
	ownNetwork(t)
	newDevice(t)
	r := newRuntime(t, "sleep", "1000")
	r.spec.Linux.NetDevices = map[string]specs.LinuxNetDevice{"dev0": {}}
	r.spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sh", Env: []string{"PATH=" + os.Getenv("PATH")}, Args: []string{"sh", "-c", "ip link del peer0; exit 1"}}}}
	o, _ := r.options(t, "c1")
	if err := r.Create(t.Context(), o); err == nil || !strings.Contains(err.Error(), "createRuntime hook #0") || !strings.Contains(err.Error(), "network device dev0 did not come back") {
		t.Errorf("Create: %v", err)
	}
}

// TestNetDevicesInUserNamespace gives a container a device whose network namespace
// belongs to a user namespace of its own.
func TestNetDevicesInUserNamespace(t *testing.T) {
	ownNetwork(t)
	newDevice(t)
	r := newRuntime(t, "busybox", "ip", "-o", "addr", "show", "dev", "eth0")
	r.spec.Linux.Namespaces = append(r.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	r.spec.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 1000}}
	r.spec.Linux.GIDMappings = r.spec.Linux.UIDMappings
	if err := os.Chown(filepath.Join(r.bundle, "rootfs"), 100000, 100000); err != nil {
		t.Fatal(err)
	}
	r.spec.Linux.NetDevices = map[string]specs.LinuxNetDevice{"dev0": {Name: "eth0"}}
	o, out := r.options(t, "c1")
	if code, err := r.Run(t.Context(), runOptions(o)); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	if got := content(t, out); !strings.Contains(got, "192.0.2.1/24") || !strings.Contains(got, "2001:db8::1/64") {
		t.Errorf("the container saw\n%s", got)
	}
}
