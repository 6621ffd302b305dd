package container_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container"
	"berth.internal/node/container/plan"
)

// runAsked runs a script in a container that asks for something, and returns its
// output and the container's warnings.
func runAsked(t *testing.T, n *node, script string, set func(*specs.Spec)) (stdout string, warnings []string) {
	t.Helper()
	b := n.bundle(t, "sh", "-c", script)
	set(b.Spec)
	ctx := testContext(t)
	n.create(t, b)
	s, err := n.State(ctx, b.ID)
	if err != nil {
		t.Fatal(err)
	}
	n.start(t, b.ID)
	end, err := n.Wait(ctx, b.ID)
	if err != nil {
		t.Fatal(err)
	}
	stdout, stderr := readLog(t, b.Log.Path)
	if end.ExitCode != 0 || stderr != "" {
		t.Errorf("%s: exit code %d, stderr %q", script, end.ExitCode, stderr)
	}
	if err := n.Delete(ctx, b.ID); err != nil {
		t.Error(err)
	}
	return stdout, s.Warnings
}

// TestProcessAttributes looks from inside at what a process was given beyond the
// usual.
func TestProcessAttributes(t *testing.T) {
	n := newNode(t)
	caps := func(names ...string) *specs.LinuxCapabilities {
		return &specs.LinuxCapabilities{Bounding: names, Effective: names, Permitted: names}
	}
	missing := ""
	if !strings.Contains(capEff(t), "1ffffffffff") {
		missing = "which the node itself has not"
	}
	for _, tc := range []struct {
		name, script, want string
		set                func(*specs.Spec)
		warning            string
	}{
		{"nice", "cut -d' ' -f19 /proc/self/stat", "7\n", func(s *specs.Spec) {
			s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedOther, Nice: 7}
		}, ""},
		{"batch", "cut -d' ' -f41 /proc/self/stat", "3\n", func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch} }, ""},
		{"idle", "cut -d' ' -f40,41 /proc/self/stat", "0 5\n", func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedIdle} }, ""},
		{"io priority", "ionice -p $$", "best-effort: prio 6\n", func(s *specs.Spec) {
			s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}
		}, ""},
		{"idle io", "ionice -p $$", "idle\n", func(s *specs.Spec) {
			s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_IDLE}
		}, ""},
		{"personality", "uname -m; cat /proc/self/personality", "i686\n00000008\n", func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32} }, ""},
		{"memory policy", "head -1 /proc/self/numa_maps | cut -d' ' -f2", "bind:0\n", func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0"}
		}, ""},
		{"default memory policy", "head -1 /proc/self/numa_maps | cut -d' ' -f2", "default\n", func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolDefault}
		}, ""},
		{"sysctls of its users", "cat /proc/sys/user/max_mnt_namespaces", "3\n", func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"user.max_mnt_namespaces": "3"} }, ""},
		{"sysctls of ipc", "cat /proc/sys/kernel/msg_next_id /proc/sys/fs/mqueue/msg_max", "7\n20\n", func(s *specs.Spec) {
			s.Linux.Sysctl = map[string]string{"kernel.msg_next_id": "7", "fs/mqueue/msg_max": "20"}
		}, ""},
		{"inheritable is empty", "grep 'CapInh\\|CapAmb' /proc/self/status", "CapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n", func(s *specs.Spec) {
			s.Process.Capabilities.Inheritable = []string{"CAP_CHOWN"}
		}, "leave CAP_CHOWN inheritable, which only ambient capabilities are"},
		{"ambient without inheritable", "grep 'CapInh\\|CapAmb' /proc/self/status", "CapInh:\t0000000000000400\nCapAmb:\t0000000000000400\n", func(s *specs.Spec) {
			s.Process.User.UID = 5
			s.Process.Capabilities.Ambient = []string{"CAP_NET_BIND_SERVICE"}
		}, ""},
		{"ambient that is not permitted", "grep CapAmb /proc/self/status", "CapAmb:\t0000000000000000\n", func(s *specs.Spec) { s.Process.Capabilities.Ambient = []string{"CAP_SYS_ADMIN"} }, "can't raise ambient capability CAP_SYS_ADMIN: operation not permitted"},
		{"effective that is not permitted", "grep CapEff /proc/self/status", "CapEff:\t0000000000000000\n", func(s *specs.Spec) {
			s.Process.Capabilities = &specs.LinuxCapabilities{Effective: []string{"CAP_CHOWN"}}
		}, "make CAP_CHOWN effective"},
		{"unknown capability", "grep CapBnd /proc/self/status", "CapBnd:\t0000000000000001\n", func(s *specs.Spec) { s.Process.Capabilities = caps("CAP_CHOWN", "CAP_FLY") }, "give capabilities that are not known: CAP_FLY"},
		{"all capabilities", "grep CapEff /proc/self/status", "CapEff:\t000001ffffffffff\n", func(s *specs.Spec) { s.Process.Capabilities = caps(plan.Capabilities()...) }, ""},
		{"all of the node's capabilities", "grep CapEff /proc/self/status", capEff(t), func(s *specs.Spec) {
			hostUsers(&container.Bundle{Spec: s})
			s.Process.Capabilities = caps(plan.Capabilities()...)
		}, missing},
		{"no capabilities at all", "grep CapBnd /proc/self/status; id -u", "CapBnd:\t0000000000000000\n0\n", func(s *specs.Spec) { s.Process.Capabilities = &specs.LinuxCapabilities{} }, ""},
		{"few descriptors", "ulimit -Sn; ulimit -Hn", "6\n8\n", func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 6, Hard: 8}}
		}, ""},
		{"few descriptors at first", "ulimit -Sn; ulimit -n 2000; ulimit -Sn", "10\n2000\n", func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 10, Hard: 4096}}
		}, ""},
		{"groups", "id -G", "0 3 4 65535\n", func(s *specs.Spec) { s.Process.User.AdditionalGids = []uint32{3, 4, 65535} }, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, warnings := runAsked(t, n, tc.script, tc.set)
			if got != tc.want {
				t.Errorf("%s: %q, want %q", tc.script, got, tc.want)
			}
			switch {
			case tc.warning == "" && len(warnings) > 0,
				tc.warning != "" && (len(warnings) != 1 || !strings.Contains(warnings[0], tc.warning)):
				t.Errorf("warnings %q, want one with %q", warnings, tc.warning)
			}
		})
	}
}

// TestSysctlsByKernel sets what belongs to a pid namespace on newer kernels only, and
// is the node's on others.
func TestSysctlsByKernel(t *testing.T) {
	n := newNode(t)
	for _, tc := range []struct {
		name  string
		users bool // of its own
		since [2]int
		value string
	}{
		{"kernel.pid_max", true, [2]int{6, 14}, "1000"},
		{"vm.memfd_noexec", false, [2]int{6, 3}, "1"},
	} {
		set := func(s *specs.Spec) {
			if !tc.users {
				hostUsers(&container.Bundle{Spec: s})
			}
			s.Linux.Sysctl = map[string]string{tc.name: tc.value}
		}
		kernel := n.Kernel()
		if slices.Compare(kernel[:], tc.since[:]) < 0 {
			b := n.bundle(t, "true")
			set(b.Spec)
			if err := n.Create(testContext(t), b); err == nil || !strings.Contains(err.Error(), "it would change the node") {
				t.Errorf("%s on Linux %v: %v, want a refusal", tc.name, kernel, err)
			}
			continue
		}
		if got, _ := runAsked(t, n, "cat /proc/sys/"+strings.ReplaceAll(tc.name, ".", "/"), set); got != tc.value+"\n" {
			t.Errorf("%s is %q, want %s", tc.name, got, tc.value)
		}
	}
}

// capEff is the line of /proc/self/status for a process with all that this one may
// give.
func capEff(t *testing.T) string {
	t.Helper()
	for line := range strings.Lines(readFile(t, "/proc/self/status")) {
		if rest, ok := strings.CutPrefix(line, "CapBnd:"); ok {
			return "CapEff:" + rest
		}
	}
	t.Fatal("there is no line CapBnd")
	return ""
}

// TestExecAttributes gives a further process what only such a one has.
func TestExecAttributes(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sleep", "1000")
	b.Spec.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0-1", Final: "1"}
	b.Spec.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
	n.create(t, b)
	n.start(t, b.ID)
	for _, tc := range []struct {
		name, script, want string
		set                func(*specs.Process)
	}{
		{"affinity of the container's", "grep Cpus_allowed_list /proc/self/status", "Cpus_allowed_list:\t1\n", func(*specs.Process) {}},
		{"affinity of its own", "grep Cpus_allowed_list /proc/self/status", "Cpus_allowed_list:\t0\n", func(p *specs.Process) { p.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0"} }},
		{"scheduler", "cut -d' ' -f19 /proc/self/stat", "3\n", func(p *specs.Process) {
			p.Scheduler = &specs.Scheduler{Policy: specs.SchedOther, Nice: 3}
		}},
		{"personality of the container", "uname -m", "i686\n", func(*specs.Process) {}},
	} {
		p := *processWith(b, "sh", "-c", tc.script)
		tc.set(&p)
		e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: p, AttachOptions: container.AttachOptions{Stdout: true}})
		if err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, e.Stdout); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
		if _, err := e.Wait(testContext(t)); err != nil {
			t.Error(err)
		}
		_ = e.Close()
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
