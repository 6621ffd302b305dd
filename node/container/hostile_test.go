package container_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container"
)

// TestHostileImage gives images whose directories lead elsewhere. Either the
// container is refused, or what is mounted and made ends up in it; the node is
// not touched (CVE-2019-19921, CVE-2021-30465, CVE-2023-28642, CVE-2024-21626).
func TestHostileImage(t *testing.T) {
	for _, tc := range []struct {
		name    string
		link    string // in the image …
		to      string // … to here, or to a directory of the node
		dest    string // of a bind
		cwd     string
		refused string
	}{
		{"proc", "proc", "victim", "", "", "/proc (which must not be a symbolic link)"},
		{"sys", "sys", "victim", "", "", "/sys (which must not be a symbolic link)"},
		{"dev", "dev", "victim", "", "", "/dev (which must not be a symbolic link)"},
		{"relative", "sys", "../../../../../victim", "", "", "/sys (which must not be a symbolic link)"},
		{"target of a bind", "data", "victim", "/data", "", "no such file"},
		{"below the target of a bind", "data", "victim", "/data/deep/er", "", ""},
		{"link to the node's root by proc", "data", "/proc/1/root/victim", "/data/x", "", ""},
		{"link by a descriptor", "data", "/proc/self/fd/3", "/data", "", ""},
		{"working directory", "cwd", "victim", "", "/cwd", ""},
		{"below the working directory", "job", "victim", "", "/job/deep/er", ""},
		{"loop", "data", "data", "/data", "", "too many levels"},
		{"file that the node gives", "etc/hosts", "victim/hosts", "/etc/hosts", "", "no such file"},
		{"directory of files that the node gives", "etc", "victim", "/etc/hosts", "", ""},
		{"terminals", "dev/pts", "victim", "", "", ""},
		{"console", "dev/console", "victim/console", "", "", ""},
		{"shared memory", "dev/shm", "victim", "", "", ""},
		{"cgroups", "sys/fs", "victim", "", "", ""},
		{"target in /proc", "data", "/proc/sys", "/data", "", ""},
		{"target in /proc of a process", "data", "/proc/self/attr", "/data", "", ""},
		{"target is /proc itself", "data", "/proc", "/data", "", ""},
		{"target is the root", "data", "/", "/data", "", ""},
		{"descriptor as the working directory", "cwd", "/proc/self/fd/8", "", "/cwd", "too many levels"},
		{"descriptor of the runtime as the working directory", "cwd", "/proc/1/fd/8", "", "/cwd/x", "too many levels"},
	} {
		for _, dev := range []string{"", ", and the image's own /dev"} {
			t.Run(tc.name+dev, func(t *testing.T) {
				n := newNode(t)
				victim := filepath.Join(n.dir, "victim")
				if err := os.Mkdir(victim, 0o777); err != nil {
					t.Fatal(err)
				}
				link := filepath.Join(n.lower, tc.link)
				_ = os.RemoveAll(link)
				if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(strings.ReplaceAll(tc.to, "victim", victim), link); err != nil {
					t.Fatal(err)
				}
				b := n.bundle(t, "sh", "-c", "echo ran; touch ./made")
				if tc.dest != "" {
					b.Spec.Mounts = append(b.Spec.Mounts, specs.Mount{Destination: tc.dest, Type: "bind", Source: n.lower, Options: []string{"bind"}})
					if strings.HasPrefix(tc.dest, "/etc/") {
						b.Spec.Mounts[len(b.Spec.Mounts)-1].Source = "/etc/hosts"
					}
				}
				if tc.cwd != "" {
					b.Spec.Process.Cwd = tc.cwd
				}
				if dev != "" {
					b.Spec.Mounts = slices.DeleteFunc(b.Spec.Mounts, func(m specs.Mount) bool { return strings.HasPrefix(m.Destination, "/dev") })
				}
				err := n.Create(testContext(t), b)
				if err == nil {
					n.start(t, b.ID)
					if _, err := n.Wait(testContext(t), b.ID); err != nil {
						t.Fatal(err)
					}
				} else if tc.refused == "" || !strings.Contains(err.Error(), tc.refused) {
					t.Logf("refused: %v", err)
				}
				if err == nil && tc.refused != "" && dev == "" {
					t.Errorf("it was created, want an error with %q", tc.refused)
				}
				if entries, err := os.ReadDir(victim); err != nil || len(entries) > 0 {
					t.Errorf("the node's directory has %v, %v; want it empty", entries, err)
				}
			})
		}
	}
}

// TestProgramCannotBeChanged tries CVE-2019-5736: a container that executes
// /proc/self/exe gets the shim's program, and a descriptor of it.
func TestProgramCannotBeChanged(t *testing.T) {
	n := newNode(t)
	// The program is a script whose interpreter is the one that executes it.
	if err := os.WriteFile(filepath.Join(n.lower, "bin/evil"), []byte("#!/proc/self/exe\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	prog := filepath.Join(n.dir, "berth-init")
	if err := os.WriteFile(prog, initProgram, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, users := range []string{"own", "host"} {
		b := n.bundle(t, "sh", "-c", `
			while :; do
				for p in /proc/[0-9]*; do
					[ $p = /proc/1 ] || [ $p = /proc/$$ ] && continue
					(exec 3<$p/exe) 2>/dev/null && case $(readlink $p/exe) in *memfd*) echo opened $p >>/tmp/opened; echo evil 2>/dev/null >$p/exe && echo written >>/tmp/written;; esac
				done
			done`)
		if users == "host" {
			b.Spec.Linux.Namespaces = b.Spec.Linux.Namespaces[1:]
			b.Spec.Linux.UIDMappings, b.Spec.Linux.GIDMappings = nil, nil
		}
		n.create(t, b)
		n.start(t, b.ID)
		for range 30 {
			e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *processWith(b, "/bin/evil")})
			if err != nil {
				continue // its own environment may be too strange for it to start
			}
			if _, err := e.Wait(testContext(t)); err != nil {
				t.Error(err)
			}
		}
		if err := n.Kill(testContext(t), b.ID, 9); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Wait(testContext(t), b.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(b.Rootfs.Upper, "tmp/written")); err == nil {
			t.Errorf("with %s users: the program of the shim was written to", users)
		}
	}
	// It still is what it was: another container starts from it.
	if got := n.sh(t, "echo intact"); got != "intact\n" {
		t.Errorf("afterwards: %q", got)
	}
}

// TestShimIsInvisible looks for ways from a container to its shim.
func TestShimIsInvisible(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done")
	n.create(t, b)
	pid := 0
	if s, err := n.State(testContext(t), b.ID); err == nil {
		pid = s.Pid
	}
	// Until it executes its command, the first process is a copy of the shim.
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		t.Fatalf("%s: %v", status, err)
	}
	self, err := os.Stat(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	if self.Mode().Perm() != 0o500 {
		t.Errorf("%s: descriptors of the waiting process have mode %v", info.Name(), self.Mode())
	}
	n.start(t, b.ID)
	e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *processWith(b, "sh", "-c", "for p in /proc/[0-9]*; do readlink $p/exe; done | grep -v busybox; for f in /proc/[0-9]*/fd/*; do readlink $f; done | grep 'memfd\\|socket\\|bundle\\|shim'"), AttachOptions: container.AttachOptions{Stdout: true}})
	if err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, e.Stdout); got != "" {
		t.Errorf("a container sees %q of its shim", got)
	}
	if _, err := e.Wait(testContext(t)); err != nil {
		t.Error(err)
	}
}
