package protocol_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// D, tags/list: ASCII order, pages of n after last.
func TestTags(t *testing.T) {
	r := newRepo(t)
	m := r.image("config").String()
	all := []string{"10", "9", "A", "Z", "_", "a", "a-b", "a.b", "aa", "b"}
	slices.Sort(all)
	for _, tag := range slices.Backward(all) {
		r.put(tag, m, typeImage).want(http.StatusCreated)
	}
	for _, tc := range []struct {
		query string
		want  []string
		more  bool
	}{
		{"", all, false},
		{"?n=100", all, false},
		{"?n=10", all, false},
		{"?n=9", all[:9], true},
		{"?n=3", all[:3], true},
		{"?n=3&last=" + all[2], all[3:6], true},
		{"?n=4&last=" + all[5], all[6:], false},
		{"?last=" + all[8], all[9:], false},
		{"?last=" + all[9], nil, false},
		{"?last=a-a", all[slices.Index(all, "a-b"):], false}, // which does not exist
		{"?last=zzz", nil, false},
		{"?last=0", all, false},
		{"?n=0", nil, false},
		{"?n=0&last=a", nil, false},
	} {
		t.Run(tc.query, func(t *testing.T) {
			r := r.in(t)
			a := r.get("tags/list" + tc.query)
			if got := r.tags("tags/list" + tc.query); !slices.Equal(got, tc.want) {
				t.Errorf("the tags are %q, want %q", got, tc.want)
			}
			if next := a.next(); (next != "") != tc.more {
				t.Errorf("Link: %q, want one: %v", next, tc.more)
			}
			if tc.want == nil && !strings.Contains(string(a.body), `"tags":[]`) {
				t.Errorf("no tags are %s, want []", a.body)
			}
		})
	}
	for _, n := range []string{"-1", "x", "1.5", "99999999999999999999"} {
		r.get("tags/list?n="+n).want(http.StatusBadRequest, "Content-Type: application/json")
	}
	r.called("nobody/pushed/this").get("tags/list").wantError(http.StatusNotFound, "NAME_UNKNOWN")
}

// D, tags/list: following Link gives every tag once.
func TestTagsLink(t *testing.T) {
	r := newRepo(t)
	m := r.image("config").String()
	var all, params []string
	for i := range 25 {
		all = append(all, "tag-"+strconv.Itoa(i))
		params = append(params, "tag", all[i])
	}
	r.put(with(sha(m), params...), m, typeImage).want(http.StatusCreated)
	slices.Sort(all)
	var got []string
	pages := 0
	for path := "/v2/" + r.name + "/tags/list?n=4"; path != ""; path = r.get(path).next() {
		got = append(got, r.tags(path)...)
		pages++
	}
	if !slices.Equal(got, all) || pages != 7 {
		t.Errorf("%d pages hold %q, want 7 with %q", pages, got, all)
	}
}

// D, tags/list: there is a largest page, also for who asks for none; the rest is
// behind the link.
func TestTagsWithoutN(t *testing.T) {
	r := newRepo(t)
	m := r.image("config").String()
	const total = 10_050
	for first := 0; first < total; first += 75 {
		var params []string
		for i := first; i < min(first+75, total); i++ {
			params = append(params, "tag", fmt.Sprintf("t%05d", i))
		}
		r.put(with(sha(m), params...), m, typeImage).want(http.StatusCreated)
	}
	for _, query := range []string{"", "?n=1000000"} {
		got := r.tags("tags/list" + query)
		next := r.get("tags/list" + query).next()
		if len(got) >= total || next == "" {
			t.Fatalf("%d tags come in one page, and the next is %q", len(got), next)
		}
		got = append(got, r.tags(next)...)
		if len(got) != total || !slices.IsSorted(got) || len(slices.Compact(got)) != total {
			t.Errorf("two pages have %d tags in order %v, want %d", len(got), slices.IsSorted(got), total)
		}
	}
}

// D, _catalog: the repositories that hold something, in the same pages.
func TestCatalog(t *testing.T) {
	r := repoIn(t, own(t))
	if a := r.get("/v2/_catalog").want(http.StatusOK); strings.TrimSpace(string(a.body)) != `{"repositories":[]}` {
		t.Errorf("an empty catalog is %s", a.body)
	}
	names := []string{"a", "a-b", "a/b", "b/c/d", "z"}
	slices.Sort(names)
	for _, name := range names {
		r.called(name).pushed("v1")
	}
	list := func(path string) []string {
		var list struct{ Repositories []string }
		r.get(path).want(http.StatusOK).decode(&list)
		return list.Repositories
	}
	if got := list("/v2/_catalog"); !slices.Equal(got, names) {
		t.Errorf("the catalog is %q, want %q", got, names)
	}
	var got []string
	for path := "/v2/_catalog?n=2"; path != ""; path = r.get(path).next() {
		got = append(got, list(path)...)
	}
	if !slices.Equal(got, names) {
		t.Errorf("the pages of the catalog hold %q, want %q", got, names)
	}
	if got := list("/v2/_catalog?n=0"); len(got) > 0 {
		t.Errorf("n=0 gives %q", got)
	}
	if got := list("/v2/_catalog?last=a0"); !slices.Equal(got, names[3:]) {
		t.Errorf("after a0 comes %q, want %q", got, names[3:])
	}
}

// referrers returns the descriptors in one page.
func (r repo) referrers(path string, headers ...string) []descriptor {
	r.t.Helper()
	var x struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Manifests     []descriptor `json:"manifests"`
	}
	a := r.get(path).want(http.StatusOK, append(headers, "Content-Type: "+typeIndex)...)
	if a.decode(&x); x.SchemaVersion != 2 || x.MediaType != typeIndex || x.Manifests == nil {
		r.t.Errorf("%s = %.200s, want an index with a list", a.request, a.body)
	}
	return x.Manifests
}

// D, referrers: an index with everything that a client chooses by.
func TestReferrers(t *testing.T) {
	r := newRepo(t)
	subject := describe(typeImage, r.pushed("v1"))
	if got := r.referrers("referrers/" + subject.Digest); len(got) > 0 {
		t.Errorf("before the first there are %v", got)
	}
	typed, untyped, x, plain := r.image("{}"), r.image("{}"), index(), index()
	typed.ArtifactType = "application/vnd.example.sbom"
	typed.Annotations = map[string]string{"org.example.a": "1", "org.example.b": ""}
	untyped.Config.MediaType = "application/vnd.example.signature"
	x.ArtifactType = "application/vnd.example.sbom"
	want := map[string]descriptor{}
	for _, m := range []manifest{typed, untyped, x, plain} {
		m.Subject = &subject
		d := describe(m.MediaType, m.String())
		d.ArtifactType, d.Annotations = m.ArtifactType, m.Annotations
		if m.Config != nil && d.ArtifactType == "" {
			d.ArtifactType = m.Config.MediaType
		}
		want[d.Digest] = d
		r.put(d.Digest, m.String(), m.MediaType).want(http.StatusCreated)
	}
	got := r.referrers("referrers/"+subject.Digest, "OCI-Filters-Applied: ", "Link: ")
	if len(got) != len(want) {
		t.Errorf("%d manifests are listed, want %d", len(got), len(want))
	}
	for _, d := range got {
		w := want[d.Digest]
		if d.MediaType != w.MediaType || d.Size != w.Size || d.ArtifactType != w.ArtifactType || len(d.Annotations) != len(w.Annotations) || d.Annotations["org.example.a"] != w.Annotations["org.example.a"] {
			t.Errorf("a referrer is listed as %+v, want %+v", d, w)
		}
	}
	for artifactType, n := range map[string]int{"application/vnd.example.sbom": 2, "application/vnd.example.signature": 1, "absent/type": 0} {
		got := r.referrers(with("referrers/"+subject.Digest, "artifactType", artifactType), "OCI-Filters-Applied: artifactType")
		if len(got) != n {
			t.Errorf("of type %s there are %d, want %d", artifactType, len(got), n)
		}
		for _, d := range got {
			if d.ArtifactType != artifactType {
				t.Errorf("the filter for %s lets through %+v", artifactType, d)
			}
		}
	}
	// An index without a type shows none, not an empty one; no filter is none.
	if body := r.get("referrers/" + subject.Digest).body; bytes.Contains(body, []byte(`"artifactType":""`)) || bytes.Contains(body, []byte("null")) {
		t.Errorf("the referrers are %s", body)
	}
	if got := r.referrers("referrers/"+subject.Digest+"?artifactType=", "OCI-Filters-Applied: "); len(got) != len(want) {
		t.Errorf("an empty filter lets through %d, want all %d", len(got), len(want))
	}
	r.head("referrers/"+subject.Digest).want(http.StatusOK, "Content-Type: "+typeIndex)
	for d := range want {
		r.delete("manifests/" + d).want(http.StatusAccepted)
	}
	if got := r.referrers("referrers/" + subject.Digest); len(got) > 0 {
		t.Errorf("after their deletion there are %v", got)
	}
}

// D, referrers: 200 for any digest, also in a repository that nobody knows.
func TestReferrersOfUnknown(t *testing.T) {
	r := newRepo(t)
	for _, d := range []string{sha("absent"), sha5("absent")} {
		if got := r.referrers("referrers/" + d); len(got) > 0 {
			t.Errorf("an unknown repository has referrers %v", got)
		}
	}
	absent := describe(typeImage, "absent")
	m := r.image("config")
	m.Subject = &absent
	r.put("v1", m.String(), typeImage).want(http.StatusCreated)
	if got := r.referrers("referrers/" + absent.Digest); len(got) != 1 || got[0].Digest != sha(m.String()) {
		t.Errorf("a subject that is not there has referrers %v, want the one", got)
	}
	other := r.called(r.name + "/other")
	if got := other.referrers("referrers/" + absent.Digest); len(got) > 0 {
		t.Errorf("another repository shows %v", got)
	}
}

// D, referrers: no answer is larger than 4 MiB, which is all that clients read.
func TestReferrersLink(t *testing.T) {
	r := newRepo(t)
	subject := describe(typeImage, "absent")
	m := r.image("config")
	m.Subject, m.ArtifactType = &subject, "text/of+one&type"
	// Each descriptor has 1 MiB with its comma: four of them, and the index
	// around them, are just too many.
	listed, err := json.Marshal(descriptor{
		MediaType: typeImage, Digest: sha(""), Size: 1 << 20, ArtifactType: m.ArtifactType, Annotations: map[string]string{"filler": ""},
	})
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for i := range 9 {
		m.Annotations = map[string]string{"filler": strings.Repeat(strconv.Itoa(i), 1<<20-1-len(listed))}
		want = append(want, sha(m.String()))
		r.put(want[i], m.String(), typeImage).want(http.StatusCreated)
	}
	slices.Sort(want)
	for _, query := range []string{"", "?artifactType=" + url.QueryEscape(m.ArtifactType)} {
		var got []string
		pages := 0
		for path := "/v2/" + r.name + "/referrers/" + subject.Digest + query; path != ""; pages++ {
			a := r.get(path).want(http.StatusOK)
			if len(a.body) > 4<<20 {
				t.Errorf("%s has %d bytes", a.request, len(a.body))
			}
			for _, d := range r.referrers(path) {
				got = append(got, d.Digest)
			}
			path = a.next()
		}
		if slices.Sort(got); !slices.Equal(got, want) || pages != 3 {
			t.Errorf("%d pages hold %q, want 3 with %q", pages, got, want)
		}
	}
}

// D, referrers: what clients of before the API keep in a tag of their own stays
// a tag, is changed by one at a time, and shows nothing twice.
func TestFallbackTag(t *testing.T) {
	r := newRepo(t)
	for _, d := range []string{sha("subject"), sha5("subject")} {
		algorithm, hex, _ := strings.Cut(d, ":")
		tag := algorithm + "-" + hex[:64]
		m := r.image("config of " + algorithm)
		m.Subject = &descriptor{MediaType: typeImage, Digest: d, Size: 7}
		r.put(sha(m.String()), m.String(), typeImage).want(http.StatusCreated, "OCI-Subject: "+d)
		empty, list := index(), index(describe(typeImage, m.String()))
		r.put(tag, empty.String(), typeIndex).want(http.StatusCreated)
		for _, status := range []int{http.StatusCreated, http.StatusPreconditionFailed} {
			r.put(tag, list.String(), typeIndex, `If-Match: "`+sha(empty.String())+`"`).want(status)
		}
		if got := r.get("manifests/" + tag).want(http.StatusOK).body; string(got) != list.String() {
			t.Errorf("the tag is on %s, want %s", got, list)
		}
		if got := r.tags("tags/list"); !slices.Contains(got, tag) {
			t.Errorf("the tags are %q, want %s among them", got, tag)
		}
		if got := r.referrers("referrers/" + d); len(got) != 1 || got[0].Digest != sha(m.String()) {
			t.Errorf("the referrers are %v, want the one", got)
		}
	}
}
