package oci_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// shareBundle makes the bundle a mount that is shared, as everything is on a node with
// systemd.
func (r *runtime) shareBundle(t *testing.T) {
	t.Helper()
	if err := errors.Join(unix.Mount(r.bundle, r.bundle, "", unix.MS_BIND, ""), unix.Mount("", r.bundle, "", unix.MS_SHARED, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(r.bundle, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// TestSharedRoot runs containers whose root file system is on a shared mount.
func TestSharedRoot(t *testing.T) {
	r := newRuntime(t, "cat", "/proc/self/mountinfo")
	r.shareBundle(t)
	shared := func(line, kind string) (group string) {
		for f := range strings.FieldsSeq(line) {
			if group, ok := strings.CutPrefix(f, kind+":"); ok {
				return group
			}
		}
		return ""
	}
	mount := func(table, at string) string {
		for line := range strings.Lines(table) {
			if f := strings.Fields(line); len(f) > 4 && f[4] == at {
				return line
			}
		}
		t.Errorf("nothing is mounted at %s:\n%s", at, table)
		return ""
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	node := shared(mount(string(table), r.bundle), "shared")
	for i, tc := range []struct {
		propagation string
		shared      bool // in a group of its own
		master      string
	}{
		{"", false, ""},
		{"private", false, ""},
		{"unbindable", false, ""},
		{"slave", false, node},
		{"rslave", false, node},
		{"shared", true, ""},
		{"rshared", true, ""},
	} {
		id := "c" + string(rune('a'+i))
		r.spec.Linux.RootfsPropagation = tc.propagation
		o, out := r.options(t, id)
		if err := r.Create(t.Context(), o); err != nil {
			t.Errorf("%q: %v", tc.propagation, err)
			continue
		}
		pid := r.state(t, id).Pid
		r.start(t, id)
		waitPid(t, pid)
		root := mount(content(t, out), "/")
		group := shared(root, "shared")
		if (group != "") != tc.shared || group == node || shared(root, "master") != tc.master {
			t.Errorf("%q: the root is mounted as %s, and shared on the node as %s", tc.propagation, root, node)
		}
		if err := r.Delete(t.Context(), id, false); err != nil {
			t.Error(err)
		}
	}
}

// TestCreateFailsInTheShim asks for a mount that the kernel refuses after the container's
// first process was forked: nobody waits for that then.
func TestCreateFailsInTheShim(t *testing.T) {
	r := newRuntime(t, "true")
	ids := []specs.LinuxIDMapping{{HostID: 3 << 30, Size: 1 << 16}}
	r.spec.Linux.UIDMappings, r.spec.Linux.GIDMappings = ids, ids
	r.spec.Linux.Namespaces = append(r.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	mounts := slices.Clone(r.spec.Mounts)
	for i, options := range [][]string{{"bind", "idmap"}, {"rbind", "ridmap"}} {
		r.spec.Mounts = append(slices.Clone(mounts), specs.Mount{Destination: "/x", Type: "bind", Source: "/dev/pts", Options: options})
		o, _ := r.options(t, "c"+string(rune('a'+i)))
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := r.Create(ctx, o); err == nil || !strings.Contains(err.Error(), "map user ids of /dev/pts") {
			t.Errorf("%q: Create = %v, want an error that names /dev/pts", options, err)
		}
	}
}
