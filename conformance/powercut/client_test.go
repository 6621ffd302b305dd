package powercut

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ledger is what clients asked a registry for, and what of that it acknowledged.
// Moments are those of the file system below the registry.
type ledger struct {
	now func() Moment

	mu       sync.Mutex
	paths    map[string][]*state // oldest first
	sessions []*session
}

// state is what a client wanted a path to hold.
type state struct {
	body         string // empty: nothing, 404
	began, acked Moment // acked is -1 if the registry did not say that it is done
}

// session is an upload that somebody may go on with.
type session struct {
	path    string  // the Location
	content string  // all of it
	size    []state // how much has arrived: len of body
	ending  Moment  // when somebody began to end it, or it broke; -1
}

func newLedger(now func() Moment) *ledger { return &ledger{now: now, paths: map[string][]*state{}} }

// want notes that a request is about to be made after which a path holds body,
// or nothing. What it returns is to be called when that was acknowledged.
func (l *ledger) want(path, body string) (acknowledged func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &state{body: body, began: l.now(), acked: -1}
	l.paths[path] = append(l.paths[path], s)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		s.acked = l.now()
	}
}

// allowed returns what a path may hold at a moment.
func (l *ledger) allowed(path string, at Moment) []string {
	list := []string{""}
	for _, s := range l.paths[path] {
		if s.began > at {
			break
		}
		if s.acked >= 0 && s.acked <= at {
			list = nil
		}
		list = append(list, s.body)
	}
	return list
}

// acknowledged counts what was acknowledged before a moment.
func (l *ledger) acknowledged(at Moment) (n int) {
	for _, states := range l.paths {
		for _, s := range states {
			if s.acked >= 0 && s.acked <= at {
				n++
			}
		}
	}
	return n
}

// answer is what a registry said.
type answer struct {
	request  string
	status   int
	location string
	received int // bytes of an upload
	body     []byte
}

// failure is an answer that is not the one hoped for.
type failure struct{ answer }

func (f failure) Error() string { return fmt.Sprintf("%s = %d %.300s", f.request, f.status, f.body) }

// client is a client of a registry that keeps a ledger.
type client struct {
	*ledger
	url string
}

// ask makes a request. Errors: no answer came, or less than all of it.
func (c client) ask(method, path string, body []byte) (answer, error) {
	req, err := http.NewRequest(method, c.url+path, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	switch {
	case strings.Contains(path, "/manifests/"):
		req.Header.Set("Content-Type", typeImage)
	case strings.HasPrefix(path, "/berth/"):
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	got, err := drain(resp.Body)
	a := answer{request: method + " " + path, status: resp.StatusCode, location: resp.Header.Get("Location"), body: got}
	if _, last, ok := strings.Cut(resp.Header.Get("Range"), "-"); ok && last != "0" { // 0-0 is nothing yet
		n, err := strconv.Atoi(last)
		if err != nil {
			return a, err
		}
		a.received = n + 1
	}
	return a, err
}

// do is ask, with a failure for another status than want.
func (c client) do(method, path string, body []byte, want int) (answer, error) {
	a, err := c.ask(method, path, body)
	if err == nil && a.status != want {
		err = failure{a}
	}
	return a, err
}

const typeImage = "application/vnd.oci.image.manifest.v1+json"

func digest(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// content is size bytes that are like no others.
func content(seed string, size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(seed))).Read(b) // never fails
	return b
}

// inShard returns b with its last bytes changed so that its digest begins with
// shard, as do the digests of all that the store keeps in one directory.
func inShard(b []byte, shard byte) []byte {
	end := b[len(b)-8:]
	begun := sha256.New()
	begun.Write(b[:len(b)-8])
	for n := uint64(0); ; n++ {
		binary.LittleEndian.PutUint64(end, n)
		h, err := begun.(hash.Cloner).Clone()
		if err != nil {
			panic(err)
		}
		h.Write(end)
		if h.Sum(nil)[0] == shard {
			return b
		}
	}
}

// manifest is an image of these blobs, with a filler that makes it large.
func manifest(filler int, blobs ...[]byte) []byte {
	type descriptor struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
		Size      int    `json:"size"`
	}
	m := struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		Config        descriptor        `json:"config"`
		Layers        []descriptor      `json:"layers"`
		Annotations   map[string]string `json:"annotations,omitempty"`
	}{SchemaVersion: 2, MediaType: typeImage}
	for i, b := range blobs {
		d := descriptor{"application/vnd.oci.image.layer.v1.tar", digest(b), len(b)}
		if i == 0 {
			d.MediaType = "application/vnd.oci.image.config.v1+json"
			m.Config = d
			continue
		}
		m.Layers = append(m.Layers, d)
	}
	if filler > 0 {
		m.Annotations = map[string]string{"filler": strings.Repeat("x", filler)}
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

func blobPath(repo string, b []byte) string { return "/v2/" + repo + "/blobs/" + digest(b) }

func uploads(repo string) string { return "/v2/" + repo + "/blobs/uploads/" }

// post pushes a blob in one request.
func (c client) post(repo string, b []byte) error {
	done := c.want(blobPath(repo, b), string(b))
	_, err := c.do("POST", uploads(repo)+"?digest="+digest(b), b, 201)
	if err == nil {
		done()
	}
	return err
}

// begin opens a session for a blob.
func (c client) begin(repo string, b []byte) (*session, error) {
	a, err := c.do("POST", uploads(repo), nil, 202)
	if err != nil {
		return nil, err
	}
	s := &session{path: a.location, content: string(b), ending: -1}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sessions = append(c.sessions, s)
	return s, nil
}

// patch sends the next n bytes of the session's blob.
func (c client) patch(s *session, n int) error {
	c.mu.Lock()
	has := 0
	if len(s.size) > 0 {
		has = len(s.size[len(s.size)-1].body)
	}
	s.size = append(s.size, state{body: s.content[:has+n], began: c.now(), acked: -1})
	i := len(s.size) - 1
	c.mu.Unlock()
	_, err := c.do("PATCH", s.path, []byte(s.content[has:has+n]), 202)
	if err != nil {
		c.end(s) // a disk that fails may take the whole upload with it
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.size[i].acked = c.now()
	return nil
}

// finish sends the rest of the session's blob, and its digest.
func (c client) finish(repo string, s *session) error {
	b := []byte(s.content)
	done := c.want(blobPath(repo, b), s.content)
	c.end(s)
	has := 0
	if len(s.size) > 0 {
		has = len(s.size[len(s.size)-1].body)
	}
	_, err := c.do("PUT", s.path+"?digest="+digest(b), b[has:], 201)
	if err == nil {
		done()
	}
	return err
}

func (c client) end(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.ending = c.now()
}

// push pushes a blob in a session: with these chunks, and what is left at the
// end.
func (c client) push(repo string, b []byte, chunks ...int) error {
	s, err := c.begin(repo, b)
	if err != nil {
		return err
	}
	for _, n := range chunks {
		if err := c.patch(s, n); err != nil {
			return err
		}
	}
	return c.finish(repo, s)
}

// tag pushes a manifest under a tag.
func (c client) tag(repo, tag string, m []byte) error {
	byTag := c.want("/v2/"+repo+"/manifests/"+tag, string(m))
	byDigest := c.want("/v2/"+repo+"/manifests/"+digest(m), string(m))
	_, err := c.do("PUT", "/v2/"+repo+"/manifests/"+tag, m, 201)
	if err == nil {
		byTag()
		byDigest()
	}
	return err
}

// remove deletes what is at a path, and what goes with it.
func (c client) remove(path string, also ...string) error {
	var done []func()
	for _, p := range append(also, path) {
		done = append(done, c.want(p, ""))
	}
	_, err := c.do("DELETE", path, nil, 202)
	if err == nil {
		for _, d := range done {
			d()
		}
	}
	return err
}

// way is one of the ways to change a registry. prepare does what must be there
// first. id makes its content unlike any other.
type way struct {
	name    string
	prepare func(c client, id string) error
	run     func(c client, id string) error
}

const (
	small = 300     // bytes; the index keeps them
	large = 100_000 // bytes; a file
)

func layer(id string) []byte  { return content(id+" layer", large) }
func config(id string) []byte { return content(id+" config", small) }
func image(id string) []byte  { return manifest(0, config(id), layer(id)) }

func (c client) image(id string) error {
	if err := c.post("team/"+id, config(id)); err != nil {
		return err
	}
	return c.post("team/"+id, layer(id))
}

// tagged pushes a whole image.
func (c client) tagged(id string) error {
	if err := c.image(id); err != nil {
		return err
	}
	return c.tag("team/"+id, "1", image(id))
}

// collects is the setting with which a registry collects at once.
const collects = "BERTH_COLLECT_INTERVAL=5ms"

var collections = regexp.MustCompile(`(?m)^berth_gc_(deleted|failures)_total [1-9]`)

// collected waits until the collector has removed something or has failed.
func (c client) collected() (err error) {
	if !until(func() bool {
		var a answer
		a, err = c.do("GET", "/metrics", nil, 200)
		return err != nil || collections.Match(a.body)
	}) {
		return errors.New("nothing is collected")
	}
	return err
}

// trashed pushes a whole image and deletes its manifest.
func (c client) trashed(id string) error {
	if err := c.tagged(id); err != nil {
		return err
	}
	return c.untagged(id)
}

// untagged deletes the manifest of an image.
func (c client) untagged(id string) error {
	return c.remove("/v2/team/"+id+"/manifests/"+digest(image(id)), "/v2/team/"+id+"/manifests/1")
}

func nothing(client, string) error { return nil }

// ways are all that there are.
func ways() []way {
	return []way{
		{"blob at once", nothing, func(c client, id string) error { return c.post("team/"+id, layer(id)) }},
		{"small blob", nothing, func(c client, id string) error { return c.post("team/"+id, config(id)) }},
		{"blob in a session", nothing, func(c client, id string) error { return c.push("team/"+id, layer(id)) }},
		{"blob as docker does it", nothing, func(c client, id string) error { return c.push("team/"+id, layer(id), large) }},
		{"blob in chunks", nothing, func(c client, id string) error { return c.push("team/"+id, layer(id), 10_000, 70_000) }},
		{"chunk", nothing, func(c client, id string) error {
			s, err := c.begin("team/"+id, layer(id))
			if err != nil {
				return err
			}
			return c.patch(s, 70_000)
		}},
		{"cancel", nothing, func(c client, id string) error {
			s, err := c.begin("team/"+id, layer(id))
			if err != nil {
				return err
			}
			if err := c.patch(s, 70_000); err != nil {
				return err
			}
			c.end(s)
			_, err = c.do("DELETE", s.path, nil, 204)
			return err
		}},
		{"mount", func(c client, id string) error { return c.post("team/"+id, layer(id)) }, func(c client, id string) error {
			b := layer(id)
			done := c.want(blobPath("other/"+id, b), string(b))
			_, err := c.do("POST", uploads("other/"+id)+"?mount="+digest(b)+"&from=team/"+id, nil, 201)
			if err == nil {
				done()
			}
			return err
		}},
		{"manifest", client.image, func(c client, id string) error { return c.tag("team/"+id, "1", image(id)) }},
		{"large manifest", client.image, func(c client, id string) error {
			return c.tag("team/"+id, "1", manifest(large, config(id), layer(id)))
		}},
		{"tag moved", client.tagged, func(c client, id string) error {
			return c.tag("team/"+id, "1", manifest(1, config(id), layer(id)))
		}},
		{"tag deleted", client.tagged, func(c client, id string) error { return c.remove("/v2/team/" + id + "/manifests/1") }},
		{"manifest deleted", client.tagged, client.untagged},
		{"manifest restored", client.trashed, func(c client, id string) error {
			m := image(id)
			byTag := c.want("/v2/team/"+id+"/manifests/1", string(m))
			byDigest := c.want("/v2/team/"+id+"/manifests/"+digest(m), string(m))
			_, err := c.do("POST", "/berth/v1/restore", fmt.Appendf(nil, `{"repo":"team/%s","digest":%q}`, id, digest(m)), 200)
			if err == nil {
				byTag()
				byDigest()
			}
			return err
		}},
		{"manifest purged", client.trashed, func(c client, id string) error {
			_, err := c.do("DELETE", "/berth/v1/trash?repo=team/"+id+"&digest="+digest(image(id)), nil, 200)
			return err
		}},
		{"blob deleted", func(c client, id string) error { return c.post("team/"+id, layer(id)) }, func(c client, id string) error {
			if err := c.remove(blobPath("team/"+id, layer(id))); err != nil {
				return err
			}
			return c.collected()
		}},
	}
}

// check holds a registry on data against the ledger of what was acknowledged
// before a moment, and returns the first thing that is wrong. It ends all
// sessions. After it nothing is left on the disk but what has a name.
func (l *ledger) check(r *registry, data string, at Moment) error {
	c := client{newLedger(func() Moment { return 0 }), r.url}
	l.mu.Lock()
	defer l.mu.Unlock()
	named := map[string]bool{}
	for path := range l.paths {
		a, err := c.ask("GET", path, nil)
		if err != nil {
			return err
		}
		got := string(a.body)
		switch a.status {
		case 200:
			named[path[strings.LastIndexByte(path, ':')+1:]] = true
			named[strings.TrimPrefix(digest(a.body), "sha256:")] = true // of a tag
		case 404:
			got = ""
		default:
			return failure{a}
		}
		if want := l.allowed(path, at); !slices.Contains(want, got) {
			return fmt.Errorf("GET %s = %d with %s, want %s", path, a.status, digest(a.body), digests(want))
		}
	}
	for _, s := range l.sessions {
		if err := s.check(c, at); err != nil {
			return err
		}
		named[strings.TrimPrefix(digest([]byte(s.content)), "sha256:")] = true
	}
	left, err := files(filepath.Join(data, "registry", "uploads"))
	if err != nil || len(left) > 0 {
		return fmt.Errorf("uploads without a session: %v, %w", left, err)
	}
	blobs, err := files(filepath.Join(data, "registry", "blobs"))
	if err != nil {
		return err
	}
	for _, path := range blobs {
		if hex, _, _ := strings.Cut(filepath.Base(path), "."); !named[hex] {
			return fmt.Errorf("file without a name: %s", path)
		}
	}
	return nil
}

func digests(bodies []string) (list []string) {
	for _, b := range bodies {
		if b == "" {
			list = append(list, "nothing")
			continue
		}
		list = append(list, digest([]byte(b)))
	}
	return list
}

// check ends the session: if any of it was acknowledged, with its blob.
func (s *session) check(c client, at Moment) error {
	least, gone := 0, true
	for _, size := range s.size {
		if size.acked >= 0 && size.acked <= at {
			least, gone = len(size.body), false
		}
	}
	gone = gone || s.ending >= 0 && s.ending <= at
	a, err := c.ask("GET", s.path, nil)
	switch {
	case err != nil:
		return err
	case a.status == 404 && gone:
		return nil
	case a.status != 204:
		return failure{a}
	}
	if a.received < least {
		return fmt.Errorf("session %s has %d bytes, but %d were acknowledged", s.path, a.received, least)
	}
	content := []byte(s.content)
	if a, err = c.ask("PUT", s.path+"?digest="+digest(content), content[a.received:]); err != nil {
		return err
	}
	switch {
	case a.status == 404 && gone:
		return nil
	case a.status != 201:
		return failure{a}
	}
	// Its digest was computed when the bytes came, and does not tell what is there.
	repo, _, _ := strings.Cut(strings.TrimPrefix(s.path, "/v2/"), "/blobs/")
	if a, err = c.do("GET", blobPath(repo, content), nil, 200); err == nil && string(a.body) != s.content {
		err = fmt.Errorf("session %s ended with other bytes than those of its blob", s.path)
	}
	return err
}

// until repeats f until it returns true, for a time that only a test that fails
// needs.
func until(f func() bool) bool {
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); <-again.C {
		if f() {
			return true
		}
	}
	return false
}
