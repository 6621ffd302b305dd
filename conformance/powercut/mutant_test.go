package powercut

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// mutant is a berth without one of its syncs.
type mutant struct {
	name string // as of the variable without, below
	file string // in the module's directory
	code string // which occurs there once
	sync string // the part of code that is left out
	loss func(t *testing.T, binary string) error
}

// without is the variable of the environment that names the sync to leave out:
// one program is built that is all mutants.
const without = "BERTH_TEST_WITHOUT_SYNC"

// helper is added to each package that has a mutant.
const helper = `package %s

import "os"

func without(name string) bool { return os.Getenv("` + without + `") == name }

func unless(name string, sync func() error) error {
	if without(name) {
		return nil
	}
	return sync()
}
`

// mutants are all syncs of the registry, of backups and of the files that clients
// save, but for that of the index in a backup: bbolt syncs it again.
func mutants() []mutant {
	return []mutant{
		{"bytes of a small file", "internal/durable/durable.go", "err = f.Sync()", "f.Sync()", begun},
		{"name of a small file", "internal/durable/durable.go", "return errors.Join(err, os.Remove(f.Name()))\n\t}\n\treturn SyncDir(filepath.Dir(path))", "SyncDir(filepath.Dir(path))", begun},
		{"name of a new directory", "internal/durable/durable.go", "fs.ErrExist) {\n\t\treturn err\n\t}\n\treturn SyncDir(parent)", "SyncDir(parent)", used("blob at once")},
		{"name of an old directory", "internal/durable/durable.go", "err := SyncDir(filepath.Dir(filepath.Clean(path)))", "SyncDir(filepath.Dir(filepath.Clean(path)))", interrupted},
		{"bytes of a chunk", "storage/disk/upload.go", "if err := u.sync(); err != nil {", "u.sync()", used("chunk")},
		{"name of an upload", "storage/disk/upload.go", "durable.SyncDir(filepath.Dir(u.file.Name()))", "durable.SyncDir(filepath.Dir(u.file.Name()))", used("chunk")},
		{"bytes of a blob", "storage/disk/upload.go", "err = u.sync()", "u.sync()", used("blob at once")},
		{"name of a blob", "storage/disk/upload.go", "errors.Join(durable.SyncDir(filepath.Dir(to)), ", "durable.SyncDir(filepath.Dir(to))", used("blob at once")},
		{"a blob deleted", "storage/disk/disk.go", "err := durable.SyncDir(dir)", "durable.SyncDir(dir)", used("blob deleted")},
		{"name of what was renamed", "internal/durable/durable.go", "if err := SyncDir(to); err != nil {", "SyncDir(to)", pulled("oci", "one")},
		{"bytes of a saved blob", "client/layout/oci_target.go", "err = f.Sync()", "f.Sync()", pulled("oci", "one", "two")},
		{"name of a saved blob", "client/layout/oci_target.go", "durable.SyncDir(filepath.Join(t.staging, dir))", "durable.SyncDir(filepath.Join(t.staging, dir))", pulled("oci", "one")},
		{"bytes of an archive", "client/layout/tarball.go", "t.file.Sync()", "t.file.Sync()", pulled("oci-archive", "one")},
		{"name of a backup's index", "storage/backup/write.go", "durable.SyncDir(d.Path())", "durable.SyncDir(d.Path())", backedUp},
		{"bytes of a copied blob", "storage/disk/import.go", "return f.Sync()", "f.Sync()", backedUp},
		{"name of a copied blob", "storage/disk/import.go", "err = durable.SyncDir(dir)", "durable.SyncDir(dir)", backedUp},
		{"the index", "storage/bolt/bolt.go", "NoStatistics:    true,", "", used("small blob")},
	}
}

// mutate puts a choice where the sync is.
func (m mutant) mutate(text string) (string, error) {
	if n := strings.Count(text, m.code); n != 1 {
		return "", fmt.Errorf("%s has %q %d times, want it once: let the mutant follow the code", m.file, m.code, n)
	}
	changed := fmt.Sprintf("%s NoSync: without(%q),", m.code, m.name)
	if m.sync != "" {
		changed = strings.Replace(m.code, m.sync, fmt.Sprintf("unless(%q, func() error { return %s })", m.name, m.sync), 1)
	}
	return strings.Replace(text, m.code, changed, 1), nil
}

// buildMutants builds the program that is all mutants.
func buildMutants(t *testing.T) string {
	t.Helper()
	module, err := filepath.Abs("../..")
	ok(t, err)
	dir, replace := t.TempDir(), map[string]string{}
	texts := map[string]string{}
	for _, m := range mutants() {
		path := filepath.Join(module, m.file)
		if texts[path] == "" {
			text, err := os.ReadFile(path)
			ok(t, err)
			texts[path] = string(text)
			pack := filepath.Dir(path)
			texts[filepath.Join(pack, "zz_without.go")] = fmt.Sprintf(helper, filepath.Base(pack))
		}
		texts[path], err = m.mutate(texts[path])
		ok(t, err)
	}
	for path, text := range texts {
		stand := filepath.Join(dir, fmt.Sprintf("%d.go", len(replace)))
		ok(t, os.WriteFile(stand, []byte(text), 0o600))
		replace[path] = stand
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	ok(t, err)
	ok(t, os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600))
	// Built as .ci/build does, so that most of it is built already.
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-buildvcs=false", "-tags", "embedded",
		"-overlay", filepath.Join(dir, "overlay.json"), "-o", filepath.Join(dir, "berth"), "./cmd/berth")
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build mutants: %v\n%s", err, out)
	}
	return filepath.Join(dir, "berth")
}

// TestEachSyncIsNeeded takes away one sync at a time: then the tests of power
// cuts must find a loss, else they prove nothing about that sync.
func TestEachSyncIsNeeded(t *testing.T) {
	binary := buildMutants(t)
	for _, m := range mutants() {
		t.Run(m.name, func(t *testing.T) {
			if effort(t) > 1 {
				if err := m.loss(t, binary); err != nil {
					t.Fatalf("with all syncs: %v", err)
				}
			}
			t.Setenv(without, m.name)
			err := m.loss(t, binary)
			if err == nil {
				t.Error("nothing is lost without this sync")
			}
			t.Logf("found: %.300v", err)
		})
	}
}

// losses cuts the power at every moment, from a last one on, until something is
// lost. What is kept of the rest is drawn several times for each.
func losses(t *testing.T, rec recording, binary string, last Moment, draws int) error {
	scratch, rnd := memory(t), rand.New(rand.NewPCG(1, 3))
	for at := last; at >= 0; at-- {
		for n := range draws + 1 {
			keep := 0.
			if n > 0 {
				keep = 0.5
			}
			if err := rec.cut(scratch, binary, at, keep, rnd); err != nil {
				return fmt.Errorf("power cut before %s, keeping %v: %w", rec.disk.Describe(at), keep, err)
			}
		}
	}
	return nil
}

// begun looks for what is lost while a registry makes its data directory.
func begun(t *testing.T, binary string) error {
	// VERSION comes first, and the loss is one of several outcomes at one moment.
	return losses(t, record(t, binary, func(client) {}), binary, 16, 12)
}

// interrupted looks for what is lost after somebody made a directory and failed
// before its name was durable.
func interrupted(t *testing.T, binary string) error {
	f, dir := mount(t, nil)
	l := newLedger(f.Now)
	r := running(t, binary, filepath.Join(dir, "data"))
	c := client{l, r.url}
	f.Break(&Fault{Hits: func(k Kind, path string) bool { return k == SyncDir && path == "data/registry/blobs/sha256" }, Times: 1, Errno: syscall.EIO})
	if err := c.post("team/a", layer("a")); err == nil {
		t.Error("the push does not sync the directory that it makes")
	}
	ok(t, c.post("team/a", layer("a")))
	ok(t, r.kill())
	return recording{f, l}.cut(memory(t), binary, f.Now(), 0, nil)
}

// pulled looks for what is lost of images that were saved to files.
func pulled(place string, images ...string) func(t *testing.T, binary string) error {
	return func(t *testing.T, binary string) error {
		return save(t, binary, place, images...).losses(t)
	}
}

// backedUp looks for what is lost of backups.
func backedUp(t *testing.T, binary string) error { return backups(t, binary).losses(t) }

// used looks for what is lost when a registry is changed in one way.
func used(name string) func(t *testing.T, binary string) error {
	return func(t *testing.T, binary string) error {
		rec := record(t, binary, func(c client) {
			for _, w := range ways() {
				if w.name == name {
					ok(t, w.prepare(c, "id"))
					ok(t, w.run(c, "id"))
				}
			}
		}, collects)
		return losses(t, rec, binary, rec.disk.Now(), 1)
	}
}
