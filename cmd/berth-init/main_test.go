package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// maxSize is how large the program may get, in bytes: there is a copy of it in
// the memory of every node, and each start of a container starts it.
const maxSize = 3 << 20

func TestSize(t *testing.T) {
	prog := filepath.Join(t.TempDir(), "berth-init")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", prog, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	info, err := os.Stat(prog)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > maxSize {
		t.Errorf("berth-init has %d bytes, want at most %d", info.Size(), maxSize)
	}
}

// TestImports lists what the program may be made of, beside the standard
// library, and what of that it must not.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{
		"berth.internal/cmd/berth-init", "berth.internal/internal/durable", "berth.internal/node/container/call",
		"berth.internal/node/container/cgroup", "berth.internal/node/container/shim", "berth.internal/node/container/tree", "golang.org/x/sys/unix",
	}
	for pkg := range strings.FieldsSeq(string(out)) {
		if !slices.Contains(allowed, pkg) {
			t.Errorf("berth-init imports %s", pkg)
		}
	}
	out, err = exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, pkg := range []string{"net", "net/http", "log/slog", "os/exec", "regexp", "text/template"} {
		if slices.Contains(strings.Fields(string(out)), pkg) {
			t.Errorf("berth-init imports %s, which is large", pkg)
		}
	}
}
