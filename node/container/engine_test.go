package container_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container"
)

// engines are the runtimes that can make a container, by name.
func engines(t *testing.T) map[string]string {
	t.Helper()
	paths := map[string]string{"berth": ""}
	for _, name := range []string{"runc", "crun"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatalf("the tests need %[1]s (apt-get install %[1]s): %v", name, err)
		}
		paths[name] = path
	}
	return paths
}

// TestEngines runs the same container with each runtime. What it says of itself must
// be the same.
func TestEngines(t *testing.T) {
	const script = `cat; id -u; cat /proc/self/uid_map; hostname; grep Seccomp: /proc/self/status; grep CapEff /proc/self/status
		stat -c %u /bin/sh /file; echo to stderr >&2; touch /written && ls /written; cat /proc/self/cgroup | grep -c .; echo more >/file || echo read-only; exit 7`
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	said := map[string]string{}
	for name, path := range engines(t) {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			b := n.bundle(t, "sh", "-c", script)
			b.ID, b.Engine, b.Stdin, b.StdinOnce = "box", path, true, true
			b.Spec.Hostname = "box"
			b.Spec.Linux.UIDMappings[0].HostID = firstID + 5<<16
			b.Spec.Mounts = append(b.Spec.Mounts, specs.Mount{Type: "bind", Source: file, Destination: "/file", Options: []string{"rbind", "ro", "rprivate", "idmap"}})
			ctx := testContext(t)
			if err := n.Create(ctx, b); err != nil {
				t.Fatal(err)
			}
			streams, err := n.Attach(ctx, b.ID, container.AttachOptions{Stdin: true, Stdout: true, Stderr: true})
			if err != nil {
				t.Fatal(err)
			}
			defer streams.Close()
			if _, err := n.Start(ctx, b.ID); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(streams.Stdin, "from stdin\n"); err != nil {
				t.Fatal(err)
			}
			if err := streams.Stdin.Close(); err != nil {
				t.Fatal(err)
			}
			stdout, err := io.ReadAll(streams.Stdout)
			if err != nil {
				t.Fatal(err)
			}
			stderr, err := io.ReadAll(streams.Stderr)
			if err != nil {
				t.Fatal(err)
			}
			s, err := n.Wait(ctx, b.ID)
			if err != nil || s.ExitCode != 7 || s.Error != "" {
				t.Errorf("it ends as %+v, %v, want code 7", s, err)
			}
			said[name] = string(stdout) + string(stderr)
			if log, _ := readLog(t, b.Log.Path); log != string(stdout) {
				t.Errorf("the log has %q, the streams had %q", log, stdout)
			}
			if err := n.Delete(ctx, b.ID); err != nil {
				t.Error(err)
			}
		})
	}
	for name, text := range said {
		if text != said["berth"] || !strings.Contains(text, "from stdin\n0\n") {
			t.Errorf("a container of %s says %s\nand one of berth %s", name, text, said["berth"])
		}
	}
}

// TestEngineNull: the machine's /dev/null stays whose it is, although crun gives
// standard input to the container's user.
func TestEngineNull(t *testing.T) {
	owner := func() [3]uint32 {
		var st unix.Stat_t
		if err := unix.Stat(os.DevNull, &st); err != nil {
			t.Fatal(err)
		}
		return [3]uint32{st.Uid, st.Gid, st.Mode}
	}
	before := owner()
	for name, path := range engines(t) {
		n := newNode(t)
		b := n.bundle(t, "sh", "-c", "chown 5:5 /proc/self/fd/0; chmod 600 /proc/self/fd/0; cat; sleep 1000")
		b.Engine = path
		n.create(t, b)
		n.start(t, b.ID)
		e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *processWith(b, "sh", "-c", "chmod 600 /proc/self/fd/0 /proc/self/fd/2; echo >&2")})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Wait(testContext(t)); err != nil {
			t.Error(err)
		}
		if err := e.Streams.Close(); err != nil {
			t.Error(err)
		}
		if after := owner(); after != before {
			t.Errorf("%s: /dev/null belongs to %v, before to %v", name, after, before)
		}
	}
}

// TestEngineExec runs further processes with each runtime, and ends with signals.
func TestEngineExec(t *testing.T) {
	for name, path := range engines(t) {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			ctx := testContext(t)
			b := n.bundle(t, "sh", "-c", "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done")
			b.Engine = path
			b.Restart = container.Restart{Policy: container.RestartAlways}
			if err := n.Create(ctx, b); err != nil {
				t.Fatal(err)
			}
			if _, err := n.Start(ctx, b.ID); err != nil {
				t.Fatal(err)
			}
			for want, script := range []string{"echo out; echo err >&2; exit 0", "exit 1", "cat >/dev/null; exit 2"} {
				code, out := execIn(ctx, t, n, b, "sh", "-c", script)
				if code != want || want == 0 && out != "out\nerr\n" {
					t.Errorf("exec of %q: code %d, output %q", script, code, out)
				}
			}
			if code, _ := execIn(ctx, t, n, b, "sh", "-c", "kill -9 $$"); code != 137 {
				t.Errorf("exec that is killed: code %d", code)
			}
			proc := *b.Spec.Process
			proc.Args = []string{"nothing"}
			if _, err := n.Exec(ctx, b.ID, container.ExecSpec{Process: proc}); !errors.Is(err, container.ErrNoCommand) {
				t.Errorf("exec of nothing: %v, want ErrNoCommand", err)
			}
			if err := n.Kill(ctx, b.ID, 15); err != nil {
				t.Fatal(err)
			}
			s, err := n.WaitRun(ctx, b.ID, 1)
			if err != nil || s.Last == nil || s.Last.ExitCode != 9 {
				t.Fatalf("after TERM it is %+v, %v", s, err)
			}
			if s, err = n.WaitRun(ctx, b.ID, 0); err != nil {
				t.Fatal(err)
			}
			for s.Status != container.StatusRunning {
				if s, err = n.State(ctx, b.ID); err != nil {
					t.Fatal(err)
				}
			}
			if s.Run != 2 || s.Last.ExitCode != 9 {
				t.Errorf("it begins again as %+v", s)
			}
			if code, _ := execIn(ctx, t, n, b, "sh", "-c", "exit 3"); code != 3 {
				t.Errorf("exec in the second run: code %d", code)
			}
			if err := n.SetRestart(ctx, b.ID, container.Restart{}); err != nil {
				t.Fatal(err)
			}
			if err := n.Kill(ctx, b.ID, 9); err != nil {
				t.Fatal(err)
			}
			if s, err := n.Wait(ctx, b.ID); err != nil || s.ExitCode != 137 {
				t.Errorf("killed it is %+v, %v", s, err)
			}
		})
	}
}

// TestEngineCgroup: with each runtime a container and what is executed in it are in
// the agent's cgroup, with its limits and rules of devices, in the run after a restart
// as in the first.
func TestEngineCgroup(t *testing.T) {
	// A device that may be written, and not read for want of a rule alone.
	const script = "(: >/dev/kmsg) && echo may write; (: </dev/kmsg) 2>/dev/null || echo may not read"
	const says = "may write\nmay not read\n"
	major, minor := int64(1), int64(11)
	limit := cgroupFile{"memory", "memory.limit_in_bytes", "memory.max"}
	swap := cgroupFile{"memory", "memory.memsw.limit_in_bytes", "memory.swap.max"}
	most := map[bool]string{false: "9223372036854771712", true: "max"}[only2()]
	together := map[bool]string{false: "134217728", true: "33554432"}[only2()]
	for name, path := range engines(t) {
		t.Run(name, func(t *testing.T) {
			n, ctx := newNode(t), testContext(t)
			b := n.bundle(t, "sh", "-c", script+"; exec sleep 1000")
			hostUsers(&b) // in a user namespace nobody may open it
			b.Engine, b.Restart = path, container.Restart{Policy: container.RestartAlways}
			caps := append(container.DefaultCapabilities(), "CAP_SYSLOG")
			b.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
			b.Spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/kmsg", Type: "c", Major: major, Minor: minor}}
			r := b.Spec.Linux.Resources
			r.Devices = append(r.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "w"})
			r.Memory = &specs.LinuxMemory{Limit: new(int64(64 << 20))}
			n.create(t, b)
			n.start(t, b.ID)
			for run, want := range [][2]string{{"67108864", most}, {"100663296", together}} {
				waitLog(t, b.Log.Path, strings.TrimSuffix(strings.Repeat(says, run+1), "\n"))
				if out, _ := readLog(t, b.Log.Path); out != strings.Repeat(says, run+1) {
					t.Errorf("run %d: it says %q", run, out)
				}
				if code, out := execIn(ctx, t, n, b, "sh", "-c", script); code != 0 || out != says {
					t.Errorf("run %d: exec says %q, code %d", run, out, code)
				}
				if got := [2]string{n.readCgroup(t, b.ID, limit), n.readCgroup(t, b.ID, swap)}; got != want {
					t.Errorf("run %d: the limits of memory and swap are %q, want %q", run, got, want)
				}
				if run == 1 {
					break
				}
				more := specs.LinuxMemory{Limit: new(int64(96 << 20)), Swap: new(int64(128 << 20))}
				if err := n.Update(ctx, b.ID, &specs.LinuxResources{Memory: &more}); err != nil {
					t.Fatal(err)
				}
				if err := n.Kill(ctx, b.ID, 9); err != nil {
					t.Fatal(err)
				}
				if _, err := n.WaitRun(ctx, b.ID, run+1); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestEngineTerminal: with each runtime a container and a process of exec have the
// terminal that they ask for.
func TestEngineTerminal(t *testing.T) {
	for name, path := range engines(t) {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			ctx := testContext(t)
			b := n.bundle(t, "sh", "-c", "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo up; busybox stty size; read line; echo got $line; busybox stty size; exit 4")
			b.Engine, b.Stdin = path, true
			b.Terminal, b.Spec.Process.Terminal = &container.TerminalSize{Rows: 20, Columns: 60}, true
			if err := n.Create(ctx, b); err != nil {
				t.Fatal(err)
			}
			streams, err := n.Attach(ctx, b.ID, container.AttachOptions{Stdin: true, Stdout: true})
			if err != nil {
				t.Fatal(err)
			}
			defer streams.Close()
			if _, err := n.Start(ctx, b.ID); err != nil {
				t.Fatal(err)
			}
			var said []byte
			for !bytes.Contains(said, []byte("20 60")) {
				buf := make([]byte, 100)
				m, err := streams.Stdout.Read(buf)
				if err != nil {
					t.Fatalf("after %q: %v", said, err)
				}
				said = append(said, buf[:m]...)
			}
			if err := n.Resize(ctx, b.ID, container.TerminalSize{Rows: 30, Columns: 70}); err != nil {
				t.Fatal(err)
			}
			proc := *b.Spec.Process
			size := "busybox stty size"
			if name == "crun" { // it sets the size while the process may run already
				size = "until s=$(busybox stty size 2>/dev/null); [ -n \"$s\" ]; do sleep 0.01; done; echo $s"
			}
			proc.Args = []string{"sh", "-c", "[ -t 0 ] && [ -t 1 ] && " + size + "; exit 5"}
			e, err := n.Exec(ctx, b.ID, container.ExecSpec{
				Process: proc, Terminal: &container.TerminalSize{Rows: 11, Columns: 12}, AttachOptions: container.AttachOptions{Stdin: true, Stdout: true},
			})
			if err != nil {
				t.Fatal(err)
			}
			out, err := io.ReadAll(e.Stdout)
			if err != nil || string(out) != "11 12\r\n" {
				t.Errorf("exec says %q, %v", out, err)
			}
			if code, err := e.Wait(ctx); err != nil || code != 5 {
				t.Errorf("exec ends with %d, %v", code, err)
			}
			_ = e.Streams.Close()
			if _, err := io.WriteString(streams.Stdin, "hello\n"); err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(streams.Stdout)
			if err != nil {
				t.Fatal(err)
			}
			if said = append(said, rest...); string(said) != "up\r\n20 60\r\nhello\r\ngot hello\r\n30 70\r\n" {
				t.Errorf("it says %q", said)
			}
			if s, err := n.Wait(ctx, b.ID); err != nil || s.ExitCode != 4 {
				t.Errorf("it ends as %+v, %v", s, err)
			}
		})
	}
}

// execIn runs a process to its end and returns its code and output.
func execIn(ctx context.Context, t *testing.T, n *node, b container.Bundle, args ...string) (int, string) {
	t.Helper()
	proc := *b.Spec.Process
	proc.Args = args
	e, err := n.Exec(ctx, b.ID, container.ExecSpec{Process: proc, AttachOptions: container.AttachOptions{Stdout: true, Stderr: true}})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for _, from := range []io.Reader{e.Stdout, e.Stderr} {
		if _, err := io.Copy(&out, from); err != nil {
			t.Fatal(err)
		}
	}
	code, err := e.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_ = e.Streams.Close()
	return code, out.String()
}

// TestEngineFails: what cannot be made leaves nothing behind, and says why.
func TestEngineFails(t *testing.T) {
	for name, path := range engines(t) {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			ctx := testContext(t)
			b := n.bundle(t, "nothing")
			b.Engine = path
			err := n.Create(ctx, b)
			if err == nil {
				_, err = n.Start(ctx, b.ID)
			}
			if !errors.Is(err, container.ErrNoCommand) {
				t.Errorf("a container of nothing: %v, want ErrNoCommand", err)
			}
			if err := n.Delete(ctx, b.ID); err != nil {
				t.Error(err)
			}
		})
		if path == "" {
			continue
		}
		t.Run(name+" refuses", func(t *testing.T) {
			n := newNode(t)
			for what, change := range map[string]func(*container.Bundle){
				"process.ioPriority": func(b *container.Bundle) {
					b.Spec.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_IDLE}
				},
				"a domain name": func(b *container.Bundle) { b.Spec.Domainname = "example.com" },
				"device /dev/x": func(b *container.Bundle) {
					b.Spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "c", Major: 1, Minor: 3}}
				},
				"an init": func(b *container.Bundle) { b.Init = true },
			} {
				b := n.bundle(t, "true")
				b.Engine = path
				change(&b)
				if err := n.Create(testContext(t), b); !errors.Is(err, container.ErrUnsupported) || !strings.Contains(err.Error(), what) {
					t.Errorf("%s: %v, want it refused", what, err)
				}
			}
		})
	}
}
