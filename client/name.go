package client

import (
	"errors"
	"strings"

	"berth.internal/internal/oci"
)

// checkName makes sure that a repository and, if not empty, a tag or digest in
// it can stand in a path and name nothing else there.
func checkName(repo, ref string) error {
	_, err := oci.ParseName(repo)
	switch {
	case err != nil || ref == "":
	case strings.Contains(ref, ":"):
		_, err = oci.ParseDigest(ref)
	default:
		_, err = oci.ParseTag(ref)
	}
	if e, ok := errors.AsType[*oci.Error](err); ok {
		return errors.New(e.Message) // the code is for the protocol
	}
	return err
}

func isNotFound(err error) bool { return errors.Is(err, ErrNotFound) }
