package plan_test

import (
	"encoding/json"
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container/call"
	"berth.internal/node/container/plan"
)

// host is a node that exists on paper only.
func host() plan.Host {
	return plan.Host{
		Cgroups: []plan.Cgroup{{Name: "cpu,cpuacct", Controllers: []string{"cpu", "cpuacct"}}, {Name: "systemd", Controllers: []string{"none", "name=systemd"}}, {Name: "unified"}},
		Dir:     func(path string) (bool, error) { return !strings.HasSuffix(path, ".conf"), nil },
	}
}

// spec is a container with one of everything.
func spec() *specs.Spec {
	score, umask := 100, uint32(0o27)
	ids := []specs.LinuxIDMapping{{HostID: 200000, Size: 65536}}
	caps := []string{"CAP_CHOWN", "CAP_NET_RAW"}
	return &specs.Spec{
		Process: &specs.Process{
			Args: []string{"server", "-v"}, Env: []string{"PATH=/bin:/usr/bin", "A=b"}, Cwd: "/srv/data",
			User:         specs.User{UID: 33, GID: 34, AdditionalGids: []uint32{5}, Umask: &umask},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 10, Hard: 20}}, OOMScoreAdj: &score,
		},
		Hostname: "box", Domainname: "example",
		Root: &specs.Root{Readonly: true},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Options: []string{"nosuid", "mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Options: []string{"newinstance", "gid=5"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Options: []string{"ro"}},
			{Destination: "/srv/data", Type: "bind", Source: "/node/data", Options: []string{"rbind", "idmap", "ro", "rslave"}},
			{Destination: "/etc/app.conf", Type: "bind", Source: "/node/app.conf", Options: []string{"bind", "rro"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.UserNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.NetworkNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.PIDNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.CgroupNamespace},
			},
			UIDMappings: ids, GIDMappings: ids,
			Sysctl:        map[string]string{"net.core.somaxconn": "5"},
			MaskedPaths:   []string{"/proc/kcore"},
			ReadonlyPaths: []string{"/proc/sys"},
			Devices:       []specs.LinuxDevice{{Path: "/dev/dri/card0", Type: "c", Major: 226, GID: new(uint32)}},
		},
	}
}

// TestRootBeforePaths holds the order that makes paths inside of a container
// harmless: none is looked up before the node's root is gone.
func TestRootBeforePaths(t *testing.T) {
	p, err := plan.For(plan.Input{Spec: spec(), Rootfs: plan.Rootfs{Lowers: []string{"/a", "/b"}, Upper: "/u/u", Work: "/u/w"}, Host: host()})
	if err != nil {
		t.Fatal(err)
	}
	before, _, found := strings.Cut(p.Child.String(), "umount2(")
	if !found || strings.Contains(before, "openat") || strings.Contains(before, "mkdirat") {
		t.Errorf("before the node's root is gone:\n%s", before)
	}
}

// byString are calls with a path that is looked up from the root or the working
// directory, but for the two that mean the root itself and for the command.
var byString = regexp.MustCompile(`(?m)^ *\d+  (?:r\d+ = )?(?:(?:open|mk|mov|fch|umount|faccess)\w*\((?:-100|"|r\d+, "/)|symlinkat\("[^"]*", -100|mount\().*$`)

// outside returns the first line of a child's program that looks up a path by string
// once it may see the container's file system.
func outside(child string) string {
	_, after, found := strings.Cut(child, "umount2(")
	if !found {
		return "it never lets go of the node's root"
	}
	return byString.FindString(strings.TrimSpace(after))
}

// FuzzFor gives any spec: a plan is one that a shim can load, or there is an
// error.
func FuzzFor(f *testing.F) {
	seed, err := json.Marshal(spec())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed, "/l1", "/u/upper", "/u/work")
	f.Fuzz(func(t *testing.T, text []byte, lower, upper, work string) {
		var s specs.Spec
		if json.Unmarshal(text, &s) != nil {
			return
		}
		p, err := plan.For(plan.Input{Spec: &s, Rootfs: plan.Rootfs{Lowers: []string{lower, lower}, Upper: upper, Work: work}, Host: host()})
		if err != nil {
			return
		}
		if at := outside(p.Child.String()); at != "" {
			t.Errorf("plan of %s looks for a path where the container decides what it is: %s", text, at)
		}
		for _, prog := range []*call.Program{p.Prepare, p.Child} {
			if _, err := call.Load(prog.Encode()); err != nil {
				t.Errorf("plan of %s cannot be loaded: %v", text, err)
			}
		}
		if _, err := plan.ForExec(plan.ExecInput{Spec: &s, Process: s.Process, Pipe: [3]bool{}}); err != nil && !errors.Is(err, plan.ErrUnsupported) {
			t.Errorf("there is a plan for the container, not for exec: %v", err)
		}
	})
}

// TestPathsAreBounded asks for paths with which a plan would grow without end: an
// image says where its volumes and its working directory are.
func TestPathsAreBounded(t *testing.T) {
	for _, tc := range []struct {
		name string
		set  func(*specs.Spec)
		has  string
	}{
		{"long", func(s *specs.Spec) { s.Process.Cwd = "/" + strings.Repeat("x/", 1<<20) }, "file name too long"},
		{"many", func(s *specs.Spec) {
			for range 100 {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/" + strings.Repeat("x/", 2000), Type: "tmpfs"})
			}
		}, "too many long paths"},
		{"cut", func(s *specs.Spec) { s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/proc/kcore\x00x") }, "zero byte"},
		{"cut name", func(s *specs.Spec) { s.Hostname = "a\x00b" }, "zero byte"},
	} {
		s := spec()
		tc.set(s)
		_, err := plan.For(plan.Input{Spec: s, Rootfs: plan.Rootfs{Lowers: []string{"/x"}}, Host: host()})
		if err == nil || !strings.Contains(err.Error(), tc.has) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.has)
		}
	}
}
