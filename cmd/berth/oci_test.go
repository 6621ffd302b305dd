package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/oci"
)

// ociCall calls berth-oci with a directory of its own.
func ociCall(t *testing.T, args ...string) (code int, out, stderr string) {
	t.Helper()
	var o, e bytes.Buffer
	root := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	code = ociRun(context.Background(), stdio{in: strings.NewReader(""), out: &o, err: &e}, append([]string{"--root", root}, args...))
	return code, o.String(), e.String()
}

func TestOCICommands(t *testing.T) {
	for _, tc := range []struct {
		name   string
		args   []string
		code   int
		out    string
		stderr string
	}{
		{"no container", []string{"state", "x"}, 1, "", "level=error msg=\"container does not exist\""},
		{"path for an id", []string{"delete", "--force", "../x"}, 1, "", "invalid container ID"},
		{"no id", []string{"start"}, 1, "", "accepts 1 arg"},
		{"deleted already", []string{"delete", "--force", "x"}, 0, "", ""},
		{"no such signal", []string{"kill", "x", "SIGNO"}, 1, "", `unknown signal`},
		{"systemd", []string{"--systemd-cgroup", "list"}, 1, "", "--cgroup-manager=cgroupfs"},
		{"rootless", []string{"--rootless", "true", "list"}, 1, "", "needs root"},
		{"log format", []string{"--log-format", "xml", "list"}, 1, "", "text and json are known"},
		{"exec in nothing", []string{"exec", "x", "true"}, 255, "", "container does not exist"},
		{"no pivot", []string{"create", "--no-pivot", "x"}, 1, "", "--no-pivot is not supported"},
		{"descriptor that is not open", []string{"create", "--preserve-fds", "33", "x"}, 1, "", "not from 0 to 32"},
		{"cache", []string{"update", "--l3-cache-schema", "x", "x"}, 1, "", "not supported"},
		{"empty list", []string{"list", "-q"}, 0, "", ""},
		{"unknown command", []string{"checkpoint", "x"}, 1, "", `unknown command`},
		{"unknown flag", []string{"list", "--nosuch"}, 1, "", "unknown flag"},
		{"help", []string{"exec", "--help"}, 0, "Run a further process", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, out, stderr := ociCall(t, tc.args...)
			if code != tc.code || !strings.Contains(out, tc.out) || !strings.Contains(stderr, tc.stderr) || tc.stderr == "" && stderr != "" {
				t.Errorf("berth-oci %v = %d, %q, %q, want %d, %q, %q", tc.args, code, out, stderr, tc.code, tc.out, tc.stderr)
			}
		})
	}
}

// TestInherited: a descriptor that this process opened itself is not one that its caller
// left for the container, whatever its number.
func TestInherited(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, err := inherited(int(r.Fd()), 1); err == nil || !strings.Contains(err.Error(), "is not open") {
		t.Errorf("inherited = %v for a descriptor of this process", err)
	}
	left, err := unix.Dup(int(r.Fd())) // without close-on-exec
	if err != nil {
		t.Fatal(err)
	}
	files, err := inherited(left, 1)
	if err != nil || len(files) != 1 {
		t.Fatalf("inherited = %v, %v for a descriptor that was left open", files, err)
	}
	_ = files[0].Close()
}

func TestOCILog(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	code, _, stderr := ociCall(t, "--log", name, "--log-format", "json", "state", "x")
	if code != 1 || stderr != "container does not exist\n" {
		t.Errorf("state = %d, %q", code, stderr)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var line struct{ Level, Msg, Time string }
	if err := json.Unmarshal(b, &line); err != nil || line.Level != "error" || line.Msg != "container does not exist" || line.Time == "" {
		t.Errorf("the log has %q, %v", b, err)
	}
}

func TestOCISpec(t *testing.T) {
	dir := t.TempDir()
	if code, _, stderr := ociCall(t, "spec", "--bundle", dir); code != 0 {
		t.Fatal(stderr)
	}
	b, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	s := new(specs.Spec)
	if err := json.Unmarshal(b, s); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(oci.ExampleSpec(), s); diff != "" {
		t.Errorf("config.json differs (-want +got):\n%s", diff)
	}
	if code, _, _ := ociCall(t, "spec", "--bundle", dir); code != 1 {
		t.Error("spec has written over a file")
	}
}

func TestOCIFeatures(t *testing.T) {
	_, out, _ := ociCall(t, "features")
	var f features.Features
	if err := json.Unmarshal([]byte(out), &f); err != nil {
		t.Fatal(err)
	}
	if f.OCIVersionMin != "1.0.0" || f.OCIVersionMax != specs.Version || len(f.Hooks) != 6 || *f.Linux.Cgroup.Systemd || !*f.Linux.Seccomp.Enabled {
		t.Errorf("features: %s", out)
	}
}

func TestParseSignal(t *testing.T) {
	for s, want := range map[string]unix.Signal{"9": 9, "KILL": 9, "SIGKILL": 9, "sigterm": 15, "0": 0, "64": 64} {
		if got, err := parseSignal(s); err != nil || got != want {
			t.Errorf("parseSignal(%q) = %v, %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "-1", "65", "SIG", "NO", "9x"} {
		if got, err := parseSignal(s); err == nil {
			t.Errorf("parseSignal(%q) = %v", s, got)
		}
	}
}

// TestUpdateFlags reads limits from flags, and leaves out what was not given.
// TestPassedOn sends this process a usual signal, and, when it listens to all, a rare
// one.
func TestPassedOn(t *testing.T) {
	signals, rest := passedOn()
	defer signal.Stop(signals)
	for _, sig := range []unix.Signal{unix.SIGHUP, 37} {
		if sig == 37 {
			rest()
		}
		if err := unix.Kill(os.Getpid(), sig); err != nil {
			t.Fatal(err)
		}
		if got := <-signals; got != sig {
			t.Errorf("signal %v came as %v", sig, got)
		}
	}
}

func TestUpdateFlags(t *testing.T) {
	for _, tc := range []struct {
		name  string
		args  []string
		stdin string
		want  *specs.LinuxResources // nil: an error
	}{
		{"none", nil, "", &specs.LinuxResources{CPU: &specs.LinuxCPU{}, Memory: &specs.LinuxMemory{}}},
		{"some", []string{"--memory", "64M", "--pids-limit", "-1", "--cpu-quota", "5000", "--cpuset-cpus", "0-1"}, "", &specs.LinuxResources{
			CPU: &specs.LinuxCPU{Quota: new(int64(5000)), Cpus: "0-1"}, Memory: &specs.LinuxMemory{Limit: new(int64(64 << 20))}, Pids: &specs.LinuxPids{Limit: new(int64(-1))},
		}},
		{"no limit", []string{"--memory", "-1"}, "", &specs.LinuxResources{CPU: &specs.LinuxCPU{}, Memory: &specs.LinuxMemory{Limit: new(int64(-1))}}},
		{"stdin", []string{"--resources", "-"}, `{"pids":{"limit":7}}`, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: new(int64(7))}}},
		{"bad stdin", []string{"--resources", "-"}, `[`, nil},
		{"bad size", []string{"--memory", "much"}, "", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var f updateFlags
			cmd := &cobra.Command{}
			f.add(cmd)
			if err := cmd.ParseFlags(tc.args); err != nil {
				t.Fatal(err)
			}
			got, err := f.limits(strings.NewReader(tc.stdin), cmd.Flags().Changed)
			if (err != nil) != (tc.want == nil) {
				t.Fatalf("limits(%v): %v", tc.args, err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("limits(%v) differ (-want +got):\n%s", tc.args, diff)
			}
		})
	}
}

func TestExecUser(t *testing.T) {
	for _, tc := range []struct {
		user string
		gids []int64
		want *specs.User // nil: an error
	}{
		{"", nil, &specs.User{UID: 1, GID: 2}},
		{"5", []int64{7}, &specs.User{UID: 5, GID: 2, AdditionalGids: []uint32{7}}},
		{"5:6", nil, &specs.User{UID: 5, GID: 6}},
		{"name", nil, nil},
		{"5:group", nil, nil},
		{"-1", nil, nil},
		{"4294967295", nil, nil},
		{"5", []int64{-1}, nil},
	} {
		f := execFlags{user: tc.user, gids: tc.gids}
		p := specs.Process{User: specs.User{UID: 1, GID: 2}}
		err := f.setUser(&p)
		if (err != nil) != (tc.want == nil) {
			t.Errorf("--user %q: %v", tc.user, err)
			continue
		}
		if tc.want != nil && !cmp.Equal(*tc.want, p.User) {
			t.Errorf("--user %q, groups %v: %+v, want %+v", tc.user, tc.gids, p.User, *tc.want)
		}
	}
}
