package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// MaxManifest is the largest manifest that is read, in bytes.
const MaxManifest = 8 << 20

// Media types of Docker's own manifests, beside those of the image-spec.
const (
	DockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	DockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// accepted is what a manifest may be. Registries that pick by Accept get all of
// it, others ignore it.
var accepted = strings.Join([]string{
	v1.MediaTypeImageManifest, v1.MediaTypeImageIndex, DockerManifest, DockerManifestList, "*/*;q=0.1",
}, ", ")

// IsIndex says whether a manifest of this media type lists other manifests.
func IsIndex(mediaType string) bool {
	return mediaType == v1.MediaTypeImageIndex || mediaType == DockerManifestList
}

// Resolve returns the descriptor of the manifest that ref, a tag or a digest,
// names in repo. It asks by HEAD, and by GET if that answer lacks the digest.
// Errors: ErrNotFound.
func (r *Registry) Resolve(ctx context.Context, repo, ref string) (v1.Descriptor, error) {
	c, err := r.manifestCall(http.MethodHead, "pull", repo, ref)
	if err != nil {
		return v1.Descriptor{}, err
	}
	c.scope = pullScope(repo)
	resp, err := r.do(ctx, c)
	if err == nil {
		d, derr := digest.Parse(resp.Header.Get("Docker-Content-Digest"))
		mediaType := mediaTypeOf(resp.Header)
		if err := drain(resp); err != nil {
			return v1.Descriptor{}, r.failed(ctx, c, err)
		}
		if derr == nil && mediaType != "" && resp.ContentLength >= 0 && (!strings.Contains(ref, ":") || ref == d.String()) {
			return v1.Descriptor{MediaType: mediaType, Digest: d, Size: resp.ContentLength}, nil
		}
	}
	if e, ok := errors.AsType[*Error](err); err != nil && (!ok || e.Status >= http.StatusInternalServerError) {
		return v1.Descriptor{}, err
	}
	// A refused HEAD has no body that says why: GET has.
	desc, _, err := r.Manifest(ctx, repo, ref)
	return desc, err
}

// Manifest returns the manifest that ref, a tag or a digest, names in repo, and
// its descriptor. The bytes are those of ref, if it is a digest, and else of
// the digest that the registry gave. Errors: ErrNotFound; a manifest larger
// than MaxManifest.
func (r *Registry) Manifest(ctx context.Context, repo, ref string) (v1.Descriptor, []byte, error) {
	c, err := r.manifestCall(http.MethodGet, "pull", repo, ref)
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	c.scope = pullScope(repo)
	resp, err := r.do(ctx, c)
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxManifest+1))
	if err != nil {
		return v1.Descriptor{}, nil, r.failed(ctx, c, err)
	}
	if len(body) > MaxManifest {
		return v1.Descriptor{}, nil, fmt.Errorf("%s in %s: the manifest is larger than %d bytes", c.doing, r.Host(), MaxManifest)
	}
	desc := v1.Descriptor{MediaType: mediaTypeOf(resp.Header), Digest: digest.FromBytes(body), Size: int64(len(body))}
	if desc.MediaType == "" || desc.MediaType == "text/plain" || desc.MediaType == "application/json" {
		desc.MediaType = mediaTypeIn(body)
	}
	want := digest.Digest(ref)
	if !strings.Contains(ref, ":") {
		want = digest.Digest(resp.Header.Get("Docker-Content-Digest"))
	}
	if want == "" {
		return desc, body, nil
	}
	if err := want.Validate(); err != nil {
		return v1.Descriptor{}, nil, fmt.Errorf("%s in %s: the registry sent an invalid digest", c.doing, r.Host())
	}
	if got := want.Algorithm().FromBytes(body); got != want {
		return v1.Descriptor{}, nil, fmt.Errorf("%s in %s: wrong content: the bytes have digest %s, not %s", c.doing, r.Host(), got, want)
	}
	desc.Digest = want
	return desc, body, nil
}

// PushManifest stores body in repo under ref, a tag or its digest, and returns
// the digest. What it refers to must be there already. If body has a subject
// and the registry keeps no referrers itself, the tag that stands in for them
// is brought up to date (distribution-spec, "Pushing Manifests with Subject").
func (r *Registry) PushManifest(ctx context.Context, repo, ref, mediaType string, body []byte) (digest.Digest, error) {
	c, err := r.manifestCall(http.MethodPut, "push", repo, ref)
	if err != nil {
		return "", err
	}
	want := digest.FromBytes(body)
	if strings.Contains(ref, ":") {
		want = digest.Digest(ref).Algorithm().FromBytes(body)
		if want != digest.Digest(ref) {
			return "", fmt.Errorf("%s: the manifest has digest %s", c.doing, want)
		}
	}
	c.scope = pushScope(repo)
	c.header = http.Header{"Content-Type": {mediaType}}
	c.size = int64(len(body))
	c.body = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	resp, err := r.do(ctx, c)
	if err != nil {
		return "", err
	}
	if err := drain(resp); err != nil {
		return "", r.failed(ctx, c, err)
	}
	if got := resp.Header.Get("Docker-Content-Digest"); got != "" && got != want.String() {
		return "", fmt.Errorf("%s to %s: the registry stored it as %q, not as %s", c.doing, r.Host(), printable(got), want)
	}
	if resp.Header.Get("OCI-Subject") == "" {
		if err := r.tagReferrer(ctx, repo, v1.Descriptor{MediaType: mediaType, Digest: want, Size: int64(len(body))}, body); err != nil {
			return "", err
		}
	}
	return want, nil
}

// DeleteManifest deletes manifest d, and every tag on it, from repo. Errors:
// ErrNotFound.
func (r *Registry) DeleteManifest(ctx context.Context, repo string, d digest.Digest) error {
	return r.deleteManifest(ctx, repo, d.String())
}

// DeleteTag takes the tag from repo; its manifest stays. Errors: ErrNotFound.
func (r *Registry) DeleteTag(ctx context.Context, repo, tag string) error {
	return r.deleteManifest(ctx, repo, tag)
}

func (r *Registry) deleteManifest(ctx context.Context, repo, ref string) error {
	c, err := r.manifestCall(http.MethodDelete, "delete", repo, ref)
	if err != nil {
		return err
	}
	// A second DELETE would answer that there is no such thing.
	c.retry = false
	c.scope = deleteScope(repo)
	resp, err := r.do(ctx, c)
	if err != nil {
		return err
	}
	return drain(resp)
}

// manifestCall prepares a request for the manifest ref of repo.
func (r *Registry) manifestCall(method, verb, repo, ref string) (call, error) {
	if err := checkName(repo, ref); err != nil {
		return call{}, err
	}
	sep := ":"
	if strings.Contains(ref, ":") {
		sep = "@"
	}
	return call{
		method: method,
		url:    r.path(repo, "manifests", ref),
		header: http.Header{"Accept": {accepted}},
		retry:  true,
		doing:  verb + " " + repo + sep + ref,
		repo:   repo, manifest: ref,
	}, nil
}

// mediaTypeOf is the Content-Type without its parameters.
func mediaTypeOf(h http.Header) string {
	t, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return t
}

// mediaTypeIn derives a manifest's media type from its body, for registries
// that do not tell.
func mediaTypeIn(body []byte) string {
	var m struct {
		MediaType string          `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
	}
	switch err := json.Unmarshal(body, &m); {
	case err == nil && m.MediaType != "":
		return m.MediaType
	case err == nil && m.Manifests != nil:
		return v1.MediaTypeImageIndex
	}
	return v1.MediaTypeImageManifest
}

// path is the address of something of repo.
func (r *Registry) path(repo string, elem ...string) *url.URL {
	return r.base.JoinPath(append([]string{"v2", repo}, elem...)...)
}
