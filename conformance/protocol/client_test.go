package protocol_test

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Media types of the image-spec and of Docker.
const (
	typeImage      = "application/vnd.oci.image.manifest.v1+json"
	typeIndex      = "application/vnd.oci.image.index.v1+json"
	typeConfig     = "application/vnd.oci.image.config.v1+json"
	typeLayer      = "application/vnd.oci.image.layer.v1.tar+gzip"
	typeDocker     = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerList = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// repo is a repository, seen by a client.
type repo struct {
	t        *testing.T
	registry *registry
	url      string // of the registry, or of what is before it
	name     string
	client   *http.Client
}

// newRepo returns a repository of the shared registry that only t uses.
func newRepo(t *testing.T) repo { return repoIn(t, shared) }

func repoIn(t *testing.T, r *registry) repo {
	name := strings.ToLower(strings.Map(func(c rune) rune {
		if c == '/' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' {
			return c
		}
		return -1
	}, t.Name()))
	name = fmt.Sprintf("%s-%d", name, r.repos.Add(1)) // also with -count
	return repo{t: t, registry: r, url: r.url, name: name, client: noRedirects}
}

// called returns another repository of the same registry.
func (r repo) called(name string) repo {
	r.name = name
	return r
}

// in returns the repository for a subtest.
func (r repo) in(t *testing.T) repo {
	r.t = t
	return r
}

// answer is what the registry said to a request.
type answer struct {
	t       *testing.T
	request string
	status  int
	header  http.Header
	body    []byte
	length  int64
}

// noRedirects shows a redirect to the test.
var noRedirects = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

// do sends a request. path is below the repository, or absolute, as in a
// Location. headers are lines such as "Accept: */*".
func (r repo) do(method, path string, body io.Reader, headers ...string) answer {
	r.t.Helper()
	a, err := r.try(method, path, body, headers...)
	if err != nil {
		r.t.Fatal(err)
	}
	return a
}

// try is do for goroutines other than the test's own.
func (r repo) try(method, path string, body io.Reader, headers ...string) (answer, error) {
	if !strings.HasPrefix(path, "/") {
		path = "/v2/" + r.name + "/" + path
	}
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.url+path, body)
	if err != nil {
		return answer{}, err
	}
	for _, line := range headers {
		key, value, _ := strings.Cut(line, ": ")
		req.Header.Add(key, value)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, fmt.Errorf("%s %s: read the answer: %w", method, path, err)
	}
	request := strings.Join(append([]string{method, path}, headers...), " ")
	a := answer{r.t, request[:min(len(request), 300)], resp.StatusCode, resp.Header, b, resp.ContentLength}
	if strings.HasPrefix(path, "/v2") {
		a.check(method)
	}
	return a, nil
}

// check fails the test if the answer breaks a rule that all answers obey.
func (a answer) check(method string) {
	a.t.Helper()
	if v := a.header.Values("Docker-Distribution-Api-Version"); len(v) != 1 || v[0] != "registry/2.0" {
		a.t.Errorf("%s answers Docker-Distribution-Api-Version %q, want registry/2.0", a.request, v)
	}
	for _, header := range []string{"Location", "Link"} {
		if strings.Contains(a.header.Get(header), "://") {
			a.t.Errorf("%s answers %s: %s, want it relative: a proxy has another name", a.request, header, a.header.Get(header))
		}
	}
	warned := 0
	for _, warning := range a.header.Values("Warning") {
		if warned += len(warning); !warningGrammar.MatchString(warning) || warned > 4096 {
			a.t.Errorf("%s warns by %d bytes up to %q, want 299 - and a text, 4096 bytes in all", a.request, warned, warning)
		}
	}
	if a.status < http.StatusBadRequest {
		return
	}
	if method == http.MethodHead {
		if len(a.body) > 0 {
			a.t.Errorf("%s answers a body: %s", a.request, a.body)
		}
		return
	}
	var f failure
	if err := json.Unmarshal(a.body, &f); err != nil || len(f.Errors) == 0 || a.header.Get("Content-Type") != "application/json" {
		a.t.Errorf("%s = %d %s %.300s, want errors in JSON", a.request, a.status, a.header.Get("Content-Type"), a.body)
	}
	for _, e := range f.Errors {
		if spec := slices.Contains(codes, e.Code); e.Message == "" || !spec && a.status < http.StatusInternalServerError {
			a.t.Errorf("%s answers code %q with message %q, want one of the spec's codes and a message", a.request, e.Code, e.Message)
		}
	}
}

// codes are those of the spec, "Error Codes".
var codes = []string{
	"BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN", "MANIFEST_INVALID", "MANIFEST_UNKNOWN",
	"NAME_INVALID", "NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED", "DENIED", "UNSUPPORTED", "TOOMANYREQUESTS",
}

var warningGrammar = regexp.MustCompile(`^299 - "[^"\\]+"$`)

func (r repo) get(path string, headers ...string) answer {
	r.t.Helper()
	return r.do(http.MethodGet, path, nil, headers...)
}

func (r repo) head(path string, headers ...string) answer {
	r.t.Helper()
	return r.do(http.MethodHead, path, nil, headers...)
}

func (r repo) delete(path string) answer {
	r.t.Helper()
	return r.do(http.MethodDelete, path, nil)
}

// want fails the test if the answer has another status or lacks a header line.
// A line that ends in ": " is for a header that must be absent.
func (a answer) want(status int, headers ...string) answer {
	a.t.Helper()
	if a.status != status {
		a.t.Fatalf("%s = %d %.300s, want %d", a.request, a.status, a.body, status)
	}
	for _, line := range headers {
		key, value, _ := strings.Cut(line, ": ")
		got := strings.Join(a.header.Values(key), ", ")
		if got != value {
			a.t.Errorf("%s answers %s: %q, want %q", a.request, key, got, value)
		}
	}
	return a
}

// failure is the body of an error.
type failure struct {
	Errors []struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Detail  any    `json:"detail"`
	} `json:"errors"`
}

// wantError fails the test if the answer is not this error, in the spec's JSON.
func (a answer) wantError(status int, code string) failure {
	a.t.Helper()
	a.want(status, "Content-Type: application/json")
	var f failure
	a.decode(&f)
	if len(f.Errors) == 0 || f.Errors[0].Code != code {
		a.t.Errorf("%s = %s, want code %s", a.request, a.body, code)
	}
	return f
}

func (a answer) decode(v any) {
	a.t.Helper()
	if err := json.Unmarshal(a.body, v); err != nil {
		a.t.Fatalf("%s answers what is no JSON of the right shape: %v\n%.300s", a.request, err, a.body)
	}
}

// location is the session or content that the answer points to. It is relative:
// a registry behind a proxy does not know its own name.
func (a answer) location() string {
	a.t.Helper()
	l := a.header.Get("Location")
	if !strings.HasPrefix(l, "/v2/") {
		a.t.Fatalf("%s answers Location: %q, want a path below /v2/", a.request, l)
	}
	return l
}

// next is the path that a Link header gives for the next page, or "".
func (a answer) next() string {
	a.t.Helper()
	link := a.header.Get("Link")
	if link == "" {
		return ""
	}
	path, ok := strings.CutSuffix(link, `>; rel="next"`)
	path, ok2 := strings.CutPrefix(path, "<")
	if !ok || !ok2 || !strings.HasPrefix(path, "/v2/") {
		a.t.Fatalf("%s answers Link: %q, want <relative path>; rel=\"next\"", a.request, link)
	}
	return path
}

func sha(content string) string  { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(content))) }
func sha5(content string) string { return fmt.Sprintf("sha512:%x", sha512.Sum512([]byte(content))) }

// text is a body of known length, streamed one that goes out in chunks.
func text(s string) io.Reader     { return strings.NewReader(s) }
func streamed(s string) io.Reader { return struct{ io.Reader }{strings.NewReader(s)} }

// with adds parameters to a path that may have some.
func with(path string, params ...string) string {
	q := url.Values{}
	for i := 0; i < len(params); i += 2 {
		q.Add(params[i], params[i+1])
	}
	separator := "?"
	if strings.Contains(path, "?") {
		separator = "&"
	}
	return path + separator + q.Encode()
}

// large is content that no registry keeps in its index.
func large(seed string) string { return strings.Repeat(seed+"0123456789abcdef", 20_000) }

// blob pushes content and returns its digest.
func (r repo) blob(content string) string {
	r.t.Helper()
	d := sha(content)
	r.do(http.MethodPost, with("blobs/uploads/", "digest", d), text(content)).want(http.StatusCreated)
	return d
}

// begin opens an upload session and returns its path.
func (r repo) begin() string {
	r.t.Helper()
	return r.do(http.MethodPost, "blobs/uploads/", nil).want(http.StatusAccepted).location()
}

// descriptor and manifest are those of the image-spec.
type descriptor struct {
	MediaType    string            `json:"mediaType,omitempty"`
	Digest       string            `json:"digest"`
	Size         int               `json:"size"`
	URLs         []string          `json:"urls,omitempty"`
	Data         []byte            `json:"data,omitempty"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	Platform     *platform         `json:"platform,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

type manifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType,omitempty"`
	ArtifactType  string            `json:"artifactType,omitempty"`
	Config        *descriptor       `json:"config,omitempty"`
	Layers        []descriptor      `json:"layers,omitempty"`
	Manifests     *[]descriptor     `json:"manifests,omitempty"`
	Subject       *descriptor       `json:"subject,omitempty"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

func (m manifest) String() string {
	var b bytes.Buffer
	m.SchemaVersion = cmp.Or(m.SchemaVersion, 2)
	if err := json.NewEncoder(&b).Encode(m); err != nil {
		panic(err) // a manifest of strings and numbers always encodes
	}
	return b.String()
}

func describe(mediaType, content string) descriptor {
	return descriptor{MediaType: mediaType, Digest: sha(content), Size: len(content)}
}

// image returns an image whose config and layers, if there are any, are pushed.
func (r repo) image(config string, layers ...string) manifest {
	r.t.Helper()
	r.blob(config)
	c := describe(typeConfig, config)
	m := manifest{MediaType: typeImage, Config: &c}
	for _, layer := range layers {
		r.blob(layer)
		m.Layers = append(m.Layers, describe(typeLayer, layer))
	}
	return m
}

func index(children ...descriptor) manifest {
	children = append([]descriptor{}, children...) // [], not null
	return manifest{MediaType: typeIndex, Manifests: &children}
}

// put pushes a manifest under ref, a tag or a digest.
func (r repo) put(ref, content, mediaType string, headers ...string) answer {
	r.t.Helper()
	if mediaType != "" {
		headers = append(headers, "Content-Type: "+mediaType)
	}
	return r.do(http.MethodPut, "manifests/"+ref, text(content), headers...)
}

// pushed pushes a small image under ref and returns its bytes.
func (r repo) pushed(ref string) string {
	r.t.Helper()
	content := r.image(`{"of":"` + ref + `"}`).String()
	r.put(ref, content, typeImage).want(http.StatusCreated)
	return content
}

// span is a Content-Range of n bytes.
func span(first, n int) string { return fmt.Sprintf("%d-%d", first, first+n-1) }

func lastOf(content string) string { return strconv.Itoa(len(content) - 1) }

// tags returns the tags in one page of the list.
func (r repo) tags(path string) []string {
	r.t.Helper()
	var list struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}
	r.get(path).want(http.StatusOK, "Content-Type: application/json").decode(&list)
	return list.Tags
}
