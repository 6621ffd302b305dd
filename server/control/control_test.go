package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"berth.internal/auth"
	"berth.internal/auth/policy"
	"berth.internal/internal/control"
	"berth.internal/internal/oci"
	"berth.internal/storage"
	"berth.internal/storage/care"
	"berth.internal/storage/gc"
	"berth.internal/storage/kv"
	"berth.internal/storage/mem"
)

// flat is a request with a field of each kind that path and query can hold.
type flat struct {
	ID    string    `json:"id"`
	Repo  string    `json:"repo"`
	Count int       `json:"count"`
	After uint64    `json:"after"`
	Force bool      `json:"force"`
	Since time.Time `json:"since,omitzero"`
}

// sample is a request with what a body can hold, too.
type sample struct {
	ID    string            `json:"id"`
	Repo  string            `json:"repo"`
	Count int               `json:"count"`
	After uint64            `json:"after"`
	Force bool              `json:"force"`
	Since time.Time         `json:"since,omitzero"`
	Rules []rule            `json:"rules,omitempty"`
	Names map[string]string `json:"names,omitempty"`
}

type rule struct {
	Who string `json:"who"`
}

func echo[Q any](_ *Handler, _ *http.Request, q Q) (Q, error) { return q, nil }

// newHandler returns a handler with rows of its own, for a caller with rights.
func newHandler(rights ...Right) *Handler {
	index := mem.NewIndex(kv.Options{})
	identities, err := auth.Open(context.Background(), auth.Config{Records: index, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		panic(err) // the records are in memory
	}
	live := policy.New(policy.LiveConfig{Records: index, Log: slog.New(slog.DiscardHandler)})
	h := New(Config{
		Identities: identities,
		Access: func(_ *http.Request, repo string, needs Right) error {
			if slices.Contains(rights, needs) {
				return nil
			}
			return control.Denied.With(fmt.Sprintf("no %s on %q", needs, repo))
		},
		Caller:  func(*http.Request) auth.Caller { return auth.Caller{Kind: auth.Socket} },
		Address: func(*http.Request) string { return "192.0.2.1" },
		Ready: func(context.Context) []control.Part {
			return []control.Part{{Name: "index", Ready: true}, {Name: "store", Reason: "broken /srv"}}
		},
		Settings: func() control.Settings { return control.Settings{} },
		Reload:   func(context.Context) (control.Reloaded, error) { return control.Reloaded{}, nil },
		Name:     func() string { return "registry.example.com" }, Version: "v1.2.3",
		Policy: live, Decider: live,
		Store: new(mem.Store), Scrub: care.NewScrub(storage.Drivers{Index: index, Records: index}, care.ScrubConfig{}, slog.New(slog.DiscardHandler)),
		Index: index, Rules: func(string) storage.Rules { return storage.Rules{} },
		Collector: gc.New(new(mem.Store), index, gc.Config{}, slog.New(slog.DiscardHandler)),
		Log:       slog.New(slog.DiscardHandler),
	})
	fail := func(err error) func(*Handler, *http.Request, control.None) (control.None, error) {
		return func(*Handler, *http.Request, control.None) (control.None, error) { return control.None{}, err }
	}
	h.table = append(h.table,
		row("GET", "/samples/{id}", Pull, echo[flat], "Echoes."),
		row("POST", "/samples", Push, echo[sample], "Echoes."),
		row("PUT", "/samples/{id}", Admin, echo[sample], "Echoes."),
		row("DELETE", "/samples/{id}", Delete, echo[flat], "Echoes."),
		row("GET", "/fail/bug", Everyone, fail(errors.New("open /srv/berth: no")), "Fails."),
		row("GET", "/fail/full", Everyone, fail(fmt.Errorf("write: %w", storage.ErrNoSpace)), "Fails."),
		row("GET", "/fail/name", Everyone, fail(oci.NameUnknown), "Fails."),
		row("GET", "/fail/login", Everyone, fail(oci.Unauthorized), "Fails."),
		row("GET", "/fail/late", Everyone, fail(control.Unavailable.Because(errors.New("/srv"))), "Fails."),
	)
	return h
}

func ask(t *testing.T, h http.Handler, method, path, body string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestRequests(t *testing.T) {
	h := newHandler(Pull, Push, Delete, Admin)
	long := strings.Repeat("x", 200)
	for _, tc := range []struct {
		name, method, path, body string
		status                   int
		want                     string // of the answer
	}{
		{"from path and query", "GET", "/samples/7?repo=a/b&count=-3&after=5&force&since=2026-01-02T03:04:05Z", "", 200, `{"id":"7","repo":"a/b","count":-3,"after":5,"force":true,"since":"2026-01-02T03:04:05Z"}`},
		{"escaped", "GET", "/samples/a%2Fb?repo=a%2fb", "", 200, `{"id":"a/b","repo":"a/b","count":0,"after":0,"force":false}`},
		{"from the body", "POST", "/samples", `{"repo":"a","rules":[{"who":"x"}],"names":{"Any Name":"y"}}`, 200, `{"id":"","repo":"a","count":0,"after":0,"force":false,"rules":[{"who":"x"}],"names":{"Any Name":"y"}}`},
		{"from path and body", "PUT", "/samples/7", `{"count":1}`, 200, `{"id":"7","repo":"","count":1,"after":0,"force":false}`},
		{"no body", "PUT", "/samples/7", "", 200, `{"id":"7","repo":"","count":0,"after":0,"force":false}`},
		{"delete", "DELETE", "/samples/7?repo=a", "", 200, `{"id":"7","repo":"a","count":0,"after":0,"force":false}`},

		{"unknown path", "GET", "/nowhere", "", 404, `{"error":{"code":"unsupported","message":"this server has no such path; GET /berth/v1/server says what it supports"}}`},
		{"path too long", "GET", "/server/", "", 404, `"unsupported"`},
		{"nothing for braces", "GET", "/samples/", "", 404, `"unsupported"`},
		{"wrong method", "POST", "/samples/7", "{}", 405, `{"error":{"code":"unsupported","message":"POST is not supported here"}}`},
		{"unknown option", "GET", "/samples/7?repo=a&dry_run=1", "", 400, `{"error":{"code":"unsupported","message":"this operation knows no such option","field":"dry_run"}}`},
		{"option in other letters", "GET", "/samples/7?Repo=a", "", 400, `"field":"Repo"`},
		{"option of the path", "GET", "/samples/7?repo=a&id=8", "", 400, `"field":"id"`},
		{"option twice", "GET", "/samples/7?repo=a&repo=b", "", 400, `{"error":{"code":"invalid","message":"it is given more than once","field":"repo"}}`},
		{"not a number", "GET", "/samples/7?repo=a&count=many", "", 400, `{"error":{"code":"invalid","message":"it must be a whole number","field":"count"}}`},
		{"below zero", "GET", "/samples/7?repo=a&after=-1", "", 400, `"field":"after"`},
		{"not a truth", "GET", "/samples/7?repo=a&force=yes", "", 400, `it must be true or false","field":"force"`},
		{"not a time", "GET", "/samples/7?repo=a&since=today", "", 400, `it must be a time as in RFC 3339","field":"since"`},
		{"no query", "GET", "/samples/7?repo=a;count=1", "", 400, `"invalid"`},
		{"body where none belongs", "GET", "/samples/7?repo=a", "{}", 400, `"unsupported"`},
		{"query where a body belongs", "POST", "/samples?force=1", `{"repo":"a"}`, 400, `"field":"force"`},
		{"no repository", "GET", "/samples/7", "", 400, `"code":"invalid"`},
		{"not a repository", "POST", "/samples", `{"repo":"A"}`, 400, `"field":"repo"`},

		{"unknown member", "POST", "/samples", `{"repo":"a","dry_run":true}`, 400, `{"error":{"code":"unsupported","message":"this operation knows no such option","field":"dry_run"}}`},
		{"member in other letters", "POST", "/samples", `{"REPO":"a"}`, 400, `"field":"REPO"`},
		{"member twice", "POST", "/samples", `{"repo":"a","repo":"b"}`, 400, `{"error":{"code":"invalid","message":"it is given more than once","field":"repo"}}`},
		{"unknown member, deep", "POST", "/samples", `{"repo":"a","rules":[{"who":"x"},{"what":{"a":[1]}}]}`, 400, `"unsupported","message":"this operation knows no such option","field":"rules[1].what"`},
		{"member of the path", "PUT", "/samples/7", `{"id":"8"}`, 400, `"field":"id"`},
		{"long unknown member", "POST", "/samples", `{"` + long + `":1}`, 400, `"field":"` + long[:100] + `…"`},
		{"wrong type", "POST", "/samples", `{"count":"1"}`, 400, `{"error":{"code":"invalid","message":"it must be a whole number, not a JSON string","field":"count"}}`},
		{"wrong type, deep", "POST", "/samples", `{"rules":[{"who":1}]}`, 400, `it must be a string, not a JSON number`},
		{"a list", "POST", "/samples", `[]`, 400, `the body must be a JSON object`},
		{"null", "POST", "/samples", `null`, 400, `the body must be a JSON object`},
		{"no JSON", "POST", "/samples", `{"repo":`, 400, `"invalid"`},
		{"more than one value", "POST", "/samples", `{"repo":"a"} {}`, 400, `"invalid"`},
		{"too large", "POST", "/samples", `{"repo":"` + strings.Repeat("a", control.MaxBody) + `"}`, 413, `"invalid"`},

		{"bug", "GET", "/fail/bug", "", 500, `{"error":{"code":"internal","message":"the server failed; its log says why"}}`},
		{"full disk", "GET", "/fail/full", "", 507, `"code":"unavailable","message":"the server's disk is full`},
		{"the registry's unknown name", "GET", "/fail/name", "", 404, `"code":"not_found"`},
		{"the registry's login", "GET", "/fail/login", "", 401, `"code":"unauthenticated"`},
		{"with a cause", "GET", "/fail/late", "", 503, `{"error":{"code":"unavailable","message":"the server cannot do that now; try again later"}}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := ask(t, h, tc.method, control.Base+tc.path, tc.body)
			got := strings.TrimSuffix(w.Body.String(), "\n")
			exact := strings.HasPrefix(tc.want, "{")
			if w.Code != tc.status || exact && got != tc.want || !strings.Contains(got, tc.want) {
				t.Errorf("%s %s = %d %s, want %d %s", tc.method, tc.path, w.Code, got, tc.status, tc.want)
			}
			if allow := w.Header().Get("Allow"); (w.Code == 405) != (allow == "DELETE, GET, HEAD, PUT") {
				t.Errorf("%s %s = %d with Allow %q", tc.method, tc.path, w.Code, allow)
			}
		})
	}
}

func TestHeaders(t *testing.T) {
	h := newHandler(Pull, Push)
	if w := ask(t, h, "HEAD", control.Base+"/server", ""); w.Code != 200 {
		t.Errorf("HEAD /server = %d, want 200", w.Code)
	}
	if w := ask(t, h, "POST", control.Base+"/samples", `{"repo":"a"}`, "Content-Type", "text/plain"); w.Code != 415 {
		t.Errorf("POST of text = %d %s, want 415", w.Code, w.Body)
	}
	if w := ask(t, h, "POST", control.Base+"/samples", `{"repo":"a"}`, "Sec-Fetch-Site", "cross-site"); w.Code != 403 || !strings.Contains(w.Body.String(), "another site") {
		t.Errorf("POST from another site's page = %d %s, want 403", w.Code, w.Body)
	}
}

// TestRights asks each row of the table with every set of rights. What a caller
// may not do is answered before anything is said about the request.
func TestRights(t *testing.T) {
	all := []Right{Pull, Push, Delete, Admin, Self}
	for set := range 1 << len(all) {
		var rights []Right
		has := map[Right]bool{Everyone: true}
		for i, right := range all {
			if set&(1<<i) != 0 {
				rights = append(rights, right)
				has[right] = true
			}
		}
		h := newHandler(rights...)
		for _, op := range h.table {
			if strings.HasPrefix(op.Path, "/fail/") {
				continue
			}
			path, body := control.Base+strings.ReplaceAll(op.Path, "{id}", "7"), ""
			if _, ok := op.request.byName[fieldRepo]; ok && op.Needs != Admin && op.Needs != Self {
				if op.hasBody() {
					body = `{"repo":"a"}`
				} else {
					path += "?repo=a"
				}
			}
			w := ask(t, h, op.Method, path, body)
			if denied := w.Code == http.StatusForbidden; denied == has[op.Needs] {
				t.Errorf("%s %s, which needs %s, by a caller with %v = %d %s", op.Method, op.Path, op.Needs, rights, w.Code, w.Body)
			}
		}
		if w := ask(t, h, "PUT", control.Base+"/samples/7?x=1", "nonsense"); (w.Code == http.StatusForbidden) == has[Admin] {
			t.Errorf("a wrong request by a caller with %v = %d %s", rights, w.Code, w.Body)
		}
	}
}

func TestServer(t *testing.T) {
	for _, tc := range []struct {
		rights []Right
		want   string
	}{
		{nil, `{"name":"registry.example.com","ready":false}`},
		{[]Right{Pull}, `"parts":[{"name":"index","ready":true},{"name":"store","ready":false}]}`},
		{[]Right{Pull, Admin}, `"parts":[{"name":"index","ready":true},{"name":"store","ready":false,"reason":"broken /srv"}]}`},
	} {
		w := ask(t, newHandler(tc.rights...), "GET", control.Base+"/server", "")
		if got := strings.TrimSpace(w.Body.String()); w.Code != 200 || !strings.HasSuffix(got, tc.want) || (tc.rights != nil) != strings.Contains(got, `"version":"v1.2.3","features":[`) {
			t.Errorf("GET /server with %v = %d %s, want …%s", tc.rights, w.Code, got, tc.want)
		}
	}
}

// TestTable holds the rows to what serve and the design expect of them.
func TestTable(t *testing.T) {
	snake := regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)
	seen := map[string]bool{}
	for _, op := range Table() {
		name := op.Method + " " + op.Path
		if seen[name] {
			t.Errorf("%s is there twice", name)
		}
		seen[name] = true
		if !strings.HasPrefix(op.Path, "/") || !strings.HasSuffix(op.Says, ".") {
			t.Errorf("%s: the path %q or the sentence %q is not one", name, op.Path, op.Says)
		}
		if repo, ok := op.request.byName[fieldRepo]; op.Needs != Everyone && op.Needs != Admin && op.Needs != Self && (!ok || repo.Type.Kind() != reflect.String) {
			t.Errorf("%s needs %s on a repository, but its request names none", name, op.Needs)
		}
		if op.Needs == Self && !strings.Contains(op.Path, "{"+fieldUser+"}") {
			t.Errorf("%s needs %s, but its path names no user", name, op.Needs)
		}
		for _, m := range regexp.MustCompile(`\{(\w+)\}`).FindAllStringSubmatch(op.Path, -1) {
			if _, ok := op.request.byName[m[1]]; !ok {
				t.Errorf("%s: its request has no field %s", name, m[1])
			}
		}
		for _, wire := range []reflect.Type{op.request.of, op.answer} {
			for f := range wire.Fields() {
				if !snake.MatchString(strings.Split(f.Tag.Get("json"), ",")[0]) {
					t.Errorf("%s: field %s of %s is not in snake case", name, f.Name, wire)
				}
			}
		}
	}
}

func TestReference(t *testing.T) {
	var b strings.Builder
	if err := Reference(&b); err != nil {
		t.Fatal(err)
	}
	for _, op := range Table() {
		if want := "\n" + op.Method + " " + control.Base + op.Path + "\n    " + op.Says + "\n"; !strings.Contains(b.String(), want) {
			t.Errorf("the reference lacks %q", want)
		}
	}
}

// FuzzDecode holds the strict reading of bodies against encoding/json: what is
// accepted must be what json with DisallowUnknownFields accepts, and come out
// the same when it is written and read again.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"id":"x","repo":"a/b","count":-3,"after":5,"force":true,"since":"2026-01-02T03:04:05Z","rules":[{"who":"x"},null],"names":{"a":"b"}}`,
		`{"count":1e3}`, `{"rules":null,"names":null}`, `{"Repo":"a"}`, `{"repo":"a","repo":"b"}`, `{"rules":[{"what":1}]}`, ` {"repo" : "\u0061"} `, `null`, `[]`, `{"names":{"a":"b","a":"c"}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var got, want, again sample
		err := decode(body, reflect.ValueOf(&got).Elem(), nil)
		if err != nil {
			e, ok := errors.AsType[*control.Error](err)
			if !ok || e.Status != http.StatusBadRequest || len(e.Field) > 500 {
				t.Fatalf("decode(%q) = %v, want an answer 400", body, err)
			}
			return
		}
		d := json.NewDecoder(strings.NewReader(string(body)))
		d.DisallowUnknownFields()
		if err := d.Decode(&want); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("decode(%q) = %+v, but json says %+v, %v", body, got, want, err)
		}
		encoded, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		if err := decode(encoded, reflect.ValueOf(&again).Elem(), nil); err != nil {
			t.Fatalf("decode(%q), which was written from %q: %v", encoded, body, err)
		}
	})
}

// FuzzRequest sends anything to the rows that echo: what comes back is JSON,
// never a failure of the server, and what was understood is said again.
func FuzzRequest(f *testing.F) {
	for _, s := range []struct{ method, target, body string }{
		{"GET", "/samples/7?repo=a/b&count=-3&after=5&force&since=2026-01-02T03:04:05Z", ""},
		{"POST", "/samples", `{"repo":"a"}`},
		{"PUT", "/samples/a%2Fb", `{"rules":[{}]}`},
		{"DELETE", "/samples/%zz?repo=a", ""},
		{"HEAD", "/server?x", "x"},
		{"GET", "/samples/7?repo=a&rules=x", ""},
		{"GET", "/samples/7?names=", ""},
	} {
		f.Add(s.method, s.target, s.body)
	}
	h := newHandler(Pull, Push, Delete, Admin)
	h.table = slices.DeleteFunc(h.table, func(op Operation) bool { return !strings.HasPrefix(op.Path, "/samples") })
	f.Fuzz(func(t *testing.T, method, target, body string) {
		u, err := url.ParseRequestURI(control.Base + target)
		if err != nil {
			return // no request line holds it
		}
		r := (&http.Request{Method: method, URL: u, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body))}).WithContext(t.Context())
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code >= 500 || !json.Valid(w.Body.Bytes()) {
			t.Errorf("%s %s %q = %d %s", method, u, body, w.Code, w.Body)
		}
	})
}
