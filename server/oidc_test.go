package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"

	"berth.internal/auth"
	"berth.internal/auth/oidc"
	"berth.internal/auth/policy"
)

// issuer signs tokens of jobs, and publishes its key on a loopback address.
type issuer struct {
	*httptest.Server
	key *ecdsa.PrivateKey
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{key: key}
	i.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		var answer any = map[string]string{"issuer": i.URL, "jwks_uri": i.URL + "/keys"}
		if r.URL.Path == "/keys" {
			answer = jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &i.key.PublicKey, KeyID: "one"}}}
		}
		_ = json.NewEncoder(w).Encode(answer) // the test sees what is missing
	}))
	t.Cleanup(i.Close)
	return i
}

const registryURL = "https://registry.example.com"

// token is that of a job of the project, good for life.
func (i *issuer) token(t *testing.T, project string, life time.Duration) string {
	t.Helper()
	unsigned := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{
		"iss": i.URL, "aud": registryURL, "sub": "project_path:" + project + ":ref:main", "exp": time.Now().Add(life).Unix(), "iat": time.Now().Unix(),
		"namespace_path": strings.Split(project, "/")[0], "project_path": project, "ref": "main",
	})
	unsigned.Header["kid"] = "one"
	signed, err := unsigned.SignedString(i.key)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func (i *issuer) config() []oidc.Issuer {
	return []oidc.Issuer{{Name: "gitlab", URL: i.URL, Jobs: &oidc.Jobs{
		Audience: registryURL, Require: map[string]string{"namespace_path": "{team,other}"},
		Groups: []oidc.Group{{Name: "apps", Claims: map[string]string{"project_path": "team/app*"}}},
	}}}
}

// jobs makes a server that lets in jobs of the issuer, of which those of team/app
// may push to team/app, and all may pull team/base.
func jobs(t *testing.T) (*Server, *issuer) {
	t.Helper()
	i := newIssuer(t)
	s, _ := people(t, func(c *Config) { c.OIDC = i.config() })
	t.Cleanup(s.issuers.Close)
	rules := []policy.Rule{
		{Subject: "group:admins", Repositories: "**", Allow: auth.Actions()},
		{Subject: "claim:gitlab+project_path=team/app", Repositories: "team/app", Allow: []auth.Action{auth.Pull, auth.Push}},
		{Subject: "group:gitlab+apps", Repositories: "team/base", Allow: []auth.Action{auth.Pull}},
		{Subject: "claim:github+project_path=team/app", Repositories: "foreign", Allow: []auth.Action{auth.Pull, auth.Push}},
	}
	if _, err := s.policy.Put(t.Context(), policy.Policy{Rules: rules}, 0); err != nil {
		t.Fatal(err)
	}
	return s, i
}

func TestJobs(t *testing.T) {
	s, i := jobs(t)
	if w := tagged(t, s, ann, "team/base", "1", "base"); w.Code != 201 {
		t.Fatal(w.Code, w.Body)
	}
	app, other := i.token(t, "team/app", time.Hour), i.token(t, "other/thing", time.Hour)
	for _, tc := range []struct {
		name, who string
		method    string
		path      string
		status    int
		says      string
	}{
		{"logs in", "oidc+gitlab:" + app, "GET", "/v2/", 200, ""},
		{"logs in with Bearer", app, "GET", "/v2/", 200, ""},
		{"pushes its own", "oidc+gitlab:" + app, "POST", "/v2/team/app/blobs/uploads/", 202, ""},
		{"pushes with Bearer", app, "POST", "/v2/team/app/blobs/uploads/", 202, ""},
		{"pulls by its group", app, "GET", "/v2/team/base/manifests/1", 200, ""},
		{"pushes what it may pull", app, "POST", "/v2/team/base/blobs/uploads/", 403, "job gitlab+project_path:team/app:ref:main may not push to team/base: no rule allows it; an administrator can grant it with berth policy allow claim:gitlab+sub=project_path:team/app:ref:main push team/base"},
		{"deletes", app, "DELETE", "/v2/team/app/manifests/1", 403, "may not delete in team/app"},
		{"another's", app, "POST", "/v2/secret/blobs/uploads/", 403, "may not push to secret"},
		{"by a rule for another issuer", app, "POST", "/v2/foreign/blobs/uploads/", 403, "may not push to foreign"},
		{"another job", other, "POST", "/v2/team/app/blobs/uploads/", 403, "job gitlab+project_path:other/thing:ref:main may not push to team/app"},
		{"another job pulls", "oidc+gitlab:" + other, "GET", "/v2/team/base/manifests/1", 403, "may not pull team/base"},
		{"a job that is not let in", "oidc+gitlab:" + i.token(t, "evil/app", time.Hour), "GET", "/v2/", 401, `the token of gitlab is not accepted: its claim namespace_path is \"evil\"`},
		{"one that is not, with Bearer", i.token(t, "evil/app", time.Hour), "GET", "/v2/", 401, `its claim namespace_path is \"evil\"`},
		{"another issuer's name", "oidc+github:" + app, "GET", "/v2/", 401, `this registry knows no issuer \"github\" of tokens for jobs`},
		{"no token at all", "oidc+gitlab:password", "GET", "/v2/", 401, "it is not a signed JWT"},
		{"expired", "oidc+gitlab:" + i.token(t, "team/app", -time.Second), "GET", "/v2/", 401, "it has expired"},
		{"as a user's password", "ann:" + app, "GET", "/v2/", 401, "the name or the password is wrong"},
		{"as a robot's secret", "robot+ci:" + app, "GET", "/v2/", 401, "the name or the password is wrong"},
		{"administers", app, "GET", "/berth/v1/policy", 403, "may not administer this server"},
		{"makes keys", "oidc+gitlab:" + app, "GET", "/berth/v1/users/ann/keys", 403, ""},
		{"control API with a bad token", "oidc+gitlab:x", "GET", "/berth/v1/policy", 401, "the token of gitlab is not accepted"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := as(t, s, tc.who, tc.method, tc.path, "")
			if w.Code != tc.status || !strings.Contains(w.Body.String(), tc.says) {
				t.Errorf("%s %s = %d %s, want %d and %q", tc.method, tc.path, w.Code, w.Body, tc.status, tc.says)
			}
			if w.Code == 401 && strings.HasPrefix(tc.path, "/v2") && len(w.Header()["Www-Authenticate"]) != 2 {
				t.Errorf("the challenges are %q", w.Header()["Www-Authenticate"])
			}
			if strings.Contains(w.Body.String(), app) {
				t.Error("the token is in the answer")
			}
		})
	}
	if w := as(t, s, "oidc+gitlab:"+app, "GET", "/v2/_catalog", ""); w.Code != 200 || strings.Contains(w.Body.String(), "secret") || !strings.Contains(w.Body.String(), `"team/base"`) {
		t.Errorf("the catalog is %d %s", w.Code, w.Body)
	}
}

// TestJobTokens gets our tokens for a job's.
func TestJobTokens(t *testing.T) {
	s, i := jobs(t)
	const scope = "repository:team/app:pull,push,delete repository:secret:pull"
	got := token(t, s, "oidc+gitlab:"+i.token(t, "team/app", time.Hour), scope)
	if got.Refresh != "" {
		t.Error("a job got a refresh token, which would outlive it")
	}
	if w := as(t, s, got.Token, "POST", "/v2/team/app/blobs/uploads/", ""); w.Code != 202 {
		t.Errorf("a push with the token = %d %s", w.Code, w.Body)
	}
	if w := as(t, s, got.Token, "GET", "/v2/secret/tags/list", ""); w.Code != 403 {
		t.Errorf("a pull beyond = %d %s", w.Code, w.Body)
	}
	form := url.Values{"grant_type": {"password"}, "username": {"oidc+gitlab"}, "password": {i.token(t, "team/app", time.Hour)}, "scope": {scope}, "access_type": {"offline"}}
	w := as(t, s, "", "POST", tokenPath, form.Encode(), "Content-Type", "application/x-www-form-urlencoded")
	if w.Code != 200 || strings.Contains(w.Body.String(), "refresh_token") {
		t.Errorf("POST %s = %d %s", tokenPath, w.Code, w.Body)
	}
	form.Set("password", i.token(t, "evil/app", time.Hour))
	w = as(t, s, "", "POST", tokenPath, form.Encode(), "Content-Type", "application/x-www-form-urlencoded")
	if w.Code != 401 || !strings.Contains(w.Body.String(), "its claim namespace_path") {
		t.Errorf("POST %s for a job that is not let in = %d %s", tokenPath, w.Code, w.Body)
	}

	// What it gets ends with its own token.
	short := i.token(t, "team/app", 2*time.Second)
	w = as(t, s, "oidc+gitlab:"+short, "GET", tokenPath+"?scope="+url.QueryEscape(scope), "")
	var brief tokenAnswer
	if err := json.Unmarshal(w.Body.Bytes(), &brief); err != nil || w.Code != 200 || brief.Expires > 2 {
		t.Fatalf("GET %s for a job that is about to end = %d %s", tokenPath, w.Code, w.Body)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for _, who := range []string{brief.Token, short, "oidc+gitlab:" + short} {
		for tries := 0; as(t, s, who, "GET", "/v2/", "").Code != 401; tries++ {
			if <-tick.C; tries == 100 {
				t.Fatal("a token lives for ever")
			}
		}
	}

	// No change of mind of the administrator has to wait for the tokens.
	change := func(name string, path string, status int, change func()) {
		t.Helper()
		change()
		if w := as(t, s, got.Token, "GET", path, ""); w.Code != status {
			t.Errorf("%s: %d %s, want %d", name, w.Code, w.Body, status)
		}
	}
	change("as it is", "/v2/team/app/tags/list", 404, func() {})
	change("without the rule of the policy", "/v2/team/app/tags/list", 403, func() {
		if _, err := s.policy.Put(t.Context(), policy.Policy{Rules: []policy.Rule{}}, s.policy.Version().Revision); err != nil {
			t.Fatal(err)
		}
	})
	narrow := i.config()
	narrow[0].Jobs.Require["namespace_path"] = "other"
	set := func(list []oidc.Issuer) func() {
		return func() {
			if err := s.issuers.Set(list); err != nil {
				t.Fatal(err)
			}
		}
	}
	change("with another rule of the issuer", "/v2/", 401, set(narrow))
	change("with the first again", "/v2/", 200, set(i.config()))
	change("without the issuer", "/v2/", 401, set(nil))
}

// TestIssuerDown has an issuer that does not answer: its jobs are told so, and
// nobody else notices.
func TestIssuerDown(t *testing.T) {
	s, i := jobs(t)
	known, fresh := i.token(t, "team/app", time.Hour), i.token(t, "team/app2", time.Hour)
	if w := as(t, s, known, "GET", "/v2/", ""); w.Code != 200 {
		t.Fatal(w.Code, w.Body)
	}
	if err := s.issuers.Set(nil); err != nil { // it forgets the keys
		t.Fatal(err)
	}
	if err := s.issuers.Set(i.config()); err != nil {
		t.Fatal(err)
	}
	i.Close()
	for _, who := range []string{fresh, "oidc+gitlab:" + fresh} {
		w := as(t, s, who, "GET", "/v2/", "")
		if w.Code != 503 || w.Header().Get("Retry-After") == "" || !strings.Contains(w.Body.String(), "the issuer of the token does not answer") || strings.Contains(w.Body.String(), i.URL) {
			t.Errorf("a job gets %d %s", w.Code, w.Body)
		}
	}
	if w := as(t, s, "oidc+gitlab:"+fresh, "GET", tokenPath, ""); w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("GET %s = %d %s", tokenPath, w.Code, w.Body)
	}
	if w := as(t, s, fresh, "GET", "/berth/v1/policy", ""); w.Code != 503 || !strings.Contains(w.Body.String(), `"unavailable"`) {
		t.Errorf("the control API answers %d %s", w.Code, w.Body)
	}
	if w := as(t, s, known, "GET", "/v2/", ""); w.Code != 200 {
		t.Errorf("a job whose token was verified before gets %d %s", w.Code, w.Body)
	}
	if w := as(t, s, ann, "GET", "/v2/", ""); w.Code != 200 {
		t.Errorf("a user gets %d %s", w.Code, w.Body)
	}
	if w := as(t, s, "", "GET", "/readyz", ""); w.Code != 200 || !strings.Contains(w.Body.String(), "issuer of tokens gitlab") {
		t.Errorf("GET /readyz = %d %s", w.Code, w.Body)
	}
}

func TestPolicyTestJobs(t *testing.T) {
	s, _ := jobs(t)
	for _, tc := range []struct{ body, want string }{
		{`{"subject":"job:gitlab","claims":{"project_path":"team/app","namespace_path":"team"},"action":"push","repo":"team/app"}`, `"allowed":true`},
		{`{"subject":"job:gitlab","claims":{"project_path":"team/app2","namespace_path":"team"},"action":"pull","repo":"team/base"}`, `"rule":"group:gitlab+apps allow pull on team/base"`},
		{`{"subject":"job:gitlab","claims":{"project_path":"team/app"},"action":"push","repo":"team/app"}`, `"allowed":false,"why":"the token of gitlab is not accepted: it lacks the claim namespace_path`},
		{`{"subject":"job:github","claims":{"project_path":"team/app"},"action":"push","repo":"team/app"}`, `"allowed":false,"why":"the token of github is not accepted: its issuer and audience are none`},
	} {
		if w := as(t, s, ann, "POST", "/berth/v1/policy/test", tc.body, "Content-Type", "application/json"); w.Code != 200 || !strings.Contains(w.Body.String(), tc.want) {
			t.Errorf("%s: %d %s, want %s", tc.body, w.Code, w.Body, tc.want)
		}
	}
}
