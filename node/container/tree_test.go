package container_test

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"berth.internal/node/container"
)

// mountedTree makes a directory to be bound, a shared mount with all kinds of mounts
// below it, of which some cannot have other ids.
func (n *node) mountedTree(t *testing.T) (src string) {
	t.Helper()
	src = filepath.Join(n.dir, "tree")
	upper := filepath.Join(n.dir, "over")
	mount := func(source, at, kind string, flags uintptr, data string) {
		t.Helper()
		at = filepath.Join(src, at)
		if _, err := os.Lstat(at); errors.Is(err, fs.ErrNotExist) {
			if err := os.MkdirAll(at, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.Mount(source, at, kind, flags, data); err != nil {
			t.Fatalf("mount %s on %s: %v", kind, at, err)
		}
	}
	file := func(name string, owner int) {
		t.Helper()
		name = filepath.Join(src, name)
		if err := errors.Join(os.WriteFile(name, nil, 0o644), os.Chown(name, owner, owner)); err != nil {
			t.Fatal(err)
		}
	}
	mount("tmpfs", "", "tmpfs", 0, "mode=755")
	t.Cleanup(func() {
		if err := unix.Unmount(src, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	mount("", "", "", unix.MS_SHARED, "")
	file("file", 5)
	// An overlay has no mapped ids, and can be written to.
	for _, dir := range []string{"lower", "upper", "work"} {
		if err := os.MkdirAll(filepath.Join(upper, dir), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	mount("overlay", "over", "overlay", 0, "lowerdir="+upper+"/lower,upperdir="+upper+"/upper,workdir="+upper+"/work")
	if err := os.Chmod(filepath.Join(src, "over"), 0o777); err != nil {
		t.Fatal(err)
	}
	file("over/file", 5)
	mount("tmpfs", "over/deep", "tmpfs", 0, "mode=755")
	file("over/deep/file", 6)
	mount("proc", "proc", "proc", 0, "")
	mount("tmpfs", `with space\`, "tmpfs", 0, "mode=755")
	file(`with space\/file`, 7)
	mount("tmpfs", "twice", "tmpfs", 0, "")
	file("twice/first", 0)
	mount("tmpfs", "twice", "tmpfs", 0, "mode=755")
	file("twice/second", 8)
	mount("tmpfs", "covered/below", "tmpfs", 0, "")
	file("covered/below/hidden", 0)
	mount("tmpfs", "covered", "tmpfs", 0, "mode=755")
	file("covered/file", 9)
	mount("tmpfs", "unbindable", "tmpfs", 0, "")
	mount("", "unbindable", "", unix.MS_UNBINDABLE, "")
	file("unbindable/file", 0)
	mount("tmpfs", "unbindable/below", "tmpfs", 0, "")
	file("version", 0)
	mount("/proc/version", "version", "", unix.MS_BIND, "")
	return src
}

// mountsBelow returns the places of the node's mounts from dir on.
func mountsBelow(t *testing.T, dir string) (list []string) {
	t.Helper()
	for line := range strings.Lines(readFile(t, "/proc/self/mountinfo")) {
		if at := strings.Fields(line)[4]; strings.HasPrefix(at, dir) {
			list = append(list, at)
		}
	}
	return list
}

// TestBindOfATree binds a directory below which there are mounts that cannot have other
// ids: they are there all the same, and belong to nobody.
func TestBindOfATree(t *testing.T) {
	n := newNode(t)
	src := n.mountedTree(t)
	before := mountsBelow(t, src)
	const owners = `cd /x; stat -c '%n %u:%g' . file over/file over/deep/file "with space\\/file" twice/* covered/* proc/self/../version version unbindable | sed s,proc/self/..,proc,; ls unbindable; grep -c Linux version; cat proc/1/comm >/dev/null && echo proc`
	const want = `. 0:0
file 5:5
over/file 65534:65534
over/deep/file 6:6
with space\/file 7:7
twice/second 8:8
covered/file 9:9
proc/version 65534:65534
version 65534:65534
unbindable 0:0
1
proc
`
	if err := os.Symlink("busybox", filepath.Join(n.lower, "bin/sed")); err != nil {
		t.Fatal(err)
	}
	const write = "for d in . over over/deep twice; do touch /x/$d/$(hostname) 2>/dev/null && echo $d; done; true"
	for _, tc := range []struct{ name, script, options, want string }{
		{"owners", owners, "rbind ridmap", want},
		{"owners in slaves", owners, "rbind ridmap rslave", want},
		{"writable", write, "rbind ridmap", ".\nover\nover/deep\ntwice\n"},
		{"the top is read-only", write, "rbind ridmap ro", "over\nover/deep\ntwice\n"},
		{"all are read-only", write, "rbind ridmap rro", ""},
		{"options", "grep ' /x' /proc/self/mountinfo | cut -d' ' -f5- | grep -c nodev,noexec", "rbind ridmap rnoexec rnodev", "8\n"},
		{"nothing is shared", "grep ' /x' /proc/self/mountinfo | grep -c 'shared:\\|master:'; true", "rbind ridmap", "0\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, warnings := runAsked(t, n, tc.script, add("/x", "bind", src, strings.Fields(tc.options)...))
			if got != tc.want || len(warnings) > 0 {
				t.Errorf("%s\ngot  %q, warnings %q\nwant %q", tc.script, got, warnings, tc.want)
			}
		})
	}
	// What shows what the kernel has is bound itself, too.
	for _, source := range []string{"/proc", "/sys", "/proc/version", "/sys/kernel"} {
		got, warnings := runAsked(t, n, "stat -c %u:%g /x", add("/x", "bind", source, "rbind", "ridmap", "rro"))
		if got != "65534:65534\n" || len(warnings) > 0 {
			t.Errorf("%s belongs to %q, warnings %q", source, got, warnings)
		}
	}
	if after := mountsBelow(t, src); !slices.Equal(before, after) {
		t.Errorf("mounts on the node:\n%q\nbefore:\n%q", after, before)
	}
}

// TestBindsThatMustBeMapped are those whose mounts must all have other ids.
func TestBindsThatMustBeMapped(t *testing.T) {
	n := newNode(t)
	src := n.mountedTree(t)
	for _, tc := range []struct {
		name, source, options string
		own                   bool // with mappings of its own
	}{
		{"the top one", filepath.Join(src, "over"), "rbind ridmap", false},
		{"alone", filepath.Join(src, "proc"), "bind ridmap", false},
		{"a file", filepath.Join(src, "over/file"), "rbind ridmap", false},
		{"shared", src, "rbind ridmap rshared", false},
		{"mappings of its own", src, "rbind ridmap", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := n.bundle(t, "true")
			add("/x", "bind", tc.source, strings.Fields(tc.options)...)(b.Spec)
			if m := &b.Spec.Mounts[len(b.Spec.Mounts)-1]; tc.own {
				m.UIDMappings, m.GIDMappings = b.Spec.Linux.UIDMappings, b.Spec.Linux.GIDMappings
			}
			err := n.Create(testContext(t), b)
			if want := "map user ids of " + tc.source; err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "must support idmapped mounts") {
				t.Errorf("Create = %v, want an error with %q", err, want)
			}
		})
	}
}

// TestTreeOfRunc binds the same with runc. Of crun 1.8.1 a container with users of its
// own has nothing that is mounted below a bind, whatever it is.
func TestTreeOfRunc(t *testing.T) {
	n := newNode(t)
	src := n.mountedTree(t)
	b := n.bundle(t, "sh", "-c", "cd /x; stat -c %u file over/file over/deep/file twice/second; touch over/a")
	b.Engine = engines(t)["runc"]
	add("/x", "bind", src, "rbind", "rprivate", "ridmap")(b.Spec)
	if stdout, stderr, s := n.run(t, b); stdout != "5\n65534\n6\n8\n" || stderr != "" || s.ExitCode != 0 {
		t.Errorf("it says %q, %q and ends with %d", stdout, stderr, s.ExitCode)
	}
}

// TestTreeOfSlaves mounts something on the node while a container runs that begins
// again and again: each time it has what is mounted then, and as a slave also what comes
// later.
func TestTreeOfSlaves(t *testing.T) {
	n := newNode(t)
	src := n.mountedTree(t)
	mount := func(dir string) {
		t.Helper()
		at := filepath.Join(src, dir)
		if err := errors.Join(os.MkdirAll(at, 0o755), unix.Mount("tmpfs", at, "tmpfs", 0, "mode=755"), os.Mkdir(filepath.Join(at, "late"), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	b := n.bundle(t, "sh", "-c", "ls -d /x/?/late | wc -l; until [ -d /x/over/deep/on/late ]; do sleep 0.01; done; echo seen")
	b.Restart = container.Restart{Policy: container.RestartAlways}
	add("/x", "bind", src, "rbind", "rslave", "ridmap")(b.Spec)
	mount("a")
	ctx := testContext(t)
	n.create(t, b)
	streams := n.attach(t, b.ID, container.AttachOptions{Stdout: true})
	n.start(t, b.ID)
	if line, err := bufio.NewReader(streams.Stdout).ReadString('\n'); err != nil || line != "1\n" {
		t.Fatalf("it says %q, %v, want one mount", line, err)
	}
	mount("b")
	mount("over/deep/on")
	if _, err := n.WaitRun(ctx, b.ID, 2); err != nil {
		t.Fatal(err)
	}
	if err := n.SetRestart(ctx, b.ID, container.Restart{}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Wait(ctx, b.ID); err != nil {
		t.Fatal(err)
	}
	if stdout, stderr := readLog(t, b.Log.Path); !strings.HasPrefix(stdout, "1\nseen\n2\nseen\n") || stderr != "" {
		t.Errorf("it said %q and %q", stdout, stderr)
	}
}

// TestTreeThatChanges makes containers while mounts below a bind come and go.
func TestTreeThatChanges(t *testing.T) {
	n := newNode(t)
	src := n.mountedTree(t)
	at := filepath.Join(src, "covered", "here")
	if err := os.MkdirAll(filepath.Join(at, "bare"), 0o755); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var changes sync.WaitGroup
	changes.Go(func() {
		for {
			for _, name := range []string{"one", "two"} {
				if err := errors.Join(unix.Mount("tmpfs", at, "tmpfs", 0, ""), os.Mkdir(filepath.Join(at, name), 0o755)); err != nil {
					t.Error(err)
				}
			}
			if err := errors.Join(unix.Unmount(at, unix.MNT_DETACH), unix.Unmount(at, unix.MNT_DETACH)); err != nil {
				t.Error(err)
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	defer changes.Wait()
	defer close(stop)
	for range 20 {
		got, _ := runAsked(t, n, "stat -c %u /x/file /x/over/file /x/twice/second; ls /x/covered/here | wc -l", add("/x", "bind", src, "rbind", "ridmap"))
		if !strings.HasPrefix(got, "5\n65534\n8\n") {
			t.Errorf("while mounts change: %q", got)
		}
	}
}
