package plan_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container/plan"
)

// The golden files have the numbers of this processor's flags.

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (go test -update writes it; -want +got):\n%s", file, diff)
	}
}

func TestGolden(t *testing.T) {
	layers := plan.Rootfs{Lowers: []string{"/layers/base", "/layers/app"}, Upper: "/rw/c1/upper", Work: "/rw/c1/work"}
	for _, tc := range []struct {
		name string
		set  func(*plan.Input)
	}{
		{"container.txt", func(*plan.Input) {}},
		{"host-users.txt", func(in *plan.Input) {
			in.Spec.Linux.Namespaces = in.Spec.Linux.Namespaces[1:]
			in.Spec.Linux.UIDMappings, in.Spec.Linux.GIDMappings = nil, nil
			in.Spec.Process.NoNewPrivileges = true
		}},
		{"old-kernel.txt", func(in *plan.Input) { in.Host.OverlayByName = true }},
		{"network-path.txt", func(in *plan.Input) { in.Spec.Linux.Namespaces[2].Path = "/run/netns/x" }},
		{"terminal-init.txt", func(in *plan.Input) {
			in.Spec.Process.Terminal, in.Terminal, in.Init = true, &plan.Terminal{Rows: 24, Columns: 80}, true
		}},
		{"mapped-tree.txt", func(in *plan.Input) {
			in.Spec.Mounts[4].Options = []string{"rbind", "ridmap", "rro", "rslave"}
		}},
		{"read-only-layer.txt", func(in *plan.Input) { in.Rootfs = plan.Rootfs{Lowers: []string{"/layers/base"}} }},
	} {
		in := plan.Input{Spec: spec(), Rootfs: layers, Stdin: true, Seccomp: make([]byte, 16), Host: host()}
		tc.set(&in)
		p, err := plan.For(in)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		golden(t, tc.name, fmt.Sprintf("flags %#x\nuid_map %q\ngid_map %q\nnetns %q\noom_score_adj %d\n\nshim:\n%s\nsend %v\n\nchild:\n%s", p.Flags, p.UIDMap, p.GIDMap, p.NetNS, *p.OOM, p.Prepare, p.Send, p.Child))
	}
}

func TestGoldenExec(t *testing.T) {
	proc := *spec().Process
	proc.Args = []string{"/bin/sh"}
	p, err := plan.ForExec(plan.ExecInput{Spec: spec(), Process: &proc, Seccomp: make([]byte, 16), Pipe: [3]bool{false, true, true}})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "exec.txt", fmt.Sprintf("enter %#x\n\nshim:\n%s\nchild:\n%s", p.Enter, p.Prepare, p.Child))
}

func TestGoldenEngine(t *testing.T) {
	in := plan.Input{
		Spec: spec(), Host: host(),
		Rootfs: plan.Rootfs{Lowers: []string{"/layers/base", "/layers/app"}, Upper: "/rw/c1/upper", Work: "/rw/c1/work"},
	}
	in.Spec.Mounts = slices.DeleteFunc(in.Spec.Mounts, func(m specs.Mount) bool { return slices.Contains(m.Options, "rslave") })
	in.Spec.Mounts = append(in.Spec.Mounts, specs.Mount{Type: "bind", Source: "/etc/hosts", Destination: "/etc/hosts", Options: []string{"bind", "ro", "idmap"}})
	in.Spec.Domainname = "" // which is refused
	p, err := plan.ForEngine(in, "/base")
	if err != nil {
		t.Fatal(err)
	}
	config, err := json.MarshalIndent(p.Config, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "engine.txt", fmt.Sprintf("uid_map %q\n\nshim:\n%s\nsend %v\n\nchild:\n%s\nconfig:\n%s\n", p.UIDMap, p.Prepare, p.Send, p.Child, config))
	in.Spec.Mounts = append(in.Spec.Mounts, specs.Mount{Type: "bind", Source: "/x", Destination: "/x", Options: []string{"rbind", "rslave"}})
	if _, err := plan.ForEngine(in, "/base"); !errors.Is(err, plan.ErrUnsupported) {
		t.Errorf("a mount that propagates: %v, want it refused", err)
	}
}
