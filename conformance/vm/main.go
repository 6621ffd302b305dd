// Command vm runs tests of the runtime on a machine that the build machine is not:
// a kernel of Debian's with cgroup version 2 alone and AppArmor, emulated by QEMU.
// Everything the machine has is in one archive in memory: a static first process
// (folder guest), busybox, runc and crun, the kernel's modules and the compiled tests.
//
//	go run ./vm             all of it
//	go run ./vm -run Pause  tests by name
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	cache, err := os.UserCacheDir()
	if err != nil {
		fail(err)
	}
	m := machine{root: "..", cache: filepath.Join(cache, "berth-test")}
	flag.StringVar(&m.only, "run", "", "run tests that match this `pattern`, whether they are listed or not")
	flag.DurationVar(&m.limit, "limit", 8*time.Minute, "kill the machine after this `time`; a machine with two processors and nothing else to do needs less than half")
	flag.BoolVar(&m.verbose, "v", false, "print all output")
	flag.Parse()
	if err := m.test(ctx); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "vm:", err)
	os.Exit(1)
}

// machine is one to be started.
type machine struct {
	root    string // of berth's source
	cache   string // has what .ci/deps put there
	dir     string // for this run
	only    string
	limit   time.Duration
	verbose bool
}

// test builds the machine, runs it, and judges what it said.
func (m *machine) test(ctx context.Context) (err error) {
	if m.dir, err = os.MkdirTemp("", "berth-vm-*"); err != nil {
		return err
	}
	defer os.RemoveAll(m.dir)
	began := time.Now()
	kernel, err := m.build(ctx)
	if err != nil {
		return err
	}
	built := time.Now()
	var said []byte
	var used time.Duration
	for attempt := 1; ; attempt++ {
		var boot []byte
		if said, boot, used, err = m.boot(ctx, kernel); err == nil {
			err = judge(said, m.only)
		}
		if err != nil || m.verbose {
			fmt.Printf("%s\n--- the kernel said\n%s\n", said, tail(boot, 100))
		}
		if err == nil {
			break
		}
		// The emulator itself crashes now and then; what is ours does so twice.
		if attempt == 2 || !errors.Is(err, errUnfinished) {
			return err
		}
		fmt.Println("the machine stopped before any test failed: once more")
	}
	fmt.Printf("ok\t%s\t%d tests; built in %.0fs, ran in %.0fs with %.0fs of processors\n", filepath.Base(kernel), bytes.Count(said, []byte("\n--- PASS")),
		built.Sub(began).Seconds(), time.Since(built).Seconds(), used.Seconds())
	return nil
}

// tail returns the last n lines.
func tail(b []byte, n int) []byte {
	lines := bytes.SplitAfter(b, []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-n):], nil)
}

// build makes the archive of everything, and returns the kernel for it.
func (m *machine) build(ctx context.Context) (kernel string, err error) {
	kernels, err := filepath.Glob(filepath.Join(m.cache, "kernel/boot/vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		return "", fmt.Errorf("%d kernels in %s, want one that .ci/deps put there", len(kernels), m.cache)
	}
	for _, args := range [][]string{
		{"go", "build", "-o", "guest", "./conformance/vm/guest"},
		{"go", "build", "-trimpath", "-ldflags=-s -w", "-o", "berth-init", "./cmd/berth-init"},
		{"go", "build", "-o", "probe", "./node/container/testdata/probe"},
		{"go", "test", "-c", "-tags", "vm", "-ldflags=-s -w", "-o", "container.test", "./node/container"},
	} {
		args[slices.Index(args, "-o")+1] = filepath.Join(m.dir, args[slices.Index(args, "-o")+1])
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Dir = m.root
		if args[len(args)-1] == "./conformance/vm/guest" { // it is of this module
			cmd.Dir, cmd.Args[len(args)-1] = ".", "./vm/guest"
		}
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	profiles, err := m.profiles(ctx)
	if err != nil {
		return "", err
	}
	f, err := os.Create(filepath.Join(m.dir, "initrd"))
	if err != nil {
		return "", err
	}
	defer f.Close()
	a := newArchive(f)
	for _, d := range []string{"bin", "dev", "etc", "mnt", "proc", "sys", "tmp", "run", "root", "programs", "modules", "lib", "lib64"} {
		a.dir(d)
	}
	a.file("init", filepath.Join(m.dir, "guest"))
	a.file("bin/busybox", "/bin/busybox")
	// The compiler of AppArmor and the other runtimes, as Debian links them.
	for _, from := range []string{filepath.Join(m.cache, "apparmor/sbin/apparmor_parser"), "/usr/sbin/runc", "/usr/bin/crun"} {
		a.program("bin/"+filepath.Base(from), from)
	}
	for _, p := range []string{"berth-init", "probe", "container.test"} {
		a.file("programs/"+p, filepath.Join(m.dir, p))
	}
	a.bytes("profiles", profiles)
	a.bytes("tests", []byte(pattern(m.only)))
	a.bytes("limit", []byte((m.limit - 10*time.Second).String())) // from then on Go says which test it is that hangs
	release := strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	order, err := addModules(ctx, a, filepath.Join(m.cache, "kernel/lib/modules", release), modules)
	if err != nil {
		return "", err
	}
	a.bytes("modules/order", []byte(strings.Join(order, "\n")))
	return kernels[0], a.close()
}

// profiles compiles the AppArmor profile of the tests.
func (m *machine) profiles(ctx context.Context) ([]byte, error) {
	dir := filepath.Join(m.cache, "apparmor")
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "sbin/apparmor_parser"), "--skip-cache", "--stdout", "--config-file", "/dev/null",
		"--features-file", filepath.Join(dir, "usr/share/apparmor-features/features"), "vm/profile")
	out := new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("compile AppArmor profile: %w", err)
	}
	return out.Bytes(), nil
}

// boot runs the machine until it turns itself off, and returns what the tests and
// the kernel said, and how much processor time it took.
func (m *machine) boot(ctx context.Context, kernel string) (said, boot []byte, used time.Duration, err error) {
	disk := filepath.Join(m.dir, "disk")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		return nil, nil, 0, err
	}
	if err := os.Truncate(disk, 64<<20); err != nil {
		return nil, nil, 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, m.limit)
	defer cancel()
	log := func(name string) string { return filepath.Join(m.dir, name) }
	// QEMU 7.2 sometimes spoils the flags of cmpxchg16b, and with them the kernel. Its
	// processors share a thread, since a kernel that changes its own code (int3 in the
	// page allocator, when cpusets come into use) does not survive it otherwise.
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-M", "q35", "-accel", "tcg,thread=single", "-cpu", "max,-cx16,-la57", "-smp", "2", "-m", "2048",
		"-serial", "file:"+log("boot"), "-serial", "file:"+log("said"),
		"-drive", "file="+disk+",if=virtio,format=raw",
		"-kernel", kernel, "-initrd", log("initrd"),
		"-append", "console=ttyS0 panic=-1 mitigations=off apparmor=1 security=apparmor hugepages=4")
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	said, serr := os.ReadFile(log("said"))
	boot, berr := os.ReadFile(log("boot"))
	switch {
	case ctx.Err() != nil:
		err = fmt.Errorf("the machine ran for %s and was killed", m.limit)
	case err != nil:
		err = fmt.Errorf("qemu-system-x86_64: %w\n%s", err, out)
	case serr != nil:
		err = serr
	case berr != nil:
		err = berr
	}
	if s := cmd.ProcessState; s != nil {
		used = s.UserTime() + s.SystemTime()
	}
	return bytes.ReplaceAll(said, []byte("\r"), nil), boot, used, err
}
