package container_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"berth.internal/node/container"
)

// newAgent is a node as it is when it has started.
func newAgent(b *testing.B) *node {
	n := newNode(b)
	if err := n.Close(); err != nil {
		b.Fatal(err)
	}
	n.cfg.Spare = true
	n.open(b)
	if err := n.Sweep(); err != nil {
		b.Fatal(err)
	}
	return n
}

// cycle runs a container from Create to Delete.
func cycle(b *testing.B, n *node, bundle container.Bundle) {
	ctx := context.Background()
	if err := n.Create(ctx, bundle); err != nil {
		b.Fatal(err)
	}
	if _, err := n.Start(ctx, bundle.ID); err != nil {
		b.Fatal(err)
	}
	if s, err := n.Wait(ctx, bundle.ID); err != nil || s.ExitCode != 0 {
		b.Fatalf("%+v, %v", s, err)
	}
	if err := n.Delete(ctx, bundle.ID); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkRun is a whole life: create, start, wait for /bin/true, delete.
func BenchmarkRun(b *testing.B) {
	n := newAgent(b)
	bundle := n.bundle(b, "true")
	for b.Loop() {
		cycle(b, n, bundle)
	}
}

// BenchmarkRun4 is the same, four at a time.
func BenchmarkRun4(b *testing.B) {
	n := newAgent(b)
	work := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		bundle := n.bundle(b, "true")
		wg.Go(func() {
			for range work {
				cycle(b, n, bundle)
			}
		})
	}
	for b.Loop() {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
}

// BenchmarkStart is Create and Start only: until the process runs.
func BenchmarkStart(b *testing.B) {
	n := newAgent(b)
	bundle := n.bundle(b, "true")
	ctx := context.Background()
	for b.Loop() {
		if err := n.Create(ctx, bundle); err != nil {
			b.Fatal(err)
		}
		if _, err := n.Start(ctx, bundle.ID); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if _, err := n.Wait(ctx, bundle.ID); err != nil {
			b.Fatal(err)
		}
		if err := n.Delete(ctx, bundle.ID); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkExec runs /bin/true in a running container, until its exit code is
// known.
func BenchmarkExec(b *testing.B) {
	n := newAgent(b)
	ctx := context.Background()
	bundle := n.bundle(b, "sleep", "1000")
	if err := n.Create(ctx, bundle); err != nil {
		b.Fatal(err)
	}
	if _, err := n.Start(ctx, bundle.ID); err != nil {
		b.Fatal(err)
	}
	proc := *bundle.Spec.Process
	proc.Args = []string{"true"}
	for b.Loop() {
		e, err := n.Exec(ctx, bundle.ID, container.ExecSpec{Process: proc})
		if err != nil {
			b.Fatal(err)
		}
		if code, err := e.Wait(ctx); err != nil || code != 0 {
			b.Fatalf("exit code %d, %v", code, err)
		}
	}
}

// BenchmarkMemory reports the memory of a shim among twenty, as the share of
// the machine's that is due to it: of containers that run, and of such that have
// begun again.
func BenchmarkMemory(b *testing.B) {
	for _, restarts := range []int{0, 3} {
		b.Run(fmt.Sprint("restarts=", restarts), func(b *testing.B) { benchmarkMemory(b, restarts) })
	}
}

func benchmarkMemory(b *testing.B, restarts int) {
	n := newAgent(b)
	ctx := context.Background()
	const count = 20
	var logs []string
	for range count {
		bundle := n.bundle(b, "sh", "-c", counting+fmt.Sprintf("[ $n -gt %d ] || exit 1; exec sleep 1000", restarts))
		if restarts > 0 {
			bundle.Restart.Policy = container.RestartAlways
		}
		if err := n.Create(ctx, bundle); err != nil {
			b.Fatal(err)
		}
		if _, err := n.Start(ctx, bundle.ID); err != nil {
			b.Fatal(err)
		}
		logs = append(logs, bundle.Log.Path)
	}
	for _, log := range logs {
		waitLog(b, log, fmt.Sprint("run ", restarts+1))
	}
	for b.Loop() {
		total, private := 0, 0
		for _, p := range n.processes(b) {
			if proc, ok := strings.CutPrefix(p, "shim "); ok {
				total += rollup(b, proc, "Pss:")
				private += rollup(b, proc, "Private_Dirty:")
			}
		}
		b.ReportMetric(float64(total)/count, "kB-PSS/shim")
		b.ReportMetric(float64(private)/count, "kB-private/shim")
	}
}

// rollup returns a value of a process's smaps_rollup, in kB.
func rollup(b testing.TB, proc, key string) int {
	data, err := os.ReadFile(proc + "/smaps_rollup")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == key {
			kb, err := strconv.Atoi(f[1])
			if err != nil {
				b.Fatal(fmt.Errorf("%s: %w", line, err))
			}
			return kb
		}
	}
	b.Fatalf("%s has no %s", proc, key)
	return 0
}
