package oci_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// hook returns one that writes its name, its mount namespace's root and what it was
// told of the container to the file log, below root.
func hook(name, path, log string) specs.Hook {
	return specs.Hook{
		Path: path, Env: []string{"NAME=" + name, "LOG=" + log},
		Args: []string{"sh", "-c", `read state; echo "$NAME $0 $# $(pwd) $state" >> $LOG`, name, "arg"},
	}
}

// TestHooks runs one of each kind, and sees where and when.
func TestHooks(t *testing.T) {
	r := newRuntime(t, "sh", "-c", "echo program >> /log; echo logged; exec sleep 1000")
	inside := filepath.Join(r.bundle, "rootfs/log") // the container's /log
	r.spec.Annotations = map[string]string{"a": "b"}
	r.spec.Hooks = &specs.Hooks{
		Prestart:        []specs.Hook{hook("prestart", "/bin/sh", inside)}, //nolint:staticcheck // deprecated hooks are hooks
		CreateRuntime:   []specs.Hook{hook("createRuntime", "/bin/sh", inside)},
		CreateContainer: []specs.Hook{hook("createContainer", "/bin/sh", inside)},
		StartContainer:  []specs.Hook{hook("startContainer", "/bin/sh", "/log")},
		Poststart:       []specs.Hook{hook("poststart", "/bin/sh", inside)},
		Poststop:        []specs.Hook{hook("poststop", "/bin/sh", inside)},
	}
	read := func() []string {
		b, err := os.ReadFile(inside)
		if err != nil {
			t.Fatal(err)
		}
		return lines(string(b))
	}
	o, _ := r.options(t, "c1")
	stdio, out := piped(t)
	o.Stdio = stdio
	if err := r.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	pid := r.state(t, "c1").Pid
	// The program and poststart may come in either order: the program runs when the hook
	// begins, not more.
	want := func(name, dir, status string, pid int) string {
		state, err := json.Marshal(specs.State{
			Version: specs.Version, ID: "c1", Status: specs.ContainerState(status), Pid: pid, Bundle: r.bundle, Annotations: r.spec.Annotations,
		})
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%s %s 1 %s %s", name, name, dir, state)
	}
	rootfs := filepath.Join(r.bundle, "rootfs")
	created := []string{
		want("prestart", r.bundle, "creating", pid), want("createRuntime", r.bundle, "creating", pid), want("createContainer", rootfs, "creating", 1),
	}
	if got := read(); !slices.Equal(got, created) {
		t.Errorf("after create:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(created, "\n"))
	}
	r.start(t, "c1")
	wantLine(t, out, "logged")
	got := slices.DeleteFunc(read(), func(l string) bool { return l == "program" })
	started := append(created, want("startContainer", "/", "created", 1), want("poststart", r.bundle, "running", pid))
	if !slices.Equal(got, started) {
		t.Errorf("after start:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(started, "\n"))
	}
	if i, j := slices.Index(read(), "program"), slices.Index(read(), started[3]); i < j {
		t.Error("the program ran before startContainer")
	}
	if err := r.Delete(t.Context(), "c1", true); err != nil {
		t.Fatal(err)
	}
	if last := read()[len(read())-1]; last != want("poststop", r.bundle, "stopped", 0) {
		t.Errorf("after delete: %s", last)
	}
	waitPid(t, pid)
}

// TestHookSeesMounts looks from createContainer at the container's mounts, and adds
// one that the container then has.
func TestHookSeesMounts(t *testing.T) {
	r := newRuntime(t, "sh", "-c", "cat /mnt/file; ls /proc/self/mountinfo")
	rootfs := filepath.Join(r.bundle, "rootfs")
	for _, dir := range []string{filepath.Join(rootfs, "mnt"), filepath.Join(r.bundle, "src")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(r.bundle, "src/file"), []byte("of the hook\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r.spec.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{
		Path: "/bin/sh", Env: []string{"PATH=/usr/bin:/bin"},
		Args: []string{"sh", "-ec", fmt.Sprintf("test -e %s/dev/null; test -d %s/proc/self; mount --bind %s/src %s/mnt", rootfs, rootfs, r.bundle, rootfs)},
	}}}
	o, out := r.options(t, "c1")
	if code, err := r.Run(t.Context(), runOptions(o)); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	if got := content(t, out); got != "of the hook\n/proc/self/mountinfo\n" {
		t.Errorf("the container saw %q", got)
	}
	if b, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(b), r.bundle) {
		t.Errorf("the hook's mount is on the node, %v", err)
	}
}

// TestHooksFail lets a hook of each kind fail, and run too long.
func TestHooksFail(t *testing.T) {
	for _, tc := range []struct {
		kind    string
		set     func(*specs.Hooks, []specs.Hook)
		create  bool // create fails
		start   bool // start does
		stopped bool
	}{
		{"prestart", func(h *specs.Hooks, l []specs.Hook) { h.Prestart = l }, true, false, false}, //nolint:staticcheck // deprecated hooks are hooks
		{"createRuntime", func(h *specs.Hooks, l []specs.Hook) { h.CreateRuntime = l }, true, false, false},
		{"createContainer", func(h *specs.Hooks, l []specs.Hook) { h.CreateContainer = l }, true, false, false},
		{"startContainer", func(h *specs.Hooks, l []specs.Hook) { h.StartContainer = l }, false, true, true},
		{"poststart", func(h *specs.Hooks, l []specs.Hook) { h.Poststart = l }, false, true, true},
		{"poststop", func(h *specs.Hooks, l []specs.Hook) { h.Poststop = l }, false, false, false},
	} {
		for how, bad := range map[string]specs.Hook{
			"fails":        {Path: "/bin/sh", Args: []string{"sh", "-c", "echo its reason; exit 3"}},
			"is not there": {Path: "/no/such/hook"},
			"runs too long": {
				Path: "/bin/sleep", Args: []string{"sleep", "1000"}, Timeout: new(1),
			},
		} {
			t.Run(tc.kind+" "+how, func(t *testing.T) {
				t.Parallel()
				r := newRuntime(t, "sleep", "1000")
				log := filepath.Join(r.bundle, "log")
				r.spec.Hooks = &specs.Hooks{Poststop: []specs.Hook{hook("after", "/bin/sh", log)}}
				tc.set(r.spec.Hooks, append([]specs.Hook{bad}, r.spec.Hooks.Poststop...))
				if tc.kind != "poststop" {
					tc.set(r.spec.Hooks, []specs.Hook{bad})
				}
				o, _ := r.options(t, "c1")
				err := r.Create(t.Context(), o)
				if (err != nil) != tc.create {
					t.Fatalf("Create: %v, want an error: %t", err, tc.create)
				}
				if err == nil {
					err = r.Start(t.Context(), "c1")
					if (err != nil) != tc.start {
						t.Fatalf("Start: %v, want an error: %t", err, tc.start)
					}
				}
				if err != nil && how == "fails" && !strings.Contains(err.Error(), "error running "+tc.kind+" hook #0: exit status 3, output: its reason") {
					t.Errorf("the error is %v", err)
				}
				if tc.stopped {
					r.wantStatus(t, "c1", "stopped")
				}
				if !tc.create {
					if err := r.Delete(t.Context(), "c1", true); err != nil {
						t.Fatal(err)
					}
				}
				if b, err := os.ReadFile(log); err != nil || !strings.HasPrefix(string(b), "after") {
					t.Errorf("poststop hooks left %q, %v", b, err)
				}
			})
		}
	}
}

// TestDiesWhileCreated kills the container from a hook of create, which must not wait
// for it then.
func TestDiesWhileCreated(t *testing.T) {
	r := newRuntime(t, "sleep", "1000")
	r.spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{
		Path: "/bin/sh", Args: []string{"sh", "-c", `kill -9 $(sed 's/.*"pid":\([0-9]*\).*/\1/')`}, Env: []string{"PATH=/usr/bin:/bin"},
	}}}
	o, _ := r.options(t, "c1")
	ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	if err := r.Create(ctx, o); err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "ended while it was built") {
		t.Errorf("Create = %v, %v", err, ctx.Err())
	}
	if list, err := r.List(); err != nil || len(list) > 0 {
		t.Errorf("List afterwards = %v, %v", list, err)
	}
}

// TestHooksInUserNamespace runs hooks of the container in its user namespace.
func TestHooksInUserNamespace(t *testing.T) {
	r := newRuntime(t, "sleep", "1000")
	r.spec.Linux.Namespaces = append(r.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	r.spec.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 1000}}
	r.spec.Linux.GIDMappings = r.spec.Linux.UIDMappings
	if err := os.Chown(filepath.Join(r.bundle, "rootfs"), 100000, 100000); err != nil {
		t.Fatal(err)
	}
	show := []string{"sh", "-c", "cat /proc/self/uid_map >&2; id -u >&2; exit 1"}
	for kind, h := range map[string]*specs.Hooks{
		"createContainer": {CreateContainer: []specs.Hook{{Path: "/bin/sh", Args: show, Env: []string{"PATH=/usr/bin:/bin"}}}},
		"startContainer":  {StartContainer: []specs.Hook{{Path: "/bin/sh", Args: show, Env: []string{"PATH=/bin"}}}},
	} {
		r.spec.Hooks = h
		o, _ := r.options(t, "c1")
		err := r.Create(t.Context(), o)
		if err == nil {
			err = r.Start(t.Context(), "c1")
		}
		if err == nil || strings.Join(strings.Fields(err.Error()), " ") != "error running "+kind+" hook #0: exit status 1, output: 0 100000 1000 0 (/bin/sh)" {
			t.Errorf("%s: %v", kind, err)
		}
		if err := r.Delete(t.Context(), "c1", true); err != nil {
			t.Fatal(err)
		}
	}
}
