package container_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container"
)

// share makes b use a namespace of a process instead of its own, the node's if pid
// is 0.
func share(b container.Bundle, pid int, kinds ...specs.LinuxNamespaceType) {
	l := b.Spec.Linux
	for _, kind := range kinds {
		l.Namespaces = slices.DeleteFunc(l.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
		if pid != 0 {
			l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: kind, Path: nsPath(pid, kind)})
		}
		switch kind {
		case specs.UserNamespace:
			l.UIDMappings, l.GIDMappings = nil, nil
		case specs.UTSNamespace:
			b.Spec.Hostname = ""
		}
	}
}

func nsPath(pid int, kind specs.LinuxNamespaceType) string {
	return fmt.Sprintf("/proc/%d/ns/%s", pid, nsFile(kind))
}

func nsFile(kind specs.LinuxNamespaceType) string {
	switch kind {
	case specs.MountNamespace:
		return "mnt"
	case specs.NetworkNamespace:
		return "net"
	default:
		return string(kind)
	}
}

var kinds = []specs.LinuxNamespaceType{
	specs.UserNamespace, specs.MountNamespace, specs.PIDNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace,
	specs.CgroupNamespace, specs.TimeNamespace,
}

// whose returns which of the namespaces of a process are the same as those of
// others, by names for these.
func whose(t testing.TB, pid string, others map[string]string) string {
	t.Helper()
	var all []string
	for _, kind := range kinds {
		is := "own"
		link, err := os.Readlink("/proc/" + pid + "/ns/" + nsFile(kind))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"node", "other", "container"} {
			if other := others[name]; other != "" {
				if theirs, err := os.Readlink("/proc/" + other + "/ns/" + nsFile(kind)); err == nil && theirs == link {
					is = name
				}
			}
		}
		all = append(all, nsFile(kind)+"="+is)
	}
	return strings.Join(all, " ")
}

// TestNamespaces runs containers in all combinations that users ask for, looks at
// their namespaces from outside, and enters them by exec.
func TestNamespaces(t *testing.T) {
	n := newNode(t)
	ctx := testContext(t)
	other := n.bundle(t, "sleep", "1000")
	other.Spec.Linux.Namespaces = append(other.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
	n.create(t, other)
	n.start(t, other.ID)
	state, err := n.State(ctx, other.ID)
	if err != nil {
		t.Fatal(err)
	}
	pid := state.Pid
	const all = "user=own mnt=own pid=own net=own ipc=own uts=own cgroup=own time=node"
	for _, tc := range []struct {
		name string
		set  func(b container.Bundle)
		want string // what differs from all
		look string // a command in it …
		says string // … and what it prints
	}{
		{"own", func(container.Bundle) {}, "", "mount -t mqueue | wc -l; ls /sys/class/net", "1\nlo\n"},
		{"own time", func(b container.Bundle) {
			b.Spec.Linux.Namespaces = append(b.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		}, "time=own", "true", ""},
		{"time with offsets", func(b container.Bundle) {
			b.Spec.Linux.Namespaces = append(b.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
			b.Spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {Secs: 5e6, Nanosecs: 5}, "boottime": {Secs: 1e9}}
		}, "time=own", "tr -s ' ' </proc/self/timens_offsets; cut -c1-3 /proc/uptime", "monotonic 5000000 5\nboottime 1000000000 0\n100\n"},
		{"the node's ipc", func(b container.Bundle) { share(b, 0, specs.IPCNamespace) }, "ipc=node", "stat -c %u /dev/mqueue", "65534\n"},
		{"the node's pid", func(b container.Bundle) { share(b, 0, specs.PIDNamespace) }, "pid=node", "[ $$ -gt 100 ]; ls -d /proc/2; echo 1 2>/dev/null >/proc/sys/vm/drop_caches || echo no", "/proc/2\nno\n"},
		{"the node's uts", func(b container.Bundle) { share(b, 0, specs.UTSNamespace) }, "uts=node", "hostname", hostname(t)},
		{"the node's net", func(b container.Bundle) { share(b, 0, specs.NetworkNamespace) }, "net=node", "touch /sys/x 2>/dev/null || echo no", "no\n"},
		{"the node's cgroup", func(b container.Bundle) { share(b, 0, specs.CgroupNamespace) }, "cgroup=node", "grep -c berth-test /proc/self/cgroup | grep -v '^0$' >/dev/null; mkdir /sys/fs/cgroup/cpu/x 2>/dev/null || echo no", "no\n"},
		{"all of the node's", func(b container.Bundle) {
			share(b, 0, specs.IPCNamespace, specs.PIDNamespace, specs.UTSNamespace, specs.NetworkNamespace, specs.CgroupNamespace)
		}, "ipc=node pid=node uts=node net=node cgroup=node", "true", ""},
		{"all of the node's, its users too", func(b container.Bundle) {
			share(b, 0, specs.UserNamespace, specs.IPCNamespace, specs.PIDNamespace, specs.UTSNamespace, specs.NetworkNamespace, specs.CgroupNamespace)
		}, "user=node ipc=node pid=node uts=node net=node cgroup=node", "true", ""},
		{"its own by path", func(b container.Bundle) { share(b, os.Getpid(), specs.IPCNamespace, specs.TimeNamespace) }, "ipc=node", "true", ""},
		{"another's ipc", func(b container.Bundle) { share(b, pid, specs.IPCNamespace) }, "ipc=other", "ls /dev/mqueue | wc -l", "0\n"},
		{"another's uts", func(b container.Bundle) { share(b, pid, specs.UTSNamespace) }, "uts=other", "hostname", other.Spec.Hostname + "\n"},
		{"another's net", func(b container.Bundle) { share(b, pid, specs.NetworkNamespace) }, "net=other", "ls /sys/class/net", "lo\n"},
		{"another's cgroup", func(b container.Bundle) { share(b, pid, specs.CgroupNamespace) }, "cgroup=other", "grep -q ':/[.][.]/c' /proc/self/cgroup && echo beside; mkdir /sys/fs/cgroup/cpu/x 2>/dev/null || echo no", "beside\nno\n"},
		{"another's user", func(b container.Bundle) { share(b, pid, specs.UserNamespace) }, "user=other", "tr -s ' ' </proc/self/uid_map; stat -c %u /bin/busybox; echo x >/tmp/x; stat -c %u /tmp/x", fmt.Sprintf(" 0 %d 65536\n0\n0\n", other.Spec.Linux.UIDMappings[0].HostID)},
		{"another's pid and user", func(b container.Bundle) { share(b, pid, specs.UserNamespace, specs.PIDNamespace) }, "user=other pid=other", "tr '\\0' ' ' </proc/1/cmdline", "sleep 1000 "},
		{"another's everything", func(b container.Bundle) {
			share(b, pid, specs.UserNamespace, specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.NetworkNamespace, specs.CgroupNamespace, specs.TimeNamespace)
		}, "user=other pid=other ipc=other uts=other net=other cgroup=other time=other", "hostname; mount -t mqueue | wc -l", other.Spec.Hostname + "\n1\n"},
		{"another's, and the node's users", func(b container.Bundle) {
			share(b, 0, specs.UserNamespace)
			share(b, pid, specs.PIDNamespace, specs.IPCNamespace, specs.NetworkNamespace, specs.UTSNamespace, specs.TimeNamespace, specs.CgroupNamespace)
		}, "user=node pid=other ipc=other uts=other net=other cgroup=other time=other", "hostname", other.Spec.Hostname + "\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx := testContext(t)
			want := all
			for is := range strings.FieldsSeq(tc.want) {
				kind, _, _ := strings.Cut(is, "=")
				for old := range strings.FieldsSeq(all) {
					if strings.HasPrefix(old, kind+"=") {
						want = strings.Replace(want, old, is, 1)
					}
				}
			}
			b := n.bundle(t, "sleep", "1000")
			tc.set(b)
			n.create(t, b)
			n.start(t, b.ID)
			s, err := n.State(ctx, b.ID)
			if err != nil {
				t.Fatal(err)
			}
			first := fmt.Sprint(s.Pid)
			others := map[string]string{"node": "self", "other": fmt.Sprint(pid)}
			if got := whose(t, first, others); got != want {
				t.Errorf("container: %s\nwant       %s", got, want)
			}
			if len(s.Warnings) > 0 {
				t.Errorf("warnings %q", s.Warnings)
			}
			e, err := n.Exec(ctx, b.ID, container.ExecSpec{Process: *processWith(b, "sh", "-c", tc.look+"; cat"), AttachOptions: container.AttachOptions{Stdin: true, Stdout: true, Stderr: true}})
			if err != nil {
				t.Fatal(err)
			}
			if got := whose(t, fmt.Sprint(e.Pid), map[string]string{"container": first}); got != "user=container mnt=container pid=container net=container ipc=container uts=container cgroup=container time=container" {
				t.Errorf("exec: %s", got)
			}
			if err := e.Stdin.Close(); err != nil {
				t.Error(err)
			}
			if got := readAll(t, e.Stdout); got != tc.says {
				t.Errorf("%s: %q %s, want %q", tc.look, got, readAll(t, e.Stderr), tc.says)
			}
			if _, err := e.Wait(ctx); err != nil {
				t.Error(err)
			}
			_ = e.Close()
			if err := n.Kill(ctx, b.ID, 9); err != nil {
				t.Fatal(err)
			}
			if s, err := n.Wait(ctx, b.ID); err != nil || s.ExitCode != 137 {
				t.Errorf("Wait = %+v, %v", s, err)
			}
			if err := n.Delete(ctx, b.ID); err != nil {
				t.Error(err)
			}
			if s, err := n.State(ctx, other.ID); err != nil || s.Status != container.StatusRunning {
				t.Fatalf("the other container: %+v, %v", s, err)
			}
		})
	}
}

func hostname(t *testing.T) string {
	t.Helper()
	h, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return h + "\n"
}

// TestNamespacesRefused asks for combinations that cannot be, or that contradict
// themselves.
func TestNamespacesRefused(t *testing.T) {
	n := newNode(t)
	ctx := testContext(t)
	other := n.bundle(t, "sleep", "1000")
	n.create(t, other)
	n.start(t, other.ID)
	state, err := n.State(ctx, other.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		set  func(b container.Bundle)
		is   error
		has  string
	}{
		{"mount namespace of the node", func(b container.Bundle) { share(b, 0, specs.MountNamespace) }, container.ErrUnsupported, "mount namespace"},
		{"mount namespace of another", func(b container.Bundle) { share(b, state.Pid, specs.MountNamespace) }, container.ErrUnsupported, "mount namespace"},
		{"pid without user", func(b container.Bundle) { share(b, state.Pid, specs.PIDNamespace) }, container.ErrUnsupported, "pid namespace without its user namespace"},
		{"hostname in another's", func(b container.Bundle) {
			share(b, state.Pid, specs.UTSNamespace)
			b.Spec.Hostname = "x"
		}, nil, "hostname"},
		{"hostname of the node", func(b container.Bundle) {
			share(b, 0, specs.UTSNamespace)
			b.Spec.Hostname = "x"
		}, nil, "hostname"},
		{"other mappings", func(b container.Bundle) {
			ids := b.Spec.Linux.UIDMappings
			share(b, state.Pid, specs.UserNamespace)
			b.Spec.Linux.UIDMappings = ids
		}, nil, "leave them out"},
		{"no such process", func(b container.Bundle) { share(b, 1<<29, specs.IPCNamespace) }, os.ErrNotExist, "ipc namespace"},
		{"not a namespace", func(b container.Bundle) {
			share(b, 0, specs.IPCNamespace)
			b.Spec.Linux.Namespaces = append(b.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.IPCNamespace, Path: filepath.Join(n.lower, "bin/busybox")})
		}, nil, "invalid argument"},
		{"not a user namespace", func(b container.Bundle) {
			share(b, 0, specs.UserNamespace)
			b.Spec.Linux.Namespaces = append(b.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: nsPath(state.Pid, specs.IPCNamespace)})
		}, nil, "enter"},
		{"offsets without a namespace", func(b container.Bundle) {
			b.Spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {Secs: 1}}
		}, nil, "timeOffsets need a time namespace"},
		{"sysctl of the node", func(b container.Bundle) {
			share(b, os.Getpid(), specs.IPCNamespace)
			b.Spec.Linux.Sysctl = map[string]string{"kernel.shmmax": "1"}
		}, nil, "it would change the node"},
		{"group out of range", func(b container.Bundle) { b.Spec.Process.User.AdditionalGids = []uint32{70000} }, nil, "group 70000"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := n.bundle(t, "true")
			tc.set(b)
			err := n.Create(ctx, b)
			if err == nil || !strings.Contains(err.Error(), tc.has) || tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("Create = %v, want an error with %q (%v)", err, tc.has, tc.is)
			}
			if states, err := n.List(context.Background()); err != nil || len(states) != 1 {
				t.Errorf("containers %v, %v; want the other one only", states, err)
			}
		})
	}
}

// TestRestartJoinsTheSame lets a container begin again whose namespaces are another's,
// which is gone by then: its number may be somebody else's.
func TestRestartJoinsTheSame(t *testing.T) {
	n := newNode(t)
	ctx := testContext(t)
	other := n.bundle(t, "sleep", "1000")
	n.create(t, other)
	n.start(t, other.ID)
	state, err := n.State(ctx, other.ID)
	if err != nil {
		t.Fatal(err)
	}
	b := n.bundle(t, "sh", "-c", "for k in ipc net uts; do readlink /proc/self/ns/$k; done; stat -c %u /x; exit 3")
	share(b, state.Pid, specs.IPCNamespace, specs.NetworkNamespace, specs.UTSNamespace)
	b.Spec.Mounts = append(b.Spec.Mounts, specs.Mount{
		Destination: "/x", Type: "bind", Source: n.lower, Options: []string{"bind"},
		UIDMappings: b.Spec.Linux.UIDMappings, GIDMappings: b.Spec.Linux.GIDMappings,
	})
	b.Restart = container.Restart{Policy: container.RestartOnFailure, Max: 1}
	want := ""
	for _, kind := range []specs.LinuxNamespaceType{specs.IPCNamespace, specs.NetworkNamespace, specs.UTSNamespace} {
		link, err := os.Readlink(nsPath(state.Pid, kind))
		if err != nil {
			t.Fatal(err)
		}
		want += link + "\n"
	}
	want += "0\n"
	n.create(t, b)
	if err := n.Kill(ctx, other.ID, 9); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Wait(ctx, other.ID); err != nil {
		t.Fatal(err)
	}
	n.start(t, b.ID)
	if s, err := n.Wait(ctx, b.ID); err != nil || s.ExitCode != 3 || s.Run != 2 {
		t.Errorf("Wait = %+v, %v; want a second run that ends with 3", s, err)
	}
	if got, stderr := readLog(t, b.Log.Path); got != want+want {
		t.Errorf("it says\n%s%s, want twice\n%s", got, stderr, want)
	}
}
