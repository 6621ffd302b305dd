package powercut

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// copies are the states of a registry that was copied to a disk, by backups or
// by a restore.
type copies struct {
	binary string
	disk   *FS
	states []map[string]string // what its paths held, "" for nothing
	done   []Moment            // when each had been copied
	serve  func(dir string) (data string, err error)
}

// run runs a command on the registry in data.
func run(binary, data string, args ...string) error {
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), "BERTH_DATA="+data)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// state is what a ledger says that its paths hold, if all was acknowledged.
func (l *ledger) state() map[string]string {
	s := map[string]string{}
	for path, states := range l.paths {
		s[path] = states[len(states)-1].body
	}
	return s
}

// backups makes two backups in one directory of an empty disk. Between them
// something comes and something goes.
func backups(t *testing.T, binary string) copies {
	t.Helper()
	data := filepath.Join(memory(t), "data")
	f, dir := mount(t, nil)
	r := running(t, binary, data, collects, "BERTH_TRASH=0s")
	c := client{newLedger(f.Now), r.url}
	s := copies{binary: binary, disk: f}
	backup := func() {
		ok(t, run(binary, data, "admin", "backup", filepath.Join(dir, "backup")))
		s.states, s.done = append(s.states, c.state()), append(s.done, f.Now())
	}
	ok(t, c.tagged("stays"))
	ok(t, c.post("team/goes", layer("goes")))
	backup()
	ok(t, c.remove(blobPath("team/goes", layer("goes"))))
	ok(t, c.collected())
	ok(t, c.tagged("comes"))
	backup()
	ok(t, r.kill())
	s.serve = func(dir string) (string, error) {
		data := filepath.Join(dir, "data")
		return data, run(binary, data, "admin", "restore", filepath.Join(dir, "backup"), "--data", data)
	}
	return s
}

// restored restores a backup to an empty disk.
func restored(t *testing.T, binary string) copies {
	t.Helper()
	from := memory(t)
	rec := record(t, binary, func(c client) { ok(t, c.tagged("stays")) })
	ok(t, rec.disk.Disk(rec.disk.Now(), 1, nil).Write(from))
	r := running(t, binary, filepath.Join(from, "data"))
	ok(t, run(binary, filepath.Join(from, "data"), "admin", "backup", filepath.Join(from, "backup")))
	ok(t, r.kill())
	f, dir := mount(t, nil)
	data := filepath.Join(dir, "data")
	ok(t, run(binary, data, "admin", "restore", filepath.Join(from, "backup"), "--data", data))
	return copies{
		binary: binary, disk: f, states: []map[string]string{rec.ledger.state()}, done: []Moment{f.Now()},
		serve: func(dir string) (string, error) { return filepath.Join(dir, "data"), nil },
	}
}

// losses cuts the power at all moments, from the last on, until what is left is
// served and is none of the states, or is not there after it had been copied.
func (s copies) losses(t *testing.T) error {
	scratch, now := memory(t), s.disk.Now()
	for at := now; at >= 0; at-- {
		for _, keep := range []float64{0, 0.5} {
			if effort(t) == 1 && keep > 0 && at%4 != 0 {
				continue
			}
			if err := s.cut(scratch, at, keep); err != nil {
				return fmt.Errorf("power cut before %s (%d of %d), keeping %v: %w", s.disk.Describe(at), at, now, keep, err)
			}
		}
	}
	return nil
}

func (s copies) cut(scratch string, at Moment, keep float64) error {
	dir, err := os.MkdirTemp(scratch, "cut")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := s.disk.Disk(at, keep, rand.New(rand.NewPCG(uint64(at), 4))).Write(dir); err != nil {
		return err
	}
	var r *registry
	data, err := s.serve(dir)
	if err == nil {
		_, err = os.Stat(filepath.Join(data, "registry", "index.db")) // else it would be a new registry
	}
	if err == nil {
		r, err = start(s.binary, data)
	}
	if err != nil {
		if at >= s.done[0] {
			return err
		}
		return nil // it was not complete, and says so
	}
	defer func() { _ = r.kill() }()
	var wrong error
	for i, state := range s.states {
		if i+1 < len(s.done) && at >= s.done[i+1] {
			continue // a later one has taken its place
		}
		err := holdsState(r.url, state)
		if err == nil {
			return nil
		}
		wrong = errors.Join(wrong, err)
	}
	return wrong
}

func holdsState(url string, state map[string]string) error {
	c := client{newLedger(func() Moment { return 0 }), url}
	for path, want := range state {
		a, err := c.ask("GET", path, nil)
		if err != nil {
			return err
		}
		if want == "" && a.status != 404 || want != "" && (a.status != 200 || string(a.body) != want) {
			return failure{a}
		}
	}
	return nil
}

// TestBackups cuts the power while backups are made: the last one that was
// complete can be restored.
func TestBackups(t *testing.T) {
	if err := backups(t, built()).losses(t); err != nil {
		t.Error(err)
	}
}

// TestRestore cuts the power while a backup is restored: what is served is all of
// it.
func TestRestore(t *testing.T) {
	if err := restored(t, built()).losses(t); err != nil {
		t.Error(err)
	}
}
