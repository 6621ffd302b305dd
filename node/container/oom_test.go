package container_test

import (
	"context"
	"errors"
	"os"
	"strings"
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

// watched is a watch that somebody waits for.
type watched struct {
	kills atomic.Int32
	saw   chan struct{}
	ended chan error
}

func (n *node) watch(ctx context.Context, t *testing.T, id string) *watched {
	t.Helper()
	o, err := n.WatchOOM(id)
	if err != nil {
		t.Fatal(err)
	}
	w := &watched{saw: make(chan struct{}, 100), ended: make(chan error, 1)}
	go func() {
		w.ended <- o.Wait(ctx, func() {
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
	first, second, other := n.watch(testContext(t), t, b.ID), n.watch(testContext(t), t, b.ID), n.watch(testContext(t), t, quiet.ID)
	s := n.attach(t, b.ID, container.AttachOptions{Stdin: true})
	n.start(t, b.ID)
	for i := range 2 {
		for _, w := range []*watched{first, second} {
			select {
			case <-w.saw:
			case err := <-w.ended:
				t.Fatalf("Wait = %v before kill %d", err, i)
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
			t.Errorf("Wait for kills = %v", err)
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
		t.Errorf("Wait for kills of a container that was killed = %v", err)
	}
}

// TestOutOfMemoryBeforeWait: who waits is told of what happened since WatchOOM.
func TestOutOfMemoryBeforeWait(t *testing.T) {
	n := newNode(t)
	b := n.hungry(t, "exec "+full)
	n.create(t, b)
	o, err := n.WatchOOM(b.ID)
	if err != nil {
		t.Fatal(err)
	}
	n.start(t, b.ID)
	if _, err := n.Wait(testContext(t), b.ID); err != nil {
		t.Fatal(err)
	}
	kills := 0
	if err := o.Wait(testContext(t), func() { kills++ }); err != nil || kills != 1 {
		t.Errorf("%d kills, %v; want 1", kills, err)
	}
}

// TestWatchOfAnother: who watched a container that was deleted meanwhile has nothing
// to do with another one of its name.
func TestWatchOfAnother(t *testing.T) {
	n := newNode(t)
	b := n.hungry(t, full)
	n.create(t, b)
	o, err := n.WatchOOM(b.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Delete(testContext(t), b.ID); err != nil {
		t.Fatal(err)
	}
	n.create(t, b)
	another, err := n.WatchOOM(b.ID)
	if err != nil {
		t.Fatal(err)
	}
	n.start(t, b.ID)
	if err := another.Wait(testContext(t), func() {}); err != nil {
		t.Fatal(err)
	}
	if err := o.Wait(testContext(t), func() { t.Error("a kill of the other container is told") }); err != nil {
		t.Error(err)
	}
}

// TestWatchEnds ends watches in each way, and counts descriptors.
func TestWatchEnds(t *testing.T) {
	n := newNode(t)
	if _, err := n.WatchOOM("none"); !errors.Is(err, container.ErrNotFound) {
		t.Errorf("WatchOOM of no container = %v", err)
	}
	b := n.bundle(t, "sleep", "1000")
	n.create(t, b)
	before := watches(t)
	ctx, cancel := context.WithCancel(testContext(t))
	w := n.watch(ctx, t, b.ID)
	cancel()
	if err := <-w.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Wait with a context that ended = %v", err)
	}
	w = n.watch(testContext(t), t, b.ID)
	if err := n.Delete(testContext(t), b.ID); err != nil {
		t.Fatal(err)
	}
	if err := <-w.ended; err != nil {
		t.Errorf("Wait for kills of a container that was deleted = %v", err)
	}
	if after := watches(t); after > before+1 { // the one for all
		t.Errorf("%d things are watched, %d before", after, before)
	}
	b = n.bundle(t, "sleep", "1000")
	n.create(t, b)
	w = n.watch(testContext(t), t, b.ID)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-w.ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Wait after Close = %v", err)
	}
	if _, err := n.WatchOOM(b.ID); !errors.Is(err, os.ErrClosed) {
		t.Errorf("WatchOOM after Close = %v", err)
	}
	if after := watches(t); after > before {
		t.Errorf("%d things are watched after Close, %d at first", after, before)
	}
	n.open(t)
}

// watches returns how many descriptors this process has by which it is told of something.
func watches(t *testing.T) (count int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		to, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err == nil && (strings.HasPrefix(to, "anon_inode:inotify") || strings.HasPrefix(to, "anon_inode:[eventfd]")) {
			count++
		}
	}
	return count
}
