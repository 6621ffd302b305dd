package registry

import (
	"net/url"
	"strings"

	"berth.internal/internal/oci"
)

// kind is a kind of path of the API.
type kind int

const (
	kindBase kind = iota
	kindCatalog
	kindTags
	kindReferrers
	kindManifest
	kindBlob
	kindUploads
	kindUpload
	kinds // how many there are
)

// paths are what the paths of each kind look like.
var paths = [kinds]string{
	kindBase:      "/v2/",
	kindCatalog:   "/v2/_catalog",
	kindTags:      "/v2/<name>/tags/list",
	kindReferrers: "/v2/<name>/referrers/<digest>",
	kindManifest:  "/v2/<name>/manifests/<reference>",
	kindBlob:      "/v2/<name>/blobs/<digest>",
	kindUploads:   "/v2/<name>/blobs/uploads/",
	kindUpload:    "/v2/<name>/blobs/uploads/<id>",
}

// target is what a path names: ref is the digest, tag or id at its end.
type target struct {
	kind kind
	name string
	ref  string
}

// route reads a path from its end, since the name of a repository may hold any
// of the words that the API uses: /v2/blobs/uploads/manifests/latest is the tag
// latest of blobs/uploads. Errors: NAME_INVALID, and 404 for any other path.
func route(u *url.URL) (target, error) {
	if u.RawPath != "" && strings.Contains(strings.ToLower(u.RawPath), "%2f") {
		return target{}, oci.NameInvalid.With("a slash in a path must not be escaped", nil)
	}
	path, ok := strings.CutPrefix(u.Path, "/v2/")
	if !ok {
		path, ok = "", u.Path == "/v2"
	}
	if !ok {
		return target{}, notHere
	}
	switch path {
	case "":
		return target{kind: kindBase}, nil
	case "_catalog":
		return target{kind: kindCatalog}, nil
	}
	t, ok := split(path)
	if !ok {
		return target{}, notHere
	}
	name, err := oci.ParseName(t.name)
	t.name = name
	return t, err
}

var notHere = oci.Unsupported.With("there is no such path in the distribution API", nil).At(404)

func split(path string) (target, bool) {
	rest, last := cutLast(path)
	before, word := cutLast(rest)
	switch {
	case word == "manifests" && before != "" && last != "":
		return target{kindManifest, before, last}, true
	case word == "referrers" && before != "":
		return target{kindReferrers, before, last}, true
	case word == "tags" && last == "list" && before != "":
		return target{kind: kindTags, name: before}, true
	case word == "uploads":
		if name, ok := strings.CutSuffix(before, "/blobs"); ok && name != "" {
			if last == "" {
				return target{kind: kindUploads, name: name}, true
			}
			return target{kindUpload, name, last}, true
		}
	case word == "blobs" && before != "" && last == "uploads": // without the slash at the end
		return target{kind: kindUploads, name: before}, true
	case word == "blobs" && before != "":
		return target{kindBlob, before, last}, true
	}
	return target{}, false
}

func cutLast(path string) (before, last string) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path
	}
	return path[:i], path[i+1:]
}
