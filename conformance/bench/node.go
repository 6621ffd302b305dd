package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// nodePrefix begins the names of all loads of a node.
const nodePrefix = "node: "

const nodeImage = "team/app:1"

// nodeTargets are the columns of their table.
func nodeTargets() []*target {
	return []*target{{name: "berth"}, {name: "crun"}, {name: "runc"}, {name: "podman"}, {name: "floor"}}
}

// node runs containers: by berth's Engine API beside podman, and by the command
// line of OCI runtimes beside crun and runc with the same configuration.
func (o options) node(ctx context.Context, data string) (rows []result, err error) {
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, err
	}
	n := &nodes{options: o, dir: data}
	defer func() { err = errors.Join(err, n.clean(ctx)) }()
	if err := n.prepare(ctx); err != nil {
		return nil, err
	}
	// Where both versions of cgroups are mounted crun does not work; what it does not
	// see does not disturb it. So all of it is done where only one can be seen.
	err = hidden(func() error {
		// Calls come first: ext4 does not take inodes that were freed within the last minutes,
		// looks at all of them for each new one, and the other loads free them by the thousand.
		for _, part := range []func(context.Context) error{n.calls, n.runs, n.execs, n.memory, n.many} {
			if err := part(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	return n.rows, err
}

// hidden calls f on a thread of its own, which does not see version 2 of cgroups
// beside version 1. What f starts does not see it either.
func hidden(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its view
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err != nil {
			done <- fmt.Errorf("make a mount namespace (this needs root): %w", err)
			return
		}
		const unified = "/sys/fs/cgroup/unified"
		if unix.Unmount(unified, unix.MNT_DETACH) == nil { // it may not be there
			// crun makes cgroups there all the same, and would leave them below the mount.
			if err := unix.Mount("none", unified, "tmpfs", 0, "size=8m"); err != nil {
				done <- fmt.Errorf("hide version 2 of cgroups: %w", err)
				return
			}
		}
		done <- f()
	}()
	return <-done
}

// nodes is what runs containers in one round.
type nodes struct {
	options
	dir      string
	short    string // another folder, for podman, which takes no long name for some things
	registry *target
	engine   *engine
	rows     []result
}

func (n *nodes) row(load, unit, target string, value float64) {
	n.rows = append(n.rows, result{Load: nodePrefix + load, Unit: unit, Target: target, Values: []float64{value}})
}

// prepare makes an image and a bundle of busybox, and starts a node.
func (n *nodes) prepare(ctx context.Context) error {
	if err := n.bundle(); err != nil {
		return err
	}
	var err error
	if n.short, err = os.MkdirTemp("/run", "berth-bench-"); err != nil {
		return err
	}
	n.registry = berthTarget(n.berths[0])
	if _, err := n.registry.up(ctx, filepath.Join(n.dir, "registry")); err != nil {
		return err
	}
	if err := pushBusybox(&bench{target: n.registry, clients: 1}); err != nil {
		return err
	}
	n.engine = newEngine(n.berths[0], filepath.Join(n.dir, "node"), "http://"+n.registry.addr)
	if _, err := n.engine.up(ctx, 0); err != nil {
		return err
	}
	return n.engine.do(ctx, "POST", "/images/create?fromImage=team/app&tag=1", nil, nil)
}

func (n *nodes) clean(ctx context.Context) error {
	var err error
	if n.engine != nil {
		err = n.engine.clean(ctx)
	}
	if n.registry != nil {
		err = errors.Join(err, n.registry.down())
	}
	return errors.Join(err, os.RemoveAll(n.short))
}

// applets are what the image has of busybox.
var applets = [...]string{"true", "sleep", "sh"}

// pushBusybox pushes an image whose one layer is busybox.
func pushBusybox(b *bench) error {
	prog, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("install busybox-static, or run make deps: %w", err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	err = errors.Join(
		w.WriteHeader(&tar.Header{Name: "proc", Typeflag: tar.TypeDir, Mode: 0o755}),
		w.WriteHeader(&tar.Header{Name: "bin", Typeflag: tar.TypeDir, Mode: 0o755}),
		w.WriteHeader(&tar.Header{Name: "bin/busybox", Mode: 0o755, Size: int64(len(prog))}),
	)
	_, werr := w.Write(prog)
	err = errors.Join(err, werr)
	for _, a := range applets {
		err = errors.Join(err, w.WriteHeader(&tar.Header{Name: "bin/" + a, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}))
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return err
	}
	config := fmt.Appendf(nil, `{"architecture":%q,"os":"linux","config":{"Cmd":["true"],"Env":["PATH=/bin"]},"rootfs":{"type":"layers","diff_ids":[%q]}}`,
		runtime.GOARCH, digestOf(layer.Bytes()))
	manifest := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},`+
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]}`,
		imageType, digestOf(config), len(config), digestOf(layer.Bytes()), layer.Len())
	_, err = b.each(func(c *conn) (float64, error) {
		if err := errors.Join(pushWhole(c, "team/app", config), pushWhole(c, "team/app", layer.Bytes())); err != nil {
			return 0, err
		}
		_, err := c.do("PUT", "/v2/team/app/manifests/1", "Content-Type: "+imageType+"\r\n", manifest, 201)
		return 0, err
	})
	return err
}

// bundle writes what OCI runtimes run: /bin/true with Docker's profile.
func (n *nodes) bundle() error {
	bin := filepath.Join(n.dir, "bundle", "rootfs", "bin")
	prog, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("install busybox-static, or run make deps: %w", err)
	}
	err = errors.Join(os.MkdirAll(bin, 0o755), os.Mkdir(filepath.Join(n.dir, "bundle", "rootfs", "proc"), 0o755), os.WriteFile(filepath.Join(bin, "busybox"), prog, 0o755))
	for _, a := range applets {
		err = errors.Join(err, os.Symlink("busybox", filepath.Join(bin, a)))
	}
	if err != nil {
		return err
	}
	for name, args := range map[string][]string{"true": {"true"}, "sleep": {"sleep", "10000"}} {
		s, err := ociSpec(filepath.Join(n.dir, "bundle", "rootfs"), args)
		if err != nil {
			return err
		}
		text, err := json.Marshal(s)
		if err != nil {
			return err
		}
		dir := filepath.Join(n.dir, "bundle", name)
		if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "config.json"), text, 0o600)); err != nil {
			return err
		}
	}
	return os.Symlink(n.berths[0], filepath.Join(n.dir, "berth-oci"))
}

// ociSpec is a container as Docker makes it, without a user namespace, which the
// others would have to have their files changed for.
func ociSpec(rootfs string, args []string) (*specs.Spec, error) {
	caps := strings.Fields("CAP_CHOWN CAP_DAC_OVERRIDE CAP_FSETID CAP_FOWNER CAP_MKNOD CAP_NET_RAW CAP_SETGID CAP_SETUID " +
		"CAP_SETFCAP CAP_SETPCAP CAP_NET_BIND_SERVICE CAP_SYS_CHROOT CAP_KILL CAP_AUDIT_WRITE")
	limit, pids, shares := int64(64<<20), int64(100), uint64(512)
	kernel := []string{"nosuid", "noexec", "nodev"}
	s := &specs.Spec{
		Version: "1.0.2", Hostname: "bench", Root: &specs.Root{Path: rootfs, Readonly: true},
		Process: &specs.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/bin", "HOME=/"},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: kernel},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: append(kernel, "ro")},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: append(kernel, "ro")},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: kernel},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: append(kernel, "mode=1777", "size=65536k")},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace},
				{Type: specs.PIDNamespace},
				{Type: specs.NetworkNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.CgroupNamespace},
			},
			Resources: &specs.LinuxResources{
				Memory: &specs.LinuxMemory{Limit: &limit}, Pids: &specs.LinuxPids{Limit: &pids}, CPU: &specs.LinuxCPU{Shares: &shares},
				Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}},
			},
			MaskedPaths:   []string{"/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
	var err error
	s.Linux.Seccomp, err = seccomp.GetDefaultProfile(s)
	return s, err
}

// runtimes are the OCI runtimes that are compared: the name of the column, and the
// program.
func (n *nodes) runtimes() ([][2]string, error) {
	list := [][2]string{{"berth", filepath.Join(n.dir, "berth-oci")}}
	for _, name := range []string{"crun", "runc"} {
		prog, err := exec.LookPath(name)
		if err != nil {
			return nil, fmt.Errorf("install %s, or run make deps: %w", name, err)
		}
		list = append(list, [2]string{name, prog})
	}
	return list, nil
}

// oci runs a command of an OCI runtime. Its stdio is the container's, so what went
// wrong is in a log.
func (n *nodes) oci(ctx context.Context, r [2]string, args ...string) error {
	log := filepath.Join(n.dir, "log-"+r[0])
	cmd := exec.CommandContext(ctx, r[1], append([]string{"--root", filepath.Join(n.dir, "state-"+r[0]), "--log", log}, args...)...)
	if err := cmd.Run(); err != nil {
		says, _ := os.ReadFile(log)
		return fmt.Errorf("%s %s: %w: %s", r[0], strings.Join(args, " "), err, says)
	}
	return nil
}

func command1(ctx context.Context, prog string, args ...string) error {
	var says bytes.Buffer
	cmd := exec.CommandContext(ctx, prog, args...)
	cmd.Stderr = &says
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", filepath.Base(prog), strings.Join(args, " "), err, &says)
	}
	return nil
}

// times calls f so often, where on calls it, and returns the median of how long it took,
// in ms.
func times(count int, on func(func() error) error, f func(i int) error) (float64, error) {
	var took []float64
	err := on(func() error {
		for i := range count {
			began := time.Now()
			if err := f(i); err != nil {
				return err
			}
			took = append(took, time.Since(began).Seconds()*1000)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return median(took), nil
}

// here is for those that are where they have to be.
func here(f func() error) error { return f() }

// anywhere calls f on any thread, for a client of an API: a thread that belongs to one
// goroutine, as that of hidden, has to be woken for each answer.
func anywhere(f func() error) error {
	done := make(chan error)
	go func() { done <- f() }()
	return <-done
}

// rate calls f so often, four at a time, each where on calls it, and returns how often
// in a second.
func rate(count int, on func(func() error) error, f func(i int) error) (float64, error) {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, 4)
	began := time.Now()
	for w := range errs {
		wg.Go(func() {
			errs[w] = on(func() error {
				for i := int(next.Add(1)); i <= count; i = int(next.Add(1)) {
					if err := f(i); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
	wg.Wait()
	return float64(count) / time.Since(began).Seconds(), errors.Join(errs...)
}

// runs measures whole lives of /bin/true under OCI runtimes.
func (n *nodes) runs(ctx context.Context) error {
	list, err := n.runtimes()
	if err != nil {
		return err
	}
	for _, r := range list {
		run := func(i int) error {
			return n.oci(ctx, r, "run", "--bundle", filepath.Join(n.dir, "bundle/true"), fmt.Sprintf("bench-%d-%s-%d", os.Getpid(), r[0], i))
		}
		ms, err := times(n.sizes.lives, here, run)
		if err != nil {
			return err
		}
		n.row("run of true by an OCI runtime", "ms", r[0], ms)
	}
	for _, r := range list {
		each, err := rate(4*n.sizes.lives, hidden, func(i int) error {
			return n.oci(ctx, r, "run", "--bundle", filepath.Join(n.dir, "bundle/true"), fmt.Sprintf("bench-%d-%s-p%d", os.Getpid(), r[0], i))
		})
		if err != nil {
			return err
		}
		n.row("such runs, 4 at a time", "/s", r[0], each)
	}
	return nil
}

// podman runs a command of podman's, with what it keeps below dir.
func (n *nodes) podman(ctx context.Context, args ...string) error {
	return command1(ctx, "podman", append([]string{
		"--root", filepath.Join(n.dir, "podman/root"), "--runroot", n.short, "--tmpdir", filepath.Join(n.dir, "podman/tmp"),
		"--cgroup-manager", "cgroupfs", "--runtime", "crun",
	}, args...)...)
}

// podmanRun begins a container under podman. Its default limits are more than a
// machine may allow.
func (n *nodes) podmanRun(ctx context.Context, name string, command ...string) error {
	args := []string{"run", "-d", "--name", name, "--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000", "--rootfs", filepath.Join(n.dir, "bundle/rootfs")}
	return n.podman(ctx, append(args, command...)...)
}

// calls measures what an engine takes from a call until the process runs.
func (n *nodes) calls(ctx context.Context) error {
	ms, err := times(n.sizes.lives, anywhere, func(i int) error { return n.engine.start(ctx, fmt.Sprint("call", i), "sleep", "10000") })
	if err != nil {
		return err
	}
	n.row("call to running, no network", "ms", "berth", ms)
	if err := n.removeAll(ctx); err != nil {
		return err
	}
	podmans := max(n.sizes.lives/10, 1)
	if ms, err = times(podmans, here, func(i int) error { return n.podmanRun(ctx, fmt.Sprint("call", i), "sleep", "10000") }); err != nil {
		return err
	}
	n.row("call to running, no network", "ms", "podman", ms)
	if err := n.podman(ctx, "rm", "-f", "-t", "0", "-a"); err != nil {
		return err
	}
	each, err := rate(4*n.sizes.lives, anywhere, func(i int) error {
		name := fmt.Sprint("life", i)
		return errors.Join(n.engine.start(ctx, name, "true"), n.engine.remove(ctx, name))
	})
	if err != nil {
		return err
	}
	n.row("lives by an engine, 4 at a time", "/s", "berth", each)
	each, err = rate(2*podmans, hidden, func(i int) error {
		return n.podman(ctx, "run", "--rm", "--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000", "--rootfs", filepath.Join(n.dir, "bundle/rootfs"), "true")
	})
	n.row("lives by an engine, 4 at a time", "/s", "podman", each)
	return err
}

// execFloor measures the same on the floor.
func (n *nodes) execFloor(ctx context.Context) error {
	if !n.floor {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	e := newEngine("", filepath.Join(n.dir, "floor"), "")
	if err := os.Mkdir(e.data, 0o700); err != nil {
		return err
	}
	if err := e.serve(exec.Command(self, floorCommand, "exec", e.socket), func() bool { return e.do(ctx, "POST", "/exec", nil, nil) == nil }); err != nil {
		return err
	}
	ms, err := times(2*n.sizes.lives, anywhere, func(int) error { return e.exec(ctx, "into", "true") })
	n.row("exec by an engine", "ms", "floor", ms)
	return errors.Join(err, e.end(syscall.SIGTERM))
}

// execs measures a further process, until it has ended.
func (n *nodes) execs(ctx context.Context) error {
	if err := n.engine.start(ctx, "into", "sleep", "10000"); err != nil {
		return err
	}
	ms, err := times(2*n.sizes.lives, anywhere, func(int) error { return n.engine.exec(ctx, "into", "true") })
	if err != nil {
		return err
	}
	n.row("exec by an engine", "ms", "berth", ms)
	if err := errors.Join(n.removeAll(ctx), n.execFloor(ctx)); err != nil {
		return err
	}
	if err := n.podmanRun(ctx, "into", "sleep", "10000"); err != nil {
		return err
	}
	if ms, err = times(max(n.sizes.lives/10, 1), here, func(int) error { return n.podman(ctx, "exec", "into", "true") }); err != nil {
		return err
	}
	n.row("exec by an engine", "ms", "podman", ms)
	if err := n.podman(ctx, "rm", "-f", "-t", "0", "-a"); err != nil {
		return err
	}
	list, err := n.runtimes()
	if err != nil {
		return err
	}
	for _, r := range list {
		id := fmt.Sprintf("bench-%d-%s-exec", os.Getpid(), r[0])
		if err := n.oci(ctx, r, "create", "--bundle", filepath.Join(n.dir, "bundle/sleep"), id); err != nil {
			return err
		}
		err := n.oci(ctx, r, "start", id)
		if err == nil {
			ms, err = times(n.sizes.lives, here, func(int) error { return n.oci(ctx, r, "exec", id, "/bin/true") })
			n.row("exec by an OCI runtime", "ms", r[0], ms)
		}
		if err := errors.Join(err, n.oci(context.WithoutCancel(ctx), r, "delete", "--force", id)); err != nil {
			return err
		}
	}
	return nil
}

// memory measures the process that stands beside each container.
func (n *nodes) memory(ctx context.Context) error {
	for i := range n.sizes.running {
		if err := n.engine.start(ctx, fmt.Sprint("shim", i), "sleep", "10000"); err != nil {
			return err
		}
	}
	load := fmt.Sprintf("memory beside each of %d", n.sizes.running)
	count, all, err := shims("berth-init", n.engine.data)
	// One may wait for the next container. Its memory counts.
	if err == nil && count != n.sizes.running && count != n.sizes.running+1 {
		err = fmt.Errorf("%d shims for %d containers", count, n.sizes.running)
	}
	if err != nil {
		return err
	}
	n.row(load, "MB", "berth", all/float64(n.sizes.running))
	if err := n.removeAll(ctx); err != nil {
		return err
	}
	for i := range max(n.sizes.running/5, 1) { // they take long to start, and weigh the same
		if err := n.podmanRun(ctx, fmt.Sprint("shim", i), "sleep", "10000"); err != nil {
			return err
		}
	}
	if count, all, err = shims("conmon", n.dir); err == nil {
		n.row(load, "MB", "podman", all/float64(count))
	}
	return errors.Join(err, n.podman(ctx, "rm", "-f", "-t", "0", "-a"))
}

// many runs as many containers as a node shall hold, and restarts the node.
func (n *nodes) many(ctx context.Context) error {
	began := time.Now()
	if _, err := rate(n.sizes.many, anywhere, func(i int) error { return n.engine.start(ctx, fmt.Sprint("many", i), "sleep", "10000") }); err != nil {
		return err
	}
	with := fmt.Sprintf("with %d running", n.sizes.many)
	n.row(fmt.Sprintf("%d started", n.sizes.many), "s", "berth", time.Since(began).Seconds())
	for _, end := range []struct {
		how string
		sig syscall.Signal
	}{{"stopped", syscall.SIGTERM}, {"killed", syscall.SIGKILL}} {
		var took []float64
		for range n.sizes.starts {
			if err := n.engine.end(end.sig); err != nil {
				return err
			}
			d, err := n.engine.up(ctx, n.sizes.many)
			if err != nil {
				return err
			}
			took = append(took, d.Seconds()*1000)
		}
		n.row("start "+with+", "+end.how+" before", "ms", "berth", median(took))
	}
	n.row("memory of the node "+with, "MiB", "berth", float64(status(n.engine.cmd.Process.Pid, "VmRSS"))/mib)
	n.row("of it not of a file, "+with, "MiB", "berth", float64(status(n.engine.cmd.Process.Pid, "RssAnon"))/mib)
	return n.removeAll(ctx)
}

// removeAll removes the engine's containers, four at a time.
func (n *nodes) removeAll(ctx context.Context) error {
	list, err := n.engine.list(ctx, "?all=1")
	if err != nil {
		return err
	}
	_, err = rate(len(list), anywhere, func(i int) error {
		return n.engine.do(ctx, "DELETE", "/containers/"+list[i-1]+"?force=1", nil, nil)
	})
	return err
}
