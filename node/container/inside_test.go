package container_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container"
)

// everyUsers runs f for a container with users of its own, and for one with the
// node's, whose root has nothing between it and the node but what is tested here.
func everyUsers(t *testing.T, f func(t *testing.T, n *node, set func(*container.Bundle))) {
	t.Helper()
	t.Run("own users", func(t *testing.T) {
		n := newNode(t)
		n.probe(t)
		f(t, n, func(*container.Bundle) {})
	})
	t.Run("host users", func(t *testing.T) {
		n := newNode(t)
		n.probe(t)
		f(t, n, hostUsers)
	})
}

// expect runs script in a container and compares what it says.
func (n *node) expect(t *testing.T, set func(*container.Bundle), script, want string) {
	t.Helper()
	b := n.bundle(t, "sh", "-c", script)
	set(&b)
	if stdout, stderr, s := n.run(t, b); stdout != want {
		t.Errorf("%s\ngot  %q (exit code %d, stderr %q)\nwant %q", script, stdout, s.ExitCode, stderr, want)
	}
}

// TestDescriptorsInside lists what the first process and one of exec have open,
// while the agent has things open that it forgot to close on exec
// (CVE-2016-9962, CVE-2024-21626).
func TestDescriptorsInside(t *testing.T) {
	fd, err := unix.Open("/etc", unix.O_RDONLY|unix.O_DIRECTORY, 0) // without O_CLOEXEC
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	everyUsers(t, func(t *testing.T, n *node, set func(*container.Bundle)) {
		const list = "for f in /proc/self/fd/*; do readlink $f; done"
		pipes := regexp.MustCompile(`^/dev/null\npipe:\[\d+\]\npipe:\[\d+\]\n/proc/\d+/fd\n$|^/dev/null\npipe:\[\d+\]\npipe:\[\d+\]\n$`)
		for _, init := range []bool{false, true} {
			b := n.bundle(t, "sh", "-c", list+"; echo done; exec sleep 1000")
			set(&b)
			b.Init = init
			n.create(t, b)
			n.start(t, b.ID)
			e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{
				Process: *processWith(b, "sh", "-c", list), AttachOptions: container.AttachOptions{Stdout: true, Stderr: true},
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := readAll(t, e.Stdout); !pipes.MatchString(got) {
				t.Errorf("init %t: a process of exec has open:\n%s", init, got)
			}
			if _, err := e.Wait(testContext(t)); err != nil {
				t.Error(err)
			}
			waitLog(t, b.Log.Path, "done")
			if got, _ := readLog(t, b.Log.Path); !pipes.MatchString(strings.TrimSuffix(got, "done\n")) {
				t.Errorf("init %t: the program has open:\n%s", init, got)
			}
		}
	})
}

// TestMasks holds that masked files are the null device and masked directories
// empty, whatever the image has in the place of /dev/null, and that the container
// can neither look below nor take the masks away (CVE-2025-31133, CVE-2025-52565,
// GHSA-jq35-85cj-fj4p, GHSA-6fw5-f8r9-fgfm).
func TestMasks(t *testing.T) {
	everyUsers(t, func(t *testing.T, n *node, set func(*container.Bundle)) {
		if err := os.Mkdir(filepath.Join(n.lower, "dev"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/etc", filepath.Join(n.lower, "dev/null")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(n.lower, "etc/secret"), []byte("secret"), 0o644); err != nil {
			t.Fatal(err)
		}
		masked := func(b *container.Bundle) {
			set(b)
			b.Spec.Linux.MaskedPaths = append(b.Spec.Linux.MaskedPaths, "/etc/secret")
		}
		var files, dirs []string
		for _, p := range append(container.DefaultSpec().Linux.MaskedPaths, "/etc/secret") {
			info, err := os.Stat(p)
			switch {
			case p == "/etc/secret" || err == nil && !info.IsDir():
				files = append(files, p)
			case err == nil:
				dirs = append(dirs, p)
			}
		}
		if len(files) < 3 || len(dirs) < 1 {
			t.Fatalf("this kernel has nothing to mask: files %q, directories %q", files, dirs)
		}
		n.expect(t, masked, "stat -c %t:%T "+strings.Join(files, " "), strings.Repeat("1:3\n", len(files)))
		n.expect(t, masked, "for d in "+strings.Join(dirs, " ")+"; do ls -A $d; touch $d/x 2>/dev/null && echo wrote; done", "")
		// Replacing /dev/null inside changes no mask that is there, also for exec.
		b := n.bundle(t, "sh", "-c", "rm /dev/null 2>/dev/null; ln -sf /etc /dev/null; echo done; exec sleep 1000")
		masked(&b)
		n.create(t, b)
		n.start(t, b.ID)
		waitLog(t, b.Log.Path, "done")
		e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{
			Process: *processWith(b, "sh", "-c", "cat "+strings.Join(files, " ")), AttachOptions: container.AttachOptions{Stdout: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, e.Stdout); got != "" {
			t.Errorf("masked files say %q", got)
		}
		if _, err := e.Wait(testContext(t)); err != nil {
			t.Error(err)
		}
	})
}

// TestNoWayOut tries all that a process could change its view of the node with:
// mounts, namespaces, loading programs into the kernel, and system calls whose bugs
// were ways out. None is possible.
func TestNoWayOut(t *testing.T) {
	everyUsers(t, func(t *testing.T, n *node, set func(*container.Bundle)) {
		b := n.bundle(t, "probe", "mounts")
		set(&b)
		if stdout, stderr, _ := n.run(t, b); stdout != "done\n" {
			t.Errorf("%s%s", stdout, stderr)
		}
	})
}

// TestCgroupsAreReadOnly tries to write to cgroups: to leave limits, to make a
// cgroup, to name a program that the node runs as root (CVE-2022-0492,
// CVE-2023-25809). What there is to see is below the container's own.
func TestCgroupsAreReadOnly(t *testing.T) {
	everyUsers(t, func(t *testing.T, n *node, set func(*container.Bundle)) {
		n.expect(t, set, `cd /sys/fs/cgroup
for f in . * */*; do
	[ -w $f ] && [ -d $f ] && mkdir $f/x 2>/dev/null && echo "made $f/x"
	case $f in
	*/release_agent) echo /bin/sh 2>/dev/null >$f && echo "wrote $f";;
	*procs|*tasks|*/notify_on_release|*limit_in_bytes|*.max|*/devices.allow|*subtree_control) echo 1 2>/dev/null >$f && echo "wrote $f";;
	esac
done
[ -n "$(ls -d */cgroup.procs cgroup.procs 2>/dev/null)" ] || echo nothing there
mount -o remount,rw /sys/fs/cgroup 2>/dev/null && echo remounted
grep -v ':/$' /proc/self/cgroup
for p in $(cat */cgroup.procs cgroup.procs 2>/dev/null); do [ $p -lt 1000 ] || echo "process $p is not of this container"; done
true`, "")
	})
}

// TestDeviceNodes makes device nodes and opens them: in a user namespace they
// cannot be made, and without one the cgroup's rules keep them shut. Nodes that an
// image brings are no better.
func TestDeviceNodes(t *testing.T) {
	everyUsers(t, func(t *testing.T, n *node, set func(*container.Bundle)) {
		for name, number := range map[string]uint64{"kmsg": unix.Mkdev(1, 11), "mem": unix.Mkdev(1, 1), "fuse": unix.Mkdev(10, 229), "loop": unix.Mkdev(10, 237)} {
			if err := unix.Mknod(filepath.Join(n.lower, "etc", name), unix.S_IFCHR|0o666, int(number)); err != nil {
				t.Fatal(err)
			}
		}
		n.expect(t, set, `cd /tmp
i=0
for d in "b 8 0" "b 7 0" "b 254 0" "b 259 0" "c 1 1" "c 1 11" "c 10 229" "c 10 200" "c 10 237"; do
	i=$((i+1))
	mknod n$i $d 2>/dev/null
	head -c 1 n$i >/dev/null 2>&1 && echo read $d
	(exec 3<>n$i) 2>/dev/null && [ -c n$i -o -b n$i ] && echo opened $d
done
for d in kmsg mem fuse loop; do (exec 3</etc/$d) 2>/dev/null && echo opened $d of the image; done
echo done`, "done\n")
	})
}

// TestKeyrings looks for keys of who started the node: session keyrings are
// inherited, and belong to no namespace.
func TestKeyrings(t *testing.T) {
	everyUsers(t, func(t *testing.T, n *node, set func(*container.Bundle)) {
		runtime.LockOSThread() // which has the keyring, and ends with the test
		if _, err := unix.KeyctlJoinSessionKeyring("berth-test"); err != nil {
			t.Fatal(err)
		}
		const name = "berth-test"
		id, err := unix.AddKey("user", name, []byte("secret"), unix.KEY_SPEC_SESSION_KEYRING)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.KeyctlSetperm(id, 0x3f3f3f3f); err != nil {
			t.Fatal(err)
		}
		for _, seccomp := range []bool{true, false} { // Docker's profile has no calls for keys
			b := n.bundle(t, "probe", "keys", name)
			set(&b)
			if !seccomp {
				b.Spec.Linux.Seccomp = nil
			}
			if stdout, stderr, _ := n.run(t, b); stdout != "done\n" {
				t.Errorf("seccomp %t: %s%s", seccomp, stdout, stderr)
			}
		}
	})
}

// TestFirstProcessTellsNothing reads what the first process shows of where it came
// from.
func TestFirstProcessTellsNothing(t *testing.T) {
	everyUsers(t, func(t *testing.T, n *node, set func(*container.Bundle)) {
		n.expect(t, set, `tr '\0' '\n' </proc/1/environ; tr '\0' ' ' </proc/1/cmdline | head -c 5; echo; for l in exe cwd root; do readlink /proc/1/$l; done
grep '^PPid\|^NStgid\|^TracerPid' /proc/1/status; cat /proc/1/comm; grep -c -i 'berth\|memfd' /proc/1/maps /proc/1/mountinfo`,
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nsh -c\n/bin/busybox\n/\n/\n"+
				"PPid:\t0\nTracerPid:\t0\nNStgid:\t1\nsh\n/proc/1/maps:0\n/proc/1/mountinfo:0\n")
	})
}

// TestSetUserID runs a set-user-id program of the image as somebody: it is root of
// the container, with the container's capabilities and filter, and with
// no_new_privs it is nobody else (CVE-2022-29162: nothing is inheritable).
func TestSetUserID(t *testing.T) {
	everyUsers(t, func(t *testing.T, n *node, set func(*container.Bundle)) {
		// Not busybox, which gives the right up itself.
		if err := os.Chmod(filepath.Join(n.lower, "bin/probe"), 0o755|os.ModeSetuid|os.ModeSetgid); err != nil {
			t.Fatal(err)
		}
		as := func(nnp bool) func(*container.Bundle) {
			return func(b *container.Bundle) {
				set(b)
				b.Spec.Process.User = specs.User{UID: 1000, GID: 1000}
				b.Spec.Process.NoNewPrivileges = nnp
			}
		}
		const script = `exec probe status Uid CapInh CapPrm CapEff CapBnd Seccomp`
		n.expect(t, as(false), script, "Uid:\t1000\t0\t0\t0\nCapInh:\t0000000000000000\nCapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\nSeccomp:\t2\n")
		n.expect(t, as(true), script, "Uid:\t1000\t1000\t1000\t1000\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\nSeccomp:\t2\n")
	})
}

// TestUsersOutside asks for users that are nobody, or that a number could be cut to
// (CVE-2026-30892): none may become root.
func TestUsersOutside(t *testing.T) {
	everyUsers(t, func(t *testing.T, n *node, set func(*container.Bundle)) {
		running := n.bundle(t, "sleep", "1000")
		set(&running)
		n.create(t, running)
		n.start(t, running.ID)
		for _, user := range []specs.User{{UID: 1<<32 - 1}, {GID: 1<<32 - 1}, {UID: 5, GID: 5, AdditionalGids: []uint32{7, 1<<32 - 1}}} {
			b := n.bundle(t, "id")
			set(&b)
			b.Spec.Process.User = user
			if err := n.Create(testContext(t), b); err == nil {
				t.Errorf("user %+v: a container was created", user)
			}
			if e, err := n.Exec(testContext(t), running.ID, container.ExecSpec{Process: *b.Spec.Process}); err == nil {
				t.Errorf("user %+v: a process was executed", user)
				_ = e.Close()
			}
		}
		for _, uid := range []uint32{1, 65535} {
			b := n.bundle(t, "sh", "-c", "id -u; id -g")
			set(&b)
			b.Spec.Process.User = specs.User{UID: uid, GID: uid}
			if stdout, _, _ := n.run(t, b); stdout != fmt.Sprintf("%d\n%d\n", uid, uid) {
				t.Errorf("user %d is %q", uid, stdout)
			}
		}
	})
}
