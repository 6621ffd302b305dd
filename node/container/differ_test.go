package container_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container"
)

// view says what a first process sees of its container, a line for each thing, with
// a word in front that says what kind of thing it is.
const view = `
own() { sed "s|^|$1 |"; }
while read id parent dev root point opts rest; do echo "mount $point $root $opts ${rest#*- }"; done </proc/self/mountinfo
grep '^Uid\|^Gid\|^Groups\|^Umask\|^NoNew\|^Cap\|^Seccomp:\|^SigBlk\|^SigIgn' /proc/$$/status | own status
echo "pids $(grep '^NSpid' /proc/$$/status | wc -w)"
tail -n +2 /proc/$$/limits | own limit
tr '\0' '\n' </proc/$$/environ | own env
for n in cgroup ipc mnt net pid time user uts; do echo "ns $n $(readlink /proc/$$/ns/$n)"; done
for f in 0 1 2 3 4 5 6 7 8 9 10 11 12; do [ -e /proc/$$/fd/$f ] && echo "fd $f $(readlink /proc/$$/fd/$f)"; done
echo "cwd $(readlink /proc/$$/cwd) $(readlink /proc/$$/root)"
echo "names $(hostname) $(cat /proc/sys/kernel/domainname)"
echo "oom $(cat /proc/$$/oom_score_adj)"
set -- $(cut -d ' ' -f 5-8 </proc/$$/stat)
for f in $1 $2; do [ $f = $$ ] && echo "session own" || echo "session of somebody else"; done; echo "terminal $3 $4"
tr '\0' ' ' </proc/$$/cmdline | head -c 5 | own args; echo
for f in /dev/* /dev/pts/*; do echo "dev $f $(stat -c '%F %a %t:%T %u:%g' $f) $(readlink $f)"; done
stat -c '%n %F %a %u:%g' / /proc /sys /dev /dev/shm /dev/mqueue /dev/pts /tmp /etc /sys/fs/cgroup | own stat
for s in kernel/shmmax kernel/msgmnb net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range net/ipv4/ip_forward fs/mqueue/msg_max; do echo "sysctl $s $(cat /proc/sys/$s)"; done
cut -d : -f 2- </proc/self/cgroup | own cgroup
cd /sys/fs/cgroup && for f in memory/memory.limit_in_bytes memory/memory.soft_limit_in_bytes memory/memory.swappiness pids/pids.max cpu/cpu.shares cpu/cpu.cfs_quota_us cpuset/cpuset.cpus cpuset/cpuset.mems; do echo "limits $f $(cat $f)"; done
cat devices/devices.list | own devices
ip -o link | cut -d ' ' -f 2-3,8-9 | own link
for f in /proc/kcore /proc/keys /proc/interrupts /proc/timer_list /proc/sched_debug; do [ -e $f ] && echo "mask $f $(stat -c %F:%t:%T $f)"; done
for d in /proc/acpi /proc/scsi /proc/bus /proc/irq /sys/firmware; do [ -d $d ] && echo "mask $d $(ls -A $d | wc -l)"; done
echo x 2>/dev/null >/proc/sys/kernel/hostname; echo "write /proc/sys $?"
touch /x 2>/dev/null; echo "write / $?"
touch /tmp/x 2>/dev/null; echo "write /tmp $?"
true
`

// explained is a difference that stays: lines of one side which the other lacks,
// and why.
type explained struct {
	peer   string // regexp of "runc", "crun"
	config string // regexp
	line   string // regexp of a line with the side in front: "berth: " or "peer: "
	why    string
	used   bool
}

func differences() []*explained {
	return []*explained{
		{".*", ".*", `berth: mount (/proc/\w+|/sys/firmware) (/null|/) (rw,nosuid|ro,relatime) tmpfs .*`, "a masked file is the null device of the container's own /dev, a masked directory a tmpfs for nothing else", false},
		{".*", ".*", `peer: mount (/proc/\w+|/sys/firmware) (/null|/) r[ow],relatime (tmpfs|devtmpfs) .*`, "theirs are the node's null device and tmpfs of other sizes; what is in them is compared by itself", false},
		{".*", ".*", `peer: mount /dev/(null|zero|full|random|urandom|tty) .*`, "in a user namespace they bind the node's devices; ours are the container's own, so nobody can change the node's", false},
		{".*", ".*", `(berth|peer): dev /dev/(null|zero|full|random|urandom|tty) character .*`, "so ours belong to root, theirs to nobody", false},
		{".*", ".*", `(berth|peer): mount /sys/fs/cgroup / .*`, "the directory of the hierarchies: ours is smaller and read-only unless the mount is not; they leave it writable, or mount it over", false},
		{".*", ".*", `(berth|peer): stat /sys/fs/cgroup directory .*`, "its mode: as that of the node's", false},
		{"crun", ".*", `(berth|peer): mount /sys/fs/cgroup/\w+ / r[ow],nosuid,nodev,noexec,relatime cgroup .*`, "what is mounted is the same; crun has the path as its source", false},
		{"runc", ".*", `(berth|peer): mount /sys/fs/cgroup/systemd / .*`, "what is mounted is the same; runc names it systemd", false},
		{".*", ".*", `berth: mount /sys/fs/cgroup/unified .*`, "that version is hidden from them in this test", false},
		{"crun", ".*", `(berth|peer): mount /proc/(bus|fs|irq|sys) /(bus|fs|irq|sys) ro,.*proc proc rw`, "crun forgets nosuid, nodev and noexec of a path that it makes read-only; runc and we keep them", false},
		{"runc", ".*", `(berth|peer): mount /sys / ro,nosuid,nodev,noexec,relatime sysfs sysfs r[ow]`, "runc makes the file system read-only, too; it is for good either way", false},
		{".*", ".*", `(berth|peer): (dev|stat) /dev/(pts|mqueue) .*`, "made by the shim, or with the namespace, so in a user namespace it belongs to nobody; nothing needs the right to write there", false},
		{".*", ".*", `peer: env HOME=/`, "for us that is the caller's business, as it knows the user: node/host sets it", false},
		{".*", ".*", `berth: fd 0 /dev/null|peer: fd 0 pipe`, "what this test gives them: crun gives its standard input to the container's user, so it must not be the machine's /dev/null", false},
		{"runc", ".*", `berth: dev /dev/core .*`, "runc makes this link only if /proc/kcore is not masked; Docker and crun always", false},
		{"runc", ".*", `peer: devices c 10:200 rwm`, "runc before 1.2 allows /dev/net/tun to all; Docker's list does not have it", false},
		{"runc", "user", `berth: names same example|peer: names same \(none\)`, "runc before 1.2 does not know domain names", false},
		{"runc", "mounts", `berth: stat /tmp directory 1777 0:0|peer: stat /tmp directory 755 0:0`, "runc before 1.2 gives a tmpfs the mode of what is below, against the option", false},
	}
}

// TestSameView runs the same configurations under crun and runc, and compares what
// a process sees. What differs has a reason here.
func TestSameView(t *testing.T) {
	known := differences()
	for _, tc := range []struct {
		name string
		set  func(*specs.Spec)
	}{
		{"default", func(*specs.Spec) {}},
		{"host users", func(s *specs.Spec) { without(s, specs.UserNamespace) }},
		{"host namespaces", func(s *specs.Spec) {
			without(s, specs.UserNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.PIDNamespace)
			s.Hostname = ""
		}},
		{"read-only", func(s *specs.Spec) { s.Root = &specs.Root{Readonly: true} }},
		{"mounts", func(s *specs.Spec) {
			s.Mounts = append(
				s.Mounts,
				specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "noexec", "size=1m", "mode=1777"}},
				specs.Mount{Destination: "/made/for/it", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro"}},
				specs.Mount{Destination: "/data", Type: "bind", Source: "/usr/share", Options: []string{"rbind", "ro", "nosuid"}},
				specs.Mount{Destination: "/etc/hosts", Type: "bind", Source: "/etc/hosts", Options: []string{"bind"}},
			)
		}},
		{"no new privileges", func(s *specs.Spec) { s.Process.NoNewPrivileges = true }},
		{"user", func(s *specs.Spec) {
			umask := uint32(0o27)
			s.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{5, 10}, Umask: &umask}
			s.Process.Env = append(s.Process.Env, "HOME=/home/x", "A=b=c", "EMPTY=")
			s.Process.Cwd = "/etc"
			score := 300
			s.Process.OOMScoreAdj = &score
			s.Domainname = "example"
		}},
		{"limits", func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}, {Type: "RLIMIT_CORE"}, {Type: "RLIMIT_NPROC", Soft: 50, Hard: 60}}
			r := s.Linux.Resources
			r.Memory = &specs.LinuxMemory{Limit: new(int64(64 << 20)), Reservation: new(int64(32 << 20))}
			r.CPU = &specs.LinuxCPU{Shares: new(uint64(512)), Quota: new(int64(50_000)), Period: new(uint64(100_000)), Cpus: "0"}
			r.Pids = &specs.LinuxPids{Limit: new(int64(77))}
			s.Linux.Sysctl = map[string]string{"kernel.shmmax": "12345", "net.ipv4.ip_unprivileged_port_start": "80", "fs.mqueue.msg_max": "20"}
		}},
		{"capabilities", func(s *specs.Spec) {
			caps := []string{"CAP_NET_BIND_SERVICE", "CAP_CHOWN"}
			s.Process.User = specs.User{UID: 7, GID: 7}
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: append(caps, "CAP_KILL"), Effective: caps[:1], Permitted: caps, Inheritable: caps[:1], Ambient: caps[:1]}
		}},
		{"privileged", func(s *specs.Spec) {
			without(s, specs.UserNamespace)
			s.Linux.Seccomp, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil, nil
			s.Process.Capabilities = moreCapabilities()
			s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
			for i, m := range s.Mounts {
				s.Mounts[i].Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "ro" })
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			for _, applet := range []string{"sed", "cut", "tail"} {
				if err := os.Symlink("busybox", filepath.Join(n.lower, "bin", applet)); err != nil && !errors.Is(err, os.ErrExist) {
					t.Fatal(err)
				}
			}
			b := n.bundle(t, "sh", "-c", view)
			b.Spec.Hostname = "same"
			tc.set(b.Spec)
			ours, stderr, s := n.run(t, b)
			if s.ExitCode != 0 || stderr != "" {
				t.Errorf("berth: exit code %d, %s", s.ExitCode, stderr)
			}
			for _, peer := range []string{"crun", "runc"} {
				theirs, code := n.runPeer(t, peer, b)
				if code != 0 {
					t.Errorf("%s: exit code %d", peer, code)
					continue
				}
				for _, line := range compare(ours, theirs) {
					if !explain(known, peer, tc.name, line) {
						t.Errorf("%s: %s", peer, line)
					}
				}
			}
		})
	}
	for _, e := range known {
		if !e.used {
			t.Errorf("this difference is there no more: %s %s %s (%s)", e.peer, e.config, e.line, e.why)
		}
	}
}

// TestSameOptions mounts a directory with a mount in it, once with each of these
// options, and compares what the options of both are then. Of the peers, runc 1.1.5 and
// crun 1.8.1, neither knows all of them.
func TestSameOptions(t *testing.T) {
	n := newNode(t)
	src := n.mountedPair(t)
	both := []string{"ro", "rro", "rrw", "rro rw", "nosuid rnodev", "rnosuid", "rnoexec", "rnorelatime", "noexec nosuid"}
	for peer, more := range map[string][]string{
		// Of "ratime" and "rnostrictatime" it makes what the kernel refuses.
		"runc": {"rnodiratime", "rdiratime", "rrelatime", "rnoatime", "rstrictatime", "rnosymfollow", "noatime rstrictatime", "rnoatime strictatime", "rnoatime relatime"},
		// Its access times are mistaken for others; runc makes the top one writable, too.
		"crun": {"ro rrw"},
	} {
		t.Run(peer, func(t *testing.T) {
			b := n.bundle(t, "sh", "-c", "grep ' /x' /proc/self/mountinfo | cut -d' ' -f5,6")
			hostUsers(&b)
			for i, o := range append(more, both...) {
				add("/x"+strconv.Itoa(i), "bind", src, append(strings.Fields(o), "rbind")...)(b.Spec)
			}
			ours, stderr, s := n.run(t, b)
			if s.ExitCode != 0 || stderr != "" {
				t.Errorf("exit code %d, %s", s.ExitCode, stderr)
			}
			theirs, code := n.runPeer(t, peer, b)
			if diff := cmp.Diff(sorted(theirs), sorted(ours)); code != 0 || diff != "" {
				t.Errorf("exit code %d (-%s +berth):\n%s", code, peer, diff)
			}
		})
	}
}

// mountedPair makes a mount with one in it.
func (n *node) mountedPair(t *testing.T) string {
	t.Helper()
	src := filepath.Join(n.dir, "pair")
	for _, dir := range []string{src, filepath.Join(src, "sub")} {
		if err := errors.Join(os.Mkdir(dir, 0o755), unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755")); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(src, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return src
}

// sorted returns the lines of text in order.
func sorted(text string) []string {
	return slices.Sorted(strings.Lines(text))
}

func without(s *specs.Spec, types ...specs.LinuxNamespaceType) {
	s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return slices.Contains(types, ns.Type) })
	if slices.Contains(types, specs.UserNamespace) {
		s.Linux.UIDMappings, s.Linux.GIDMappings = nil, nil
	}
}

// moreCapabilities are some of those that privileged containers have.
func moreCapabilities() *specs.LinuxCapabilities {
	caps := append(container.DefaultCapabilities(), "CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_TIME", "CAP_MAC_ADMIN", "CAP_BPF")
	return &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
}

// compare returns the lines that only one of two views has, normalized.
func compare(ours, theirs string) []string {
	a, b := normal(ours), normal(theirs)
	var diff []string
	for _, line := range a {
		if !slices.Contains(b, line) {
			diff = append(diff, "berth: "+line)
		}
	}
	for _, line := range b {
		if !slices.Contains(a, line) {
			diff = append(diff, "peer: "+line)
		}
	}
	return diff
}

var (
	numbered  = regexp.MustCompile(`pipe:\[\d+\]`)
	namespace = regexp.MustCompile(`^ns (\w+) (\w+:\[\d+\])$`)
)

// withoutInherited takes out of a mask of ignored signals those that this test
// ignores: peers pass them on, and the race detector's runtime ignores one.
func withoutInherited(mask string) string {
	ignored, err := strconv.ParseUint(mask, 16, 64)
	own, oerr := os.ReadFile("/proc/self/status")
	if err != nil || oerr != nil {
		return mask
	}
	for line := range strings.Lines(string(own)) {
		if text, ok := strings.CutPrefix(line, "SigIgn:"); ok {
			inherited, err := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
			if err == nil {
				ignored &^= inherited
			}
		}
	}
	return fmt.Sprintf("%016x", ignored)
}

// normal takes out of a view what differs between any two containers.
func normal(text string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		line = numbered.ReplaceAllString(strings.TrimSpace(line), "pipe")
		if mask, ok := strings.CutPrefix(line, "status SigIgn:\t"); ok {
			line = "status SigIgn:\t" + withoutInherited(mask)
		}
		if m := namespace.FindStringSubmatch(line); m != nil {
			whose := "its own"
			if host, err := os.Readlink("/proc/self/ns/" + m[1]); err == nil && host == m[2] {
				whose = "the node's"
			}
			line = "ns " + m[1] + " " + whose
		}
		if strings.HasPrefix(line, "mount / ") {
			line = "mount / " + strings.Fields(line)[3] // what it is made of is the caller's business
		}
		lines = append(lines, line)
	}
	return lines
}

func explain(known []*explained, peer, config, line string) bool {
	for _, e := range known {
		if matches(e.peer, peer) && matches(e.config, config) && matches(e.line, line) {
			e.used = true
			return true
		}
	}
	return false
}

func matches(pattern, s string) bool {
	return regexp.MustCompile("^(?:" + pattern + ")$").MatchString(s)
}

// runPeer runs the container of b under another runtime, and returns its output and
// exit code.
func (n *node) runPeer(t *testing.T, peer string, b container.Bundle) (stdout string, code int) {
	t.Helper()
	if _, err := exec.LookPath(peer); err != nil {
		t.Fatalf("install %s, or run make deps: %v", peer, err)
	}
	dir, err := os.MkdirTemp(n.dir, peer+"-")
	if err != nil {
		t.Fatal(err)
	}
	rootfs := filepath.Join(dir, "rootfs")
	if out, err := exec.Command("cp", "-a", n.lower, rootfs).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s := *b.Spec
	s.Mounts = slices.Clone(s.Mounts)
	for i, m := range s.Mounts {
		s.Mounts[i].Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "idmap" })
	}
	s.Version = "1.0.2" // they are of before 1.3
	s.Root = &specs.Root{Path: rootfs, Readonly: s.Root != nil && s.Root.Readonly}
	linux := *s.Linux
	id := n.cfg.CgroupParent + "-" + peer
	linux.CgroupsPath = "/" + n.cfg.CgroupParent + "/" + id
	s.Linux = &linux
	if maps := linux.UIDMappings; len(maps) > 0 {
		// Its users must get there, and its files be theirs.
		if err := errors.Join(os.Chmod(n.dir, 0o711), os.Chmod(dir, 0o711)); err != nil {
			t.Fatal(err)
		}
		if err := filepath.WalkDir(rootfs, func(p string, _ os.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(p, int(maps[0].HostID), int(maps[0].HostID)))
		}); err != nil {
			t.Fatal(err)
		}
	}
	config, err := json.Marshal(&s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	// crun does not work where both versions of cgroups are mounted; what it does not
	// see does not disturb it.
	cmd := exec.CommandContext(testContext(t), "sh", "-c", "umount -l /sys/fs/cgroup/unified 2>/dev/null && mount -t tmpfs none /sys/fs/cgroup/unified; exec \"$@\"", "sh",
		peer, "--root", filepath.Join(dir, "state"), "run", "--bundle", dir, id)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(""), &out, &errs
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatalf("%s: %v", peer, err)
	} else if ok {
		code = exit.ExitCode()
	}
	if errs.Len() > 0 {
		t.Logf("%s: %s", peer, errs.String())
	}
	return out.String(), code
}

// TestSameExitCodes runs what fails under crun and runc, too.
func TestSameExitCodes(t *testing.T) {
	n := newNode(t)
	if err := os.WriteFile(filepath.Join(n.lower, "bin/data"), []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		args  []string
		ours  int
		peers map[string]int // where they have another one: they cannot tell the engine otherwise
	}{
		{"its own", []string{"sh", "-c", "exit 7"}, 7, nil},
		{"cut to a byte", []string{"sh", "-c", "exit 258"}, 2, nil},
		{"deaf to its own signals", []string{"sh", "-c", "kill -9 $$; kill -TERM $$; kill -SEGV $$; exit 5"}, 5, nil},
		{"a child's signal", []string{"sh", "-c", "sh -c 'kill -9 $$'; exit $?"}, 137, nil},
		{"missing", []string{"/no/such"}, 127, map[string]int{"crun": 1, "runc": 1}},
		{"missing in PATH", []string{"nonesuch"}, 127, map[string]int{"crun": 1, "runc": 1}},
		{"no program", []string{"/bin/data"}, 126, map[string]int{"crun": 1, "runc": 1}},
		{"a directory", []string{"/etc"}, 126, map[string]int{"crun": 1, "runc": 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := n.bundle(t, tc.args...)
			n.create(t, b)
			_, _ = n.Start(testContext(t), b.ID) // some fail here
			s, err := n.Wait(testContext(t), b.ID)
			if err != nil || s.ExitCode != tc.ours {
				t.Errorf("berth: %+v, %v; want exit code %d", s, err, tc.ours)
			}
			for _, peer := range []string{"crun", "runc"} {
				want, ok := tc.peers[peer]
				if !ok {
					want = tc.ours
				}
				if _, code := n.runPeer(t, peer, b); code != want {
					t.Errorf("%s: exit code %d, want %d", peer, code, want)
				}
			}
		})
	}
}
