package client

import (
	"errors"
	"fmt"
	"strings"

	"berth.internal/internal/oci"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// checkName makes sure that a repository, and a tag or digest in it, can stand
// in a path and name nothing else there.
func checkName(repo, ref string) error {
	sep := ":"
	if strings.Contains(ref, ":") {
		sep = "@"
		if err := digest.Digest(ref).Validate(); err != nil {
			return fmt.Errorf("%q is not a digest: %w", ref, err)
		}
	}
	if ref == "" {
		ref = oci.DefaultTag
	}
	// The host in front keeps the first part of repo from being read as one.
	if _, err := reference.Parse("host.invalid/" + repo + sep + ref); err != nil {
		return fmt.Errorf("%q is not a name that a registry can hold: %w", repo+sep+ref, err)
	}
	return nil
}

func isNotFound(err error) bool { return errors.Is(err, ErrNotFound) }
