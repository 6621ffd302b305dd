package main

import (
	"cmp"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestMain lets the test's own binary be the server of the floor.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == floorCommand {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestTiny runs everything once, too little to measure, on the built binary,
// $BERTH or where make build puts it, on docker-registry and on the floor.
func TestTiny(t *testing.T) {
	berth, err := filepath.Abs(cmp.Or(os.Getenv("BERTH"), "../../bin/berth"))
	if err != nil {
		t.Fatal(err)
	}
	peer, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Fatalf("install docker-registry, or run make deps: %v", err)
	}
	var out, progress strings.Builder
	args := []string{"-tiny", "-rounds", "1", "-json", "-dir", t.TempDir(), "-berth", berth, "-peer", peer}
	if err := command(t.Context(), args, &out, &progress); err != nil {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	var results []result
	if err := json.Unmarshal([]byte(out.String()), &results); err != nil {
		t.Fatal(err)
	}
	measured := map[string]float64{}
	for _, r := range results {
		measured[r.Target+": "+r.Load] = median(r.Values)
	}
	for _, l := range loads(small()) {
		for _, target := range []string{"berth", "docker-registry", "floor"} {
			if what := target + ": " + l.name; measured[what] <= 0 && (!l.lists || target != "floor") {
				t.Errorf("%s: measured %g %s", what, measured[what], l.unit)
			}
		}
	}
	for _, load := range []string{
		"peak memory", "of it not of a file", "peak memory, all loads", "of it not of a file, all loads",
		"GET manifest by tag, anonymous", "GET manifest by tag, token", "GET manifest by tag, Basic", "HEAD blob, anonymous", "HEAD blob, token", "HEAD blob, Basic",
		"of it anonymous, GET manifest by tag, token", "of it anonymous, HEAD blob, token",
		nodePrefix + "run of true by an OCI runtime", nodePrefix + "such runs, 4 at a time", nodePrefix + "call to running, no network",
		nodePrefix + "lives by an engine, 4 at a time", nodePrefix + "exec by an engine", nodePrefix + "exec by an OCI runtime", nodePrefix + "memory beside each of 3",
		nodePrefix + "6 started", nodePrefix + "start with 6 running, stopped before", nodePrefix + "start with 6 running, killed before", nodePrefix + "memory of the node with 6 running",
		"p99 of pushes", "p99 while 50 blobs are freed", "of p99 without", "freed", "start with 50 blobs",
	} {
		if measured["berth: "+load] <= 0 {
			t.Errorf("berth: %s: measured %g", load, measured["berth: "+load])
		}
	}
	for _, what := range []string{
		"crun: " + nodePrefix + "run of true by an OCI runtime", "runc: " + nodePrefix + "such runs, 4 at a time", "crun: " + nodePrefix + "exec by an OCI runtime",
		"podman: " + nodePrefix + "call to running, no network", "podman: " + nodePrefix + "exec by an engine", "podman: " + nodePrefix + "memory beside each of 3",
	} {
		if measured[what] <= 0 {
			t.Errorf("%s: measured %g", what, measured[what])
		}
	}
	var table strings.Builder
	targets := []*target{{name: "berth"}, {name: "docker-registry"}, {name: "floor"}}
	if err := showAll(&table, targets, results); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(table.String(), "\n"); lines != 1+len(loads(small()))+9+10+1+1+12 {
		t.Errorf("the table has %d lines:\n%s", lines, table.String())
	}
}
