package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestServeKilled kills berth serve with -9 while a hundred clients push. After
// the restart everything that was answered with 201 is there, whole, and in the
// audit log, and on the disk there is no file that neither a name nor a session
// owns.
func TestServeKilled(t *testing.T) {
	const rounds, pushers = 4, 100
	berth, data := binary(t), filepath.Join(t.TempDir(), "data")
	rec := &record{blobs: map[digest.Digest]string{}, manifests: map[string][]byte{}, tried: map[digest.Digest][]string{}}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for round := range rounds {
		server := serveAt(t, berth, data)
		ctx, cancel := context.WithCancel(t.Context())
		// The kill comes after some answer, wherever the others then are.
		var answers atomic.Int64
		after := int64(50 + random.IntN(1000))
		killed := sync.OnceFunc(func() {
			if err := server.stop(syscall.SIGKILL); err != nil {
				t.Error(err)
			}
			cancel()
		})
		var wg sync.WaitGroup
		for i := range pushers {
			p := &pusher{
				record: rec, t: t, url: server.url, repo: fmt.Sprintf("team/app%d", i%10), name: fmt.Sprintf("r%d-p%d", round, i),
				random: rand.New(rand.NewPCG(seed, uint64(round*pushers+i+1))),
				answered: func() {
					if answers.Add(1) == after {
						go killed()
					}
				},
			}
			wg.Go(func() { p.push(ctx) })
		}
		wg.Wait()
		killed() // waits for the one that runs
		cancel()
		t.Logf("round %d: killed after %d answers; %d blobs and %d manifests were acknowledged so far", round, after, len(rec.blobs), len(rec.manifests))

		server = serveAt(t, berth, data)
		rec.check(t, server.url)
		rec.checkFiles(t, server.url, filepath.Join(data, "registry"))
		rec.checkAudit(t, filepath.Join(data, "registry", "audit"), round+1)
		if err := server.stop(syscall.SIGTERM); err != nil || server.err != nil {
			t.Errorf("stop after round %d: %v, %v", round, err, server.err)
		}
	}
}

// running is a berth serve.
type running struct {
	*actor
	url string
}

func serveAt(t *testing.T, berth, data string, flags ...string) *running {
	t.Helper()
	a, err := act("serve", "/", os.Environ(), append([]string{berth, "serve", "--listen", "127.0.0.1:0", "--data", data}, flags...))
	if err == nil {
		t.Cleanup(func() { _ = a.stop(syscall.SIGKILL) })
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := a.find(regexp.MustCompile(`registry is ready.* url=(\S+)`))
	if err != nil {
		t.Fatalf("%v\n%s", err, a.output())
	}
	return &running{a, m[1]}
}

// record is what clients were told, and what they tried.
type record struct {
	mu        sync.Mutex
	blobs     map[digest.Digest]string   // answered with 201, in this repository
	manifests map[string][]byte          // answered with 201, by path
	tried     map[digest.Digest][]string // in these repositories
	sessions  []string                   // locations of uploads in chunks
}

// pusher is a client that pushes images until the server is gone.
type pusher struct {
	*record
	t               *testing.T
	url, repo, name string
	random          *rand.Rand
	answered        func()
}

func (p *pusher) push(ctx context.Context) {
	for n := 0; ; n++ {
		m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
		for i := range 3 {
			size := []int{2, 3 << 10, 100 << 10, 300 << 10}[p.random.IntN(4)]
			d, ok := p.blob(ctx, p.bytes(size))
			if !ok {
				return
			}
			if i == 0 {
				m.Config = v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: d, Size: int64(size)}
				continue
			}
			m.Layers = append(m.Layers, v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: d, Size: int64(size)})
		}
		body, err := json.Marshal(m)
		if err != nil {
			p.t.Error(err)
			return
		}
		path := fmt.Sprintf("/v2/%s/manifests/%s-%d", p.repo, p.name, n)
		if p.do(ctx, http.MethodPut, path, v1.MediaTypeImageManifest, body) == nil {
			return
		}
		p.mu.Lock()
		p.manifests[path] = body
		p.mu.Unlock()
		p.answered()
	}
}

// blob pushes a blob in one of the ways there are.
func (p *pusher) blob(ctx context.Context, data []byte) (digest.Digest, bool) {
	d := digest.FromBytes(data)
	p.mu.Lock()
	p.tried[d] = append(p.tried[d], p.repo)
	p.mu.Unlock()
	start := "/v2/" + p.repo + "/blobs/uploads/"
	way := p.random.IntN(3)
	if way == 0 {
		return d, p.done(d, p.do(ctx, http.MethodPost, start+"?digest="+d.String(), "application/octet-stream", data))
	}
	resp := p.do(ctx, http.MethodPost, start, "", nil)
	if resp == nil {
		return d, false
	}
	if way == 2 {
		// The session may outlive the server also if the client never learns of it.
		p.mu.Lock()
		p.sessions = append(p.sessions, resp.Header.Get("Location"))
		p.mu.Unlock()
		half := len(data) / 2
		if resp = p.do(ctx, http.MethodPatch, resp.Header.Get("Location"), "application/octet-stream", data[:half]); resp == nil {
			return d, false
		}
		data = data[half:]
	}
	return d, p.done(d, p.do(ctx, http.MethodPut, resp.Header.Get("Location")+"?digest="+url.QueryEscape(d.String()), "application/octet-stream", data))
}

func (p *pusher) done(d digest.Digest, resp *http.Response) bool {
	if resp == nil || resp.StatusCode != http.StatusCreated {
		return false
	}
	p.mu.Lock()
	p.blobs[d] = p.repo
	p.mu.Unlock()
	p.answered()
	return true
}

func (p *pusher) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(p.random.Uint32())
	}
	return b
}

// do makes a request and returns nil unless all of a good answer came.
func (p *pusher) do(ctx context.Context, method, path, contentType string, body []byte) *http.Response {
	resp, _, err := ask(ctx, method, p.url+path, contentType, body)
	if err != nil || resp.StatusCode/100 != 2 {
		return nil
	}
	return resp
}

func ask(ctx context.Context, method, url, contentType string, body []byte) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	return resp, answer, err
}

// check reads back all that was acknowledged.
func (r *record) check(t *testing.T, url string) {
	t.Helper()
	for d, repo := range r.blobs {
		resp, body, err := ask(t.Context(), http.MethodGet, url+"/v2/"+repo+"/blobs/"+d.String(), "", nil)
		switch {
		case err != nil:
			t.Fatalf("GET %s in %s: %v", d, repo, err)
		case resp.StatusCode != http.StatusOK || digest.FromBytes(body) != d:
			t.Errorf("blob %s in %s was acknowledged and is now %d with %s", d, repo, resp.StatusCode, digest.FromBytes(body))
		}
	}
	for path, want := range r.manifests {
		resp, body, err := ask(t.Context(), http.MethodGet, url+path, "", nil)
		switch {
		case err != nil:
			t.Fatalf("GET %s: %v", path, err)
		case resp.StatusCode != http.StatusOK || !bytes.Equal(body, want):
			t.Errorf("%s was acknowledged and is now %d %q", path, resp.StatusCode, body)
		}
	}
}

// checkFiles holds each file against what the server knows.
func (r *record) checkFiles(t *testing.T, url, dir string) {
	t.Helper()
	live := 0
	for _, session := range r.sessions {
		if resp, _, err := ask(t.Context(), http.MethodGet, url+session, "", nil); err == nil && resp.StatusCode == http.StatusNoContent {
			live++
		}
	}
	uploads := files(t, filepath.Join(dir, "uploads"))
	if len(uploads) > live {
		t.Errorf("%d files of uploads, but only %d live sessions: %s", len(uploads), live, uploads)
	}
	for _, path := range files(t, filepath.Join(dir, "blobs")) {
		hex, _, _ := strings.Cut(filepath.Base(path), ".")
		d := digest.NewDigestFromEncoded(digest.SHA256, hex)
		named := false
		for _, repo := range r.tried[d] {
			resp, _, err := ask(t.Context(), http.MethodHead, url+"/v2/"+repo+"/blobs/"+d.String(), "", nil)
			named = named || err == nil && resp.StatusCode == http.StatusOK
		}
		if !named {
			t.Errorf("file %s has no name in any of %v", path, r.tried[d])
		}
	}
}

// checkAudit finds what was acknowledged in the audit log. A kill tears its last
// line at most.
func (r *record) checkAudit(t *testing.T, dir string, kills int) {
	t.Helper()
	recorded, torn := map[string]bool{}, 0
	for _, path := range files(t, dir) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(text) {
			var rec struct{ Action, Repo, Tag, Digest, Decision string }
			switch {
			case json.Unmarshal(line, &rec) != nil:
				torn++
			case rec.Action == "blob.push" && rec.Decision == "allowed":
				recorded[rec.Digest] = true
			case rec.Action == "manifest.push" && rec.Decision == "allowed":
				recorded["/v2/"+rec.Repo+"/manifests/"+rec.Tag] = true
			}
		}
	}
	if torn > kills {
		t.Errorf("%d lines of the audit log are torn by %d kills", torn, kills)
	}
	for d, repo := range r.blobs {
		if !recorded[d.String()] {
			t.Errorf("the audit log lacks the blob %s of %s", d, repo)
		}
	}
	for path := range r.manifests {
		if !recorded[path] {
			t.Errorf("the audit log lacks %s", path)
		}
	}
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	var list []string
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			list = append(list, path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return list
}
