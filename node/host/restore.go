package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"berth.internal/node/container"
)

// restore brings the containers back into memory and does what there was nobody
// to do: it ends removals, and removes containers that were to go when they
// exited.
func (h *Host) restore(ctx context.Context) error {
	if err := h.opts.Runtime.Sweep(); err != nil {
		h.opts.Log.Warn("not all could be removed that a node left which was killed", "error", err)
	}
	states, err := h.opts.Runtime.List(ctx)
	if err != nil {
		return err
	}
	known := map[string]container.State{}
	for _, st := range states {
		known[st.ID] = st
	}
	entries, err := os.ReadDir(h.opts.Dir)
	if err != nil {
		return err
	}
	var begin []*ctr
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), recordSuffix)
		_, being := strings.CutSuffix(e.Name(), goneSuffix)
		switch {
		case being:
			err = h.restoreRemoval(ctx, filepath.Join(h.opts.Dir, e.Name()))
		case ok && !strings.HasPrefix(e.Name(), "."):
			st, found := known[id]
			var c *ctr
			c, err = h.restoreContainer(ctx, filepath.Join(h.opts.Dir, e.Name()), st, found)
			if err == nil && !c.alive() && c.rec.onBoot(c.state, found && st.Status != container.StatusCreated) {
				begin = append(begin, c)
			}
		case strings.HasPrefix(e.Name(), "."): // of a write that a crash cut short
			err = os.Remove(filepath.Join(h.opts.Dir, e.Name()))
		default:
			continue
		}
		if err != nil {
			return err
		}
	}
	for id := range known {
		if h.containers[id] == nil {
			h.opts.Log.Warn("the runtime has a container that nobody knows; it is left alone", "container", id)
		}
	}
	h.boot(begin)
	return nil
}

// restoreRemoval goes on with a removal.
func (h *Host) restoreRemoval(ctx context.Context, path string) error {
	rec, err := readRecord(path)
	if err != nil {
		return err
	}
	c := newCtr(h.opts.Dir, rec)
	if err := h.opts.Runtime.Delete(ctx, rec.ID); err != nil {
		return fmt.Errorf("remove container %s: %w", shortID(rec.ID), err)
	}
	return c.removeFiles()
}

// restoreContainer brings one container back, with what the runtime knows of
// it.
func (h *Host) restoreContainer(ctx context.Context, path string, st container.State, found bool) (*ctr, error) {
	rec, err := readRecord(path)
	if err != nil {
		return nil, err
	}
	c := newCtr(h.opts.Dir, rec)
	h.containers[rec.ID], h.names[rec.Name] = c, c
	if rec.Users != 0 {
		if err := h.ids.restore(rec.Users, rec.SharedUsers); err != nil {
			return nil, fmt.Errorf("container %s: %w", shortID(rec.ID), err)
		}
	}
	if err := h.retain(rec.ImageID, rec.ID); err != nil {
		// It can be looked at and removed; it cannot be started.
		h.opts.Log.Error("container has lost its image", "container", rec.ID, "error", err)
	}
	if !found || st.Status == container.StatusCreated || st.Status == container.StatusStopped {
		h.endShm(c)
	}
	if !found || st.Status == container.StatusCreated {
		if rec.Last != nil {
			c.state = *rec.Last
		}
		if found { // a crash came between making it and starting it
			return c, h.undoCreate(ctx, c)
		}
		return c, nil
	}
	c.state = fromRuntime(st)
	c.state.Restarts = rec.Restarts + max(st.Run-1, 0)
	if c.state.Alive() {
		h.rejoin(c, st)
		return c, nil
	}
	if rec.Spec.AutoRemove {
		return c, h.remove(ctx, c)
	}
	return c, nil
}

// rejoin watches a container that lives.
func (h *Host) rejoin(c *ctr, st container.State) {
	h.watchMemory(c)
	if c.rec.Asked == askedStop { // a crash may have come before its shim heard of it
		h.begin(func(ctx context.Context) {
			if err := h.setRestart(ctx, c, Restart{}); err != nil && ctx.Err() == nil {
				h.opts.Log.Error("container was stopped, and its restart policy could not be taken away", "container", c.rec.ID, "error", err)
			}
		})
	}
	if c.state.Status == Running {
		c.joinable = true
		h.ask(c)
		h.begin(func(ctx context.Context) { h.watch(ctx, c, max(st.Run, 1), true) })
		return
	}
	h.begin(func(ctx context.Context) {
		h.watch(ctx, c, st.Run+1, h.awaitRun(ctx, c, st.Run+1, st.Next))
	})
}

// undoCreate takes back what the runtime made for a start that did not happen.
func (h *Host) undoCreate(ctx context.Context, c *ctr) error {
	err := h.opts.Runtime.Kill(ctx, c.rec.ID, sigKill)
	if err != nil && !errors.Is(err, container.ErrStatus) && !errors.Is(err, container.ErrNotFound) {
		return err
	}
	return h.opts.Runtime.Delete(ctx, c.rec.ID)
}
