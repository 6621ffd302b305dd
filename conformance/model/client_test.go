package model_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// client does what clients of a registry do, and holds each answer against the
// record.
type client struct {
	*record
	*world
	id     int
	random *rand.Rand
	http   http.Client
	admin  http.Client   // over the socket of the server's machine
	left   []session     // uploads to go on with, perhaps after a restart
	made   int           // things of its own
	slow   time.Duration // a pause in the middle of what it sends of an upload

	url    string
	ending *atomic.Bool // the server is being stopped: an answer may not come
}

// request is what a client sends.
type request struct {
	method, path string
	admin        bool // over the socket
	query        url.Values
	body         []byte
	reader       io.Reader // instead of body, of unknown length
	header       map[string]string
	what         string // for people, instead of path
	effect       effect
	about        []fmt.Stringer

	// did is which of effect has happened, if an answer says so.
	did func(*answer) (effect, bool)
}

// answer is what it gets.
type answer struct {
	*op
	status int
	header http.Header
	body   []byte
}

// code is the first error code of the answer.
func (a *answer) code() string {
	codes := a.errors()
	if len(codes) == 0 {
		return ""
	}
	return codes[0].Code
}

type failure struct {
	Code   string          `json:"code"`
	Detail json.RawMessage `json:"detail"`
}

func (a *answer) errors() []failure {
	var body struct {
		Errors []failure `json:"errors"`
	}
	_ = json.Unmarshal(a.body, &body) // what is no JSON has no errors
	return body.Errors
}

// patience is how long an answer may take, on a machine that is busy.
const patience = 30 * time.Second

// send sends q and returns nil if no answer came. That is an error unless the
// server is being stopped, or the client broke off.
func (c *client) send(ctx context.Context, q request) *answer {
	if ctx.Err() != nil {
		return nil
	}
	path := q.path
	if q.query != nil {
		path += "?" + q.query.Encode()
	}
	var body io.Reader = bytes.NewReader(q.body)
	if q.reader != nil {
		body = q.reader
	}
	// Not ctx: what was begun before the server is stopped goes on.
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(limited, q.method, c.url+path, body)
	if err != nil {
		c.complain(&op{what: q.what}, nil, "no request: %v", err)
		return nil
	}
	for key, value := range q.header {
		req.Header.Set(key, value)
	}
	what := q.what
	if what == "" {
		what = path
	}
	o := c.begin(fmt.Sprintf("client %d %s %s", c.id, q.method, what), q.effect, q.about...)
	do := c.http.Do
	if q.admin {
		do = c.admin.Do
	}
	resp, err := do(req)
	if err != nil {
		c.noAnswer(o, q, err)
		return nil
	}
	defer resp.Body.Close()
	a := &answer{op: o, status: resp.StatusCode, header: resp.Header}
	if a.body, err = io.ReadAll(resp.Body); err != nil {
		c.noAnswer(o, q, err)
		return nil
	}
	said := resp.Status
	if a.status >= 400 {
		said = fmt.Sprintf("%s %.300s", said, bytes.TrimSpace(a.body))
	}
	switch {
	case a.status == http.StatusServiceUnavailable && q.admin && c.ending.Load(): // no job begins any more
		c.end(o, refused, said)
		return nil
	case a.status >= 500:
		c.end(o, open, said)
		c.complain(o, q.subjects(), "a request failed by the server's fault")
		return nil
	case a.status >= 400:
		c.end(o, refused, said)
	default:
		if q.did != nil {
			if did, ok := q.did(a); ok {
				c.endAs(o, said, q.effect, did)
				return a
			}
		}
		c.end(o, done, said)
	}
	return a
}

var errBrokenOff = errors.New("the client breaks off")

func (c *client) noAnswer(o *op, q request, err error) {
	if !errors.Is(err, errBrokenOff) && !c.ending.Load() {
		c.complain(o, q.subjects(), "no answer came, though nobody stops the server: %v", err)
	}
}

// subjects are what the request is about.
func (q request) subjects() []fmt.Stringer { return slices.Concat(q.about, q.effect.subjects()) }

// unexpected reports an answer that is never right.
func (c *client) unexpected(a *answer, q request) {
	c.complain(a.op, q.subjects(), "an answer that is never right")
}

// pause waits and returns false if the server is being stopped.
func (c *client) pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func (c *client) chance(percent int) bool { return c.random.IntN(100) < percent }

func pick[T any](c *client, list []T) T { return list[c.random.IntN(len(list))] }

func (c *client) repo() string     { return pick(c, repos) }
func (c *client) blob() *thing     { return pick(c, c.blobs) }
func (c *client) manifest() *thing { return pick(c, c.manifests) }
func (c *client) tagIn(repo string) tagName {
	return tagName{repo, pick(c, tags)}
}

// fresh makes a blob that nobody else knows.
func (c *client) fresh() *thing {
	c.made++
	size := 100
	if c.chance(60) {
		size = inlineMax + 1 + c.random.IntN(1000)
	}
	return c.record.blob(fmt.Sprintf("own%d-%d", c.id, c.made), random(c.random, size))
}

// freshImage makes an image that nobody else knows.
func (c *client) freshImage(refs ...*thing) *thing {
	c.made++
	return c.image(fmt.Sprintf("own%d-%d", c.id, c.made), "", nil, "", refs...)
}

// act is something that clients do, and how often they do it.
type act struct {
	weight int
	do     func(*client, context.Context)
}

var acts = []act{
	{20, (*client).pushSomething},
	{6, (*client).pushLate},
	{4, (*client).pushAgain},
	{4, (*client).pushWithout},
	{3, (*client).leaveUpload},
	{3, (*client).goOn},
	{2, (*client).breakOff},
	{2, (*client).pushSlowly},
	{8, func(c *client, ctx context.Context) { c.look(ctx, holding{c.repo(), c.blob()}, http.MethodHead) }},
	{6, func(c *client, ctx context.Context) { c.look(ctx, holding{c.repo(), c.blob()}, http.MethodGet) }},
	{4, func(c *client, ctx context.Context) { c.look(ctx, holding{c.repo(), c.manifest()}, http.MethodHead) }},
	{4, func(c *client, ctx context.Context) { c.look(ctx, holding{c.repo(), c.manifest()}, http.MethodGet) }},
	{10, func(c *client, ctx context.Context) { c.pull(ctx, c.tagIn(c.repo())) }},
	{3, func(c *client, ctx context.Context) { c.list(ctx, c.repo()) }},
	{4, func(c *client, ctx context.Context) { c.referrers(ctx, c.repo(), c.manifest()) }},
	{1, (*client).planCollection},
	{1, (*client).collect},
	{1, func(c *client, ctx context.Context) { c.check(ctx, c.chance(30)) }},
	{1, (*client).scrub},
	{2, func(c *client, ctx context.Context) { c.trashcan(ctx, c.repo()) }},
	{3, (*client).restoreTag},
	{3, (*client).restoreManifest},
	{1, func(c *client, ctx context.Context) { c.purge(ctx, holding{c.repo(), c.manifest()}) }},
	{3, (*client).undo},
	{6, func(c *client, ctx context.Context) { c.deleteTag(ctx, c.tagIn(c.repo())) }},
	{5, func(c *client, ctx context.Context) { c.delete(ctx, holding{c.repo(), c.manifest()}) }},
	{5, func(c *client, ctx context.Context) { c.delete(ctx, holding{c.repo(), c.blob()}) }},
}

// act does something at random.
func (c *client) act(ctx context.Context) {
	total := 0
	for _, a := range acts {
		total += a.weight
	}
	n := c.random.IntN(total)
	for _, a := range acts {
		if n -= a.weight; n < 0 {
			a.do(c, ctx)
			return
		}
	}
}

// look asks for a thing and returns whether it is there.
func (c *client) look(ctx context.Context, h holding, method string) bool {
	q := request{method: method, path: h.of.path(h.repo), what: h.String(), about: []fmt.Stringer{h}}
	a := c.send(ctx, q)
	switch {
	case a == nil:
		return false
	case a.status == http.StatusNotFound:
		c.absent(a.op, h)
		return false
	case a.status != http.StatusOK:
		c.unexpected(a, q)
		return false
	}
	c.right(a, q, h.of)
	c.present(a.op, h)
	if method == http.MethodHead || h.of.manifest {
		c.promised(a.op, h, c.grace/2)
	}
	return true
}

// right compares what came with what it should be.
func (c *client) right(a *answer, q request, t *thing) {
	switch {
	case a.header.Get("Docker-Content-Digest") != t.digest.String():
		c.complain(a.op, q.subjects(), "Docker-Content-Digest is %s, and that of %s is %s", a.header.Get("Docker-Content-Digest"), t, t.digest)
	case t.manifest && a.header.Get("Content-Type") != t.mediaType:
		c.complain(a.op, q.subjects(), "Content-Type is %s, and that of %s is %s", a.header.Get("Content-Type"), t, t.mediaType)
	case q.method == http.MethodHead && a.header.Get("Content-Length") != fmt.Sprint(len(t.body)):
		c.complain(a.op, q.subjects(), "Content-Length is %s, and that of %s is %d", a.header.Get("Content-Length"), t, len(t.body))
	case q.method == http.MethodGet && !bytes.Equal(a.body, t.body):
		c.complain(a.op, q.subjects(), "%s is damaged: its %d bytes hash to %s", t, len(a.body), digest.FromBytes(a.body))
	}
}

// pull pulls all that the tag names. It returns what the tag is on, and whether
// everything came.
func (c *client) pull(ctx context.Context, name tagName) (t *thing, complete bool) {
	a, t := c.resolve(ctx, name, http.MethodGet)
	return t, a != nil && (t == nil || c.pullRefs(ctx, holding{name.repo, t}))
}

// resolve asks what the tag is on, nil for nothing. It returns no answer if
// there was none.
func (c *client) resolve(ctx context.Context, name tagName, method string) (*answer, *thing) {
	q := request{method: method, path: "/v2/" + name.repo + "/manifests/" + name.tag, what: name.String(), about: []fmt.Stringer{name}}
	a := c.send(ctx, q)
	switch {
	case a == nil:
		return nil, nil
	case a.status == http.StatusNotFound:
		c.saw(a.op, name, nil)
		return a, nil
	case a.status != http.StatusOK:
		c.unexpected(a, q)
		return nil, nil
	}
	t := c.find(a.header.Get("Docker-Content-Digest"), true)
	if t == nil {
		c.unexpected(a, q)
		return nil, nil
	}
	c.note(a.op, t.name)
	c.right(a, q, t)
	c.saw(a.op, name, t)
	c.present(a.op, holding{name.repo, t})
	return a, t
}

// find returns the blob or manifest with that digest.
func (r *record) find(d string, manifest bool) *thing {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.things {
		if t.manifest == manifest && t.digest.String() == d {
			return t
		}
	}
	return nil
}

// pullRefs pulls all that a manifest names, and what that names.
func (c *client) pullRefs(ctx context.Context, h holding) bool {
	for _, ref := range h.of.refs {
		child := holding{h.repo, ref}
		if !c.look(ctx, child, http.MethodGet) || !c.pullRefs(ctx, child) {
			return false
		}
	}
	return true
}

// list lists the tags of a repository.
func (c *client) list(ctx context.Context, repo string) {
	q := request{method: http.MethodGet, path: "/v2/" + repo + "/tags/list"}
	for _, tag := range tags {
		q.about = append(q.about, tagName{repo, tag})
	}
	a := c.send(ctx, q)
	var list struct{ Tags []string }
	switch {
	case a == nil:
		return
	case a.status == http.StatusNotFound: // it holds nothing
	case a.status != http.StatusOK || json.Unmarshal(a.body, &list) != nil:
		c.unexpected(a, q)
		return
	}
	c.note(a.op, fmt.Sprint(list.Tags))
	for _, tag := range tags {
		if slices.Contains(list.Tags, tag) {
			c.sawSome(a.op, tagName{repo, tag})
		} else {
			c.saw(a.op, tagName{repo, tag}, nil)
		}
	}
}

// referrers lists the artifacts about a manifest.
func (c *client) referrers(ctx context.Context, repo string, subject *thing) {
	q := request{method: http.MethodGet, path: "/v2/" + repo + "/referrers/" + subject.digest.String(), about: []fmt.Stringer{holding{repo, subject}}}
	artifactType := ""
	if c.chance(50) {
		artifactType = "application/x-1"
		q.query = url.Values{"artifactType": {artifactType}}
	}
	for _, artifact := range subject.referrers {
		q.about = append(q.about, holding{repo, artifact})
	}
	a := c.send(ctx, q)
	var list v1.Index
	if a == nil {
		return
	}
	if a.status != http.StatusOK || json.Unmarshal(a.body, &list) != nil {
		c.unexpected(a, q)
		return
	}
	for _, artifact := range subject.referrers {
		listed := slices.ContainsFunc(list.Manifests, func(d v1.Descriptor) bool {
			return d.Digest == artifact.digest && d.ArtifactType == artifact.artifactType && d.Size == int64(len(artifact.body))
		})
		switch {
		case listed:
			c.present(a.op, holding{repo, artifact})
		case artifactType == "" || artifactType == artifact.artifactType:
			c.absent(a.op, holding{repo, artifact})
		}
	}
}

// deleteTag deletes a tag.
func (c *client) deleteTag(ctx context.Context, name tagName) {
	q := request{
		method: http.MethodDelete, path: "/v2/" + name.repo + "/manifests/" + name.tag, what: name.String(),
		effect: effect{moves: []move{{tag: name}}},
	}
	switch a := c.send(ctx, q); {
	case a == nil:
	case a.status == http.StatusAccepted && !c.set(name):
		c.sawSome(a.op, name)
	case a.status == http.StatusConflict:
		c.sawSet(a.op, []tagName{name}, nil)
	case a.status == http.StatusNotFound:
		c.saw(a.op, name, nil)
	default:
		c.unexpected(a, q)
	}
}

// delete deletes a blob or a manifest, with all tags on it, and returns whether
// that was done.
func (c *client) delete(ctx context.Context, h holding) bool {
	q := request{method: http.MethodDelete, path: h.of.path(h.repo), what: h.String(), effect: effect{drops: []holding{h}}}
	if h.of.manifest {
		for _, tag := range tags {
			q.effect.moves = append(q.effect.moves, move{tag: tagName{h.repo, tag}, only: h.of})
		}
	}
	switch a := c.send(ctx, q); {
	case a == nil:
	case a.status == http.StatusAccepted:
		c.present(a.op, h)
		c.unused(a.op, h)
		return true
	case a.status == http.StatusNotFound:
		c.absent(a.op, h)
	case a.status == http.StatusConflict && h.of.manifest:
		c.sawSetOn(a.op, h)
	case a.code() == "DENIED":
		c.present(a.op, h)
		c.used(a.op, h)
	default:
		c.unexpected(a, q)
	}
	return false
}

// pushSomething pushes something of the world.
func (c *client) pushSomething(ctx context.Context) {
	repo, m := c.repo(), c.manifest()
	if c.push(ctx, holding{repo, m}, c.someTags(repo)) && c.chance(20) {
		c.pull(ctx, c.tagIn(repo))
	}
}

func (c *client) someTags(repo string) (list []tagName) {
	if c.chance(15) {
		return nil // by digest
	}
	for {
		list = append(list, c.tagIn(repo))
		if !c.chance(20) {
			return list
		}
	}
}

// push pushes a manifest as clients do: first what it names, as far as the
// registry does not have that. Without tags it is pushed by digest.
func (c *client) push(ctx context.Context, h holding, as []tagName) bool {
	for _, ref := range h.of.refs {
		child := holding{h.repo, ref}
		if !c.look(ctx, child, http.MethodHead) && (ref.manifest && !c.push(ctx, child, nil) || !ref.manifest && !c.upload(ctx, child)) {
			return false
		}
	}
	return c.put(ctx, h, as)
}

// ensure makes the registry hold a blob.
func (c *client) ensure(ctx context.Context, h holding) bool {
	return c.look(ctx, h, http.MethodHead) || c.upload(ctx, h)
}

// put pushes a manifest whose references should be there.
func (c *client) put(ctx context.Context, h holding, as []tagName) bool {
	q := request{
		method: http.MethodPut, path: h.of.path(h.repo), query: url.Values{}, body: h.of.body,
		header: map[string]string{"Content-Type": h.of.mediaType}, effect: effect{puts: []holding{h}},
	}
	for i, name := range as {
		q.effect.moves = append(q.effect.moves, move{tag: name, to: h.of})
		if i == 0 && c.chance(70) {
			q.path = "/v2/" + h.repo + "/manifests/" + name.tag
			continue
		}
		q.query.Add("tag", name.tag)
	}
	var match *thing
	if len(as) == 1 && c.chance(20) {
		if _, match = c.resolve(ctx, as[0], http.MethodHead); match != nil {
			if c.chance(20) {
				match = c.manifest() // another than it is on, most likely
			}
			q.header["If-Match"] = match.digest.String()
		}
	}
	q.what = fmt.Sprintf("%s as %s, if match %s", h, as, match)
	for _, ref := range h.of.refs {
		q.about = append(q.about, holding{h.repo, ref})
	}
	a := c.send(ctx, q)
	switch {
	case a == nil:
		return false
	case a.status == http.StatusCreated:
		if match != nil {
			c.saw(a.op, as[0], match)
		}
		c.stored(a.op, h)
		c.moved(a.op, as, h.of)
		return true
	case a.status == http.StatusConflict:
		c.sawSet(a.op, as, h.of)
	case a.status == http.StatusPreconditionFailed && match != nil:
		c.sawOther(a.op, as[0], match)
	case a.code() == "MANIFEST_BLOB_UNKNOWN":
		for _, failure := range a.errors() {
			i := slices.IndexFunc(h.of.refs, func(ref *thing) bool { return strings.Contains(string(failure.Detail), ref.digest.String()) })
			if i < 0 {
				c.unexpected(a, q)
				return false
			}
			c.absent(a.op, holding{h.repo, h.of.refs[i]})
		}
	default:
		c.unexpected(a, q)
	}
	return false
}

// stored says that a request made the registry hold a manifest.
func (c *client) stored(o *op, h holding) {
	c.present(o, h)
	c.promised(o, h, c.review(h.of))
	for _, ref := range h.of.refs {
		child := holding{h.repo, ref}
		c.present(o, child)
		if ref.manifest {
			c.promised(o, child, c.review(ref))
		} else {
			c.promised(o, child, c.grace)
		}
	}
}

// pushLate pushes a new image whose layers have waited almost too long, in the
// trust that HEAD and mount keep them for the manifest.
func (c *client) pushLate(ctx context.Context) {
	repo := c.repo()
	layers := []*thing{c.fresh()}
	if c.chance(50) {
		layers = append(layers, c.blob())
	}
	share := func(percent int) time.Duration { return c.grace * time.Duration(percent) / 100 }
	for _, layer := range layers {
		if c.chance(30) { // mounted from a repository that is about to lose it
			other := c.repo()
			if !c.ensure(ctx, holding{other, layer}) || !c.pause(ctx, share(50+c.random.IntN(45))) {
				return
			}
		}
		if !c.ensure(ctx, holding{repo, layer}) {
			return
		}
	}
	if !c.pause(ctx, share(50+c.random.IntN(45))) {
		return
	}
	for _, layer := range layers {
		if !c.ensure(ctx, holding{repo, layer}) {
			return
		}
	}
	if !c.pause(ctx, share(c.random.IntN(45))) {
		return
	}
	image := holding{repo, c.freshImage(layers...)}
	as := c.tagIn(repo)
	if c.put(ctx, image, []tagName{as}) {
		c.pull(ctx, as)
	}
}

// pushAgain pushes what was just deleted, so that the collector may be about to
// delete the bytes of the one while the other arrives.
func (c *client) pushAgain(ctx context.Context) {
	h := holding{c.repo(), c.fresh()}
	for range 2 + c.random.IntN(4) {
		if !c.upload(ctx, h) || !c.look(ctx, h, http.MethodGet) {
			return
		}
		c.delete(ctx, h)
	}
	if c.upload(ctx, h) && c.pause(ctx, c.grace/4) {
		c.look(ctx, h, http.MethodGet)
	}
}

// pushWithout pushes a manifest, but nothing that it names.
func (c *client) pushWithout(ctx context.Context) {
	repo := c.repo()
	m := c.manifest()
	if c.chance(50) {
		m = c.freshImage(c.blob(), c.fresh())
	}
	c.put(ctx, holding{repo, m}, c.someTags(repo))
}
