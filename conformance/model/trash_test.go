package model_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// trashcan lists the trash of a repository. What was deleted lately is in it.
func (c *client) trashcan(ctx context.Context, repo string) {
	q := request{method: http.MethodGet, path: "/berth/v1/trash", query: url.Values{"repo": {repo}, "limit": {"1000"}}}
	for _, t := range c.manifests {
		q.about = append(q.about, holding{repo, t})
	}
	a := c.send(ctx, q)
	if a == nil {
		return
	}
	var list struct{ Manifests []struct{ Digest string } }
	if a.status != http.StatusOK || json.Unmarshal(a.body, &list) != nil {
		c.unexpected(a, q)
		return
	}
	for _, t := range c.manifests {
		if !slices.ContainsFunc(list.Manifests, func(m struct{ Digest string }) bool { return m.Digest == t.digest.String() }) {
			c.lost(a.op, holding{repo, t})
		}
	}
}

// undo pushes two images that share a layer, and an artifact about the first,
// deletes some of that, and later brings the first image back.
func (c *client) undo(ctx context.Context) {
	repo := c.repo()
	layer := c.fresh()
	first, second := holding{repo, c.freshImage(layer, c.blob())}, holding{repo, c.freshImage(layer)}
	c.made++
	about := holding{repo, c.image(fmt.Sprintf("own%d-%d", c.id, c.made), "application/x-0", first.of, "", layer)}
	if !c.push(ctx, first, c.someTags(repo)) || !c.push(ctx, second, nil) || !c.push(ctx, about, nil) || !c.delete(ctx, first) {
		return
	}
	if c.chance(60) {
		c.delete(ctx, second)
		c.delete(ctx, about)
	}
	if c.chance(60) {
		c.delete(ctx, holding{repo, layer})
	}
	if c.chance(40) {
		c.purge(ctx, second)
	}
	if !c.pause(ctx, c.trash*time.Duration(c.random.IntN(100))/100) {
		return
	}
	c.look(ctx, about, http.MethodGet)
	if c.restoreAs(ctx, first, "") {
		c.pullRefs(ctx, first)
	}
}

// restoreManifest restores a manifest with the tags that it had, or puts a tag
// on it.
func (c *client) restoreManifest(ctx context.Context) {
	h := holding{c.repo(), c.manifest()}
	tag := ""
	if c.chance(30) {
		tag = pick(c, tags)
	}
	c.restoreAs(ctx, h, tag)
}

func (c *client) restoreAs(ctx context.Context, h holding, tag string) bool {
	might := effect{puts: []holding{h}}
	names := tags // it may have had any of them
	ask := map[string]string{"repo": h.repo, "digest": h.of.digest.String()}
	what := h.String()
	if tag != "" {
		names = []string{tag}
		ask["tag"] = tag
		what += " as " + tag
	}
	for _, name := range names {
		might.moves = append(might.moves, move{tag: tagName{h.repo, name}, to: h.of})
	}
	a, restored := c.restore(ctx, ask, what, might)
	switch {
	case a == nil:
	case a.status == http.StatusOK:
		if tag == "" { // then only tags that are on nothing come back
			for _, name := range restored {
				c.saw(a.op, name, nil)
			}
		}
	case isImmutable(a):
		c.sawSet(a.op, []tagName{{h.repo, tag}}, h.of)
	default:
		c.absent(a.op, h)
		c.lost(a.op, h)
	}
	return a != nil && a.status == http.StatusOK
}

func isImmutable(a *answer) bool {
	return a.status == http.StatusConflict && strings.Contains(string(a.body), "immutable")
}

// restoreTag puts a tag back to what it was on before.
func (c *client) restoreTag(ctx context.Context) {
	name := c.tagIn(c.repo())
	var might effect
	c.mu.Lock()
	for t := range c.tag(name).ever {
		might.puts = append(might.puts, holding{name.repo, t})
		might.moves = append(might.moves, move{tag: name, to: t})
	}
	c.mu.Unlock()
	if a, _ := c.restore(ctx, map[string]string{"repo": name.repo, "tag": name.tag}, name.String(), might); a != nil && isImmutable(a) {
		c.sawSet(a.op, []tagName{name}, nil)
	}
}

// restore asks for what might be done. What of that has been done is in the
// answer: the manifest that is there again, and the tags that were moved to it.
func (c *client) restore(ctx context.Context, ask map[string]string, what string, might effect) (a *answer, names []tagName) {
	var h holding
	for _, h := range might.puts {
		for _, t := range h.of.closure() {
			might.puts = append(might.puts, holding{h.repo, t})
		}
	}
	q := request{
		method: http.MethodPost, path: "/berth/v1/restore", what: "restore " + what, body: encode(ask),
		header: map[string]string{"Content-Type": "application/json"}, effect: might,
	}
	q.did = func(a *answer) (did effect, ok bool) {
		var restored struct {
			Digest string
			Tags   []string
		}
		err := json.Unmarshal(a.body, &restored)
		if h = (holding{ask["repo"], c.find(restored.Digest, true)}); err != nil || h.of == nil {
			return did, false
		}
		did.puts = []holding{h}
		for _, t := range h.of.closure() {
			did.puts = append(did.puts, holding{h.repo, t})
		}
		for _, tag := range restored.Tags {
			names = append(names, tagName{h.repo, tag})
			did.moves = append(did.moves, move{tag: tagName{h.repo, tag}, to: h.of})
		}
		return did, true
	}
	a = c.send(ctx, q)
	switch {
	case a == nil:
	case a.status == http.StatusOK && h.of != nil:
		c.stored(a.op, h)
		c.moved(a.op, names, h.of)
	case a.status != http.StatusNotFound && a.status != http.StatusConflict:
		c.unexpected(a, q)
	}
	return a, names
}

// purge takes a manifest out of the trash for good.
func (c *client) purge(ctx context.Context, h holding) {
	q := request{
		method: http.MethodDelete, path: "/berth/v1/trash", query: url.Values{"repo": {h.repo}, "digest": {h.of.digest.String()}},
		what: "purge " + h.String(), effect: effect{purges: []holding{h}},
	}
	switch a := c.send(ctx, q); {
	case a == nil:
	case a.status == http.StatusNotFound:
		c.lost(a.op, h)
	case a.status/100 != 2:
		c.unexpected(a, q)
	}
}
