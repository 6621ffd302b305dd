package control

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"berth.internal/internal/control"
	"berth.internal/storage"
	"berth.internal/storage/kv"
	"berth.internal/storage/mem"
)

// TestHistory walks a repository through its life: what the answers say after
// each step. {one} and {two} stand for digests.
func TestHistory(t *testing.T) {
	index := mem.NewIndex(kv.Options{Now: func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }})
	rules := storage.Rules{
		Grace: time.Hour, Untagged: time.Hour, Dangling: time.Hour, Trash: 24 * time.Hour,
		Immutable: func(tag string) bool { return tag == "v1" },
	}
	h := newHandler(Pull, Push, Overwrite, Overwrite, Delete)
	h.Index, h.Rules = index, func(string) storage.Rules { return rules }
	names := map[string]string{}
	push := func(name string, tags ...string) {
		t.Helper()
		data := []byte(name)
		m := storage.Manifest{MediaType: "x/y", Content: storage.Content{Digest: digest.FromBytes(data), Size: int64(len(data)), Inline: data}}
		names["{"+name+"}"] = m.Digest.String()
		if err := index.PutManifest(t.Context(), storage.ManifestPut{Repo: "repo", Manifest: m, Tags: tags, Rules: rules}); err != nil {
			t.Fatal(err)
		}
	}
	fill := func(s string) string {
		for name, d := range names {
			s = strings.ReplaceAll(s, name, d)
		}
		return s
	}
	remove := func(name string) {
		t.Helper()
		if err := index.DeleteManifest(t.Context(), "repo", digest.Digest(fill("{"+name+"}")), rules); err != nil {
			t.Fatal(err)
		}
	}
	const now = `"2026-01-02T03:04:05Z"`
	expect := func(method, path, body string, status int, want string) {
		t.Helper()
		w := ask(t, h, method, control.Base+fill(path), fill(body))
		if got := strings.TrimSpace(w.Body.String()); w.Code != status || !strings.Contains(got, fill(want)) {
			t.Errorf("%s %s %s = %d %s, want %d %s", method, path, body, w.Code, got, status, fill(want))
		}
	}

	expect("GET", "/history?repo=repo", "", http.StatusOK, `{"tags":[]}`)
	expect("GET", "/trash?repo=repo", "", http.StatusOK, `{"manifests":[]}`)
	expect("GET", "/history?repo=repo&tag=latest", "", http.StatusNotFound, `nothing is known of a tag latest in repo`)
	expect("POST", "/restore", `{"repo":"repo","tag":"latest"}`, http.StatusNotFound, `an earlier image of repo:latest`)

	push("one", "latest", "old")
	push("two", "latest")
	change := func(name, state string) string {
		return fmt.Sprintf(`{"time":%s,"digest":"{%s}","state":%q}`, now, name, state)
	}
	expect("GET", "/history?repo=repo&tag=latest", "", http.StatusOK,
		`{"tags":[{"tag":"latest","changes":[`+change("two", "there")+`,`+change("one", "there")+`]}]}`)
	expect("GET", "/history?repo=repo&limit=1", "", http.StatusOK, `"next":"latest"}`)
	expect("GET", "/history?repo=repo&limit=1&after=latest", "", http.StatusOK, `{"tags":[{"tag":"old","changes":[`+change("one", "there")+`]}],"next":"old"}`)
	expect("GET", "/history?repo=repo&limit=1&after=old", "", http.StatusOK, `{"tags":[]}`)
	expect("POST", "/restore", `{"repo":"repo","tag":"latest"}`, http.StatusOK, `{"digest":"{one}","tags":["latest"]}`)

	remove("one")
	expect("GET", "/history?repo=repo&tag=old", "", http.StatusOK, `"changes":[{"time":`+now+`},`+change("one", "trash")+`]`)
	expect("GET", "/trash?repo=repo", "", http.StatusOK,
		`{"manifests":[{"digest":"{one}","media_type":"x/y","size_bytes":3,"tags":["latest","old"],"deleted":`+now+`,"until":"2026-01-03T03:04:05Z"}]}`)
	expect("GET", "/trash?repo=repo&limit=1", "", http.StatusOK, `"next":"{one}"`)
	push("two", "latest")
	expect("POST", "/restore", `{"repo":"repo","digest":"{one}"}`, http.StatusOK, `{"digest":"{one}","tags":["old"]}`)
	remove("one")
	expect("POST", "/restore", `{"repo":"repo","tag":"new","digest":"{one}"}`, http.StatusOK, `{"digest":"{one}","tags":["new"]}`)
	remove("one")
	expect("DELETE", "/trash?repo=repo&digest={one}", "", http.StatusOK, `{}`)
	expect("DELETE", "/trash?repo=repo&digest={one}", "", http.StatusNotFound, `is not in the trash of repo`)
	expect("GET", "/history?repo=repo&tag=old", "", http.StatusOK, change("one", "gone"))
	expect("POST", "/restore", `{"repo":"repo","tag":"old"}`, http.StatusNotFound, `is neither in repo nor in its trash`)

	push("two", "v1")
	push("one")
	expect("POST", "/restore", `{"repo":"repo","tag":"v1","digest":"{one}"}`, http.StatusConflict, `immutable`)
	for _, bad := range []string{`{"repo":"repo"}`, `{"repo":"repo","tag":"-"}`, `{"repo":"repo","digest":"x"}`} {
		expect("POST", "/restore", bad, http.StatusBadRequest, `"invalid"`)
	}
	expect("DELETE", "/trash?repo=repo&digest=x", "", http.StatusBadRequest, `"field":"digest"`)
	expect("GET", "/trash?repo=repo&limit=1001", "", http.StatusBadRequest, `"field":"limit"`)
}
