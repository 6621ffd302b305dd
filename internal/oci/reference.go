package oci

import (
	_ "crypto/sha256" // digests of these two kinds are known
	_ "crypto/sha512"
	"errors"
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// DefaultTag is what a reference without tag and digest means.
const DefaultTag = "latest"

// hub is what Docker's tools call the registry of a name that has none, and
// hubDirectory where they put its names of one word.
const (
	hub          = "docker.io"
	hubDirectory = "library/"
)

// Reference names a repository of a registry and, with a tag or a digest, one
// manifest in it.
type Reference struct {
	Registry   string // host or host:port
	Repository string
	Tag        string
	Digest     digest.Digest
}

// ParseReference reads a reference as people and Docker's tools write it:
// [REGISTRY/]REPOSITORY[:TAG][@DIGEST]. A reference without a registry means
// the given one, and so does docker.io, the name that Docker's tools make up
// for it: redis, docker.io/redis and docker.io/library/redis are all
// registry/redis. Whoever means Docker's own registry says so by its address,
// registry-1.docker.io.
func ParseReference(s, registry string) (Reference, error) {
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Reference{}, fmt.Errorf("%q is not an image reference such as team/app:1: %w", s, plain(err))
	}
	ref := Reference{Registry: reference.Domain(named), Repository: reference.Path(named)}
	if ref.Registry == "" { // such as under_score.example/app, whose first part looks like a host and cannot be one
		host, _, _ := strings.Cut(s, "/")
		return Reference{}, fmt.Errorf("%q is not an image reference such as team/app:1: %q is not the name of a host", s, host)
	}
	if ref.Registry == hub {
		ref.Registry = registry
		if name, ok := strings.CutPrefix(ref.Repository, hubDirectory); ok && !strings.Contains(name, "/") {
			ref.Repository = name
		}
	}
	if t, ok := named.(reference.Tagged); ok {
		ref.Tag = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		ref.Digest = d.Digest()
	}
	return ref, nil
}

// plain puts the library's most frequent answer, "invalid reference format",
// into words that say more than the sentence around it.
func plain(err error) error {
	if errors.Is(err, reference.ErrReferenceInvalidFormat) {
		return errors.New("a repository is lower case letters and digits, parted by . _ - or /, then :TAG or @DIGEST")
	}
	return err
}

// Name is the repository with its registry in front.
func (r Reference) Name() string {
	if r.Registry == "" {
		return r.Repository
	}
	return r.Registry + "/" + r.Repository
}

// Identifier is what the manifest goes by in its repository: the digest, else
// the tag, else DefaultTag.
func (r Reference) Identifier() string {
	switch {
	case r.Digest != "":
		return r.Digest.String()
	case r.Tag != "":
		return r.Tag
	}
	return DefaultTag
}

// String is the reference in full, with DefaultTag if it has neither tag nor
// digest. ParseReference reads it back.
func (r Reference) String() string {
	s := r.Name()
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		return s + "@" + r.Digest.String()
	}
	if r.Tag == "" {
		s += ":" + DefaultTag
	}
	return s
}
