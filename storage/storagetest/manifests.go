package storagetest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

func testManifestRoundTrip(t *testing.T, f *fixture) {
	ctx := t.Context()
	_, err := f.Manifest(ctx, "repo", digest.FromString("m"))
	f.is(storage.ErrNotFound, err, "Manifest of an unknown digest")
	_, err = f.Tagged(ctx, "repo", "latest")
	f.is(storage.ErrNotFound, err, "Tagged with an unknown tag")

	l := f.blob("repo", "layer")
	m := storage.Manifest{
		Content:      inline("m"),
		MediaType:    "application/vnd.oci.image.index.v1+json",
		ArtifactType: "application/x",
		Annotations:  map[string]string{"b": "2", "a": "1", "": "ünï\x00code"},
		Subject:      digest.SHA512.FromString("subject"),
		References: []storage.Reference{
			{Digest: l},
			{Digest: digest.FromString("sparse"), Manifest: true, Optional: true},
			{Digest: digest.FromString("foreign"), Optional: true},
		},
		Pushed: time.Unix(1, 0), // not the caller's to say
	}
	f.push("repo", m, "latest", "1.0")
	m.Pushed = f.clock.Now()
	got, err := f.Manifest(ctx, "repo", m.Digest)
	f.ok(err)
	same(t, got, m)
	for _, tag := range []string{"latest", "1.0"} {
		got, err = f.Tagged(ctx, "repo", tag)
		f.ok(err)
		same(t, got, m)
	}
	f.hasManifest("other", m.Digest, false)
	f.hasBlob("repo", m.Digest, false)

	sha512 := image("m512")
	sha512.Digest = digest.SHA512.FromString("m512")
	f.push("repo", sha512, "512")
	f.tagged("repo", "512", sha512.Digest)
	f.hasManifest("repo", digest.FromString("m512"), false)

	bad := image("bad")
	bad.Size++
	if err := f.PutManifest(ctx, storage.ManifestPut{Repo: "repo", Manifest: bad, Rules: rules}); err == nil {
		t.Error("PutManifest with a wrong size succeeded")
	}
	f.hasManifest("repo", bad.Digest, false)
}

func testManifestMissing(t *testing.T, f *fixture) {
	ctx := t.Context()
	here := f.blob("repo", "here")
	f.blob("other", "elsewhere")
	elsewhere, nowhere := inline("elsewhere").Digest, digest.FromString("nowhere")
	m := image("m", append(layers(elsewhere, here), children(nowhere)...)...)
	m.References = append(m.References, storage.Reference{Digest: digest.FromString("sparse"), Optional: true})
	old := f.push("repo", image("old"), "latest")

	err := f.PutManifest(ctx, storage.ManifestPut{Repo: "repo", Manifest: m, Tags: []string{"latest", "new"}, Rules: rules})
	var missing *storage.MissingError
	if !errors.As(err, &missing) {
		t.Fatalf("PutManifest = %v, want a MissingError", err)
	}
	equal(t, "missing", missing.Digests, elsewhere, nowhere)
	f.hasManifest("repo", m.Digest, false)
	f.tagged("repo", "latest", old)
	f.tagged("repo", "new", "")

	m.Subject = digest.FromString("no subject needs to exist")
	m.References = layers(here)
	f.push("repo", m, "new")
}

func testManifestChildren(t *testing.T, f *fixture) {
	ctx := t.Context()
	// Build caches are indexes of blobs.
	blob, child := f.blob("repo", "blob"), f.push("repo", image("child"))
	index := f.push("repo", image("index", children(blob, child)...), "latest")
	f.is(storage.ErrReferenced, f.DeleteManifest(ctx, "repo", child, rules), "DeleteManifest of a child")
	f.is(storage.ErrReferenced, f.DeleteBlob(ctx, "repo", blob), "DeleteBlob of a child")
	f.clock.add(grace)
	equal(t, "condemned", f.collect(everything))

	// A manifest is not good for a layer.
	err := f.PutManifest(ctx, storage.ManifestPut{Repo: "repo", Manifest: image("x", layers(child)...), Rules: rules})
	if _, ok := errors.AsType[*storage.MissingError](err); !ok {
		t.Errorf("PutManifest with a manifest as layer = %v, want a MissingError", err)
	}
	f.ok(f.DeleteManifest(ctx, "repo", index, storage.Rules{}))
	f.ok(f.DeleteManifest(ctx, "repo", child, storage.Rules{}))
	f.ok(f.DeleteBlob(ctx, "repo", blob))
}

func testManifestAgain(t *testing.T, f *fixture) {
	ctx := t.Context()
	l := f.blob("repo", "layer")
	m := image("m", layers(l)...)
	f.push("repo", m, "latest")
	first, err := f.Tagged(ctx, "repo", "latest")
	f.ok(err)
	f.clock.add(time.Minute)
	f.push("repo", m, "latest")
	f.push("repo", m)
	again, err := f.Tagged(ctx, "repo", "latest")
	f.ok(err)
	same(t, again, first)
	if h, err := f.History(ctx, "repo", "latest", 10); err != nil || len(h) != 1 {
		t.Errorf("History of a tag put twice on one manifest = %v, %v; want one change", h, err)
	}

	// The same bytes understood in another way: what they say now counts.
	m.MediaType = "application/vnd.oci.image.index.v1+json"
	m.References = nil
	f.push("repo", m, "latest")
	again, err = f.Tagged(ctx, "repo", "latest")
	f.ok(err)
	m.Pushed = first.Pushed
	same(t, again, m)
	f.clock.add(grace)
	equal(t, "condemned", f.collect(storage.ReviewPolicy{}), l)
}

func testManifestIfMatch(t *testing.T, f *fixture) {
	ctx := t.Context()
	one, two, three := image("1"), image("2"), image("3")
	put := func(m storage.Manifest, match digest.Digest, tags ...string) error {
		return f.PutManifest(ctx, storage.ManifestPut{Repo: "repo", Manifest: m, Tags: tags, IfMatch: match, Rules: rules})
	}
	f.is(storage.ErrConflict, put(one, one.Digest, "latest"), "PutManifest on a tag that does not exist")
	f.hasManifest("repo", one.Digest, false)
	f.push("repo", one, "latest")
	f.ok(put(two, one.Digest, "latest"))
	f.is(storage.ErrConflict, put(three, one.Digest, "latest"), "PutManifest on a tag that moved")
	f.is(storage.ErrConflict, put(three, two.Digest, "latest", "new"), "PutManifest on two tags, one of which is not there")
	f.tagged("repo", "latest", two.Digest)
	f.tagged("repo", "new", "")
	f.hasManifest("repo", three.Digest, false)
}

func testManifestStored(t *testing.T, f *fixture) {
	ctx := t.Context()
	m := image("m")
	m.Content = stored("m", "key")
	put := storage.ManifestPut{Repo: "repo", Manifest: m, Tags: []string{"latest"}, Rules: rules}
	f.is(storage.ErrNotFound, f.PutManifest(ctx, put), "PutManifest of a key that was not announced")
	f.tagged("repo", "latest", "")
	f.ok(f.Intend(ctx, "key", grace))
	f.ok(f.PutManifest(ctx, put))
	got, err := f.Tagged(ctx, "repo", "latest")
	f.ok(err)
	same(t, got.Content, m.Content)
	f.ok(f.PutManifest(ctx, put)) // once more with the same key
	f.clock.add(2 * grace)
	f.orphans()
	f.ok(f.DeleteManifest(ctx, "repo", m.Digest, storage.Rules{}))
	f.orphans("key")
}

func testManifestAlsoBlob(t *testing.T, f *fixture) {
	ctx := t.Context()
	c := f.announced("repo", "both", "key")
	m := image("both")
	m.Content = c
	f.push("repo", m, "latest")
	f.ok(f.DeleteBlob(ctx, "repo", c.Digest))
	f.hasBlob("repo", c.Digest, false)
	f.tagged("repo", "latest", c.Digest)
	f.orphans()
	f.ok(f.DeleteManifest(ctx, "repo", c.Digest, storage.Rules{}))
	f.orphans("key")
}

func testManifestDelete(t *testing.T, f *fixture) {
	ctx := t.Context()
	f.is(storage.ErrNotFound, f.DeleteManifest(ctx, "repo", digest.FromString("none"), rules), "DeleteManifest of an unknown digest")
	shared, own := f.blob("repo", "shared"), f.blob("repo", "own")
	keep := f.push("repo", image("keep", layers(shared)...), "keep")
	drop := f.push("repo", image("drop", layers(shared, own)...), "1", "2")
	f.clock.add(grace)
	equal(t, "condemned before", f.collect(everything))

	f.ok(f.DeleteManifest(ctx, "repo", drop, rules))
	f.is(storage.ErrNotFound, f.DeleteManifest(ctx, "repo", drop, rules), "second DeleteManifest")
	f.hasManifest("repo", drop, false)
	f.tagged("repo", "1", "")
	f.tagged("repo", "2", "")
	f.tagged("repo", "keep", keep)
	tags, err := f.Tags(ctx, "repo", "", 10)
	f.ok(err)
	equal(t, "Tags", tags, "keep")
	h, err := f.History(ctx, "repo", "2", 10)
	f.ok(err)
	if len(h) != 2 || h[0].Digest != "" || h[1].Digest != drop {
		t.Errorf("History of a deleted tag = %v", h)
	}

	f.clock.add(grace - 1)
	equal(t, "condemned within the grace time", f.collect(storage.ReviewPolicy{}))
	f.clock.add(1)
	equal(t, "condemned after it", f.collect(storage.ReviewPolicy{}), own)
	f.hasBlob("repo", shared, true)
	f.hasBlob("repo", own, false)
}

func testReferrers(t *testing.T, f *fixture) {
	ctx := t.Context()
	subject := digest.FromString("subject")
	hostile := "a\x00" + digest.FromString("x").String()
	var all []v1.Descriptor
	for i, typ := range []string{"", "a", "a", "b", hostile} {
		m := image(fmt.Sprintf("referrer %d", i))
		m.Subject, m.ArtifactType = subject, typ
		m.Annotations = map[string]string{"n": fmt.Sprint(i)}
		f.push("repo", m)
		all = append(all, v1.Descriptor{
			MediaType: m.MediaType, Digest: m.Digest, Size: m.Size, ArtifactType: typ, Annotations: m.Annotations,
		})
	}
	stranger := image("stranger")
	stranger.Subject = digest.FromString("another subject")
	f.push("repo", stranger)
	f.push("other", stranger)

	inOrder := func(keep func(v1.Descriptor) bool) (list []v1.Descriptor) {
		for _, d := range all {
			if keep(d) {
				list = append(list, d)
			}
		}
		sortDescriptors(list)
		return list
	}
	every := inOrder(func(v1.Descriptor) bool { return true })
	for _, tc := range []struct {
		name, repo, typ string
		subject, after  digest.Digest
		n               int
		want            []v1.Descriptor
	}{
		{"all", "repo", "", subject, "", 10, every},
		{"first page", "repo", "", subject, "", 2, every[:2]},
		{"second page", "repo", "", subject, every[1].Digest, 2, every[2:4]},
		{"last page", "repo", "", subject, every[3].Digest, 2, every[4:]},
		{"beyond", "repo", "", subject, every[4].Digest, 2, nil},
		{"none", "repo", "", subject, "", 0, nil},
		{"type a", "repo", "a", subject, "", 10, inOrder(func(d v1.Descriptor) bool { return d.ArtifactType == "a" })},
		{"type a, page", "repo", "a", subject, "", 1, inOrder(func(d v1.Descriptor) bool { return d.ArtifactType == "a" })[:1]},
		{"hostile type", "repo", hostile, subject, "", 10, inOrder(func(d v1.Descriptor) bool { return d.ArtifactType == hostile })},
		{"unknown type", "repo", "c", subject, "", 10, nil},
		{"unknown repository", "nowhere", "", subject, "", 10, nil},
		{"unknown subject", "repo", "", digest.FromString("?"), "", 10, nil},
	} {
		got, err := f.Referrers(ctx, tc.repo, tc.subject, tc.typ, tc.after, tc.n)
		f.ok(err)
		t.Run(tc.name, func(t *testing.T) { same(t, got, tc.want) })
	}
	f.ok(f.DeleteManifest(ctx, "repo", every[0].Digest, rules))
	got, err := f.Referrers(ctx, "repo", subject, "", "", 10)
	f.ok(err)
	same(t, got, every[1:])
}

func testRepositories(t *testing.T, f *fixture) {
	ctx := t.Context()
	for _, repo := range []string{"b", "a/x", "a", "a-b", "ab"} {
		f.push(repo, image("m"), "latest")
		f.push(repo, image("n"), "other")
	}
	f.blob("blobs-only", "x")
	for _, tc := range []struct {
		after string
		n     int
		want  []string
	}{
		{"", 10, []string{"a", "a-b", "a/x", "ab", "b"}},
		{"", 2, []string{"a", "a-b"}},
		{"a-b", 2, []string{"a/x", "ab"}},
		{"a0", 1, []string{"ab"}}, // need not exist
		{"b", 10, nil},
		{"zzz", 10, nil},
		{"", 0, nil},
	} {
		got, err := f.Repositories(ctx, tc.after, tc.n)
		f.ok(err)
		equal(t, "Repositories after "+tc.after, got, tc.want...)
	}
	f.ok(f.DeleteManifest(ctx, "a-b", image("m").Digest, storage.Rules{}))
	f.ok(f.DeleteManifest(ctx, "a-b", image("n").Digest, storage.Rules{}))
	got, err := f.Repositories(ctx, "", 10)
	f.ok(err)
	equal(t, "Repositories after one lost all", got, "a", "a/x", "ab", "b")
}

func testManifestIfAbsent(t *testing.T, f *fixture) {
	put := func(data string, tags ...string) error {
		return f.PutManifest(t.Context(), storage.ManifestPut{Repo: "repo", Manifest: image(data), Tags: tags, IfAbsent: true, Rules: rules})
	}
	f.ok(put("1", "latest"))
	f.is(storage.ErrConflict, put("2", "new", "latest"), "PutManifest of a tag that is there")
	f.is(storage.ErrConflict, put("1", "latest"), "the same once more")
	f.tagged("repo", "latest", image("1").Digest)
	f.tagged("repo", "new", "")
	f.ok(f.DeleteTag(t.Context(), "repo", "latest", rules))
	f.ok(put("2", "latest", "new"))
}
