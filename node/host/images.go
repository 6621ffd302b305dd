package host

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.internal/internal/oci"
	"berth.internal/node/image"
)

// canonical reads an image's name as the node understands it: one without a
// registry, or with the address of the cluster's, means the cluster's registry,
// and there is no other.
func (h *Host) canonical(name string) (oci.Reference, error) {
	ref, err := oci.ParseReference(name, h.opts.Registry)
	if err != nil {
		return ref, invalid("invalid reference format: %v", err)
	}
	if slices.Contains(h.opts.Endpoints, ref.Registry) {
		ref.Registry = h.opts.Registry
	}
	if ref.Registry != h.opts.Registry {
		return ref, invalid("registry %s is not this node's registry %s; no upstream is configured, so copy the image there first", ref.Registry, h.opts.Registry)
	}
	return ref, nil
}

// PullOptions say how an image is pulled.
type PullOptions struct {
	Platform *v1.Platform      // nil: the machine's
	Progress func(image.Event) // may be nil
	Login    *Login            // nil: as the node itself
}

// Login is who asks the registry. It is used once and kept nowhere.
type Login struct {
	Username, Password string // the user name <token> says that the password is an identity token
}

// Pull brings the image that name stands for onto the node.
func (h *Host) Pull(ctx context.Context, name string, o PullOptions) (image.Image, error) {
	ref, err := h.canonical(name)
	if err != nil {
		return image.Image{}, err
	}
	source := h.opts.Source
	if o.Login != nil {
		source = h.opts.SourceAs(*o.Login)
	}
	img, err := h.opts.Images.Pull(ctx, ref, source, image.PullOptions{Platform: o.Platform, Progress: o.Progress})
	if err != nil {
		return image.Image{}, err
	}
	h.tellImage("pull", img.ID, ref.String())
	return img, nil
}

// CheckLogin asks the registry whether it lets the login in. Errors: what it says.
func (h *Host) CheckLogin(ctx context.Context, l Login) error { return h.opts.CheckLogin(ctx, l) }

// Reference returns the name in full that a user's name for an image stands
// for.
func (h *Host) Reference(name string) (oci.Reference, error) { return h.canonical(name) }

// Images returns all images, latest created first.
func (h *Host) Images() []image.Image { return h.opts.Images.List() }

// Image finds an image by a name as users write it, by its id, or by the
// beginning of its id. Errors: ErrNotFound, ErrInvalid.
func (h *Host) Image(name string) (image.Image, error) {
	ref, refErr := h.canonical(name)
	if refErr == nil {
		img, err := h.opts.Images.Get(ref.String())
		if !errors.Is(err, image.ErrNotFound) {
			return img, err
		}
	}
	img, err := h.opts.Images.Get(name)
	switch {
	case err == nil:
		return img, nil
	case errors.Is(err, image.ErrAmbiguous):
		return img, invalid("%s is the beginning of several images' ids", name)
	case !errors.Is(err, image.ErrNotFound):
		return img, err
	case refErr != nil && !isID(name):
		return img, refErr
	case refErr != nil:
		return img, notFound("No such image: %s", name)
	}
	return img, notFound("No such image: %s", ref)
}

// isID reports whether the name has the form of an image's id.
func isID(name string) bool {
	_, err := digest.Parse(name)
	if err == nil {
		return true
	}
	_, err = digest.Parse("sha256:" + name)
	return err == nil
}

// InUse says which containers run from the image.
func (h *Host) inUse(id digest.Digest) (ids []string, running bool) {
	for _, c := range h.List() {
		if c.ImageID == id.String() {
			ids = append(ids, c.ID)
			running = running || c.State.Alive()
		}
	}
	return ids, running
}

// RemoveImage takes a name from an image, or with an id all its names, and
// deletes it if none is left. force goes on when stopped containers use it or
// it has several names. Errors: ErrNotFound, ErrConflict.
func (h *Host) RemoveImage(name string, force bool) ([]image.Removed, error) {
	img, err := h.Image(name)
	if err != nil {
		return nil, err
	}
	users, running := h.inUse(img.ID)
	what := img.ID.String()
	if ref, err := h.canonical(name); err == nil {
		if found, err := h.opts.Images.Get(ref.String()); err == nil && found.ID == img.ID {
			what = ref.String()
		}
	}
	last := what == img.ID.String() || len(img.RepoTags) <= 1
	if running && last {
		return nil, conflict("conflict: unable to delete %s (cannot be forced) - image is being used by running container %s", shortDigest(img.ID), shortID(users[0]))
	}
	steps, err := h.opts.Images.Remove(what, force)
	var busy *image.InUseError
	switch {
	case errors.As(err, &busy):
		return nil, conflict("conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s", name, shortID(busy.By[0]), shortDigest(img.ID))
	case errors.Is(err, image.ErrNames):
		return nil, conflict("conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", shortDigest(img.ID))
	case errors.Is(err, image.ErrNotFound): // somebody was faster
		return nil, notFound("No such image: %s", name)
	case err != nil:
		return nil, err
	}
	for _, s := range steps {
		if s.Untagged != "" {
			h.tellImage("untag", img.ID, s.Untagged)
		}
		if s.Deleted == img.ID {
			h.tellImage("delete", img.ID, img.ID.String())
		}
	}
	return steps, nil
}

// PruneImages removes the images that no container runs from: those without a
// tag, or with all also those with one.
func (h *Host) PruneImages(ctx context.Context, all bool) (steps []image.Removed, freed int64, err error) {
	for _, img := range h.Images() {
		if users, _ := h.inUse(img.ID); len(users) > 0 || len(img.RepoTags) > 0 && !all {
			continue
		}
		if err := ctx.Err(); err != nil {
			return steps, freed, err
		}
		removed, err := h.RemoveImage(img.ID.String(), true)
		if errors.Is(err, ErrConflict) || errors.Is(err, ErrNotFound) {
			continue // in use since
		}
		if err != nil {
			return steps, freed, err
		}
		steps, freed = append(steps, removed...), freed+img.Size
	}
	return steps, freed, nil
}

// Tag gives an image one more name.
func (h *Host) Tag(name, newName string) error {
	img, err := h.Image(name)
	if err != nil {
		return err
	}
	ref, err := h.canonical(newName)
	if err != nil {
		return err
	}
	if ref.Digest != "" {
		return invalid("refusing to create a tag with a digest reference")
	}
	ref.Tag = ref.Identifier()
	if err := h.opts.Images.Tag(img.ID, ref); err != nil {
		if errors.Is(err, image.ErrNotFound) {
			return notFound("No such image: %s", name)
		}
		return err
	}
	h.tellImage("tag", img.ID, ref.String())
	return nil
}

func (h *Host) tellImage(action string, id digest.Digest, name string) {
	h.events.publish(Event{Time: time.Now(), Type: "image", Action: action, ID: id.String(), Attributes: map[string]string{"name": name}})
}

// shortDigest is how an image's id is shown.
func shortDigest(d digest.Digest) string { return shortID(d.Encoded()) }

// retain keeps the container's image until the container is removed.
func (h *Host) retain(imageID, container string) error {
	if err := h.opts.Images.Retain(digest.Digest(imageID), container); err != nil {
		return fmt.Errorf("keep image of container %s: %w", shortID(container), err)
	}
	return nil
}
