package container_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container"
)

// probe puts testdata/probe into the image.
func (n *node) probe(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(n.lower, "bin/probe"), probeProgram, 0o755); err != nil {
		t.Fatal(err)
	}
}

// hostUsers takes the user namespace away from b: what a container's root may do
// then, root of the node may.
func hostUsers(b *container.Bundle) {
	b.Spec.Linux.Namespaces = slices.DeleteFunc(b.Spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.UserNamespace })
	b.Spec.Linux.UIDMappings, b.Spec.Linux.GIDMappings = nil, nil
}

// begin starts b, a program that says "ready" and goes on, and returns its output.
func (n *node) begin(t *testing.T, b container.Bundle) *bufio.Reader {
	t.Helper()
	n.create(t, b)
	s := n.attach(t, b.ID, container.AttachOptions{Stdout: true})
	n.start(t, b.ID)
	out := bufio.NewReader(s.Stdout)
	if line, err := out.ReadString('\n'); line != "ready\n" {
		t.Fatalf("the container said %q, %v", line, err)
	}
	return out
}

// halt kills a container and returns what else it said.
func (n *node) halt(t *testing.T, id string, out *bufio.Reader) string {
	t.Helper()
	if err := n.Kill(testContext(t), id, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	rest, err := io.ReadAll(out)
	if err != nil {
		t.Error(err)
	}
	if _, err := n.Wait(testContext(t), id); err != nil {
		t.Error(err)
	}
	return string(rest)
}

// TestRaceForTargets builds containers while another one exchanges, as fast as it
// can, directories below which they mount and make things for links that lead to
// the node, and takes directories out of the part of the volume that they see
// (CVE-2021-30465, CVE-2023-27561, CVE-2024-45310, CVE-2025-52881, CVE-2026-41579).
// Some are refused; nothing appears outside, and nothing is mounted on the node.
func TestRaceForTargets(t *testing.T) {
	n := newNode(t)
	n.probe(t)
	victim, volume := filepath.Join(n.dir, "victim"), filepath.Join(n.dir, "volume")
	for _, dir := range []string{victim, volume + "/in/abs", volume + "/in/rel/x", volume + "/in/magic", volume + "/in/out/deep/er", volume + "/away"} {
		if err := os.MkdirAll(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{
		"in/abs2": victim, "in/rel2": strings.Repeat("../", 12) + victim, "in/magic2": "/proc/1/root" + victim,
		"in/up": "out/deep/er/../../../../../../../../../../.." + victim,
	} {
		if err := os.Symlink(to, filepath.Join(volume, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(volume, "in"), 0o777); err != nil {
		t.Fatal(err)
	}
	flip := n.bundle(t, "probe", "flip", "/v/in/abs", "/v/in/abs2", "/v/in/rel", "/v/in/rel2", "/v/in/magic", "/v/in/magic2", "/v/in/out", "/v/away")
	flip.Spec.Mounts = append(flip.Spec.Mounts, specs.Mount{Destination: "/v", Type: "bind", Source: volume, Options: []string{"rbind", "idmap"}})
	out := n.begin(t, flip)
	before := n.mounts(t)
	created, refused := 0, map[string]int{}
	for i := range 120 {
		b := n.bundle(t, "true")
		if i%2 == 1 {
			hostUsers(&b)
		}
		bind := func(dest, source string) {
			b.Spec.Mounts = append(b.Spec.Mounts, specs.Mount{Destination: dest, Type: "bind", Source: source, Options: []string{"rbind", "idmap"}})
		}
		bind("/v", filepath.Join(volume, "in"))
		bind("/v/abs/mount", n.lower)
		bind("/v/up/made", n.lower)
		b.Spec.Mounts = append(b.Spec.Mounts, specs.Mount{Destination: "/v/rel/x/y/z", Type: "tmpfs"}, specs.Mount{Destination: "/v/magic/t", Type: "tmpfs"})
		b.Spec.Linux.MaskedPaths = append(b.Spec.Linux.MaskedPaths, "/v/abs", "/v/rel/x", "/v/up")
		b.Spec.Linux.ReadonlyPaths = append(b.Spec.Linux.ReadonlyPaths, "/v/rel", "/v/magic")
		b.Spec.Process.Cwd = "/v/rel/cwd/in"
		// Each kind of thing on its own, too: one that is refused hides the others.
		if i%3 > 0 {
			b.Spec.Mounts = slices.DeleteFunc(b.Spec.Mounts, func(m specs.Mount) bool {
				return strings.HasPrefix(m.Destination, "/v/") && !strings.HasPrefix(m.Destination, []string{"", "/v/abs", "/v/up"}[i%3])
			})
			b.Spec.Process.Cwd = "/"
		}
		if err := n.Create(testContext(t), b); err != nil {
			why := err.Error()
			refused[why[strings.LastIndexByte(why, ':')+1:]]++
			continue
		}
		created++
		n.start(t, b.ID)
		if _, err := n.Wait(testContext(t), b.ID); err != nil {
			t.Fatal(err)
		}
		if err := n.Delete(testContext(t), b.ID); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d created, refused: %v", created, refused)
	if created == 0 {
		t.Error("no container was ever created")
	}
	if rest := n.halt(t, flip.ID, out); rest != "" {
		t.Errorf("the other container said %q", rest)
	}
	if entries, err := os.ReadDir(victim); err != nil || len(entries) > 0 {
		t.Errorf("the node's directory has %v, %v; want it empty", entries, err)
	}
	if after := n.mounts(t); after != before {
		t.Errorf("mounts of the node changed from\n%s\nto\n%s", before, after)
	}
}

// mounts returns the mounts of the machine, without those that others who test here have
// just now.
func (n *node) mounts(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); strings.Contains(line, n.dir) || !strings.HasPrefix(f[4], "/tmp/") && !strings.HasPrefix(f[4], "/dev/shm/") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// TestRaceForProcess has a container look into everything that the runtime puts
// beside it: processes of exec before they have executed their command, whose memory is
// the shim's (CVE-2016-9962, CVE-2019-5736, CVE-2024-21626). It may trace
// who is its own; it never gets hold of the shim's memory, environment, program or
// descriptors.
func TestRaceForProcess(t *testing.T) {
	n := newNode(t)
	n.probe(t)
	for _, users := range []string{"own", "host"} {
		t.Run(users, func(t *testing.T) {
			b := n.bundle(t, "probe", "hunt")
			if users == "host" {
				hostUsers(&b)
			}
			out := n.begin(t, b)
			for range 60 {
				e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *processWith(b, "true"), AttachOptions: container.AttachOptions{Stdout: true}})
				if err != nil {
					t.Error(err)
					continue
				}
				if _, err := e.Wait(testContext(t)); err != nil {
					t.Error(err)
				}
				_ = e.Close()
			}
			if got := n.halt(t, b.ID, out); got != "" {
				t.Errorf("the container found:\n%s", got)
			}
		})
	}
}

// TestRaceForWorkingDirectory executes processes in a directory that is exchanged
// for links which lead to the node by descriptors and links of /proc
// (CVE-2024-21626).
func TestRaceForWorkingDirectory(t *testing.T) {
	n := newNode(t)
	n.probe(t)
	volume := filepath.Join(n.dir, "volume")
	for _, dir := range []string{"a", "b"} {
		if err := os.MkdirAll(filepath.Join(volume, dir), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"fd": "/proc/self/fd/7", "root": "/proc/1/root"} {
		if err := os.Symlink(to, filepath.Join(volume, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(volume, 0o777); err != nil {
		t.Fatal(err)
	}
	b := n.bundle(t, "probe", "flip", "/v/a", "/v/fd", "/v/b", "/v/root")
	b.Spec.Mounts = append(b.Spec.Mounts, specs.Mount{Destination: "/v", Type: "bind", Source: volume, Options: []string{"rbind", "idmap"}})
	out := n.begin(t, b)
	ran := 0
	for i := range 60 {
		p := processWith(b, "sh", "-c", "stat -c %d:%i .; stat -c %d:%i /v/a/. /v/b/. /v/fd/. /v/root/. 2>/dev/null; readlink /proc/self/cwd")
		p.Cwd = []string{"/v/a", "/v/b"}[i%2]
		e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *p, AttachOptions: container.AttachOptions{Stdout: true}})
		if errors.Is(err, container.ErrStatus) {
			t.Fatal(err)
		}
		if err != nil {
			continue // it was a link then
		}
		got := readAll(t, e.Stdout)
		if _, err := e.Wait(testContext(t)); err != nil {
			t.Error(err)
		}
		_ = e.Close()
		ran++
		if lines := strings.Fields(got); len(lines) == 0 || !strings.HasPrefix(lines[len(lines)-1], "/v/") {
			t.Errorf("a process began in %q", got)
		}
	}
	if ran == 0 {
		t.Error("no process ever ran")
	}
	n.halt(t, b.ID, out)
}

// TestStdioIsOfTheContainer holds that also /dev/null, which stands for streams
// that nobody asked for, is a file of the container's: of the node's, root of a
// container without users of its own could change the mode, for everybody.
func TestStdioIsOfTheContainer(t *testing.T) {
	n := newNode(t)
	var node unix.Stat_t
	if err := unix.Stat("/dev/null", &node); err != nil {
		t.Fatal(err)
	}
	const script = "x=$(for f in /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2 /dev/null; do stat -L -c %d:%i:%t:%T $f; done); echo $x >/tmp/stdio"
	for _, users := range []string{"own", "host"} {
		b := n.bundle(t, "sh", "-c", script+"; echo ready; exec sleep 1000")
		if users == "host" {
			hostUsers(&b)
		}
		n.create(t, b)
		n.start(t, b.ID)
		waitLog(t, b.Log.Path, "ready")
		e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *processWith(b, "sh", "-c", strings.ReplaceAll(script, "stdio", "exec"))})
		if err != nil {
			t.Fatal(err)
		}
		if code, err := e.Wait(testContext(t)); err != nil || code != 0 {
			t.Errorf("exit code %d, %v", code, err)
		}
		for name, streams := range map[string][]int{"exec": {0, 1, 2}, "stdio": {0}} {
			got, err := os.ReadFile(filepath.Join(b.Rootfs.Upper, "tmp", name))
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Fields(string(got))
			if len(lines) != 4 || !strings.HasSuffix(lines[3], ":1:3") {
				t.Fatalf("%s users, %s: %q", users, name, lines)
			}
			for _, fd := range streams {
				if lines[fd] != lines[3] {
					t.Errorf("%s users, %s: descriptor %d is %s, /dev/null of the container is %s", users, name, fd, lines[fd], lines[3])
				}
			}
		}
	}
}

// TestRaceInSharedNamespaces makes containers in the namespaces of one that looks
// into all that comes: their first processes are copies of their shims until they
// execute their programs.
func TestRaceInSharedNamespaces(t *testing.T) {
	n := newNode(t)
	n.probe(t)
	for _, users := range []string{"own", "host"} {
		t.Run(users, func(t *testing.T) {
			var root unix.Stat_t
			if err := unix.Stat("/", &root); err != nil {
				t.Fatal(err)
			}
			hunter := n.bundle(t, "probe", "hunt", fmt.Sprint(root.Dev))
			types := []specs.LinuxNamespaceType{specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.NetworkNamespace, specs.CgroupNamespace}
			if users == "host" {
				hostUsers(&hunter)
			} else {
				types = append(types, specs.UserNamespace)
			}
			out := n.begin(t, hunter)
			state, err := n.State(testContext(t), hunter.ID)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 25 {
				b := n.bundle(t, "true")
				if users == "host" {
					hostUsers(&b)
				}
				share(b, state.Pid, types...)
				b.Spec.Hostname = ""
				if b.Spec.Process.Terminal = i%2 == 1; b.Spec.Process.Terminal {
					b.Terminal = &container.TerminalSize{Rows: 24, Columns: 80}
				}
				n.create(t, b)
				n.start(t, b.ID)
				if _, err := n.Wait(testContext(t), b.ID); err != nil {
					t.Fatal(err)
				}
				if err := n.Delete(testContext(t), b.ID); err != nil {
					t.Fatal(err)
				}
			}
			if got := n.halt(t, hunter.ID, out); got != "" {
				t.Errorf("the container found:\n%s", got)
			}
		})
	}
}

// TestTerminalOfHostileImage gives terminals to containers whose image, and whose
// processes, put other things in the place of what belongs to terminals
// (CVE-2016-9962, CVE-2025-52565). They get a terminal of their own devpts, or none.
func TestTerminalOfHostileImage(t *testing.T) {
	n := newNode(t)
	victim := filepath.Join(n.dir, "victim")
	if err := errors.Join(os.Mkdir(victim, 0o777), os.WriteFile(filepath.Join(victim, "file"), nil, 0o666), os.MkdirAll(filepath.Join(n.lower, "dev"), 0o755)); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"console": victim + "/file", "ptmx": victim + "/file", "pts": victim, "tty": "/proc/self/fd/9", "null": victim + "/file"} {
		if err := os.Symlink(to, filepath.Join(n.lower, "dev", name)); err != nil {
			t.Fatal(err)
		}
	}
	// 88 is the major number of terminals of a devpts, in hex.
	const look = "stat -L -c %t /proc/self/fd/0 /dev/console /dev/pts/0; echo x >/dev/tty"
	for _, users := range []string{"own", "host"} {
		b := n.withTerminal(t, users, look+"; rm -rf /dev/ptmx /dev/console /dev/tty; ln -s /etc /dev/ptmx; ln -s /etc /dev/console; ln -s /bin/busybox /dev/tty; echo done; while :; do sleep 1; done")
		n.create(t, b)
		n.start(t, b.ID)
		waitLog(t, b.Log.Path, "done\r")
		if got, _ := readLog(t, b.Log.Path); !strings.HasPrefix(strings.ReplaceAll(got, "\r", ""), "88\n88\n88\nx\n") {
			t.Errorf("%s users: the terminal is %q", users, got)
		}
		p := *processWith(b, "sh", "-c", "stat -L -c %t /proc/self/fd/0 /proc/self/fd/1; tty")
		p.Terminal = true
		e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: p, Terminal: &container.TerminalSize{}, AttachOptions: container.AttachOptions{Stdout: true}})
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.ReplaceAll(readAll(t, e.Stdout), "\r", ""); got != "88\n88\n/dev/pts/1\n" {
			t.Errorf("%s users: the terminal of exec is %q", users, got)
		}
		if _, err := e.Wait(testContext(t)); err != nil {
			t.Error(err)
		}
		_ = e.Close()
		if err := n.Kill(testContext(t), b.ID, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		if _, err := n.Wait(testContext(t), b.ID); err != nil {
			t.Error(err)
		}
	}
	if entries, err := os.ReadDir(victim); err != nil || len(entries) != 1 {
		t.Errorf("the node's directory has %v, %v", entries, err)
	}
	if info, err := os.Stat(filepath.Join(victim, "file")); err != nil || info.Size() != 0 || info.Mode().Perm() != 0o644 && info.Mode().Perm() != 0o666 {
		t.Errorf("the node's file is %+v, %v", info, err)
	}
}
