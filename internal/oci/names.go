// Package oci has the words of the OCI specifications: names, tags, digests,
// references, and the error codes of the distribution API.
package oci

import (
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Limits of names, in bytes.
const (
	MaxName = 255 // of a repository (distribution-spec, "Pulling manifests")
	MaxTag  = 128
)

// ParseName checks that s is the name of a repository, such as team/app, and
// returns it. Errors: NAME_INVALID.
func ParseName(s string) (string, error) {
	switch {
	case len(s) > MaxName:
		return "", NameInvalid.With(fmt.Sprintf("the name of a repository has at most %d bytes; this one has %d", MaxName, len(s)), nil)
	case !isName(s):
		return "", NameInvalid.With(fmt.Sprintf("%q is not the name of a repository: lower-case letters, digits, and . _ __ - between them, in parts separated by /", s), nil)
	}
	return s, nil
}

const (
	lower = "abcdefghijklmnopqrstuvwxyz0123456789"
	upper = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// isName tells whether s is, by distribution-spec, "Pulling manifests":
//
//	[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*
//
// Every request asks, and a regular expression takes longer than the answer.
func isName(s string) bool {
	for {
		rest := strings.TrimLeft(s, lower)
		if rest == s {
			return false // a part begins with letters or digits, and there is one
		}
		if rest == "" {
			return true
		}
		switch rest[0] {
		case '/', '.':
			s = rest[1:]
		case '_':
			s = strings.TrimPrefix(rest[1:], "_")
		case '-':
			s = strings.TrimLeft(rest, "-")
		default:
			return false
		}
	}
}

// ParseTag checks that s is a tag and returns it. Errors: TAG_INVALID.
func ParseTag(s string) (string, error) {
	if len(s) == 0 || len(s) > MaxTag || s[0] == '.' || s[0] == '-' || strings.Trim(s, upper+lower+"._-") != "" {
		return "", TagInvalid.With(fmt.Sprintf("%q is not a tag: letters, digits, _ . - and no more than %d of them, not beginning with . or -", s, MaxTag), nil)
	}
	return s, nil
}

// ParseDigest checks that s is a digest by an algorithm that berth knows, and
// returns it. Errors: DIGEST_INVALID.
func ParseDigest(s string) (digest.Digest, error) {
	algorithm, hex, _ := strings.Cut(s, ":")
	if (algorithm == "sha256" && len(hex) == 64 || algorithm == "sha512" && len(hex) == 128) && strings.Trim(hex, "0123456789abcdef") == "" {
		return digest.Digest(s), nil
	}
	// What follows finds out what is wrong with it.
	d, err := digest.Parse(s)
	if err != nil {
		return "", DigestInvalid.With(fmt.Sprintf("%.150q is not a digest such as sha256:… with 64 lower-case hex digits", s), nil).Because(err)
	}
	if _, err := ParseAlgorithm(string(d.Algorithm())); err != nil {
		return "", err
	}
	return d, nil
}

// ParseAlgorithm checks that s is a digest algorithm that berth knows: sha256
// or sha512. Errors: DIGEST_INVALID.
func ParseAlgorithm(s string) (digest.Algorithm, error) {
	switch a := digest.Algorithm(s); a {
	case digest.SHA256, digest.SHA512:
		return a, nil
	}
	return "", DigestInvalid.With(fmt.Sprintf("the digest algorithm %.40q is not supported: use sha256 or sha512", s), nil)
}
