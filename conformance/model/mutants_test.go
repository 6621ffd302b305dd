package model_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// mutant is a mistake that the model must find.
type mutant struct {
	name string
	file string // of berth, below its directory
	old  string // found there exactly once
	new  string // a condition; %s stands for "this mutant is on"
}

var mutants = []mutant{
	{
		// A promise is only read: HEAD answers 200, and the collector takes the
		// blob before the manifest comes.
		name: "promise",
		file: "storage/kv/blobs.go",
		old:  "if err != nil || !move {\n\t\treturn err",
		new:  "if err != nil || !move || %s {\n\t\treturn err",
	},
	{
		// Content that is stored again gets its old key: a late delete hits it.
		name: "generation",
		file: "storage/disk/upload.go",
		old:  "u.key = newKey(want, rand.Text())",
		new:  "generation := rand.Text()\n\tif %s {\n\t\tgeneration = \"A\"\n\t}\n\tu.key = newKey(want, generation)",
	},
	{
		// A manifest is stored whether or not what it names is there.
		name: "liveness",
		file: "storage/kv/manifests.go",
		old:  "if missing != nil {",
		new:  "if missing != nil && !%s {",
	},
}

// TestMutants holds the model against mistakes that it must find, so that what
// it does not find is not there.
func TestMutants(t *testing.T) {
	t.Parallel()
	berth := buildMutants(t, mutants)
	for _, mutant := range mutants {
		t.Run(mutant.name, func(t *testing.T) {
			m := &model{binary: berth, env: []string{"BERTH_MUTANT=" + mutant.name}, seed: rand.Uint64(), settings: defaultSettings()}
			began := time.Now()
			requests, err := m.run(t, 15*time.Second)
			if err == nil {
				t.Fatalf("MODEL_SEED=%d: the mutant %s was not found in %d requests", m.seed, mutant.name, requests)
			}
			t.Logf("found after %d requests and %s: %v", requests, time.Since(began).Round(time.Millisecond), err)
		})
	}
}

// buildMutants builds one berth that holds the mutants, each to be switched on
// by BERTH_MUTANT. Their code is laid over the source: none of it is in the
// product.
func buildMutants(t *testing.T, mutants []mutant) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	overlay := map[string]string{}
	for i, m := range mutants {
		path := filepath.Join(root, m.file)
		from := path
		if overlay[path] != "" {
			from = overlay[path]
		}
		source, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(source), m.old); n != 1 {
			t.Fatalf("%s has the line %q %d times, and the mutant %s is made from it: give it a line of today's source", m.file, m.old, n, m.name)
		}
		on := fmt.Sprintf("(mutant == %q)", m.name)
		mutated := strings.Replace(string(source), m.old, fmt.Sprintf(m.new, on), 1)
		overlay[path] = filepath.Join(dir, fmt.Sprintf("%d.go", i))
		writeFile(t, overlay[path], mutated)
		which := filepath.Join(filepath.Dir(path), "mutant.go") // a file that is only in the overlay
		overlay[which] = filepath.Join(dir, fmt.Sprintf("which%d.go", i))
		writeFile(t, overlay[which], fmt.Sprintf("package %s\n\nimport \"os\"\n\nvar mutant = os.Getenv(\"BERTH_MUTANT\")\n", filepath.Base(filepath.Dir(path))))
	}
	replace, err := json.Marshal(map[string]any{"Replace": overlay})
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "overlay.json"), string(replace))
	binary := filepath.Join(dir, "berth")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-buildvcs=false", "-overlay", filepath.Join(dir, "overlay.json"), "-o", binary, "./cmd/berth")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the mutants: %v\n%s", err, out)
	}
	return binary
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
