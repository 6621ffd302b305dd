package main

import (
	"cmp"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestBench runs every load, too small to measure, against the built berth and
// Debian's docker-registry.
func TestBench(t *testing.T) {
	berth, err := filepath.Abs(cmp.Or(os.Getenv("BERTH"), "../../bin/berth"))
	if err != nil {
		t.Fatal(err)
	}
	peer, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Fatalf("install docker-registry, or run make deps: %v", err)
	}
	bench := filepath.Join(t.TempDir(), "bench")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bench, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), bench, "-tiny", "-rounds", "1", "-json", "-dir", t.TempDir(), "-berth", berth, "-peer", peer)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("bench: %v", err)
	}
	var results []result
	if err := json.Unmarshal(out, &results); err != nil {
		t.Fatalf("bench prints %s: %v", out, err)
	}
	targets := map[string]int{}
	for _, r := range results {
		targets[r.Target]++
		if len(r.Values) == 0 && r.Target == "floor" { // it lists nothing
			continue
		}
		if len(r.Values) == 0 || r.Values[0] <= 0 {
			t.Errorf("%s of %s = %v", r.Load, r.Target, r.Values)
		}
	}
	if all := len(loads(small())); targets["berth"] < all || targets["docker-registry"] < all || targets["floor"] == 0 {
		t.Errorf("results for each target: %v, want at least %d", targets, all)
	}
}
