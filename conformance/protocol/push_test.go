package protocol_test

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// C, PUT: at least 4 MiB, and 413 for what is too large.
func TestManifestSize(t *testing.T) {
	r := newRepo(t)
	m := r.image("config")
	m.Annotations = map[string]string{"filler": ""}
	empty := len(m.String())
	for _, tc := range []struct{ size, status int }{
		{3_900_000, http.StatusCreated},
		{4 << 20, http.StatusCreated},
		{4<<20 + 1, http.StatusRequestEntityTooLarge},
		{20 << 20, http.StatusRequestEntityTooLarge},
	} {
		m.Annotations["filler"] = strings.Repeat("x", tc.size-empty)
		content := m.String()
		a := r.put("size"+strconv.Itoa(tc.size), content, typeImage)
		if tc.status != http.StatusCreated {
			a.wantError(tc.status, "MANIFEST_INVALID")
			r.head("manifests/" + sha(content)).want(http.StatusNotFound)
			continue
		}
		a.want(tc.status)
		if got := r.get("manifests/" + sha(content)).want(http.StatusOK).body; string(got) != content {
			t.Errorf("the manifest of %d bytes comes back as %d others", tc.size, len(got))
		}
	}
	// A length that is not told is a limit, too; and the reason is in the answer.
	f := r.do(http.MethodPut, "manifests/v1", streamed(m.String()), "Content-Type: "+typeImage).wantError(http.StatusRequestEntityTooLarge, "MANIFEST_INVALID")
	if !strings.Contains(f.Errors[0].Message, strconv.Itoa(4<<20)) {
		t.Errorf("a manifest that is too large is refused with %q, which does not say what fits", f.Errors[0].Message)
	}
}

// C, PUT: the bytes are told apart from others by nothing but themselves, also
// when their length is not known.
func TestManifestStreamed(t *testing.T) {
	r := newRepo(t)
	m := r.image("config").String()
	r.do(http.MethodPut, "manifests/v1", streamed(m), "Content-Type: "+typeImage).want(http.StatusCreated, "Docker-Content-Digest: "+sha(m))
	if got := r.get("manifests/v1").want(http.StatusOK).body; string(got) != m {
		t.Errorf("the manifest comes back as %q, want %q", got, m)
	}
}

// C, PUT: a body that is not what the path says is refused.
func TestManifestDigest(t *testing.T) {
	r := newRepo(t)
	m := r.image("config").String()
	r.put(sha("other"), m, typeImage).wantError(http.StatusBadRequest, "DIGEST_INVALID")
	r.put(sha5("other"), m, typeImage).wantError(http.StatusBadRequest, "DIGEST_INVALID")
	r.head("manifests/" + sha(m)).want(http.StatusNotFound)
	r.put(sha(m), m, typeImage).want(http.StatusCreated, "Location: /v2/"+r.name+"/manifests/"+sha(m), "Docker-Content-Digest: "+sha(m))
}

// C, PUT: the media type is Content-Type without parameters, which must be the
// body's if that has one; or else the body's.
func TestManifestMediaType(t *testing.T) {
	for _, tc := range []struct {
		name, header, body string // body is the mediaType in the manifest
		index              bool
		want               string // empty: 400
	}{
		{"both", typeImage, typeImage, false, typeImage},
		{"header only", typeImage, "", false, typeImage},
		{"body only", "", typeImage, false, typeImage},
		{"neither", "", "", false, typeImage},
		{"neither, index", "", "", true, typeIndex},
		{"parameters", typeImage + "; charset=utf-8", typeImage, false, typeImage},
		{"parameters of no shape", typeImage + " ;charset;;=x; a=1; a=2", typeImage, false, typeImage},
		{"capitals", strings.ToUpper(typeImage), typeImage, false, typeImage},
		{"docker", typeDocker, typeDocker, false, typeDocker},
		{"docker, body only", "", typeDocker, false, typeDocker},
		{"index", typeIndex, typeIndex, true, typeIndex},
		{"docker list", typeDockerList, typeDockerList, true, typeDockerList},
		{"they differ", typeImage, typeDocker, false, ""},
		{"image as index", typeIndex, typeImage, false, ""},
		{"index as image", typeImage, typeIndex, true, ""},
		{"not a manifest", "text/plain", "", false, ""},
		{"not a media type", "/", "", false, ""},
		{"schema 1", "application/vnd.docker.distribution.manifest.v1+json", "", false, ""},
		{"schema 1, signed", "application/vnd.docker.distribution.manifest.v1+prettyjws", "", false, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRepo(t)
			m := r.image("config")
			if tc.index {
				m = index()
			}
			m.MediaType = tc.body
			a := r.put("v1", m.String(), tc.header)
			if tc.want == "" {
				f := a.wantError(http.StatusBadRequest, "MANIFEST_INVALID")
				if message := f.Errors[0].Message; strings.HasPrefix(tc.name, "schema 1") && !strings.Contains(message, "schema 1") {
					t.Errorf("schema 1 is refused with %q, which does not name it", message)
				}
				return
			}
			a.want(http.StatusCreated)
			r.get("manifests/v1").want(http.StatusOK, "Content-Type: "+tc.want)
		})
	}
}

// C, PUT: what is no manifest is refused; schema 1 by its name.
func TestManifestInvalid(t *testing.T) {
	r := newRepo(t)
	r.blob("config")
	for _, body := range []string{
		"", "{", "null", "[]", `"x"`, "{}", `{"schemaVersion":2}`, `{"schemaVersion":3,"config":{"digest":"` + sha("config") + `"}}`,
		`{"schemaVersion":2,"config":{"digest":"x"}}`, `{"schemaVersion":2,"config":{"digest":"` + sha("config") + `"},"layers":{}}`,
		`{"schemaVersion":2,"config":{"digest":"` + sha("config") + `"},"subject":{"digest":"x"}}`, `{"schemaVersion":2,"manifests":[null]}`,
		r.image("config").String() + "x", strings.Repeat("[", 100_000),
	} {
		r.put("v1", body, "").wantError(http.StatusBadRequest, "MANIFEST_INVALID")
	}
	f := r.put("v1", `{"schemaVersion":1,"name":"x","fsLayers":[],"history":[]}`, "").wantError(http.StatusBadRequest, "MANIFEST_INVALID")
	if message := f.Errors[0].Message; !strings.Contains(message, "schema 1") {
		t.Errorf("schema 1 is refused with %q, which does not name it", message)
	}
	if tags := r.tags("tags/list"); len(tags) > 0 {
		t.Errorf("after refused manifests there are tags: %q", tags)
	}
}

// C, PUT: what is an image to one client and an index to another is refused,
// whatever it is called (CVE-2021-41190).
func TestManifestOfTwoKinds(t *testing.T) {
	r := newRepo(t)
	m := r.image("config", "layer")
	children := []descriptor{}
	m.Manifests, m.MediaType = &children, ""
	noLayers := m
	noLayers.Layers = nil
	noConfig := m
	noConfig.Config = nil
	for _, both := range []manifest{m, noLayers, noConfig} {
		for _, header := range []string{"", typeImage, typeIndex, typeDocker, typeDockerList} {
			r.put("v1", both.String(), header).wantError(http.StatusBadRequest, "MANIFEST_INVALID")
		}
	}
}

// C, PUT: artifacts of any type, and every legal emptiness.
func TestManifestShapes(t *testing.T) {
	r := newRepo(t)
	image := r.image("config")
	r.put("image", image.String(), typeImage).want(http.StatusCreated)
	nested := index(describe(typeImage, image.String()))
	r.put("nested", nested.String(), typeIndex).want(http.StatusCreated)
	artifact := r.image("{}")
	artifact.Config.MediaType = "application/vnd.oci.empty.v1+json"
	artifact.ArtifactType = "application/vnd.example+type"
	artifact.Layers = []descriptor{describe("text/x-of-our-own", "{}")}
	helm := r.image("{}")
	helm.Config.MediaType = "application/vnd.cncf.helm.config.v1+json"
	for name, content := range map[string]string{
		"artifact":      artifact.String(),
		"helm":          helm.String(),
		"no-layers":     strings.Replace(image.String(), `"config"`, `"layers":[],"config"`, 1),
		"unknown-field": strings.Replace(image.String(), `"config"`, `"of":{"our":["own"]},"config"`, 1),
	} {
		r.put(name, content, typeImage).want(http.StatusCreated)
	}
	r.put("empty-index", index().String(), typeIndex).want(http.StatusCreated)
	r.put("index-of-index", index(describe(typeIndex, nested.String())).String(), typeIndex).want(http.StatusCreated)
}

// C, PUT: BuildKit's cache is an index whose children are blobs.
func TestBuildKitCache(t *testing.T) {
	r := newRepo(t)
	r.blob("layer")
	r.blob("cache config")
	x := index(describe(typeLayer, "layer"), describe("application/vnd.buildkit.cacheconfig.v0", "cache config"))
	r.put("cache", x.String(), typeIndex).want(http.StatusCreated)
	r.put("cache", index(describe(typeLayer, "absent")).String(), typeIndex).wantError(http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN")
}

// C, PUT: what is missing is refused, with one error for each digest.
func TestMissingReferences(t *testing.T) {
	r := newRepo(t)
	r.called(r.name + "/other").blob("layer 1") // which does not help
	config := describe(typeConfig, "config")
	r.blob("layer 2")
	m := manifest{MediaType: typeImage, Config: &config, Layers: []descriptor{
		describe(typeLayer, "layer 1"), describe(typeLayer, "layer 2"), describe(typeLayer, "layer 3"), describe(typeLayer, "layer 3"),
	}}
	f := r.put("v1", m.String(), typeImage).wantError(http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN")
	var missing []string
	for _, e := range f.Errors {
		d, _ := e.Detail.(string)
		missing = append(missing, d)
		if e.Code != "MANIFEST_BLOB_UNKNOWN" {
			t.Errorf("one of the errors is %s", e.Code)
		}
	}
	want := []string{sha("config"), sha("layer 1"), sha("layer 3")}
	slices.Sort(want)
	if slices.Sort(missing); !slices.Equal(missing, want) {
		t.Errorf("missing are %q, want %q", missing, want)
	}
	r.get("manifests/v1").want(http.StatusNotFound)
	r.put("x", index(describe(typeImage, "absent")).String(), typeIndex).wantError(http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN")
}

// C, PUT: content that is elsewhere, or in the descriptor, need not be here.
func TestReferencesElsewhere(t *testing.T) {
	for name, layer := range map[string]descriptor{
		"non-distributable": {MediaType: "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"},
		"foreign":           {MediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"},
		"urls":              {MediaType: typeLayer, URLs: []string{"https://example.com/layer"}},
		"data":              {MediaType: typeLayer, Data: []byte("absent")},
		"uncompressed":      {MediaType: "application/vnd.oci.image.layer.nondistributable.v1.tar"},
		"zstd":              {MediaType: "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRepo(t)
			layer.Digest, layer.Size = sha("absent"), len("absent")
			m := r.image("config")
			m.Layers = []descriptor{layer}
			// Who pushes is told what a pull from here will lack, as long as it does.
			warning := r.put("v1", m.String(), typeImage).want(http.StatusCreated).header.Get("Warning")
			if !strings.Contains(warning, layer.Digest) {
				t.Errorf("Warning: %s, want one that names %s", warning, layer.Digest)
			}
			r.get("manifests/v1").want(http.StatusOK, "Warning: ")
			r.put("x", index(layer).String(), typeIndex).want(http.StatusCreated)
			r.blob("absent")
			r.put("v1", m.String(), typeImage).want(http.StatusCreated, "Warning: ")
		})
	}
}

// C, PUT: --sparse lets manifests name what is not there.
func TestSparse(t *testing.T) {
	config := describe(typeConfig, "absent")
	for mode, status := range map[string]struct{ image, index int }{
		"index": {http.StatusBadRequest, http.StatusCreated},
		"all":   {http.StatusCreated, http.StatusCreated},
	} {
		t.Run(mode, func(t *testing.T) {
			r := repoIn(t, own(t, "--sparse", mode))
			image := manifest{MediaType: typeImage, Config: &config}.String()
			if a := r.put("image", image, typeImage).want(status.image); status.image == http.StatusCreated && !strings.Contains(a.header.Get("Warning"), config.Digest) {
				t.Errorf("Warning: %s, want one that names %s", a.header.Get("Warning"), config.Digest)
			}
			x := index(describe(typeImage, "absent")).String()
			if a := r.put("index", x, typeIndex).want(status.index); !strings.Contains(a.header.Get("Warning"), sha("absent")) {
				t.Errorf("Warning: %s, want one that names %s", a.header.Get("Warning"), sha("absent"))
			}
			if got := r.get("manifests/index").want(http.StatusOK).body; string(got) != x {
				t.Errorf("the sparse index comes back as %s, want %s", got, x)
			}
			r.put("held", r.image("config").String(), typeImage).want(http.StatusCreated, "Warning: ")
		})
	}
}

// C, PUT: the registry says that it has seen the subject, whether that exists
// or not; of an image and of an index.
func TestSubject(t *testing.T) {
	r := newRepo(t)
	absent, present := describe(typeImage, "absent"), describe(typeImage, r.pushed("v1"))
	for _, subject := range []descriptor{absent, present} {
		m, x := r.image("config"), index()
		m.Subject, x.Subject = &subject, &subject
		r.put(sha(m.String()), m.String(), typeImage).want(http.StatusCreated, "OCI-Subject: "+subject.Digest)
		r.put("index", x.String(), typeIndex).want(http.StatusCreated, "OCI-Subject: "+subject.Digest)
	}
	r.put("plain", r.image("config").String(), typeImage).want(http.StatusCreated, "OCI-Subject: ")
}

// C, PUT ?tag= (F): a digest gets many tags at once.
func TestManyTags(t *testing.T) {
	r := newRepo(t)
	m := r.image("config").String()
	var params, tags []string
	for i := range 10 {
		tags = append(tags, "tag-"+strconv.Itoa(i))
		params = append(params, "tag", tags[i])
	}
	a := r.put(with(sha(m), params...), m, typeImage).want(http.StatusCreated)
	if got := a.header.Values("OCI-Tag"); !slices.Equal(slices.Sorted(slices.Values(got)), tags) {
		t.Errorf("OCI-Tag is %q, want each of %q", got, tags)
	}
	for _, tag := range tags {
		r.head("manifests/"+tag).want(http.StatusOK, "Docker-Content-Digest: "+sha(m))
	}
	// One bad tag, and nothing happens.
	other := r.image("other").String()
	r.put(with(sha(other), "tag", "tag-0", "tag", "-bad"), other, typeImage).want(http.StatusBadRequest)
	r.head("manifests/" + sha(other)).want(http.StatusNotFound)
	r.head("manifests/tag-0").want(http.StatusOK, "Docker-Content-Digest: "+sha(m))
	for i := range 1000 {
		params = append(params, "tag", "more-"+strconv.Itoa(i))
	}
	r.put(with(sha(other), params...), other, typeImage).want(http.StatusRequestURITooLong)
	r.head("manifests/" + sha(other)).want(http.StatusNotFound)
}
