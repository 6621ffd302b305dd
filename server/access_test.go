package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth.internal/auth"
	wire "berth.internal/internal/control"
)

// people makes a server with the administrator ann, the user bob without rights,
// and the robot ci that may pull and push, but not overwrite, in team/. Its
// secret is returned.
func people(t *testing.T, change func(*Config)) (*Server, string) {
	t.Helper()
	s, _ := newServer(t, change)
	ctx := t.Context()
	for _, a := range []auth.Account{{Name: "ann", Groups: []string{auth.GroupAdmins}}, {Name: "bob"}} {
		if _, err := s.identities.AddUser(ctx, a, "password of "+a.Name); err != nil {
			t.Fatal(err)
		}
	}
	_, secret, err := s.identities.AddRobot(ctx, auth.Account{
		Name: "ci", Grants: []auth.Grant{{Repositories: "team/**", Actions: []auth.Action{auth.Pull, auth.Push}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s, secret
}

// as sends a request with an Authorization made of who: empty, name:password or a
// token.
func as(t *testing.T, s *Server, who, method, path, body string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	r.Host = "registry.example.com:5000"
	name, password, basic := strings.Cut(who, ":")
	switch {
	case basic:
		r.SetBasicAuth(name, password)
	case who != "":
		r.Header.Set("Authorization", "Bearer "+who)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	return w
}

type tokenAnswer struct {
	Token   string `json:"token"`
	Access  string `json:"access_token"`
	Expires int    `json:"expires_in"`
	Issued  string `json:"issued_at"`
	Refresh string `json:"refresh_token"`
}

// token gets a token for who.
func token(t *testing.T, s *Server, who string, scopes ...string) tokenAnswer {
	t.Helper()
	w := as(t, s, who, "GET", tokenPath+"?"+url.Values{"service": {auth.ServiceName}, "scope": scopes, "offline_token": {"true"}}.Encode(), "")
	var answer tokenAnswer
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Code != 200 || answer.Token == "" || answer.Access != answer.Token ||
		answer.Expires < 60 || answer.Issued == "" {
		t.Fatalf("GET %s as %.3q = %d %s", tokenPath, who, w.Code, w.Body)
	}
	return answer
}

const ann, bob = "ann:password of ann", "bob:password of bob"

// tagged pushes a manifest of its own under the tag.
func tagged(t *testing.T, s *Server, who, repo, tag, text string) *httptest.ResponseRecorder {
	t.Helper()
	body := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"annotations":{"text":%q}}`, text)
	return as(t, s, who, "PUT", "/v2/"+repo+"/manifests/"+tag, body, "Content-Type", "application/vnd.oci.image.index.v1+json")
}

func TestChallenges(t *testing.T) {
	s, _ := people(t, func(c *Config) { c.Anonymous, c.TrustedProxies = AnonymousPull, []string{"192.0.2.1"} })
	const realm = `Bearer realm="http://registry.example.com:5000/auth/token",service="berth"`
	for _, tc := range []struct {
		name, who, method, path string
		header                  []string
		status                  int
		challenge               string
	}{
		{"base", "", "GET", "/v2/", nil, 401, realm},
		{"base, logged in", ann, "GET", "/v2/", nil, 200, ""},
		{"anonymous pull", "", "GET", "/v2/team/app/tags/list", nil, 404, ""},
		{"anonymous push", "", "POST", "/v2/team/app/blobs/uploads/", nil, 401, realm + `,scope="repository:team/app:pull,push"`},
		{"anonymous delete", "", "DELETE", "/v2/team/app/manifests/1", nil, 401, realm + `,scope="repository:team/app:delete"`},
		{"catalog", "", "GET", "/v2/_catalog", nil, 401, realm + `,scope="registry:catalog:*"`},
		{"wrong password", "ann:wrong", "GET", "/v2/", nil, 401, realm},
		{"unknown user", "eve:password of eve", "GET", "/v2/", nil, 401, realm},
		{"bad token", "e30.e30.e30", "GET", "/v2/team/app/tags/list", nil, 401, realm + `,scope="repository:team/app:pull",error="invalid_token"`},
		{"too few rights", bob, "POST", "/v2/team/app/blobs/uploads/", nil, 403, ""},
		{
			"behind a proxy", "", "GET", "/v2/",
			[]string{"X-Forwarded-Proto", "https", "X-Forwarded-Host", "r.example.com"},
			401,
			`Bearer realm="https://r.example.com/auth/token",service="berth"`,
		},
		{"a Host that is none", "", "GET", "/v2/", []string{"X-Forwarded-Host", `x",evil="y`}, 401, realm},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := as(t, s, tc.who, tc.method, tc.path, "", tc.header...)
			var want []string
			if tc.challenge != "" {
				want = []string{tc.challenge, basicChallenge}
			}
			if got := w.Header().Values("WWW-Authenticate"); w.Code != tc.status || !slices.Equal(got, want) {
				t.Errorf("%s %s = %d %s, challenges %q, want %d and %q", tc.method, tc.path, w.Code, w.Body, got, tc.status, want)
			}
		})
	}
	s, _ = people(t, nil)
	w := as(t, s, "", "GET", "/v2/", "", "X-Forwarded-Host", "evil.example.com", "X-Forwarded-Proto", "https")
	if got := w.Header().Get("WWW-Authenticate"); got != realm {
		t.Errorf("the challenge believes a proxy that it does not know: %s", got)
	}
}

func TestTokens(t *testing.T) {
	s, secret := people(t, nil)
	robot := "robot+ci:" + secret
	push := func(repo string) string { return "repository:" + repo + ":pull,push" }
	blob := func(repo string) string { return "/v2/" + repo + "/blobs/uploads/" }
	for _, tc := range []struct {
		name, who string
		scopes    []string
		method    string
		path      string
		status    int
	}{
		{"administrator", ann, []string{push("a")}, "POST", blob("a"), 202},
		{"with what was not asked for", ann, []string{push("a")}, "POST", blob("b"), 401},
		{"with half of what is needed", ann, []string{"repository:a:pull"}, "POST", blob("a"), 401},
		{"with several scopes", ann, []string{push("a"), push("b")}, "POST", blob("b"), 202},
		{"with several in one", ann, []string{push("a") + " " + push("b")}, "POST", blob("b"), 202},
		{"with *", ann, []string{"repository(plugin):a:*"}, "POST", blob("a"), 202},
		{"a login without scope", ann, nil, "GET", "/v2/", 200},
		{"without rights", bob, []string{push("a")}, "POST", blob("a"), 403},
		{"robot", robot, []string{push("team/app")}, "POST", blob("team/app"), 202},
		{"robot elsewhere", robot, []string{push("other/app")}, "POST", blob("other/app"), 403},
		{"robot deletes", robot, []string{"repository:team/app:delete"}, "DELETE", "/v2/team/app/manifests/1", 403},
		{"nobody", "", []string{push("a")}, "POST", blob("a"), 401},
		{"administration", ann, []string{"repository:**:*"}, "GET", wire.Base + "/users", 403},
	} {
		t.Run(tc.name, func(t *testing.T) {
			answer := token(t, s, tc.who, tc.scopes...)
			if w := as(t, s, answer.Token, tc.method, tc.path, ""); w.Code != tc.status {
				t.Errorf("%s %s = %d %s, want %d", tc.method, tc.path, w.Code, w.Body, tc.status)
			}
		})
	}
}

func TestTokenEndpoint(t *testing.T) {
	s, _ := people(t, nil)
	form := func(values ...string) string {
		q := url.Values{}
		for i := 0; i < len(values); i += 2 {
			q.Add(values[i], values[i+1])
		}
		return q.Encode()
	}
	refresh := token(t, s, ann).Refresh
	if refresh == "" || token(t, s, "").Refresh != "" {
		t.Fatal("there is no refresh token for a user, or one for nobody")
	}
	const urlencoded = "application/x-www-form-urlencoded"
	for _, tc := range []struct {
		name, who, method, query, body, media string
		status                                int
		refresh                               bool
	}{
		{"wrong password", "ann:wrong", "GET", "", "", "", 401, false},
		{"a token for a token", token(t, s, ann).Token, "GET", "", "", "", 401, false},
		{"another service", ann, "GET", "?service=other", "", "", 400, false},
		{"no scope", ann, "GET", "?scope=repository", "", "", 400, false},
		{"an unknown type of scope", ann, "GET", "?scope=a:b:c", "", "", 200, false},
		{"POST with password", "", "POST", "", form("grant_type", "password", "username", "ann", "password", "password of ann", "access_type", "offline"), urlencoded, 200, true},
		{"POST with a wrong one", "", "POST", "", form("grant_type", "password", "username", "ann", "password", "no"), urlencoded, 401, false},
		{"POST with a refresh token", "", "POST", "", form("grant_type", "refresh_token", "refresh_token", refresh), urlencoded, 200, false},
		{"POST with a wrong one", "", "POST", "", form("grant_type", "refresh_token", "refresh_token", refresh[:len(refresh)-1]+"0"), urlencoded, 401, false},
		{"another grant", "", "POST", "", form("grant_type", "client_credentials"), urlencoded, 400, false},
		{"no form", "", "POST", "", "{}", "application/json", 400, false},
		{"too large", "", "POST", "", form("grant_type", strings.Repeat("x", maxForm)), urlencoded, 400, false},
		{"DELETE", "", "DELETE", "", "", "", 405, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := as(t, s, tc.who, tc.method, tokenPath+tc.query, tc.body, "Content-Type", tc.media)
			var answer tokenAnswer
			_ = json.Unmarshal(w.Body.Bytes(), &answer)
			if w.Code != tc.status || (answer.Refresh != "") != tc.refresh || (answer.Token != "") != (tc.status == 200) {
				t.Errorf("= %d %s, want %d", w.Code, w.Body, tc.status)
			}
			if (w.Code == 401) != (w.Header().Get("WWW-Authenticate") != "") {
				t.Errorf("%d with the challenge %q", w.Code, w.Header().Get("WWW-Authenticate"))
			}
		})
	}
	w := as(t, s, "", "GET", keysPath, "")
	if w.Code != 200 || !strings.Contains(w.Body.String(), `"kty":"EC"`) || strings.Contains(w.Body.String(), `"d"`) {
		t.Errorf("GET %s = %d %s", keysPath, w.Code, w.Body)
	}
	empty, _ := newServer(t, nil)
	if w := as(t, empty, "", "GET", tokenPath, ""); w.Code != 404 {
		t.Errorf("GET %s without users = %d", tokenPath, w.Code)
	}
}

// TestRevoked shuts out, by each way there is, who has logged in by each way
// there is, although the server remembers them.
func TestRevoked(t *testing.T) {
	for _, tc := range []struct {
		name, method, path, body string
	}{
		{"deleted", "DELETE", "/users/carl", ""},
		{"disabled", "PUT", "/users/carl", `{"disabled":true}`},
		{"new password", "PUT", "/users/carl", `{"password":"another password"}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, _ := people(t, nil)
			const carl = "carl:password of carl"
			if w := as(t, s, ann, "POST", wire.Base+"/users", `{"name":"carl","groups":["admins"],"password":"password of carl"}`, "Content-Type", "application/json"); w.Code != 200 {
				t.Fatalf("POST /users = %d %s", w.Code, w.Body)
			}
			answer := token(t, s, carl, "repository:a:pull")
			form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {answer.Refresh}}.Encode()
			ways := func() (statuses []int) {
				return append(statuses, as(t, s, carl, "GET", "/v2/a/tags/list", "").Code, as(t, s, answer.Token, "GET", "/v2/a/tags/list", "").Code,
					as(t, s, "", "POST", tokenPath, form, "Content-Type", "application/x-www-form-urlencoded").Code)
			}
			for range 2 { // the second time from the caches
				if got := ways(); !slices.Equal(got, []int{404, 404, 200}) {
					t.Fatalf("before: %v", got)
				}
			}
			if w := as(t, s, ann, tc.method, wire.Base+tc.path, tc.body, "Content-Type", "application/json"); w.Code != 200 && w.Code != 415 {
				t.Fatalf("%s %s = %d %s", tc.method, tc.path, w.Code, w.Body)
			}
			if got := ways(); !slices.Equal(got, []int{401, 401, 401}) {
				t.Errorf("after: %v, want 401 for password, token and refresh token", got)
			}
		})
	}
}

// TestLastToken changes policy and account between the requests of one connection,
// which all show the same token.
func TestLastToken(t *testing.T) {
	s, _ := people(t, nil)
	put := func(rules string) func() {
		return func() {
			t.Helper()
			if _, err := s.policy.Put(t.Context(), policyOf(t, rules), s.policy.Version().Revision); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(`[{"subject":"user:bob","repositories":"team/**","allow":["pull"]}]`)()
	granted := token(t, s, bob, "repository:team/app:pull").Token
	last := new(lastToken)
	ask := func(who, repo string) int {
		r := httptest.NewRequestWithContext(context.WithValue(t.Context(), lastKey{}, last), "GET", "/v2/"+repo+"/tags/list", nil)
		r.Header.Set("Authorization", "Bearer "+who)
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		return w.Code
	}
	for _, step := range []struct {
		name       string
		change     func()
		app, other int
	}{
		{"allowed", func() {}, 404, 403},
		{"denied", put(`[{"subject":"user:bob","repositories":"team/**","deny":["pull"]}]`), 403, 403},
		{"allowed again", put(`[{"subject":"user:bob","repositories":"**","allow":["pull"]}]`), 404, 401},
		{"the account is gone", func() {
			if err := s.identities.Remove(t.Context(), auth.User, "bob"); err != nil {
				t.Fatal(err)
			}
		}, 401, 401},
	} {
		step.change()
		for range 2 { // the second time from memory
			if app, other := ask(granted, "team/app"), ask(granted, "other/app"); app != step.app || other != step.other {
				t.Errorf("%s: %d and %d, want %d and %d", step.name, app, other, step.app, step.other)
			}
		}
		if got := ask("nonsense", "team/app"); got != 401 {
			t.Errorf("%s: another token = %d, want 401", step.name, got)
		}
	}
}

func TestOverwrite(t *testing.T) {
	s, secret := people(t, nil)
	robot := "robot+ci:" + secret
	for _, who := range []string{robot, token(t, s, robot, "repository:team/app:pull,push").Token} {
		if w := tagged(t, s, who, "team/app", "1", "one"); w.Code != 201 {
			t.Fatalf("a new tag = %d %s", w.Code, w.Body)
		}
		if w := tagged(t, s, who, "team/app", "1", "one"); w.Code != 201 {
			t.Errorf("the same again = %d %s", w.Code, w.Body)
		}
		if w := tagged(t, s, who, "team/app", "1", "two"); w.Code != 403 || !strings.Contains(w.Body.String(), "overwrite") {
			t.Errorf("a tag that is moved without the right = %d %s", w.Code, w.Body)
		}
	}
	for _, who := range []string{ann, token(t, s, ann, "repository:team/app:pull,push").Token} {
		if w := tagged(t, s, who, "team/app", "1", "by "+who); w.Code != 201 {
			t.Errorf("a tag that is moved with the right = %d %s", w.Code, w.Body)
		}
	}
	if w := as(t, s, robot, "POST", wire.Base+"/restore", `{"repo":"team/app","tag":"1"}`, "Content-Type", "application/json"); w.Code != 403 {
		t.Errorf("a tag that is put back without the right = %d %s", w.Code, w.Body)
	}
}

func TestMountAndCatalog(t *testing.T) {
	s, secret := people(t, nil)
	robot := "robot+ci:" + secret
	const hello = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
	for _, repo := range []string{"secret/app", "team/app"} {
		if w := as(t, s, ann, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+hello, "hello"); w.Code != 201 {
			t.Fatalf("push = %d %s", w.Code, w.Body)
		}
		if w := tagged(t, s, ann, repo, "1", repo); w.Code != 201 {
			t.Fatalf("push = %d %s", w.Code, w.Body)
		}
	}
	mount := func(who, from string) int {
		return as(t, s, who, "POST", "/v2/team/new/blobs/uploads/?mount="+hello+"&from="+from, "").Code
	}
	narrow := token(t, s, robot, "repository:team/new:pull,push").Token
	wide := token(t, s, robot, "repository:team/new:pull,push", "repository:team/app:pull").Token
	got := []int{mount(robot, "secret/app"), mount(narrow, "team/app"), mount(narrow, ""), mount(wide, "secret/app"), mount(wide, "team/app")}
	if !slices.Equal(got, []int{202, 401, 401, 202, 201}) {
		t.Errorf("mounts answer %v", got)
	}
	w := as(t, s, narrow, "POST", "/v2/team/new/blobs/uploads/?mount="+hello+"&from=team/app", "")
	if want := `,scope="repository:team/new:pull,push repository:team/app:pull",error="insufficient_scope"`; !strings.HasSuffix(w.Header().Get("WWW-Authenticate"), want) {
		t.Errorf("a mount by a token that is too narrow is challenged with %s, want …%s", w.Header().Get("WWW-Authenticate"), want)
	}
	for who, want := range map[string]string{
		ann: `["secret/app","team/app"]`, bob: `[]`, robot: `["team/app"]`,
		token(t, s, robot, "registry:catalog:*").Token: `["team/app"]`, wide: `["team/app"]`, narrow: `[]`,
	} {
		if w := as(t, s, who, "GET", "/v2/_catalog", ""); w.Code != 200 || strings.TrimSpace(w.Body.String()) != `{"repositories":`+want+`}` {
			t.Errorf("the catalog of %.12s = %d %s, want %s", who, w.Code, w.Body, want)
		}
	}
}

// TestPolicyTestKnowsAccounts asks what the policy says of accounts that the
// server knows, and compares that with what they may do.
func TestPolicyTestKnowsAccounts(t *testing.T) {
	s, secret := people(t, nil)
	for _, tc := range []struct {
		subject, who, action, repo string
		allowed                    bool
	}{
		{"user:ann", ann, "push", "a", true},
		{"user:bob", bob, "push", "a", false},
		{"robot:ci", "robot+ci:" + secret, "push", "team/app", true},
		{"robot:ci", "robot+ci:" + secret, "push", "a", false},
	} {
		w := as(t, s, ann, "POST", wire.Base+"/policy/test", fmt.Sprintf(`{"subject":%q,"action":%q,"repo":%q}`, tc.subject, tc.action, tc.repo), "Content-Type", "application/json")
		var answer wire.PolicyAnswer
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || answer.Allowed != tc.allowed || answer.Why == "" {
			t.Errorf("may %s %s %s = %d %s, want %v", tc.subject, tc.action, tc.repo, w.Code, w.Body, tc.allowed)
		}
		if w := as(t, s, tc.who, "POST", "/v2/"+tc.repo+"/blobs/uploads/", ""); (w.Code == 202) != tc.allowed {
			t.Errorf("%s does %s %s = %d %s, want %v", tc.subject, tc.action, tc.repo, w.Code, w.Body, tc.allowed)
		}
	}
	// A rule of the policy comes before what the robot was made for.
	w := as(t, s, ann, "PUT", wire.Base+"/policy", `{"rules":[{"subject":"group:admins","repositories":"**","allow":["pull","push","admin"]},{"subject":"robot:ci","repositories":"team/closed","deny":["push"]}]}`,
		"Content-Type", "application/json", "If-Match", "0")
	if w.Code != 200 {
		t.Fatalf("PUT /policy = %d %s", w.Code, w.Body)
	}
	for repo, want := range map[string]int{"team/closed": 403, "team/app": 202} {
		if w := as(t, s, "robot+ci:"+secret, "POST", "/v2/"+repo+"/blobs/uploads/", ""); w.Code != want {
			t.Errorf("a push to %s = %d %s, want %d", repo, w.Code, w.Body, want)
		}
	}
}

func TestUploadsHaveOwners(t *testing.T) {
	s, _ := people(t, nil)
	w := as(t, s, ann, "POST", "/v2/a/blobs/uploads/", "")
	at := w.Header().Get("Location")
	if _, err := s.identities.AddUser(t.Context(), auth.Account{Name: "dora", Groups: []string{auth.GroupAdmins}}, "password of dora"); err != nil {
		t.Fatal(err)
	}
	if w := as(t, s, "dora:password of dora", "PATCH", at, "x"); w.Code != 404 {
		t.Errorf("somebody else goes on with an upload: %d %s", w.Code, w.Body)
	}
	// The same user by another credential.
	if w := as(t, s, token(t, s, ann, "repository:a:pull,push").Token, "PATCH", at, "x"); w.Code != 202 {
		t.Errorf("PATCH = %d %s", w.Code, w.Body)
	}
}

func TestControlByUsers(t *testing.T) {
	s, secret := people(t, nil)
	for who, want := range map[string]int{ann: 200, bob: 403, "robot+ci:" + secret: 403, "": 401, "ann:wrong": 401} {
		w := as(t, s, who, "GET", wire.Base+"/users", "")
		if w.Code != want || strings.Contains(w.Body.String(), "argon2") {
			t.Errorf("GET /users as %.5q = %d %s, want %d", who, w.Code, w.Body, want)
		}
	}
	w := as(t, s, ann, "POST", wire.Base+"/users", `{"name":"carl"}`, "Content-Type", "application/json")
	var made wire.User
	if err := json.Unmarshal(w.Body.Bytes(), &made); err != nil || made.Password == "" {
		t.Fatalf("POST /users = %d %s", w.Code, w.Body)
	}
	if w := as(t, s, "carl:"+made.Password, "GET", "/v2/", ""); w.Code != 200 {
		t.Errorf("carl with the password that the server made = %d", w.Code)
	}
	change := func(match string) int {
		return as(t, s, ann, "PUT", wire.Base+"/users/carl", `{"groups":["team"]}`, "Content-Type", "application/json", "If-Match", match).Code
	}
	if got := []int{change("1"), change(fmt.Sprint(made.Revision)), change(fmt.Sprint(made.Revision))}; !slices.Equal(got, []int{412, 200, 412}) {
		t.Errorf("PUT /users/carl = %v", got)
	}
	for body, want := range map[string]int{`{"name":"carl"}`: 409, `{"name":"robot+x"}`: 400, `{"name":"eve","password":"short"}`: 400, `{"name":"eve","groups":["a b"]}`: 400} {
		if w := as(t, s, ann, "POST", wire.Base+"/users", body, "Content-Type", "application/json"); w.Code != want {
			t.Errorf("POST /users %s = %d %s, want %d", body, w.Code, w.Body, want)
		}
	}
	if w := as(t, s, ann, "GET", wire.Base+"/users/nobody", ""); w.Code != 404 {
		t.Errorf("GET /users/nobody = %d %s", w.Code, w.Body)
	}
}

// TestPagesOfOtherSites sends what a browser sends for a page of another site, with
// the password that it remembers, or none where none is needed.
func TestPagesOfOtherSites(t *testing.T) {
	with, _ := people(t, nil)
	without, _ := newServer(t, nil)
	for name, s := range map[string]*Server{ann: with, "": without} {
		for _, tc := range []struct {
			method, path, header, value string
			refused                     bool
		}{
			{"POST", "/v2/a/blobs/uploads/", "Sec-Fetch-Site", "cross-site", true},
			{"POST", "/v2/a/blobs/uploads/", "Sec-Fetch-Site", "same-site", true},
			{"POST", "/v2/a/blobs/uploads/", "Origin", "https://evil.example.com", true},
			{"DELETE", "/v2/a/manifests/1", "Origin", "null", true},
			{"PUT", "/v2/a/manifests/1", "Sec-Fetch-Site", "cross-site", true},
			{"POST", wire.Base + "/restore", "Sec-Fetch-Site", "cross-site", true},
			{"POST", "/v2/a/blobs/uploads/", "Sec-Fetch-Site", "same-origin", false},
			{"POST", "/v2/a/blobs/uploads/", "Origin", "http://registry.example.com:5000", false},
			{"POST", "/v2/a/blobs/uploads/", "User-Agent", "containerd", false},
			{"GET", "/v2/a/tags/list", "Sec-Fetch-Site", "cross-site", false}, // the page is not shown the answer
		} {
			w := as(t, s, name, tc.method, tc.path, "", tc.header, tc.value)
			if refused := w.Code == 403; refused != tc.refused || refused != strings.Contains(w.Body.String(), "page of another site") {
				t.Errorf("%.3q: %s %s with %s: %s = %d %s, want it refused: %v", name, tc.method, tc.path, tc.header, tc.value, w.Code, w.Body, tc.refused)
			}
			if w.Header().Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%s %s may be read by pages of other sites", tc.method, tc.path)
			}
		}
	}
}

// TestLastUser deletes the only user of a registry that other machines reach: it
// must not be open to everybody then.
func TestLastUser(t *testing.T) {
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("password of admin"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, _ := newServer(t, func(c *Config) { c.Listen, c.AdminPasswordFile = ":5000", password })
	if w := as(t, s, "admin:password of admin", "DELETE", wire.Base+"/users/admin", ""); w.Code != 200 {
		t.Fatalf("DELETE = %d %s", w.Code, w.Body)
	}
	if w := as(t, s, "", "GET", "/v2/a/tags/list", ""); w.Code != http.StatusForbidden {
		t.Errorf("without users = %d %s, want 403", w.Code, w.Body)
	}
}

func TestTooManyLogins(t *testing.T) {
	s, _ := people(t, nil)
	var w *httptest.ResponseRecorder
	for i := range 30 {
		if w = as(t, s, fmt.Sprintf("bob:guess %d", i), "GET", "/v2/", ""); w.Code != 401 {
			break
		}
	}
	if w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") == "" || w.Header().Get("Retry-After") == "60" {
		t.Errorf("after many guesses: %d, Retry-After %q", w.Code, w.Header().Get("Retry-After"))
	}
}

func FuzzAuthorization(f *testing.F) {
	for _, seed := range []string{"", "Basic YTpi", "basic YTo6Yg==", "Bearer a.b.c", "Bearer a b", "Basic", "Digest x", "Basic %%", "Bearer  x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		c, err := parseAuthorization([]string{value})
		scheme, rest, _ := strings.Cut(value, " ")
		r := &http.Request{Header: http.Header{"Authorization": {scheme + " " + strings.Trim(rest, " ")}}} // RFC 9110: any number of blanks
		name, password, ok := r.BasicAuth()                                                                // as the standard library reads it
		if basic := c.scheme == "basic"; basic && (!ok || name != c.name || password != c.password) {
			t.Errorf("parseAuthorization(%q) = %q %q, %v; BasicAuth() = %q %q, %v", value, c.name, c.password, err, name, password, ok)
		}
		if c.scheme == "bearer" && (c.password == "" || !strings.HasSuffix(strings.TrimRight(value, " "), " "+c.password)) {
			t.Errorf("parseAuthorization(%q) = %q", value, c.password)
		}
		if (err == nil) != (c.scheme != "") {
			t.Errorf("parseAuthorization(%q) = %+v, %v", value, c, err)
		}
	})
}

func TestClientBehindProxies(t *testing.T) {
	p, err := parseProxies([]string{"10.0.0.0/8", "::1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ remote, forwarded, want string }{
		{"192.0.2.7:1", "", "192.0.2.7"},
		{"192.0.2.7:1", "203.0.113.1", "192.0.2.7"}, // by nobody we know
		{"10.1.1.1:1", "203.0.113.1", "203.0.113.1"},
		{"10.1.1.1:1", "198.51.100.9, 203.0.113.1, 10.2.2.2", "203.0.113.1"},
		{"10.1.1.1:1", "nonsense", "10.1.1.1"},
		{"[::1]:1", "2001:db8::1", "2001:db8::1"},
		{"@", "203.0.113.1", "@"},
	} {
		r := &http.Request{RemoteAddr: tc.remote, Header: http.Header{}}
		if tc.forwarded != "" {
			r.Header.Set("X-Forwarded-For", tc.forwarded)
		}
		if got := p.client(r); got != tc.want {
			t.Errorf("a request from %s for %q is of %s, want %s", tc.remote, tc.forwarded, got, tc.want)
		}
	}
}
