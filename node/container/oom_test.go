package container_test

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container"
)

// full needs more memory than a container has.
const full = "dd if=/dev/zero of=/dev/null bs=64M count=1"

// hungry returns a container with little memory.
func (n *node) hungry(t *testing.T, script string) container.Bundle {
	t.Helper()
	b := n.bundle(t, "sh", "-c", script)
	b.Spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: new(int64(16 << 20)), Swap: new(int64(16 << 20))}
	return b
}

// watched is a call of WatchOOM.
type watched struct {
	kills atomic.Int32
	saw   chan struct{}
	ended chan error
}

func (n *node) watch(ctx context.Context, id string) *watched {
	w := &watched{saw: make(chan struct{}, 100), ended: make(chan error, 1)}
	go func() {
		w.ended <- n.WatchOOM(ctx, id, func() {
			w.kills.Add(1)
			w.saw <- struct{}{}
		})
	}()
	return w
}

// TestOutOfMemory lets processes of a container fill its memory: the first process
// hears of one, is told by the agent of the next as well, and dies of the last.
func TestOutOfMemory(t *testing.T) {
	n := newNode(t)
	b := n.hungry(t, full+"; read x; "+full+"; read x; exec "+full)
	b.Stdin = true
	n.create(t, b)
	quiet := n.bundle(t, "sleep", "1000")
	n.create(t, quiet)
	n.start(t, quiet.ID)
	first, second, other := n.watch(testContext(t), b.ID), n.watch(testContext(t), b.ID), n.watch(testContext(t), quiet.ID)
	// Both are there before it begins: otherwise there would be nothing to see.
	n.awaitWatches(t, 3)
	s := n.attach(t, b.ID, container.AttachOptions{Stdin: true})
	n.start(t, b.ID)
	for i := range 2 {
		for _, w := range []*watched{first, second} {
			select {
			case <-w.saw:
			case err := <-w.ended:
				t.Fatalf("WatchOOM = %v before kill %d", err, i)
			case <-time.After(20 * time.Second):
				t.Fatalf("nobody was told of kill %d", i)
			}
		}
		if stats, err := n.Stats(testContext(t), b.ID); err != nil || stats.OOMKills == 0 {
			t.Errorf("Stats = %d kills, %v", stats.OOMKills, err)
		}
		if _, err := s.Stdin.Write([]byte("\n")); err != nil {
			t.Fatal(err)
		}
	}
	state, err := n.Wait(testContext(t), b.ID)
	if err != nil || state.ExitCode != 137 || !state.OOMKilled {
		t.Errorf("Wait = %+v, %v; want exit code 137 and OOMKilled", state, err)
	}
	for _, w := range []*watched{first, second} {
		if err := <-w.ended; err != nil {
			t.Errorf("WatchOOM = %v", err)
		}
		if kills := w.kills.Load(); kills < 3 {
			t.Errorf("%d kills, want 3", kills)
		}
	}
	if kills := other.kills.Load(); kills > 0 {
		t.Errorf("another container was told of %d kills", kills)
	}
	if err := n.Kill(testContext(t), quiet.ID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-other.ended; err != nil {
		t.Errorf("WatchOOM of a container that was killed = %v", err)
	}
}

// awaitWatches returns when so many calls of WatchOOM are under way.
func (n *node) awaitWatches(t *testing.T, count int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); n.Watches() < count; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d calls of WatchOOM are under way, want %d", n.Watches(), count)
		}
	}
}

// TestWatchEnds ends calls of WatchOOM in each way, and counts descriptors.
func TestWatchEnds(t *testing.T) {
	n := newNode(t)
	if err := n.WatchOOM(testContext(t), "none", nil); !errors.Is(err, container.ErrNotFound) {
		t.Errorf("WatchOOM of no container = %v", err)
	}
	b := n.bundle(t, "sleep", "1000")
	n.create(t, b)
	before := open(t)
	ctx, cancel := context.WithCancel(testContext(t))
	w := n.watch(ctx, b.ID)
	n.awaitWatches(t, 1)
	cancel()
	if err := <-w.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("WatchOOM with a context that ended = %v", err)
	}
	w = n.watch(testContext(t), b.ID)
	n.awaitWatches(t, 1)
	if err := n.Delete(testContext(t), b.ID); err != nil {
		t.Fatal(err)
	}
	if err := <-w.ended; err != nil {
		t.Errorf("WatchOOM of a container that was deleted = %v", err)
	}
	if after := open(t); after > before+1 { // the one for all
		t.Errorf("%d descriptors are open, %d before", after, before)
	}
	b = n.bundle(t, "sleep", "1000")
	n.create(t, b)
	w = n.watch(testContext(t), b.ID)
	n.awaitWatches(t, 1)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-w.ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("WatchOOM after Close = %v", err)
	}
	if after := open(t); after >= before {
		t.Errorf("%d descriptors are open after Close, %d before", after, before)
	}
	n.open(t)
}
