//go:build vm

// These tests need what build machines do not have; conformance/vm runs them, with
// others of this package, on one that does.

package container_test

import (
	"os"
	"strings"
	"testing"

	"github.com/moby/profiles/apparmor"
	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container"
	"berth.internal/node/container/plan"
)

// TestMachine looks whether the machine is the one that these tests are for.
func TestMachine(t *testing.T) {
	if !only2() {
		t.Error("the machine has not cgroup version 2 alone")
	}
	if b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err != nil || string(b) != "Y\n" {
		t.Errorf("AppArmor is %q, %v", b, err)
	}
	b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{"cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma"} {
		if !strings.Contains(" "+strings.TrimSpace(string(b))+" ", " "+c+" ") {
			t.Errorf("controllers are %q, without %s", b, c)
		}
	}
}

// TestAppArmor confines a container and what is executed in it.
func TestAppArmor(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sh", "-c", "cat /proc/self/attr/current; echo x 2>/dev/null >/tmp/forbidden || echo no; echo x >/tmp/allowed && echo yes; sleep 1000")
	b.Spec.Process.ApparmorProfile = "berth-test"
	n.create(t, b)
	n.start(t, b.ID)
	waitLog(t, b.Log.Path, "yes")
	if out, _ := readLog(t, b.Log.Path); out != "berth-test (enforce)\nno\nyes\n" {
		t.Errorf("a confined container said %q", out)
	}
	for profile, want := range map[string]string{"berth-test": "berth-test (enforce)\nno\n", "": "unconfined\n"} {
		p := processWith(b, "sh", "-c", "cat /proc/self/attr/current; echo x 2>/dev/null >/tmp/forbidden || echo no")
		p.ApparmorProfile = profile
		e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *p, AttachOptions: container.AttachOptions{Stdout: true}})
		if err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, e.Stdout); got != want {
			t.Errorf("exec with profile %q said %q, want %q", profile, got, want)
		}
		if _, err := e.Wait(testContext(t)); err != nil {
			t.Error(err)
		}
	}
	other := n.bundle(t, "true")
	other.Spec.Process.ApparmorProfile = "no-such-profile"
	err := n.Create(testContext(t), other)
	if err == nil {
		_, err = n.Start(testContext(t), other.ID)
	}
	if err == nil || !strings.Contains(err.Error(), "no-such-profile") {
		t.Errorf("with a profile that is not there: %v", err)
	}
}

// TestDefaultAppArmor loads the profile of containers that do not ask for one, as a
// node does, and looks what it forbids to root of a container with the node's users.
func TestDefaultAppArmor(t *testing.T) {
	if err := apparmor.InstallDefault(container.DefaultAppArmor); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // TestDefaultAppArmorIsAWarning may come again
		if err := os.WriteFile("/sys/kernel/security/apparmor/.remove", []byte(container.DefaultAppArmor), 0); err != nil {
			t.Error(err)
		}
	})
	n := newNode(t)
	for _, init := range []bool{false, true} {
		b := n.bundle(t, "sh", "-c", "cat /proc/self/attr/current; echo x >/tmp/file && cat /tmp/file; mount -t tmpfs x /tmp 2>/dev/null || echo no mount; echo 1 2>/dev/null >/proc/sys/vm/swappiness || echo no sysctl")
		b.Spec.Linux.Namespaces = b.Spec.Linux.Namespaces[1:]
		b.Spec.Linux.UIDMappings, b.Spec.Linux.GIDMappings = nil, nil
		b.Spec.Linux.ReadonlyPaths, b.Spec.Linux.Seccomp = nil, nil
		caps := plan.Capabilities()
		b.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
		b.Spec.Process.ApparmorProfile, b.Init = container.DefaultAppArmor, init
		n.create(t, b)
		n.start(t, b.ID)
		if s, err := n.Wait(testContext(t), b.ID); err != nil || s.ExitCode != 0 || len(s.Warnings) > 0 {
			t.Errorf("init %v: %+v, %v", init, s, err)
		}
		if out, _ := readLog(t, b.Log.Path); out != "berth-default (enforce)\nx\nno mount\nno sysctl\n" {
			t.Errorf("init %v: the container said %q", init, out)
		}
	}
}

// TestLockedMemory: the library that loads device rules takes the limit of locked
// memory away from its own process.
func TestLockedMemory(t *testing.T) {
	limit := func(text string) string {
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "Max locked memory") {
				return strings.Join(strings.Fields(line), " ")
			}
		}
		return "none"
	}
	n := newNode(t)
	inside := limit(n.sh(t, "cat /proc/self/limits"))
	own, err := os.ReadFile("/proc/self/limits")
	if err != nil {
		t.Fatal(err)
	}
	if got := limit(string(own)); got != inside || strings.Contains(got, "unlimited") {
		t.Errorf("the limit is %q, in a container %q", got, inside)
	}
}

// TestHugePages limits huge pages, of which this machine has some.
func TestHugePages(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sleep", "1000")
	b.Spec.Linux.Resources.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}
	n.create(t, b)
	if got := n.readCgroup(t, b.ID, cgroupFile{v2: "hugetlb.2MB.max"}); got != "4194304" {
		t.Errorf("limit is %q", got)
	}
	s, err := n.Stats(testContext(t), b.ID)
	if _, ok := s.HugeTLB["2MB"]; err != nil || !ok || len(s.HugeTLB) > 2 {
		t.Errorf("Stats = %+v, %v", s.HugeTLB, err)
	}
	if err := n.Update(testContext(t), b.ID, &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 2 << 20}}}); err != nil {
		t.Error(err)
	}
	if got := n.readCgroup(t, b.ID, cgroupFile{v2: "hugetlb.2MB.max"}); got != "2097152" {
		t.Errorf("limit is %q after an update", got)
	}
}

// TestBlockDevice lets a container use a disk by rule, slowly, and looks what it
// transferred.
func TestBlockDevice(t *testing.T) {
	n := newNode(t)
	major, minor := disk(t)
	script := "dd if=/dev/disk of=/dev/null bs=65536 count=4 iflag=direct 2>/dev/null && echo read; dd if=/dev/zero of=/dev/disk bs=512 count=1 2>/dev/null || echo not written; sleep 1000"
	b := n.bundle(t, "sh", "-c", script)
	// A device of the node, so without a user namespace.
	b.Spec.Linux.Namespaces = b.Spec.Linux.Namespaces[1:]
	b.Spec.Linux.UIDMappings, b.Spec.Linux.GIDMappings = nil, nil
	b.Spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/disk", Type: "b", Major: major, Minor: minor}}
	b.Spec.Linux.Resources.Devices = append(b.Spec.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: "b", Major: &major, Minor: &minor, Access: "r"})
	limit := specs.LinuxThrottleDevice{Rate: 10}
	limit.Major, limit.Minor = major, minor
	b.Spec.Linux.Resources.BlockIO = &specs.LinuxBlockIO{ThrottleReadIOPSDevice: []specs.LinuxThrottleDevice{limit}}
	n.create(t, b)
	n.start(t, b.ID)
	waitLog(t, b.Log.Path, "not written")
	if out, _ := readLog(t, b.Log.Path); out != "read\nnot written\n" {
		t.Errorf("container said %q", out)
	}
	s, err := n.Stats(testContext(t), b.ID)
	if err != nil || len(s.Blocks) != 1 || s.Blocks[0].ReadBytes != 4<<16 || s.Blocks[0].ReadOps < 4 || s.Blocks[0].Major != uint64(major) {
		t.Errorf("Stats = %+v, %v; want 256 KiB in 4 reads", s.Blocks, err)
	}
	if s.Pressure["io"].Some.Total == 0 {
		t.Logf("pressure of io is %+v", s.Pressure["io"]) // added up every two seconds
	}
}
