package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// target is a registry under load. One that the benchmark has started itself
// also tells what it used of the machine.
type target struct {
	name  string
	addr  string // host:port
	start func(ctx context.Context, addr, data string) *exec.Cmd
	floor bool // no registry
	users bool // who does not log in is not let in

	cmd  *exec.Cmd
	log  bytes.Buffer
	stop chan struct{} // closed to end watch
	own  atomic.Int64  // most bytes of memory not of a file, as watch saw it
}

// berthTarget is berth with settings as variables of the environment.
func berthTarget(binary string, settings ...string) *target {
	return &target{name: "berth", start: func(ctx context.Context, addr, data string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, binary, "serve", "--listen", addr, "--data", data, "--log-level", "error")
		cmd.Env = append(os.Environ(), settings...)
		return cmd
	}}
}

// floorTarget is the floor, served by this program in another process.
func floorTarget() *target {
	return &target{name: "floor", floor: true, start: func(ctx context.Context, addr, data string) *exec.Cmd {
		self, err := os.Executable()
		if err != nil {
			self = "false" // the start then fails and says so
		}
		return exec.CommandContext(ctx, self, floorCommand, addr, data)
	}}
}

// peerTarget is CNCF Distribution or its Debian package docker-registry, which
// read the same configuration.
func peerTarget(binary string) *target {
	return &target{name: filepath.Base(binary), start: func(ctx context.Context, addr, data string) *exec.Cmd {
		conf := filepath.Join(data, "config.yml")
		text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"+
			"storage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp: {addr: %q}\n", filepath.Join(data, "files"), addr)
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			return exec.CommandContext(ctx, "false") // the start then fails and says so
		}
		return exec.CommandContext(ctx, binary, "serve", conf)
	}}
}

func urlTarget(name, raw string) (*target, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" || u.Port() == "" {
		return nil, fmt.Errorf("%s=%s: want name=http://host:port", name, raw)
	}
	return &target{name: name, addr: u.Host}, nil
}

// up starts the registry on a free loopback port, if it is ours to start, and
// returns once it answers. It returns how long that took.
func (t *target) up(ctx context.Context, data string) (time.Duration, error) {
	if t.start != nil {
		if t.addr == "" {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return 0, err
			}
			t.addr = l.Addr().String()
			l.Close()
		}
		if err := os.MkdirAll(data, 0o700); err != nil {
			return 0, err
		}
		t.cmd = t.start(ctx, t.addr, data)
		t.cmd.Stdout, t.cmd.Stderr = &t.log, &t.log
		t.cmd.Cancel = func() error { return t.cmd.Process.Signal(syscall.SIGTERM) }
		t.cmd.WaitDelay = 20 * time.Second
	}
	began := time.Now()
	if t.cmd != nil {
		if err := t.cmd.Start(); err != nil {
			return 0, err
		}
		t.stop = make(chan struct{})
		go t.watch(t.cmd.Process.Pid, t.stop)
	}
	for time.Since(began) < 60*time.Second {
		if c, err := dial(t.addr); err == nil {
			want := 200
			if t.users {
				want = 401
			}
			_, err = c.do("GET", "/v2/", "", nil, want)
			c.Close()
			if err == nil {
				return time.Since(began), nil
			}
		}
		time.Sleep(time.Millisecond)
	}
	return 0, fmt.Errorf("%s does not answer on %s: %s", t.name, t.addr, &t.log)
}

// down stops the server and waits until it has ended.
func (t *target) down() error { return t.end(syscall.SIGTERM) }

func (t *target) end(sig syscall.Signal) error {
	if t.cmd == nil {
		return nil
	}
	close(t.stop)
	if err := t.cmd.Process.Signal(sig); err != nil {
		return err
	}
	err := t.cmd.Wait()
	t.cmd = nil
	if err != nil && !strings.Contains(err.Error(), "terminated") && !strings.Contains(err.Error(), "killed") && !strings.Contains(err.Error(), "exit status 2") {
		return fmt.Errorf("%s: %w: %s", t.name, err, &t.log)
	}
	return nil // docker-registry has no handler for SIGTERM
}

// cpu returns the processor time that the server has used, in user and kernel
// mode; zero for a server that is not ours.
func (t *target) cpu() time.Duration {
	if t.cmd == nil {
		return 0
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", t.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // proc(5): field 3 on
	user, _ := strconv.ParseInt(f[11], 10, 64)
	kernel, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+kernel) * time.Second / 100 // USER_HZ
}

// memory returns the largest resident set of the server so far, and the most of
// it that was not of a file, both in MiB.
func (t *target) memory() (all, own float64) {
	return float64(status(t.cmd.Process.Pid, "VmHWM")) / mib, float64(t.own.Load()) / mib
}

// watch looks at the memory of the process until stop is closed: the kernel
// keeps the peak of all of it only.
func (t *target) watch(pid int, stop <-chan struct{}) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		t.own.Store(max(t.own.Load(), status(pid, "RssAnon")))
		select {
		case <-stop:
			return
		case <-tick.C:
		}
	}
}

// status returns a line of /proc/pid/status, in bytes; 0 if there is none.
func status(pid int, key string) int64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, key+":"); ok {
			kb, _ := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return kb << 10
		}
	}
	return 0
}
