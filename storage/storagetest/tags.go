package storagetest

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"

	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

func sortDescriptors(list []v1.Descriptor) {
	slices.SortFunc(list, func(a, b v1.Descriptor) int { return cmp.Compare(a.Digest, b.Digest) })
}

func testTagMove(t *testing.T, f *fixture) {
	one, two := f.push("repo", image("1"), "latest", "1"), image("2").Digest
	f.push("repo", image("2"), "latest", "2")
	f.tagged("repo", "latest", two)
	f.tagged("repo", "1", one)
	f.clock.add(grace)
	equal(t, "condemned while tagged 1", f.collect(everything))

	f.push("repo", image("2"), "1")
	f.clock.add(grace - 1)
	equal(t, "condemned within the grace time", f.collect(everything))
	f.clock.add(1)
	equal(t, "condemned after the last tag moved", f.collect(everything), one)
	f.hasManifest("repo", two, true)
}

func testTagDelete(t *testing.T, f *fixture) {
	ctx := t.Context()
	f.is(storage.ErrNotFound, f.DeleteTag(ctx, "repo", "latest", rules), "DeleteTag of an unknown tag")
	d := f.push("repo", image("m"), "latest", "1.0")
	f.ok(f.DeleteTag(ctx, "repo", "latest", rules))
	f.is(storage.ErrNotFound, f.DeleteTag(ctx, "repo", "latest", rules), "second DeleteTag")
	f.tagged("repo", "latest", "")
	f.tagged("repo", "1.0", d)
	f.hasManifest("repo", d, true)
	f.ok(f.DeleteTag(ctx, "repo", "1.0", rules))
	f.hasManifest("repo", d, true)
	f.clock.add(grace)
	equal(t, "condemned", f.collect(everything), d)
}

func testTags(t *testing.T, f *fixture) {
	ctx := t.Context()
	_, err := f.Tags(ctx, "repo", "", 10)
	f.is(storage.ErrNotFound, err, "Tags of an unknown repository")
	f.blob("repo", "x")
	for range 2 {
		got, err := f.Tags(ctx, "repo", "", 10)
		f.ok(err)
		if got == nil || len(got) != 0 {
			t.Errorf("Tags of a repository without any = %#v, want an empty list", got)
		}
		f.push("repo", image("untagged"))
	}
	f.push("repo", image("m"), "b", "B", "a", "a-1", "1.0", "_x", "a.1")
	f.push("repo2", image("m"), "elsewhere")
	for _, tc := range []struct {
		after string
		n     int
		want  []string
	}{
		{"", 100, []string{"1.0", "B", "_x", "a", "a-1", "a.1", "b"}},
		{"", 3, []string{"1.0", "B", "_x"}},
		{"_x", 3, []string{"a", "a-1", "a.1"}},
		{"a.1", 3, []string{"b"}},
		{"a!", 1, []string{"a-1"}}, // need not exist
		{"b", 3, nil},
		{"", 0, nil},
		{"", -1, nil},
	} {
		got, err := f.Tags(ctx, "repo", tc.after, tc.n)
		f.ok(err)
		equal(t, fmt.Sprintf("Tags after %q, at most %d", tc.after, tc.n), got, tc.want...)
	}
}

func testHistory(t *testing.T, f *fixture) {
	ctx := t.Context()
	h, err := f.History(ctx, "repo", "latest", 10)
	if err != nil || len(h) != 0 {
		t.Errorf("History of an unknown tag = %v, %v; want nothing", h, err)
	}
	var want []storage.TagChange
	for _, data := range []string{"1", "2", "1", ""} {
		d := digest.Digest("")
		if data == "" {
			f.ok(f.DeleteTag(ctx, "repo", "latest", rules))
		} else {
			d = f.push("repo", image(data), "latest", "latest2")
		}
		want = append(want, storage.TagChange{Digest: d, Time: f.clock.Now()})
	}
	slices.Reverse(want) // all at one time, and yet in order
	f.clock.add(time.Minute)
	h, err = f.History(ctx, "repo", "latest", 10)
	f.ok(err)
	same(t, h, want)
	h, err = f.History(ctx, "repo", "latest", 2)
	f.ok(err)
	same(t, h, want[:2])
}

func testHistoryLong(t *testing.T, f *fixture) {
	for i := range storage.HistoryMax + 2 {
		f.push("repo", image(fmt.Sprint(i%2)), "latest")
	}
	h, err := f.History(t.Context(), "repo", "latest", 2*storage.HistoryMax)
	f.ok(err)
	if len(h) != storage.HistoryMax || h[0].Digest != image("1").Digest {
		t.Errorf("History has %d changes, the latest to %s; want the last %d", len(h), h[0].Digest, storage.HistoryMax)
	}
}
