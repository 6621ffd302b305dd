package container_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container"
)

// TestDefaultContainer holds a container with nothing chosen against what the
// design promises. On a kernel that has it all, any less is a failure.
func TestDefaultContainer(t *testing.T) {
	n := newNode(t)
	if k := n.Kernel(); n.FallsBack() && (k[0] > 6 || k[0] == 6 && k[1] >= 13) {
		t.Errorf("the runtime uses a fall-back on kernel %d", k)
	}
	for _, tc := range []struct{ name, script, want string }{
		{"user namespace", "tr -s ' ' </proc/self/uid_map", " 0 3221291008 65536\n"},
		{"user", "id -u; id -g", "0\n0\n"},
		{"first process", "exec readlink /proc/self", "1\n"},
		{"capabilities", "grep Cap /proc/self/status", "CapInh:\t0000000000000000\nCapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\n"},
		{"seccomp", "grep '^Seccomp:\\|NoNewPrivs' /proc/self/status", "NoNewPrivs:\t0\nSeccomp:\t2\n"},
		{"root is an overlay", "grep ' / / ' /proc/self/mountinfo | tr ' ' '\\n' | grep overlay", "overlay\noverlay\n"},
		{"files of the image belong to root", "stat -c %u:%g /bin/busybox", "0:0\n"},
		{"nothing of the node is mounted", "grep -c -v '^[0-9]* [0-9]* 0:' /proc/self/mountinfo; true", "0\n"},
		{"masked files are empty", "cat /proc/interrupts /proc/keys /proc/timer_list | wc -c", "0\n"},
		{"masked directories are empty", "ls /proc/acpi /proc/scsi /sys/firmware 2>/dev/null | grep -v : | tr -d '\\n'", ""},
		{"the node's settings are read-only", "echo x 2>/dev/null >/proc/sysrq-trigger || echo no; echo 1 2>/dev/null >/proc/sys/vm/drop_caches || echo no; mkdir /sys/fs/cgroup/memory/x 2>/dev/null || echo no", "no\nno\nno\n"},
		{"cgroup namespace", "grep -v ':/$' /proc/self/cgroup; true", ""},
		{"hostname", "hostname", "c13\n"},
		{"loopback only", "ip -o link | wc -l; ip -o addr | grep -c 127.0.0.1", "1\n1\n"},
		{"devices work", "head -c 4 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c; echo x >/dev/full 2>/dev/null || echo full", "4\n3\nfull\n"},
		{"no other devices", "mknod /dev/sda b 8 0 2>/dev/null || echo no", "no\n"},
		{"stdout can be opened again", "echo out >/dev/stdout; cat /dev/stdin", "out\n"},
		{"descriptors", "ls /proc/self/fd", "0\n1\n2\n3\n"},
		{"environment", "env | grep -v PWD | grep -v SHLVL", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"},
	} {
		if got := n.sh(t, tc.script); got != tc.want {
			t.Errorf("%s: %s\ngot  %q\nwant %q", tc.name, tc.script, got, tc.want)
		}
	}
}

// TestSignals looks at a first process that is no shell, since that changes its
// own signals.
func TestSignals(t *testing.T) {
	n := newNode(t)
	stdout, stderr, _ := n.run(t, n.bundle(t, "grep", "Sig[BI]", "/proc/self/status"))
	if want := "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"; stdout != want {
		t.Errorf("a container begins with %q %s, want %q", stdout, stderr, want)
	}
}

func TestFilesBelongToTheNumbersTheContainerSees(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sh", "-c", "echo new >/etc/new; echo changed >>/bin/sh.txt; chmod 600 /tmp")
	if err := os.WriteFile(filepath.Join(n.lower, "bin/sh.txt"), []byte("old\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, stderr, s := n.run(t, b); s.ExitCode != 0 {
		t.Fatalf("exit code %d: %s", s.ExitCode, stderr)
	}
	for _, name := range []string{"etc/new", "bin/sh.txt", "tmp"} {
		info, err := os.Stat(filepath.Join(b.Rootfs.Upper, name))
		if err != nil {
			t.Fatal(err)
		}
		if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 0 {
			t.Errorf("%s belongs to user %d on disk, want 0", name, uid)
		}
	}
}

// TestOlderKernel makes the overlay by names.
func TestOlderKernel(t *testing.T) {
	n := newNode(t)
	n.OverlayByName()
	second := filepath.Join(n.dir, "second")
	if err := os.MkdirAll(filepath.Join(second, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(second, "etc/layer"), []byte("second\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := n.bundle(t, "sh", "-c", "cat /etc/layer; echo new >/etc/new; stat -c %u /etc/new /etc/layer")
	b.Rootfs.Lowers = append(b.Rootfs.Lowers, second)
	stdout, stderr, _ := n.run(t, b)
	if want := "second\n0\n0\n"; stdout != want {
		t.Errorf("got %q, %q, want %q", stdout, stderr, want)
	}
	if info, err := os.Stat(filepath.Join(b.Rootfs.Upper, "etc/new")); err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("new file: %+v, %v; want it to belong to user 0", info, err)
	}
}

func TestExitCodes(t *testing.T) {
	n := newNode(t)
	if err := os.WriteFile(filepath.Join(n.lower, "bin/data"), []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name     string
		args     []string
		start    error
		exit     int
		signal   int
		errorHas string
	}{
		{"zero", []string{"true"}, nil, 0, 0, ""},
		{"its own", []string{"sh", "-c", "exit 3"}, nil, 3, 0, ""},
		{"a signal", []string{"sh", "-c", "kill -SEGV $$ & wait; exec sh -c 'exec sh -c \"exit 139\"'"}, nil, 139, 0, ""},
		{"not in PATH", []string{"nothing"}, container.ErrNoCommand, 127, 0, `find "nothing" in PATH`},
		{"no such file", []string{"/bin/nothing"}, container.ErrNoCommand, 127, 0, "execute /bin/nothing: no such file"},
		{"below a file", []string{"/bin/sh/x"}, container.ErrNoCommand, 127, 0, "not a directory"},
		{"a directory", []string{"/etc"}, container.ErrNotExecutable, 126, 0, "permission denied"},
		{"not a program", []string{"data"}, container.ErrNotExecutable, 126, 0, "exec format error"},
		{"empty", []string{""}, container.ErrNoCommand, 127, 0, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx := testContext(t)
			b := n.bundle(t, tc.args...)
			if err := n.Create(ctx, b); err != nil {
				t.Fatal(err)
			}
			if _, err := n.Start(ctx, b.ID); !errors.Is(err, tc.start) {
				t.Errorf("Start = %v, want %v", err, tc.start)
			}
			s, err := n.Wait(ctx, b.ID)
			if err != nil {
				t.Fatal(err)
			}
			if s.Status != container.StatusStopped || s.ExitCode != tc.exit || s.Signal != tc.signal || !strings.Contains(s.Error, tc.errorHas) {
				t.Errorf("Wait = %+v, want exit code %d, signal %d and an error with %q", s, tc.exit, tc.signal, tc.errorHas)
			}
			if s.Created.IsZero() || s.Finished.Before(s.Created) || (tc.start == nil) == s.Started.IsZero() {
				t.Errorf("times %v, %v, %v", s.Created, s.Started, s.Finished)
			}
		})
		t.Run(tc.name+", at once", func(t *testing.T) {
			ctx := testContext(t)
			b := n.bundle(t, tc.args...)
			began, err := n.Run(ctx, b)
			if !errors.Is(err, tc.start) {
				t.Fatalf("Run = %v, want %v", err, tc.start)
			}
			s, werr := n.Wait(ctx, b.ID)
			switch {
			case tc.start != nil:
				if !errors.Is(werr, container.ErrNotFound) {
					t.Errorf("after Run failed there is %+v, %v", s, werr)
				}
			case began.Status != container.StatusRunning || began.Pid == 0 || began.Run != 1 || began.Started.IsZero():
				t.Errorf("Run = %+v, want it running", began)
			case werr != nil || s.ExitCode != tc.exit || s.Run != 1:
				t.Errorf("Wait = %+v, %v, want exit code %d", s, werr, tc.exit)
			}
		})
	}
}

// TestRun runs containers of each kind at once, and loses nothing of what they say.
func TestRun(t *testing.T) {
	n := newNode(t)
	for _, tc := range []struct {
		name string
		set  func(*container.Bundle)
		want string
	}{
		{"pipes", func(*container.Bundle) {}, "hello\n"},
		{"terminal", func(b *container.Bundle) {
			b.Spec.Process.Terminal, b.Terminal = true, &container.TerminalSize{Rows: 24, Columns: 80}
		}, "hello\r\n"},
		{"init", func(b *container.Bundle) { b.Init = true }, "hello\n"},
		{"restart", func(b *container.Bundle) {
			b.Restart = container.Restart{Policy: container.RestartOnFailure, Max: 1}
			b.Spec.Process.Args = []string{"sh", "-c", "echo hello; exit 1"}
		}, "hello\nhello\n"},
		{"runc", func(b *container.Bundle) { b.Engine = engines(t)["runc"] }, "hello\n"},
		{"crun", func(b *container.Bundle) { b.Engine = engines(t)["crun"] }, "hello\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx := testContext(t)
			b := n.bundle(t, "echo", "hello")
			tc.set(&b)
			if _, err := n.Run(ctx, b); err != nil {
				t.Fatal(err)
			}
			if s, err := n.Wait(ctx, b.ID); err != nil || s.Error != "" {
				t.Errorf("Wait = %+v, %v", s, err)
			}
			if stdout, stderr := readLog(t, b.Log.Path); stdout != tc.want || stderr != "" {
				t.Errorf("it says %q and %q, want %q", stdout, stderr, tc.want)
			}
		})
	}
}

// TestProcess sets what a process can be given, one thing at a time.
func TestProcess(t *testing.T) {
	n := newNode(t)
	umask := uint32(0o77)
	caps := []string{"CAP_NET_BIND_SERVICE"}
	for _, tc := range []struct {
		name   string
		set    func(*specs.Spec)
		script string
		want   string
	}{
		{"user", func(s *specs.Spec) { s.Process.User = specs.User{UID: 7, GID: 8, AdditionalGids: []uint32{9, 10}} }, "id; grep 'CapEff\\|CapPrm' /proc/self/status; echo hi >/dev/stdout", "uid=7 gid=8 groups=9,10\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nhi\n"},
		{"ambient", func(s *specs.Spec) {
			s.Process.User.UID = 7
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps, Inheritable: caps, Ambient: caps}
		}, "grep Cap /proc/self/status | tr -d 0", "CapInh:\t4\nCapPrm:\t4\nCapEff:\t4\nCapBnd:\t4\nCapAmb:\t4\n"},
		{"umask", func(s *specs.Spec) { s.Process.User.Umask = &umask }, "touch /tmp/f; stat -c %a /tmp/f", "600\n"},
		{"working directory", func(s *specs.Spec) { s.Process.Cwd = "/made/for/it" }, "pwd; stat -c %u /made", "/made/for/it\n0\n"},
		{"environment", func(s *specs.Spec) { s.Process.Env = append(s.Process.Env, "A=b c") }, "echo $A", "b c\n"},
		{"rlimit", func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}}
		}, "ulimit -Sn; ulimit -Hn", "100\n200\n"},
		{"no_new_privs", func(s *specs.Spec) { s.Process.NoNewPrivileges = true }, "grep 'NoNew\\|Seccomp:' /proc/self/status", "NoNewPrivs:\t1\nSeccomp:\t2\n"},
		{"without seccomp", func(s *specs.Spec) { s.Linux.Seccomp = nil }, "grep Seccomp: /proc/self/status", "Seccomp:\t0\n"},
		{"oom score", func(s *specs.Spec) { score := 500; s.Process.OOMScoreAdj = &score }, "cat /proc/self/oom_score_adj", "500\n"},
		{"domain name", func(s *specs.Spec) { s.Domainname = "example" }, "cat /proc/sys/kernel/domainname", "example\n"},
		{"sysctl", func(s *specs.Spec) {
			s.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shmmax": "12345"}
		}, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmax", "80\n12345\n"},
		{"read-only root", func(s *specs.Spec) { s.Root = &specs.Root{Readonly: true} }, "touch /x 2>/dev/null || echo no; touch /dev/shm/x && echo yes", "no\nyes\n"},
		{"tmpfs", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/a/b", Type: "tmpfs", Options: []string{"noexec", "size=64k", "mode=700"}})
		}, "stat -c %a /a/b; grep -c '/a/b rw,noexec' /proc/self/mountinfo; head -c 100000 /dev/zero 2>/dev/null >/a/b/f || echo full", "700\n1\nfull\n"},
		{"device", func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/sub/zero", Type: "c", Major: 1, Minor: 5}}
		}, "head -c 2 /dev/sub/zero | wc -c", "2\n"},
		{"masked path", func(s *specs.Spec) {
			s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/bin/busybox/x", "/etc", "/missing")
		}, "ls /etc | wc -l; touch /etc/x 2>/dev/null || echo no", "0\nno\n"},
		{"host users", func(s *specs.Spec) {
			s.Linux.Namespaces = s.Linux.Namespaces[1:]
			s.Linux.UIDMappings, s.Linux.GIDMappings = nil, nil
		}, "tr -s ' ' </proc/self/uid_map; mknod /dev/sda b 8 0; head -c 1 /dev/sda 2>/dev/null || echo denied; stat -c %u /bin/busybox", " 0 0 4294967295\ndenied\n0\n"},
		{"host network", func(s *specs.Spec) {
			s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}, {Type: specs.CgroupNamespace}, {Type: specs.IPCNamespace}}
			s.Linux.UIDMappings, s.Linux.GIDMappings, s.Hostname = nil, nil, ""
		}, "readlink /proc/self/ns/net", hostNet(t)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := n.bundle(t, "sh", "-c", tc.script)
			tc.set(b.Spec)
			stdout, stderr, s := n.run(t, b)
			if s.ExitCode != 0 || stdout != tc.want || stderr != "" {
				t.Errorf("%s\ngot  %q, exit code %d, stderr %q\nwant %q", tc.script, stdout, s.ExitCode, stderr, tc.want)
			}
		})
	}
}

func hostNet(t *testing.T) string {
	t.Helper()
	s, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return s + "\n"
}

func TestBinds(t *testing.T) {
	n := newNode(t)
	src := filepath.Join(n.dir, "src")
	if err := os.MkdirAll(src, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(src, "file")
	if err := os.WriteFile(file, []byte("content\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, source, dest string
		options            []string
		script, want       string
	}{
		{"directory", src, "/data", []string{"rbind", "idmap"}, "cat /data/file; stat -c %u /data/file; echo x >/data/new", "content\n0\n"},
		{"file", file, "/etc/deep/file", []string{"bind", "idmap", "ro"}, "cat /etc/deep/file; echo x 2>/dev/null >/etc/deep/file || echo no", "content\nno\n"},
		{"not mapped", src, "/data", []string{"rbind"}, "stat -c %u /data; cat /data/file 2>/dev/null || echo no", "65534\nno\n"},
		{"over a directory of the image", src, "/etc", []string{"bind", "idmap", "noexec"}, "ls /etc; grep -c ' /etc rw,noexec' /proc/self/mountinfo", "file\nnew\n1\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := n.bundle(t, "sh", "-c", tc.script)
			b.Spec.Mounts = append(b.Spec.Mounts, specs.Mount{Destination: tc.dest, Type: "bind", Source: tc.source, Options: tc.options})
			stdout, stderr, s := n.run(t, b)
			if s.ExitCode != 0 || stdout != tc.want {
				t.Errorf("%s\ngot  %q, exit code %d, stderr %q\nwant %q", tc.script, stdout, s.ExitCode, stderr, tc.want)
			}
		})
	}
	if info, err := os.Stat(filepath.Join(src, "new")); err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("a file that the container made in a mapped bind: %+v, %v; want it to belong to user 0", info, err)
	}
}

func TestLimits(t *testing.T) {
	n := newNode(t)
	pids, memory := int64(5), int64(16<<20)
	quota, period, shares := int64(20000), uint64(100000), uint64(512)
	inside, said := "cd /sys/fs/cgroup; cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpu/cpu.shares cpuset/cpuset.cpus", "20000\n100000\n512\n1\n"
	if only2() {
		inside, said = "cd /sys/fs/cgroup; cat cpu.max cpu.weight cpuset.cpus", "20000 100000\n59\n1\n"
	}
	for _, tc := range []struct {
		name   string
		set    func(*specs.LinuxResources)
		script string
		want   string
		exit   int
		oom    bool
	}{
		{"pids", func(r *specs.LinuxResources) { r.Pids = &specs.LinuxPids{Limit: &pids} }, "for i in 1 2 3 4 5 6 7 8; do sleep 100 2>/dev/null & done; true", "", 2, false},
		{"memory", func(r *specs.LinuxResources) { r.Memory = &specs.LinuxMemory{Limit: &memory, Swap: &memory} }, "exec dd if=/dev/zero of=/dev/null bs=64M count=1", "", 137, true},
		{"cpu", func(r *specs.LinuxResources) {
			r.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period, Shares: &shares, Cpus: "1"}
		}, inside, said, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := n.bundle(t, "sh", "-c", tc.script)
			tc.set(b.Spec.Linux.Resources)
			stdout, stderr, s := n.run(t, b)
			if stdout != tc.want || s.ExitCode != tc.exit || s.OOMKilled != tc.oom {
				t.Errorf("%s\ngot %q, exit code %d, OOM %t, stderr %q\nwant %q, %d, %t", tc.script, stdout, s.ExitCode, s.OOMKilled, stderr, tc.want, tc.exit, tc.oom)
			}
		})
	}
}

// TestRefusals asks for what cannot be done: each answer names it, and nothing
// stays.
func TestRefusals(t *testing.T) {
	n := newNode(t)
	for _, tc := range []struct {
		name string
		set  func(*container.Bundle)
		is   error
		has  string
	}{
		{"id", func(b *container.Bundle) { b.ID = "../x" }, nil, "an id has"},
		{"no spec", func(b *container.Bundle) { b.Spec = nil }, nil, "no spec"},
		{"terminal without a size", func(b *container.Bundle) { b.Spec.Process.Terminal = true }, nil, "process.terminal"},
		{"terminal without devpts", func(b *container.Bundle) {
			b.Spec.Process.Terminal, b.Terminal = true, &container.TerminalSize{}
			b.Spec.Mounts = slices.DeleteFunc(b.Spec.Mounts, func(m specs.Mount) bool { return m.Type == "devpts" })
		}, container.ErrUnsupported, "devpts at /dev/pts"},
		{"hooks", func(b *container.Bundle) { b.Spec.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/x"}}} }, container.ErrUnsupported, "hooks"},
		{"AppArmor", func(b *container.Bundle) { b.Spec.Process.ApparmorProfile = "x" }, container.ErrUnsupported, "process.apparmorProfile x"},
		{"sysctl of the node", func(b *container.Bundle) { b.Spec.Linux.Sysctl = map[string]string{"vm.swappiness": "1"} }, nil, "vm.swappiness"},
		{"file system", func(b *container.Bundle) {
			b.Spec.Mounts = append(b.Spec.Mounts, specs.Mount{Destination: "/x", Type: "nfs"})
		}, container.ErrUnsupported, `type "nfs"`},
		{"mount option", func(b *container.Bundle) {
			b.Spec.Mounts = append(b.Spec.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: "/tmp", Options: []string{"bind", "magic"}})
		}, container.ErrUnsupported, `mount option "magic"`},
		{"source of a bind", func(b *container.Bundle) {
			b.Spec.Mounts = append(b.Spec.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: "/no/such"})
		}, os.ErrNotExist, "/no/such"},
		{"option of tmpfs", func(b *container.Bundle) {
			b.Spec.Mounts = append(b.Spec.Mounts, specs.Mount{Destination: "/x", Type: "tmpfs", Options: []string{"size=much"}})
		}, nil, "set option size=much of /x"},
		{"layer", func(b *container.Bundle) { b.Rootfs.Lowers = []string{"/no/layer"} }, nil, "open /no/layer"},
		{"log", func(b *container.Bundle) { b.Log.Path = "/no/dir/log" }, nil, "open log"},
		{"working directory", func(b *container.Bundle) { b.Spec.Process.Cwd = "/bin/sh" }, nil, "directory /bin/sh"},
		{"user out of range", func(b *container.Bundle) { b.Spec.Process.User.UID = 70000 }, nil, "70000"},
		{"block io", func(b *container.Bundle) {
			b.Spec.Linux.Resources.BlockIO = &specs.LinuxBlockIO{LeafWeight: new(uint16(100))}
		}, container.ErrUnsupported, "blockIO.leafWeight"},
		{"memory limit", func(b *container.Bundle) {
			limit := int64(4096)
			b.Spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
			b.Spec.Linux.Resources.CPU = &specs.LinuxCPU{Cpus: "99"}
		}, nil, "cpuset"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := n.bundle(t, "true")
			tc.set(&b)
			err := n.Create(testContext(t), b)
			if err == nil || !strings.Contains(err.Error(), tc.has) || tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("Create = %v, want an error with %q (%v)", err, tc.has, tc.is)
			}
			for _, what := range n.traces(t) {
				if !strings.HasPrefix(what, "/sys/fs/cgroup") { // the parent is there
					t.Errorf("left behind: %s", what)
				}
			}
		})
	}
}
