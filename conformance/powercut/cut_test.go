package powercut

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"
)

// effort is how much a test does: 1 in CI, 100 or more in make soak.
func effort(t *testing.T) int {
	n, err := strconv.Atoi(cmp.Or(os.Getenv("POWERCUT_EFFORT"), "1"))
	if err != nil {
		t.Fatalf("POWERCUT_EFFORT: %v", err)
	}
	return n
}

// recording is what a registry did to its disk while clients used it.
type recording struct {
	disk   *FS
	ledger *ledger
}

// record runs a registry on an empty disk for as long as use lasts.
func record(t *testing.T, binary string, use func(c client), settings ...string) recording {
	t.Helper()
	f, dir := mount(t, nil)
	l := newLedger(f.Now)
	r := running(t, binary, filepath.Join(dir, "data"), settings...)
	use(client{l, r.url})
	if err := r.kill(); err != nil {
		t.Fatal(err)
	}
	return recording{f, l}
}

// cut cuts the power at a moment, starts a registry on what the disk then holds
// and returns what is wrong with it.
func (rec recording) cut(scratch, binary string, at Moment, keep float64, rnd *rand.Rand) error {
	dir, err := os.MkdirTemp(scratch, "cut")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := rec.disk.Disk(at, keep, rnd).Write(dir); err != nil {
		return err
	}
	data := filepath.Join(dir, "data")
	r, err := start(binary, data)
	if err != nil {
		return err
	}
	err = rec.ledger.check(r, data, at)
	if killed := r.kill(); err == nil {
		err = killed
	}
	return err
}

// each runs f for 0 to n-1, on all cores, and reports what fails.
func each(t *testing.T, n int, f func(i int) error) {
	t.Helper()
	next := make(chan int)
	var workers sync.WaitGroup
	for range runtime.NumCPU() {
		workers.Go(func() {
			for i := range next {
				if err := f(i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	workers.Wait()
}

// TestPowerCuts changes a registry in all the ways there are, one after another,
// and cuts the power at every moment that matters: at first at each, since a
// registry that has not begun well never begins, and later before each fsync.
func TestPowerCuts(t *testing.T) {
	var begun Moment
	rec := record(t, built(), func(c client) {
		begun = c.now()
		allWays(t, c)
	}, collects)
	var moments []Moment
	for at := range begun {
		moments = append(moments, at)
	}
	for _, at := range append(rec.disk.Syncs(), rec.disk.Now()) {
		if at >= begun {
			moments = append(moments, at)
		}
	}
	scratch := memory(t)
	each(t, len(moments)*2, func(i int) error {
		at, keep, rnd := moments[i/2], 0., rand.New(rand.NewPCG(1, uint64(i)))
		if i%2 == 1 {
			keep = 0.1 + 0.8*rnd.Float64()
		}
		if at >= begun && effort(t) == 1 && i%8 > 1 && i%8 != 4 {
			return nil // half of what keeps nothing, a quarter of what keeps something
		}
		if err := rec.cut(scratch, built(), at, keep, rnd); err != nil {
			return fmt.Errorf("power cut before %s (%d), with %d requests acknowledged, keeping %.2f: %w", rec.disk.Describe(at), at, rec.ledger.acknowledged(at), keep, err)
		}
		return nil
	})
}

// allWays changes a registry in all ways.
func allWays(t *testing.T, c client) {
	for i, w := range ways() {
		id := fmt.Sprintf("w%d", i)
		if err := w.prepare(c, id); err != nil {
			t.Fatalf("%s: prepare: %v", w.name, err)
		}
		if err := w.run(c, id); err != nil {
			t.Fatalf("%s: %v", w.name, err)
		}
	}
}

// TestPowerCutsUnderLoad lets many clients push at once, so that their commits
// and directories get into each other's way, and cuts the power at moments drawn
// by lot.
func TestPowerCutsUnderLoad(t *testing.T) {
	const cuts = 40
	for round := range effort(t) {
		rec := record(t, built(), func(c client) { manyClients(t, c, round) }, collects)
		moments, scratch := rec.disk.Syncs(), memory(t)
		each(t, cuts, func(i int) error {
			rnd := rand.New(rand.NewPCG(uint64(round), uint64(i)))
			at, keep := moments[rnd.IntN(len(moments))], []float64{0, 0, 0.3, 0.9}[rnd.IntN(4)]
			if err := rec.cut(scratch, built(), at, keep, rnd); err != nil {
				return fmt.Errorf("round %d, power cut before %s (%d), keeping %.2f: %w", round, rec.disk.Describe(at), at, keep, err)
			}
			return nil
		})
	}
}

// manyClients push in all ways at once. What comes first at the same time goes
// to the same new directory.
func manyClients(t *testing.T, c client, round int) {
	var clients sync.WaitGroup
	for n := range 8 {
		clients.Go(func() {
			repo := fmt.Sprintf("team/c%d", n)
			for i := range 4 {
				b := inShard(layer(fmt.Sprintf("%s/i%d", repo, i)), byte(round*4+i))
				if err := c.push(repo, b, [][]int{nil, {large}, {10_000, 70_000}}[n%3]...); err != nil {
					t.Error(err)
				}
				if n%2 == 0 {
					if err := c.remove(blobPath(repo, b)); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	clients.Wait()
}
