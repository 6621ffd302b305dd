// Package model_test lets clients do random things to a built berth with a
// collector that is in a great hurry, kills the server at random moments, and
// holds every answer against a model of what a registry may say. What it proves
// and how is in docs/design/0006-registry-model-test.md.
package model_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// clients is how many of them there are at once.
const clients = 8

// TestModel runs for MODEL_TIME, in CI for as long as it takes to meet every
// scenario often. With MODEL_SEED the clients draw the same lots again; how the
// server orders them is its own affair.
func TestModel(t *testing.T) {
	t.Parallel()
	lasts, err := time.ParseDuration(cmp.Or(os.Getenv("MODEL_TIME"), "20s"))
	if err != nil {
		t.Fatalf("MODEL_TIME: %v", err)
	}
	seed, err := strconv.ParseUint(cmp.Or(os.Getenv("MODEL_SEED"), "0"), 10, 64)
	if err != nil {
		t.Fatalf("MODEL_SEED: %v", err)
	}
	berth, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	seed = cmp.Or(seed, rand.Uint64())
	for began := time.Now(); ; seed++ {
		left := lasts - time.Since(began)
		m := &model{binary: berth, seed: seed, settings: randomSettings(rand.New(rand.NewPCG(seed, 1<<32)))}
		t.Logf("seed %d, %+v", seed, m.settings)
		requests, err := m.run(t, min(left, time.Minute))
		t.Logf("%d requests, %d restarts", requests, m.restarts)
		if err != nil {
			t.Fatalf("MODEL_SEED=%d: %v", seed, err)
		}
		if time.Since(began) >= lasts {
			return
		}
	}
}

// model is a run on a fresh data directory.
type model struct {
	binary string
	env    []string // of the server
	seed   uint64
	settings

	data     string
	random   *rand.Rand
	record   *record
	world    *world
	clients  []*client
	restarts int
}

// run lets the clients work for a while, then takes everything away. It returns
// how many requests there were and the first error.
func (m *model) run(t *testing.T, lasts time.Duration) (int, error) {
	ctx, failed := context.WithCancel(t.Context())
	defer failed()
	m.data = filepath.Join(t.TempDir(), "data")
	m.random = rand.New(rand.NewPCG(m.seed, 0))
	m.record = newRecord(m.settings, failed)
	m.world = m.record.populate(m.random)
	for i := range clients + 1 { // the last one looks on while the others rest
		m.clients = append(m.clients, &client{
			record: m.record, world: m.world, id: i, random: rand.New(rand.NewPCG(m.seed, uint64(i+1))),
			http: http.Client{Transport: &http.Transport{}}, admin: http.Client{Transport: socket(m.data)},
		})
	}
	var err error
	for began := time.Now(); time.Since(began) < lasts && ctx.Err() == nil && err == nil; {
		err = m.life(ctx)
	}
	if ctx.Err() == nil && err == nil {
		err = m.end(ctx)
	}
	n, wrong := m.record.result()
	return n, cmp.Or(wrong, err)
}

// life is a life of the server, from a start to an end that comes at a random
// moment.
func (m *model) life(ctx context.Context) error {
	server, err := m.start(ctx)
	if err != nil {
		return err
	}
	working, stop := context.WithCancel(ctx)
	defer stop()
	var busy sync.WaitGroup
	for _, c := range m.clients[:clients] {
		busy.Go(func() {
			for working.Err() == nil {
				c.act(working)
			}
		})
	}
	select {
	case <-ctx.Done(): // an error
	case <-time.After(time.Duration(m.random.Int64N(int64(6 * m.grace)))):
	}
	m.clients[0].ending.Store(true)
	end := server.kill
	if m.random.IntN(5) == 0 {
		end = server.stop
	}
	err = end()
	stop()
	busy.Wait()
	m.record.died()
	for _, c := range m.clients {
		c.http.CloseIdleConnections()
		c.admin.CloseIdleConnections()
	}
	return errors.Join(err, server.complaints())
}

// start starts the server, and looks at everything before anybody else does.
func (m *model) start(ctx context.Context) (*registry, error) {
	server, err := serve(m.binary, m.data, m.settings, m.env...)
	if err != nil {
		return nil, err
	}
	m.restarts++
	var ending atomic.Bool
	for _, c := range m.clients {
		c.url, c.ending = server.url, &ending
	}
	m.clients[clients].inspect(ctx)
	m.record.forget()
	return server, nil
}

// inspect looks at every tag and everything in every repository, while nobody
// does anything but the collector.
func (c *client) inspect(ctx context.Context) {
	c.check(ctx, true)
	for _, repo := range repos {
		for _, tag := range tags {
			name := tagName{repo, tag}
			a, on := c.resolve(ctx, name, http.MethodGet)
			if a == nil {
				return
			}
			c.settled(a.op, name, on)
			if on != nil && !c.pullRefs(ctx, holding{repo, on}) {
				c.complain(a.op, append(c.relatives(holding{repo, on}), name), "%s is on %s, which cannot be pulled in full", name, on)
			}
		}
		c.list(ctx, repo)
		c.trashcan(ctx, repo)
		for _, t := range append(c.blobs, c.manifests...) {
			c.look(ctx, holding{repo, t}, http.MethodGet)
		}
		for _, t := range c.manifests {
			c.referrers(ctx, repo, t)
		}
	}
}

// end takes everything away, and looks whether the disk is empty then.
func (m *model) end(ctx context.Context) error {
	m.record.mu.Lock()
	m.immutable, m.record.immutable = false, false
	m.record.mu.Unlock()
	server, err := m.start(ctx)
	if err != nil {
		return err
	}
	c := m.clients[clients]
	c.deleteAll(ctx, m.untagged == 0 || m.random.IntN(2) == 0)
	err = m.emptied(ctx)
	c.ending.Store(true)
	return errors.Join(err, server.stop(), server.complaints())
}

// deleteAll deletes the tags and leaves the rest to the collector, or deletes
// manifests and blobs as well.
func (c *client) deleteAll(ctx context.Context, byDigest bool) {
	for _, repo := range repos {
		for _, tag := range tags {
			c.deleteTag(ctx, tagName{repo, tag})
		}
		if !byDigest {
			continue
		}
		for _, t := range slices.Backward(c.things) { // what names others was made after them
			c.delete(ctx, holding{repo, t})
		}
	}
}

// emptied waits until the collector has left no file behind.
func (m *model) emptied(ctx context.Context) error {
	deadline := time.Now().Add(patience)
	for {
		left, err := files(m.data)
		if err != nil || len(left) == 0 || ctx.Err() != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("everything was deleted %s ago, and these files are left:\n%q", patience, left)
		}
		m.clients[clients].pause(ctx, m.interval)
	}
}
