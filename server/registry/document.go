package registry

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.internal/internal/oci"
	"berth.internal/storage"
)

// Docker's media types; berth takes them as it takes OCI's.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	schema1        = "application/vnd.docker.distribution.manifest.v1+"
)

// document is every kind of manifest at once: what is absent is empty.
type document struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        *v1.Descriptor    `json:"config"`
	Layers        []v1.Descriptor   `json:"layers"`
	Manifests     []v1.Descriptor   `json:"manifests"`
	Subject       *v1.Descriptor    `json:"subject"`
	Annotations   map[string]string `json:"annotations"`
	FSLayers      json.RawMessage   `json:"fsLayers"` // of schema 1
}

func isIndex(mediaType string) bool {
	return mediaType == v1.MediaTypeImageIndex || mediaType == dockerList
}

func isImage(mediaType string) bool {
	return mediaType == v1.MediaTypeImageManifest || mediaType == dockerManifest
}

// parseManifest reads what the Index must know of a manifest. contentType is
// the header; without it the body decides. The result has no Content. Errors:
// MANIFEST_INVALID.
func parseManifest(body []byte, contentType string, sparse Sparse) (storage.Manifest, error) {
	var doc document
	if err := json.Unmarshal(body, &doc); err != nil {
		return storage.Manifest{}, invalid("the manifest is not JSON of the right shape: %v", err)
	}
	mediaType, err := typeOf(doc, contentType)
	if err != nil {
		return storage.Manifest{}, err
	}
	m := storage.Manifest{MediaType: mediaType, ArtifactType: doc.ArtifactType, Annotations: doc.Annotations}
	switch index := isIndex(mediaType); {
	case index && (doc.Config != nil || doc.Layers != nil):
		return m, invalid("the manifest is an index, but has the config or layers of an image: clients would not agree what it is")
	case !index && doc.Manifests != nil:
		return m, invalid("the manifest is an image, but has the manifests of an index: clients would not agree what it is")
	case index:
		for _, child := range doc.Manifests {
			m.References = append(m.References, storage.Reference{Digest: child.Digest, Manifest: true, Optional: elsewhere(child) || sparse != SparseNone && sparse != ""})
		}
	case doc.Config == nil:
		return m, invalid("the manifest has no config")
	default:
		m.ArtifactType = cmp.Or(m.ArtifactType, doc.Config.MediaType)
		for _, part := range append([]v1.Descriptor{*doc.Config}, doc.Layers...) {
			m.References = append(m.References, storage.Reference{Digest: part.Digest, Optional: elsewhere(part) || sparse == SparseAll})
		}
	}
	for _, ref := range m.References {
		if _, err := oci.ParseDigest(ref.Digest.String()); err != nil {
			return m, invalid("the manifest refers to %.150q, which is no digest that is supported", ref.Digest)
		}
	}
	if doc.Subject != nil {
		if m.Subject, err = oci.ParseDigest(doc.Subject.Digest.String()); err != nil {
			return m, invalid("the subject %.150q is no digest that is supported", doc.Subject.Digest)
		}
	}
	return m, nil
}

// typeOf returns the media type of the manifest: the header's, which must be
// the body's if that has one.
func typeOf(doc document, contentType string) (string, error) {
	mediaType := doc.MediaType
	if contentType != "" {
		mediaType, _, _ = strings.Cut(contentType, ";") // parameters are ignored, of whatever shape
		mediaType = strings.ToLower(strings.TrimSpace(mediaType))
	}
	if strings.HasPrefix(mediaType, schema1) || doc.SchemaVersion == 1 || doc.FSLayers != nil {
		return "", invalid("Docker's manifest schema 1 is not supported: push with Docker 1.10 or later")
	}
	if mediaType == "" {
		mediaType = v1.MediaTypeImageManifest
		if doc.Manifests != nil && doc.Config == nil {
			mediaType = v1.MediaTypeImageIndex
		}
	}
	switch {
	case !isIndex(mediaType) && !isImage(mediaType):
		return "", invalid("manifests of type %.100q are not supported: use %s or %s", mediaType, v1.MediaTypeImageManifest, v1.MediaTypeImageIndex)
	case doc.MediaType != "" && doc.MediaType != mediaType:
		return "", invalid("Content-Type is %.100q, but the manifest says %.100q of itself", mediaType, doc.MediaType)
	case doc.SchemaVersion != 2:
		return "", invalid("schemaVersion is %d, want 2", doc.SchemaVersion)
	}
	return mediaType, nil
}

func invalid(format string, args ...any) error {
	return oci.ManifestInvalid.With(fmt.Sprintf(format, args...), nil)
}

// elsewhere reports whether the content of d need not be in the repository: it
// is in the descriptor itself, or fetched from other places.
func elsewhere(d v1.Descriptor) bool {
	return len(d.URLs) > 0 || d.Data != nil || strings.Contains(d.MediaType, ".nondistributable.") || strings.Contains(d.MediaType, ".foreign.")
}

// linuxAMD64 returns the child of an index for that platform, or "".
func linuxAMD64(index []byte) digest.Digest {
	var doc document
	if json.Unmarshal(index, &doc) != nil {
		return ""
	}
	i := slices.IndexFunc(doc.Manifests, func(d v1.Descriptor) bool {
		return d.Platform != nil && d.Platform.OS == "linux" && d.Platform.Architecture == "amd64"
	})
	if i < 0 {
		return ""
	}
	return doc.Manifests[i].Digest
}

// accepts reports whether Accept headers admit the media type; none admit all.
// Of what matches it, the most specific decides, and a weight of 0 refuses (RFC
// 9110, section 12.5.1).
func accepts(headers []string, mediaType string) bool {
	best, admitted := 0, len(headers) == 0
	for _, header := range headers {
		for part := range strings.SplitSeq(header, ",") {
			accepted, params, _ := strings.Cut(part, ";")
			specific := 0
			switch strings.ToLower(strings.TrimSpace(accepted)) {
			case mediaType:
				specific = 3
			case "application/*":
				specific = 2
			case "*/*":
				specific = 1
			}
			switch {
			case specific == 0 || specific < best:
			case specific > best:
				best, admitted = specific, !weightless(params)
			default:
				admitted = admitted || !weightless(params)
			}
		}
	}
	return admitted
}

// weightless reports whether the parameters of an accepted type say q=0.
func weightless(params string) bool {
	for param := range strings.SplitSeq(params, ";") {
		if key, q, _ := strings.Cut(param, "="); strings.EqualFold(strings.TrimSpace(key), "q") {
			weight, err := strconv.ParseFloat(strings.TrimSpace(q), 64)
			return err == nil && weight == 0
		}
	}
	return false
}
