package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"berth.internal/client/layout"
	"berth.internal/client/transfer"
	"berth.internal/internal/oci"
)

// place is where an image lies on this machine: KIND:PATH[:TAG].
type place struct {
	kind, path, tag string
}

const placesHelp = `  oci:DIR[:TAG]               an OCI image layout in a directory
  oci-archive:FILE[:TAG]      an OCI image layout in a tar archive
  docker-archive:FILE[:NAME]  an archive of docker save`

const places = "oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:NAME]"

func parsePlace(s string) (place, error) {
	kind, rest, ok := strings.Cut(s, ":")
	p := place{kind: kind, path: rest}
	switch kind {
	case "oci", "oci-archive", "docker-archive":
		p.path, p.tag, _ = strings.Cut(rest, ":")
	case "dir":
	case "docker":
		return place{}, misuse(fmt.Errorf("%q is in a registry; for that there is: berth repo copy", s))
	default:
		ok = false
	}
	if !ok || p.path == "" {
		return place{}, misuse(fmt.Errorf("%q is not a place on this machine; write %s, or dir:PATH to push plain files", s, places))
	}
	return p, nil
}

type closingSource interface {
	transfer.Source
	io.Closer
}

// open opens the place to read from. recipe is for a dir.
func (p place) open(ctx context.Context, recipe layout.Recipe) (closingSource, error) {
	switch p.kind {
	case "oci":
		return source(layout.OpenOCI(p.path, p.tag))
	case "oci-archive":
		return source(layout.OpenOCIArchive(p.path, p.tag))
	case "docker-archive":
		return source(layout.OpenDocker(p.path, p.tag))
	}
	recipe.Path = p.path
	return source(layout.Build(ctx, recipe))
}

// source keeps a nil pointer from becoming an interface that is not nil.
func source[S closingSource](s S, err error) (closingSource, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

type closingTarget interface {
	transfer.Target
	io.Closer
}

// create opens the place to write the image ref to.
func (p place) create(ref oci.Reference) (closingTarget, error) {
	tag := p.tag
	if tag == "" && ref.Digest == "" {
		tag = ref.Identifier()
	}
	switch p.kind {
	case "oci":
		return target(layout.CreateOCI(p.path, tag))
	case "oci-archive":
		return target(layout.CreateOCIArchive(p.path, tag))
	case "docker-archive":
		name, err := dockerName(p.tag, ref)
		if err != nil {
			return nil, err
		}
		return target(layout.CreateDocker(p.path, name))
	}
	return nil, misuse(fmt.Errorf("an image cannot be pulled to a plain directory; write %s", places))
}

func target[T closingTarget](t T, err error) (closingTarget, error) {
	if err != nil {
		return nil, err
	}
	return t, nil
}

// dockerName is what docker load will call the image: what the user wrote, a
// name or only a tag, else the name it has in the registry.
func dockerName(wanted string, ref oci.Reference) (string, error) {
	switch {
	case wanted == "" && ref.Digest != "":
		return "", nil
	case wanted == "":
		return ref.String(), nil
	case strings.ContainsAny(wanted, ":/"):
		named, err := oci.ParseReference(wanted, "")
		return named.String(), misuse(err)
	}
	named := oci.Reference{Registry: ref.Registry, Repository: ref.Repository, Tag: wanted}
	_, err := oci.ParseTag(wanted)
	return named.String(), misuse(err)
}
