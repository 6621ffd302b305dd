// Package host keeps the containers of a node as their users know them: by
// name, with an image, mounts, a network, output and an end. It puts the image
// store and the runtime together; the Docker Engine API and the agent are two
// ways to ask it.
//
// What a container is, is decided once, when it is created, and written down
// before the caller hears of it. What it does, the runtime's records say, so
// that the node can be stopped, killed and replaced at any time: Open finds
// every container again, with what happened to it meanwhile.
package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"berth.internal/internal/durable"
	"berth.internal/node/container"
	"berth.internal/node/image"
)

// Options are what a Host is made of.
type Options struct {
	Dir       string   // where it keeps its containers; one Host at a time
	Node      string   // id of the node
	Registry  string   // canonical name of the cluster's registry
	Endpoints []string // addresses that mean the same registry, host:port
	Images    *image.Store
	Source    image.Source
	Runtime   *container.Runtime
	Engines   map[string]string // paths of other runtimes, by RuntimeRunc and RuntimeCrun
	Engine    string            // what makes containers that do not say; "": RuntimeBerth
	Log       *slog.Logger

	NoNewPrivs bool   // of containers that do not say
	AppArmor   string // profile of those; "": none

	SourceAs   func(Login) image.Source           // Source for somebody else than the node
	CheckLogin func(context.Context, Login) error // asks the registry whether it is good
}

// Host keeps the containers of one node. All methods may be called at once.
type Host struct {
	opts    Options
	events  bus
	metrics metrics

	cancel  context.CancelFunc
	tasks   sync.WaitGroup
	begin   func(task func(context.Context)) // runs a task until Close
	closing chan struct{}
	slots   chan struct{} // taken by containers that the node begins by itself

	mu         sync.Mutex // guards the rest
	containers map[string]*ctr
	names      map[string]*ctr
	ids        *idRange
	execs      map[string]*execution
}

// Open finds the containers that were made before, ends what a crash left
// half-done, and watches those that run. ctx bounds Open, not the Host.
func Open(ctx context.Context, opts Options) (*Host, error) {
	if err := durable.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open containers: %w", err)
	}
	h := &Host{
		opts: opts, metrics: newMetrics(), closing: make(chan struct{}), slots: make(chan struct{}, startsAtOnce),
		containers: map[string]*ctr{}, names: map[string]*ctr{}, execs: map[string]*execution{},
		ids: newIDRange(opts.Node),
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	h.cancel = cancel
	h.begin = func(task func(context.Context)) { h.tasks.Go(func() { task(life) }) }
	if err := h.restore(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open containers in %s: %w", opts.Dir, err), h.Close())
	}
	return h, nil
}

// Close stops watching. Containers run on.
func (h *Host) Close() error {
	close(h.closing)
	h.cancel()
	h.tasks.Wait()
	return nil
}

// Metrics returns what the host measures.
func (h *Host) Metrics() []prometheus.Collector {
	return append(h.metrics.collectors(), &counts{h})
}

// Runtimes returns the paths of the runtimes that containers can be made with, none
// of the node's own, and which one makes those that do not say.
func (h *Host) Runtimes() (paths map[string]string, standard string) {
	paths = map[string]string{RuntimeBerth: ""}
	maps.Copy(paths, h.opts.Engines)
	return paths, cmp.Or(h.opts.Engine, RuntimeBerth)
}

// hold finds a container that is not being removed, and keeps others from changing it
// until release. Errors: those of find; ErrConflict.
func (h *Host) hold(ref string) (c *ctr, release func(), err error) {
	if c, err = h.find(ref); err != nil {
		return nil, nil, err
	}
	c.op.Lock()
	if err := c.live(); err != nil {
		c.op.Unlock()
		return nil, nil, err
	}
	return c, c.op.Unlock, nil
}

// find returns the container with that name, that id, or the only one whose id
// begins so. Errors: ErrNotFound, ErrInvalid.
func (h *Host) find(ref string) (*ctr, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c, ok := h.containers[ref]; ok {
		return c, nil
	}
	if c, ok := h.names[strings.TrimPrefix(ref, "/")]; ok {
		return c, nil
	}
	var found *ctr
	for id, c := range h.containers {
		if ref != "" && strings.HasPrefix(id, ref) {
			if found != nil {
				return nil, invalid("multiple IDs found with provided prefix: %s", ref)
			}
			found = c
		}
	}
	if found == nil {
		return nil, notFound("No such container: %s", ref)
	}
	return found, nil
}

// List returns all containers, newest first.
func (h *Host) List() []Container {
	h.mu.Lock()
	all := make([]*ctr, 0, len(h.containers))
	for _, c := range h.containers {
		all = append(all, c)
	}
	h.mu.Unlock()
	list := make([]Container, 0, len(all))
	for _, c := range all {
		list = append(list, c.snapshot())
	}
	slices.SortFunc(list, func(a, b Container) int {
		if d := b.Created.Compare(a.Created); d != 0 {
			return d
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list
}

// Inspect returns what there is to know about a container. Errors: ErrNotFound,
// ErrInvalid.
func (h *Host) Inspect(ref string) (Container, error) {
	c, err := h.find(ref)
	if err != nil {
		return Container{}, err
	}
	return c.snapshot(), nil
}
