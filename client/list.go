package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxPage is the largest page of a list that is read, in bytes.
const maxPage = 16 << 20

// Tags lists the tags of repo in the registry's order: end-8. Errors:
// ErrNotFound.
func (r *Registry) Tags(ctx context.Context, repo string) iter.Seq2[string, error] {
	return list(ctx, r, call{
		method: http.MethodGet, url: r.path(repo, "tags", "list"), scope: pullScope(repo),
		retry: true, doing: "list the tags of " + repo, repo: repo,
	}, func(page []byte) ([]string, error) {
		var body struct {
			Tags []string `json:"tags"`
		}
		err := json.Unmarshal(page, &body)
		return plain(body.Tags), err
	})
}

// Repositories lists the repositories of the registry, as far as the caller may
// know of them: the catalog, which is not in the spec but in most registries.
func (r *Registry) Repositories(ctx context.Context) iter.Seq2[string, error] {
	return list(ctx, r, call{
		method: http.MethodGet, url: r.base.JoinPath("v2", "_catalog"), scope: catalogScope,
		retry: true, doing: "list the repositories",
	}, func(page []byte) ([]string, error) {
		var body struct {
			Repositories []string `json:"repositories"`
		}
		err := json.Unmarshal(page, &body)
		return plain(body.Repositories), err
	})
}

// Referrers lists the descriptors of the manifests of repo whose subject is d:
// end-12, or the tag that stands in for it in a registry that has no referrers.
// An empty artifactType means all of them.
func (r *Registry) Referrers(ctx context.Context, repo string, d digest.Digest, artifactType string) iter.Seq2[v1.Descriptor, error] {
	c := call{
		method: http.MethodGet, url: r.path(repo, "referrers", d.String()), scope: pullScope(repo),
		retry: true, doing: "list the referrers of " + repo + "@" + d.String(), repo: repo,
	}
	if artifactType != "" {
		c.url.RawQuery = url.Values{"artifactType": {artifactType}}.Encode()
	}
	return func(yield func(v1.Descriptor, error) bool) {
		send := func(desc v1.Descriptor, err error) bool {
			// Filtering is the registry's choice.
			return err == nil && artifactType != "" && desc.ArtifactType != artifactType || yield(desc, err)
		}
		for desc, err := range list(ctx, r, c, manifestsOf) {
			if isNotFound(err) { // only the first page can be missing
				standIn, err := r.standIn(ctx, repo, d)
				if err != nil {
					yield(v1.Descriptor{}, err)
				}
				for _, desc := range standIn {
					if !send(desc, nil) {
						return
					}
				}
				return
			}
			if !send(desc, err) {
				return
			}
		}
	}
}

// plain makes names fit for a terminal, whatever a registry calls a name.
func plain(names []string) []string {
	for i := range names {
		names[i] = printable(names[i])
	}
	return names
}

func manifestsOf(page []byte) ([]v1.Descriptor, error) {
	var index v1.Index
	err := json.Unmarshal(page, &index)
	return index.Manifests, err
}

// standIn returns what the tag says that stands in for the referrers of d
// (distribution-spec, "Referrers Tag Schema"): nothing, if it is not there.
func (r *Registry) standIn(ctx context.Context, repo string, d digest.Digest) ([]v1.Descriptor, error) {
	if err := checkName(repo, d.String()); err != nil {
		return nil, err
	}
	_, body, err := r.Manifest(ctx, repo, standInTag(d))
	if isNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return manifestsOf(body)
}

func standInTag(d digest.Digest) string {
	return fmt.Sprintf("%.32s-%.64s", d.Algorithm(), d.Encoded())
}

// tagReferrer adds the manifest to the stand-in tag of its subject, if it has
// one.
func (r *Registry) tagReferrer(ctx context.Context, repo string, desc v1.Descriptor, manifest []byte) error {
	var m struct {
		v1.Manifest
		Subject *v1.Descriptor `json:"subject"`
	}
	if err := json.Unmarshal(manifest, &m); err != nil || m.Subject == nil {
		return nil // of an unusual manifest no subject is known
	}
	subject := m.Subject.Digest
	all, err := r.standIn(ctx, repo, subject)
	if err != nil {
		return fmt.Errorf("tell %s that %s refers to it: %w", subject, desc.Digest, err)
	}
	for _, known := range all {
		if known.Digest == desc.Digest {
			return nil
		}
	}
	desc.Annotations = m.Annotations
	desc.ArtifactType = m.ArtifactType
	if desc.ArtifactType == "" {
		desc.ArtifactType = m.Config.MediaType
	}
	body, err := json.Marshal(v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageIndex,
		Manifests: append(all, desc),
	})
	if err != nil {
		return err
	}
	if _, err := r.PushManifest(ctx, repo, standInTag(subject), v1.MediaTypeImageIndex, body); err != nil {
		return fmt.Errorf("tell %s that %s refers to it: %w", subject, desc.Digest, err)
	}
	return nil
}

// list walks through all pages of a list.
func list[T any](ctx context.Context, r *Registry, c call, read func(page []byte) ([]T, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		if c.repo != "" {
			if err := checkName(c.repo, ""); err != nil {
				yield(none, err)
				return
			}
		}
		for c.url != nil {
			page, next, err := r.page(ctx, c)
			if err != nil {
				yield(none, err)
				return
			}
			elems, err := read(page)
			if err != nil {
				yield(none, fmt.Errorf("%s in %s: the registry did not answer with a list", c.doing, r.Host()))
				return
			}
			for _, e := range elems {
				if !yield(e, nil) {
					return
				}
			}
			if next != nil && *next == *c.url {
				yield(none, fmt.Errorf("%s in %s: the registry's pages go round in a circle", c.doing, r.Host()))
				return
			}
			c.url = next
		}
	}
}

// page reads one page and where the next one is, nil if there is none.
func (r *Registry) page(ctx context.Context, c call) ([]byte, *url.URL, error) {
	resp, err := r.do(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	var page bytes.Buffer
	n, err := io.Copy(&page, io.LimitReader(resp.Body, maxPage+1))
	if err == nil && n > maxPage {
		err = errors.New("the answer is too large")
	}
	if err != nil {
		return nil, nil, r.failed(ctx, c, err)
	}
	target := nextLink(resp.Header.Values("Link"))
	if target == "" {
		return page.Bytes(), nil, nil
	}
	next, err := r.follow(resp, target)
	if err == nil && !sameOrigin(next, r.base) {
		err = errors.New("the next page is in another registry")
	}
	if err != nil {
		return nil, nil, r.failed(ctx, c, err)
	}
	return page.Bytes(), next, nil
}

// nextLink returns the target of the Link with rel="next" (RFC 8288), empty if
// there is none.
func nextLink(headers []string) string {
	for _, h := range headers {
		for h != "" {
			_, after, ok := strings.Cut(h, "<")
			target, params, closed := strings.Cut(after, ">")
			if !ok || !closed {
				break
			}
			l := lexer(params)
			next := false
			for l.skip(" \t"); l.next(';'); l.skip(" \t") {
				l.skip(" \t")
				name := l.token()
				l.skip(" \t")
				if !l.next('=') {
					continue
				}
				l.skip(" \t")
				value, ok := l.value()
				if !ok {
					break
				}
				if strings.EqualFold(name, "rel") {
					for rel := range strings.FieldsSeq(value) {
						next = next || strings.EqualFold(rel, "next")
					}
				}
			}
			if next {
				return target
			}
			h = string(l)
		}
	}
	return ""
}
