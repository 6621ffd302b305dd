package container_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container"
)

// withoutMount takes a mount away.
func withoutMount(s *specs.Spec, dests ...string) {
	s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool { return slices.Contains(dests, m.Destination) })
}

// mountSources makes a directory to be bound, and in the image one to be covered.
func (n *node) mountSources(t *testing.T) (src string) {
	t.Helper()
	src = filepath.Join(n.dir, "src")
	for _, dir := range []string{src, filepath.Join(src, "sub"), filepath.Join(n.lower, "full/deep")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]os.FileMode{"full/file": 0o640, "full/deep/file": 0o600} {
		if err := os.WriteFile(filepath.Join(n.lower, name), []byte(name+"\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(n.lower, "full"), 0o751); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/full", filepath.Join(n.lower, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(src, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(src, "file"), 5, 6); err != nil {
		t.Fatal(err)
	}
	return src
}

// add returns what adds a mount.
func add(dest, kind, source string, options ...string) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: dest, Type: kind, Source: source, Options: options})
	}
}

// TestMounts looks from inside at all kinds of mounts.
func TestMounts(t *testing.T) {
	n := newNode(t)
	src := n.mountSources(t)
	const mode = "grep ' /x ' /proc/self/mountinfo | cut -d' ' -f6"
	for _, tc := range []struct {
		name, script, want string
		set                func(*specs.Spec)
	}{
		{"mode of what is below", "stat -c %a /full; ls /full | wc -l", "751\n0\n", add("/full", "tmpfs", "tmpfs")},
		{"mode of its own", "stat -c %a /full", "700\n", add("/full", "tmpfs", "tmpfs", "mode=700")},
		{"read-only, with something in it", "touch /ro/x 2>/dev/null || echo no; touch /ro/in/x && echo yes", "no\nyes\n", func(s *specs.Spec) {
			add("/ro", "tmpfs", "tmpfs", "ro")(s)
			add("/ro/in", "tmpfs", "tmpfs")(s)
		}},
		{"read-only /dev", "touch /dev/x 2>/dev/null || echo no; touch /dev/shm/x && echo x >/dev/null && echo yes", "no\nyes\n", func(s *specs.Spec) {
			for i := range s.Mounts {
				if s.Mounts[i].Destination == "/dev" {
					s.Mounts[i].Options = append(s.Mounts[i].Options, "ro")
				}
			}
		}},
		{"a relative destination", "ls /rel/ative", "file\nsub\n", add("rel/ative", "bind", src, "bind", "ridmap")},
		{"over a link", "ls /full", "file\nsub\n", add("/link", "bind", src, "bind", "ridmap")},
		{"a file over a link", "stat -c %u:%g /etc/conf", "5:6\n", func(s *specs.Spec) { add("/etc/conf", "bind", filepath.Join(src, "file"), "bind", "idmap")(s) }},
		{"options", mode, "rw,nosuid,nodev,noexec,noatime\n", add("/x", "bind", src, "bind", "nosuid", "nodev", "noexec", "noatime", "rprivate")},
		{"strict times", mode, "rw\n", add("/x", "bind", src, "bind", "strictatime")},
		{"no following", "cd /x; ln -s file a 2>/dev/null; cat a 2>/dev/null || echo no", "no\n", add("/x", "bind", src, "bind", "ridmap", "nosymfollow")},
		{"all read-only", mode, "ro,relatime\n", add("/x", "bind", src, "rbind", "rro")},
		{"shared", "grep ' /x ' /proc/self/mountinfo | cut -d' ' -f6,7 | tr -d 0-9", "rw,relatime shared:\n", add("/x", "bind", src, "bind", "rshared")},
		{"unbindable", "grep ' /x ' /proc/self/mountinfo | grep -c unbindable", "1\n", add("/x", "bind", src, "bind", "unbindable")},
		{"root is shared", "grep ' / / ' /proc/self/mountinfo | tail -1 | grep -c shared:", "1\n", func(s *specs.Spec) { s.Linux.RootfsPropagation = "shared" }},
		{"all below the root is shared", "grep -v -c shared: /proc/self/mountinfo; true", "0\n", func(s *specs.Spec) { s.Linux.RootfsPropagation = "rshared"; s.Linux.MaskedPaths = nil }},
		{"root cannot be bound", "grep ' / / ' /proc/self/mountinfo | grep -c unbindable", "1\n", func(s *specs.Spec) { s.Linux.RootfsPropagation = "unbindable" }},
		{"ids of a mount's own", "stat -c %u:%g /x/file /x", "1005:2006\n1000:2000\n", func(s *specs.Spec) {
			first := s.Linux.UIDMappings[0].HostID
			add("/x", "bind", src, "bind")(s)
			m := &s.Mounts[len(s.Mounts)-1]
			m.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: first + 1000, Size: 10}}
			m.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: first + 2000, Size: 10}}
		}},
		{"ids of two mounts, with the node's users", "stat -c %u /a/file /b/file", "105\n205\n", func(s *specs.Spec) {
			hostUsers(&container.Bundle{Spec: s})
			for i, dest := range []string{"/a", "/b"} {
				add(dest, "bind", src, "bind", "idmap")(s)
				m := &s.Mounts[len(s.Mounts)-1]
				m.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: uint32(100 * (i + 1)), Size: 10}}
				m.GIDMappings = m.UIDMappings
			}
		}},
		{"without /dev", "cat /dev/null; head -c 2 /dev/zero | wc -c; echo x >/dev/stdout; ls -l /dev | grep -c '^c'; cat /proc/interrupts /proc/keys | wc -c", "2\nx\n6\n0\n", func(s *specs.Spec) {
			withoutMount(s, "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue")
		}},
		{"without /dev, with devices of its own", "head -c 2 /dev/sub/zero | wc -c; stat -c %a:%u /dev/sub/zero", "2\n600:7\n", func(s *specs.Spec) {
			withoutMount(s, "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue")
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/sub/zero", Type: "c", Major: 1, Minor: 5, FileMode: new(os.FileMode(0o600)), UID: new(uint32(7))}}
		}},
		{"the node's /dev", "cat /dev/null; ls /dev/kmsg; cat /proc/interrupts /proc/keys | wc -c; ls /dev/pts | wc -l", "/dev/kmsg\n0\n1\n", func(s *specs.Spec) {
			hostUsers(&container.Bundle{Spec: s})
			withoutMount(s, "/dev", "/dev/shm", "/dev/mqueue")
			s.Mounts = slices.Insert(s.Mounts, 1, specs.Mount{Destination: "/dev", Type: "bind", Source: "/dev", Options: []string{"bind"}})
		}},
		{"a writable cgroup", "cd /sys/fs/cgroup; [ -d pids ] && cd pids; mkdir sub && rmdir sub && echo yes", "yes\n", func(s *specs.Spec) {
			hostUsers(&container.Bundle{Spec: s})
			for i := range s.Mounts {
				if s.Mounts[i].Type == "cgroup" {
					s.Mounts[i].Options = []string{"rw", "nosuid"}
				}
			}
		}},
		{"one hierarchy", "ls /cg | grep -c cgroup.controllers", "1\n", add("/cg", "cgroup2", "cgroup2")},
		{"privileged", "echo 0 2>/dev/null >/proc/sys/kernel/printk_ratelimit && echo yes; ls /proc/acpi >/dev/null 2>&1; head -c 1 /proc/interrupts | wc -c", "yes\n1\n", func(s *specs.Spec) {
			hostUsers(&container.Bundle{Spec: s})
			s.Linux.MaskedPaths, s.Linux.ReadonlyPaths, s.Linux.Seccomp = nil, nil, nil
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, warnings := runAsked(t, n, tc.script, tc.set)
			if got != tc.want || len(warnings) > 0 {
				t.Errorf("%s\ngot  %q, warnings %q\nwant %q", tc.script, got, warnings, tc.want)
			}
		})
	}
}

// TestRecursiveOptions binds a directory that has a mount in it.
func TestRecursiveOptions(t *testing.T) {
	n := newNode(t)
	src := filepath.Join(n.dir, "src")
	sub := filepath.Join(src, "sub")
	if err := os.MkdirAll(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", sub, "tmpfs", 0, "mode=755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(sub, 0); err != nil {
			t.Error(err)
		}
	})
	const try = "touch /x/a 2>/dev/null && echo top; touch /x/sub/a 2>/dev/null && echo sub; true"
	for _, tc := range []struct {
		options, want string
	}{
		{"bind ridmap", "top\nsub\n"}, // sub is the directory below the mount
		{"rbind ridmap", "top\nsub\n"},
		{"rbind ridmap ro", "sub\n"},
		{"rbind ridmap rro", ""},
		{"rbind idmap", "top\n"}, // files of sub belong to nobody
		{"rbind ridmap rro rw", ""},
	} {
		if got, _ := runAsked(t, n, try, func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: src, Options: strings.Fields(tc.options)})
		}); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.options, got, tc.want)
		}
	}
	if entries, err := os.ReadDir(sub); err != nil || len(entries) != 1 {
		t.Errorf("the mount has %v, %v", entries, err)
	}
}

// TestPropagation mounts something on the node below the source of a bind.
func TestPropagation(t *testing.T) {
	n := newNode(t)
	src := filepath.Join(n.dir, "src")
	if err := os.Mkdir(src, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Mount("tmpfs", src, "tmpfs", 0, ""), unix.Mount("", src, "", unix.MS_SHARED, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(src, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	for _, dir := range []string{"node", "inside"} {
		if err := os.Mkdir(filepath.Join(src, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		option  string
		in, out bool // mounts of the node are seen in the container, and the other way round
	}{
		{"rprivate", false, false}, {"rslave", true, false}, {"rshared", true, true}, {"shared", true, true}, {"slave", true, false}, {"", false, false},
	} {
		b := n.bundle(t, "sleep", "1000")
		hostUsers(&b)
		b.Spec.Linux.Seccomp = nil
		caps := append(container.DefaultCapabilities(), "CAP_SYS_ADMIN")
		b.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
		options := []string{"rbind"}
		if tc.option != "" {
			options = append(options, tc.option)
		}
		b.Spec.Mounts = append(b.Spec.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: src, Options: options})
		n.create(t, b)
		n.start(t, b.ID)
		node := filepath.Join(src, "node")
		if err := unix.Mount("tmpfs", node, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *processWith(b, "sh", "-c", "grep -c ' /x/node ' /proc/self/mountinfo; mount -t tmpfs tmpfs /x/inside"), AttachOptions: container.AttachOptions{Stdout: true}})
		if err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, e.Stdout) == "1\n"; got != tc.in {
			t.Errorf("%q: a mount of the node's is seen: %t, want %t", tc.option, got, tc.in)
		}
		if code, err := e.Wait(testContext(t)); err != nil || code != 0 {
			t.Errorf("%q: exec ended with %d, %v", tc.option, code, err)
		}
		_ = e.Close()
		mounts := readFile(t, "/proc/self/mountinfo")
		if got := strings.Contains(mounts, " "+filepath.Join(src, "inside")+" "); got != tc.out {
			t.Errorf("%q: a mount of the container's is seen: %t, want %t", tc.option, got, tc.out)
		} else if got {
			if err := unix.Unmount(filepath.Join(src, "inside"), 0); err != nil {
				t.Error(err)
			}
		}
		if err := unix.Unmount(node, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
		if err := n.Kill(testContext(t), b.ID, 9); err != nil {
			t.Error(err)
		}
		if _, err := n.Wait(testContext(t), b.ID); err != nil {
			t.Error(err)
		}
	}
}

// TestDevicesOfTheNode makes containers on a node that may not make devices.
func TestDevicesOfTheNode(t *testing.T) {
	n := newNode(t)
	n.NoDevices()
	for name, set := range map[string]func(*specs.Spec){
		"/dev": func(*specs.Spec) {}, "no /dev": func(s *specs.Spec) { withoutMount(s, "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue") },
	} {
		got, _ := runAsked(t, n, "head -c 2 /dev/zero | wc -c; cat /dev/null /proc/interrupts | wc -c; echo x >/dev/stdout", set)
		if want := "2\n0\nx\n"; got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// TestCopyUp mounts tmpfs that have what they cover. Kernels that take the layers of
// an overlay by name only cannot do that.
func TestCopyUp(t *testing.T) {
	n := newNode(t)
	n.mountSources(t)
	for _, tc := range []struct {
		name, script, want string
		set                func(*specs.Spec)
	}{
		{"copy of what is below", "cat /full/file /full/deep/file; echo new >/full/deep/file; echo x >/full/x; rm /full/file; ls /full; stat -c %a /full; cat /full/deep/file", "full/file\nfull/deep/file\ndeep\nx\n751\nnew\n", add("/full", "tmpfs", "tmpfs", "tmpcopyup", "nosuid")},
		{"copy is bounded", "head -c 200000 /dev/zero 2>/dev/null >/full/big || echo full; cat /full/file", "full\nfull/file\n", add("/full", "tmpfs", "tmpfs", "tmpcopyup", "size=64k")},
		{"copy of nothing", "ls /new; echo x >/new/x; stat -c %a /new", "1777\n", add("/new", "tmpfs", "tmpfs", "tmpcopyup")},
		{"copy through a link", "cat /full/file; echo x >/link/x; ls /full", "full/file\ndeep\nfile\nx\n", add("/link", "tmpfs", "tmpfs", "tmpcopyup")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if n.FallsBack() {
				b := n.bundle(t, "true")
				tc.set(b.Spec)
				if err := n.Create(testContext(t), b); !errors.Is(err, container.ErrUnsupported) {
					t.Errorf("Create = %v, want ErrUnsupported", err)
				}
				return
			}
			got, warnings := runAsked(t, n, tc.script, tc.set)
			if got != tc.want || len(warnings) > 0 {
				t.Errorf("%s\ngot  %q, warnings %q\nwant %q", tc.script, got, warnings, tc.want)
			}
		})
	}
}
