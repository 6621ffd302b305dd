package image

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// Whiteouts are how a layer's tar says that something below is gone
// (image-spec, layer.md, "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
)

const (
	maxName = 255  // bytes of one path element (NAME_MAX)
	maxPath = 4095 // bytes of a path (PATH_MAX)
)

// errRefused is what is wrong with a tar entry, not with the machine.
var errRefused = errors.New("refused")

func refuse(format string, a ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errRefused}, a...)...)
}

// entryName returns the path of a tar entry, or of a hard link's target,
// relative to the layer's root: without empty and "." elements, "" for the root
// itself.
func entryName(name string, depth int) (string, error) {
	switch {
	case name == "":
		return "", refuse("empty name")
	case len(name) > maxPath:
		return "", refuse("name of %d bytes, at most %d are possible", len(name), maxPath)
	case name[0] == '/':
		return "", refuse("absolute name")
	case strings.IndexByte(name, 0) >= 0:
		return "", refuse("zero byte in name")
	}
	above := -1
	for elem := range strings.SplitSeq(name, "/") {
		switch {
		case elem == "" || elem == ".":
			continue
		case elem == "..":
			return "", refuse(`".." in name`)
		case len(elem) > maxName:
			return "", refuse("name element of %d bytes, at most %d are possible", len(elem), maxName)
		}
		above++
	}
	if above > depth {
		return "", refuse("%d directories deep, at most %d are accepted", above, depth)
	}
	if above < 0 {
		return "", nil
	}
	return path.Clean(name), nil
}

// splitName splits a path that entryName returned into parent, "" for the root,
// and last element. No parent may be named like a whiteout: nothing could ever
// hide it.
func splitName(name string) (dir, base string, err error) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		dir, base = name[:i], name[i+1:]
	} else {
		base = name
	}
	if strings.HasPrefix(dir, whiteoutPrefix) || strings.Contains(dir, "/"+whiteoutPrefix) {
		return "", "", refuse("inside of a whiteout")
	}
	return dir, base, nil
}
