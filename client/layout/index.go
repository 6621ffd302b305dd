package layout

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// enter puts the manifests into the index. One that carries a name takes it from
// whichever had it; one that is there already stays as it is.
func enter(index v1.Index, manifests ...v1.Descriptor) v1.Index {
	for _, d := range manifests {
		name := d.Annotations[v1.AnnotationRefName]
		index.Manifests = slices.DeleteFunc(index.Manifests, func(known v1.Descriptor) bool {
			return name != "" && known.Annotations[v1.AnnotationRefName] == name
		})
		if name != "" || !slices.ContainsFunc(index.Manifests, func(known v1.Descriptor) bool { return known.Digest == d.Digest }) {
			index.Manifests = append(index.Manifests, d)
		}
	}
	return index
}

// tagged is the descriptor of an image as index.json has it.
func tagged(d v1.Descriptor, tag string) v1.Descriptor {
	d.Data = nil
	d.Annotations = nil
	if tag != "" {
		d.Annotations = map[string]string{v1.AnnotationRefName: tag}
	}
	return d
}

// write returns index.json and oci-layout.
func write(index v1.Index) (indexJSON, mark []byte, err error) {
	index.Versioned = specs.Versioned{SchemaVersion: 2}
	index.MediaType = v1.MediaTypeImageIndex
	if indexJSON, err = json.Marshal(index); err != nil {
		return nil, nil, fmt.Errorf("write %s: %w", v1.ImageIndexFile, err)
	}
	mark, err = json.Marshal(v1.ImageLayout{Version: v1.ImageLayoutVersion})
	return indexJSON, mark, err
}
