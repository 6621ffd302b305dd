package host

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"berth.internal/node/image"
)

// Create makes a container. It is on disk when Create returns, and nothing of
// it runs. warnings are for the user: what will be different from what Docker
// would do. Errors: ErrNotFound if the node does not have the image; ErrConflict
// if the name is taken; ErrInvalid; ErrUnsupported.
func (h *Host) Create(ctx context.Context, spec Spec) (id string, warnings []string, err error) {
	img, err := h.Image(spec.Image)
	if err != nil {
		return "", nil, err
	}
	rec := record{Version: recordVersion, ID: newID(), Created: time.Now().UTC(), ImageID: img.ID.String()}
	spec.Runtime = cmp.Or(spec.Runtime, h.opts.Engine)
	if spec.NoNewPrivs == nil && h.opts.NoNewPrivs {
		spec.NoNewPrivs = &h.opts.NoNewPrivs
	}
	if _, err := h.engine(&spec); err != nil {
		return "", nil, err
	}
	rec.Spec, warnings, err = h.complete(spec, &rec, img)
	if err != nil {
		return "", nil, err
	}
	if !rec.Spec.Security.Privileged {
		rec.AppArmor = h.opts.AppArmor
	}
	if err := ctx.Err(); err != nil {
		return "", nil, err
	}
	c := newCtr(h.opts.Dir, rec)
	// From here on nobody else can take the name, the users or the image away.
	if err := h.admit(c); err != nil {
		return "", nil, err
	}
	if err := c.save(c.rec); err != nil {
		h.forget(c)
		return "", nil, err
	}
	h.tell(c, "create")
	for _, w := range warnings {
		h.opts.Log.Warn("container is not all that was asked for", "container", rec.ID, "warning", w)
	}
	return rec.ID, warnings, nil
}

// complete fills the gaps of a spec from the image and with defaults, and
// checks it. Into rec it writes whose users the container shares.
func (h *Host) complete(spec Spec, rec *record, img image.Image) (_ Spec, warnings []string, err error) {
	spec = spec.fill(img.Config.Config)
	spec.Health = spec.Health.fill(img)
	if err := spec.check(); err != nil {
		return spec, nil, err
	}
	if rec.Users, warnings, err = h.resolveJoins(&spec); err != nil {
		return spec, nil, err
	}
	rec.SharedUsers = rec.Users != 0
	if spec.Security.WritableCgroups && !spec.HostUsers {
		return spec, nil, unsupported("writable-cgroups with a user namespace is not supported: the container's cgroup belongs to the node's root; use --userns host, too")
	}
	if spec.Security.Privileged {
		if _, lacks := ownCapabilities(); len(lacks) > 0 {
			warnings = append(warnings, "The node itself does not have "+strings.Join(lacks, ", ")+": neither has the privileged container.")
		}
	}
	if spec.Hostname == "" && (spec.Network == NetworkHost || spec.Namespaces.UTS == NamespaceHost) {
		if spec.Hostname, err = os.Hostname(); err != nil {
			return spec, nil, fmt.Errorf("read the node's hostname: %w", err)
		}
	}
	if spec.Hostname == "" {
		spec.Hostname = shortID(rec.ID)
	}
	if n := len(img.Config.Config.Volumes); n > 0 {
		warnings = append(warnings, "The image declares volumes, which are not supported yet: what is written there stays in the container and goes with it.")
	}
	return spec, warnings, nil
}

// admit makes the container known under its name, with users of its own, and
// keeps its image.
func (h *Host) admit(c *ctr) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	name := c.rec.Spec.Name
	c.rec.Spec.Name = ""
	if name == "" {
		name = randomName(func(n string) bool { return h.names[n] != nil })
	} else {
		var err error
		if name, err = checkName(name); err != nil {
			return err
		}
	}
	if other := h.names[name]; other != nil {
		return conflict("Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", "/"+name, other.rec.ID)
	}
	if err := h.retain(c.rec.ImageID, c.rec.ID); err != nil {
		return err
	}
	if c.rec.SharedUsers {
		if err := h.ids.share(c.rec.Users); err != nil {
			h.release(c)
			return err
		}
	} else if !c.rec.Spec.HostUsers {
		users, err := h.ids.take()
		if err != nil {
			h.release(c)
			return err
		}
		c.rec.Users = users
	}
	c.rec.Name = name
	h.names[name] = c
	h.containers[c.rec.ID] = c
	return nil
}

// forget is admit backwards.
func (h *Host) forget(c *ctr) {
	h.mu.Lock()
	delete(h.containers, c.rec.ID)
	if h.names[c.rec.Name] == c {
		delete(h.names, c.rec.Name)
	}
	if c.rec.Users != 0 {
		h.ids.free(c.rec.Users, c.rec.SharedUsers)
	}
	for _, x := range c.execs {
		delete(h.execs, x.id)
	}
	h.mu.Unlock()
	h.release(c)
}

// Rename gives the container another name. Errors: ErrNotFound, ErrConflict,
// ErrInvalid.
func (h *Host) Rename(_ context.Context, ref, name string) error {
	name, err := checkName(name)
	if err != nil {
		return err
	}
	c, release, err := h.hold(ref)
	if err != nil {
		return err
	}
	defer release()
	h.mu.Lock()
	other := h.names[name]
	if other == nil {
		h.names[name] = c // before the disk, so that nobody takes it meanwhile
	}
	h.mu.Unlock()
	old := c.name()
	switch {
	case name == old:
		return invalid("Renaming a container with the same name as its current name")
	case other != nil:
		return conflict("Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", "/"+name, other.rec.ID)
	}
	rec, _ := c.now()
	rec.Name = name
	err = c.save(rec)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil {
		delete(h.names, name)
		return err
	}
	delete(h.names, old)
	h.tell(c, "rename", "oldName", "/"+old)
	return nil
}
