package model_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// The world is small, so that clients meet: all push the same few things to the
// same few repositories.
var (
	repos = []string{"a", "b/c", "d"}
	tags  = []string{"latest", "1", "2", "3"}
)

// inlineMax is the size in bytes above which content is a file in the registry.
const inlineMax = 64 << 10

// thing is a blob or a manifest.
type thing struct {
	name     string // for people
	digest   digest.Digest
	body     []byte
	manifest bool

	mediaType    string   // of a manifest
	artifactType string   // of an artifact
	refs         []*thing // config and layers, or children
	subject      *thing

	parents   []*thing // manifests that have it in refs
	referrers []*thing // manifests whose subject it is
}

func (t *thing) String() string {
	if t == nil {
		return "nothing"
	}
	return t.name
}

// closure is all that a manifest names, and what that names.
func (t *thing) closure() (list []*thing) {
	for _, ref := range t.refs {
		list = append(append(list, ref), ref.closure()...)
	}
	return list
}

// path is where the thing is in repo.
func (t *thing) path(repo string) string {
	kind := "blobs"
	if t.manifest {
		kind = "manifests"
	}
	return "/v2/" + repo + "/" + kind + "/" + t.digest.String()
}

// introduce makes a thing known. Nobody has pushed it yet.
func (r *record) introduce(t *thing) *thing {
	t.digest = digest.FromBytes(t.body)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.things = append(r.things, t)
	for _, ref := range t.refs {
		ref.parents = append(ref.parents, t)
	}
	if t.subject != nil {
		t.subject.referrers = append(t.subject.referrers, t)
	}
	return t
}

func (r *record) blob(name string, body []byte) *thing {
	return r.introduce(&thing{name: name, body: body})
}

// image is an image or, with artifactType, an artifact about subject. Its
// annotation makes it as large as that.
func (r *record) image(name, artifactType string, subject *thing, annotation string, refs ...*thing) *thing {
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, ArtifactType: artifactType}
	m.Annotations = map[string]string{"name": name, "padding": annotation}
	if subject != nil {
		m.Subject = &v1.Descriptor{MediaType: subject.mediaType, Digest: subject.digest, Size: int64(len(subject.body))}
	}
	for i, ref := range refs {
		d := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: ref.digest, Size: int64(len(ref.body))}
		if i == 0 {
			d.MediaType = v1.MediaTypeImageConfig
			m.Config = d
			continue
		}
		m.Layers = append(m.Layers, d)
	}
	return r.introduce(&thing{
		name: name, body: encode(m), manifest: true, mediaType: m.MediaType, artifactType: artifactType,
		refs: refs, subject: subject,
	})
}

func (r *record) index(name string, children ...*thing) *thing {
	m := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}
	m.Annotations = map[string]string{"name": name}
	for _, child := range children {
		m.Manifests = append(m.Manifests, v1.Descriptor{MediaType: child.mediaType, Digest: child.digest, Size: int64(len(child.body))})
	}
	return r.introduce(&thing{name: name, body: encode(m), manifest: true, mediaType: m.MediaType, refs: children})
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // a manifest of strings and numbers always encodes
	}
	return b
}

// random returns size bytes.
func random(rnd *rand.Rand, size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

// world is what the clients push, besides what each makes for itself.
type world struct {
	blobs, manifests []*thing
}

// populate makes a world.
func (r *record) populate(rnd *rand.Rand) *world {
	w := &world{}
	for i := range 10 {
		size := 20 + rnd.IntN(2000)
		if i%2 == 0 {
			size = inlineMax + 1 + rnd.IntN(inlineMax)
		}
		w.blobs = append(w.blobs, r.blob(fmt.Sprintf("blob%d", i), random(rnd, size)))
	}
	some := func(n int) (list []*thing) {
		for _, i := range rnd.Perm(len(w.blobs))[:n] {
			list = append(list, w.blobs[i])
		}
		return list
	}
	for i := range 8 {
		annotation := ""
		if i == 1 {
			annotation = strings.Repeat("x", inlineMax) // a manifest that is a file
		}
		image := r.image(fmt.Sprintf("image%d", i), "", nil, annotation, some(1+rnd.IntN(3))...)
		w.manifests = append(w.manifests, image)
		if i < 2 {
			// The same bytes as a blob: two holdings of one content. These
			// images are in no index, whose child may be either.
			w.blobs = append(w.blobs, r.blob(fmt.Sprintf("image%d-as-blob", i), image.body))
		}
	}
	for i := range 3 {
		children := []*thing{w.manifests[2+i], w.manifests[3+rnd.IntN(5)]}
		if i == 2 {
			children[0] = w.manifests[len(w.manifests)-1] // an index in an index
		}
		w.manifests = append(w.manifests, r.index(fmt.Sprintf("index%d", i), children...))
	}
	for i := range 4 {
		subject := w.manifests[rnd.IntN(len(w.manifests))] // also an artifact about an artifact
		w.manifests = append(w.manifests, r.image(fmt.Sprintf("artifact%d", i), fmt.Sprintf("application/x-%d", i%2), subject, "", some(2)...))
	}
	return w
}
