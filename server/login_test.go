package server

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"berth.internal/auth"
	"berth.internal/auth/oidc"
	"berth.internal/auth/policy"
	wire "berth.internal/internal/control"
)

// idToken is one of the user name, who is sub for the issuer.
func (i *issuer) idToken(t *testing.T, name, sub string, groups ...string) string {
	t.Helper()
	unsigned := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{
		"iss": i.URL, "aud": "berth", "sub": sub, "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix(), "preferred_username": name, "groups": groups,
	})
	unsigned.Header["kid"] = "one"
	signed, err := unsigned.SignedString(i.key)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func (i *issuer) forPeople(lasts time.Duration) []oidc.Issuer {
	return []oidc.Issuer{{Name: "corp", URL: i.URL, People: &oidc.People{ClientID: "berth", Lasts: lasts}}}
}

// logIn asks for an API key with an ID token.
func logIn(t *testing.T, s *Server, idToken string) (*httptest.ResponseRecorder, wire.LoggedIn) {
	t.Helper()
	body, err := json.Marshal(wire.Login{Issuer: "corp", IDToken: idToken, Description: "laptop"})
	if err != nil {
		t.Fatal(err)
	}
	w := as(t, s, "", "POST", "/berth/v1/login", string(body), "Content-Type", "application/json")
	var made wire.LoggedIn
	if w.Code == 200 {
		if err := json.Unmarshal(w.Body.Bytes(), &made); err != nil {
			t.Fatal(err)
		}
	} else if strings.Contains(w.Body.String(), idToken) {
		t.Error("the token is in the answer")
	}
	return w, made
}

func TestLogin(t *testing.T) {
	i := newIssuer(t)
	s, _ := people(t, func(c *Config) { c.OIDC = i.forPeople(0) })
	t.Cleanup(s.issuers.Close)
	rules := []policy.Rule{
		{Subject: "group:admins", Repositories: "**", Allow: auth.Actions()},
		{Subject: "user:bob", Repositories: "own/**", Allow: []auth.Action{auth.Pull}},
		{Subject: "group:corp+dev", Repositories: "team/**", Allow: []auth.Action{auth.Pull, auth.Push}},
	}
	if _, err := s.policy.Put(t.Context(), policy.Policy{Rules: rules}, 0); err != nil {
		t.Fatal(err)
	}
	if w := as(t, s, "", "GET", "/berth/v1/login", ""); w.Code != 200 ||
		w.Body.String() != fmt.Sprintf(`{"issuers":[{"name":"corp","issuer":%q,"client_id":"berth","scopes":["profile","email"]}]}`+"\n", i.URL) {
		t.Errorf("GET /login = %d %s", w.Code, w.Body)
	}
	w, made := logIn(t, s, i.idToken(t, "bob", "1", "dev", "admins"))
	if w.Code != 200 || made.Key.User != "corp+bob" || made.Key.Secret == "" || made.Key.Expires != made.Until || fmt.Sprint(made.Groups) != "[corp+dev corp+admins]" {
		t.Fatalf("POST /login = %d %s", w.Code, w.Body)
	}
	who := "corp+bob:" + made.Key.Secret
	for _, tc := range []struct {
		name, who, method, path string
		status                  int
		says                    string
	}{
		{"comes in", who, "GET", "/v2/", 200, ""},
		{"by the group", who, "POST", "/v2/team/app/blobs/uploads/", 202, ""},
		{"as the user of the same name", who, "GET", "/v2/own/app/tags/list", 403, "user corp+bob may not pull own/app"},
		{"as an administrator", who, "GET", "/berth/v1/policy", 403, "may not administer"},
		{"sees the own keys", who, "GET", "/berth/v1/users/~/keys", 200, "laptop"},
		{"sees those of the other bob", who, "GET", "/berth/v1/users/bob/keys", 403, ""},
		{"the other bob with the key", "bob:" + made.Key.Secret, "GET", "/v2/", 401, ""},
		{"with the other bob's password", "corp+bob:password of bob", "GET", "/v2/", 401, ""},
		{"with no password", "corp+bob:", "GET", "/v2/", 401, ""},
		{"with the ID token", "corp+bob:" + i.idToken(t, "bob", "1"), "GET", "/v2/", 401, ""},
		{"with the ID token as a job's", "oidc+corp:" + i.idToken(t, "bob", "1"), "GET", "/v2/", 401, "knows no issuer"},
		{"with the ID token as Bearer", i.idToken(t, "bob", "1"), "GET", "/v2/", 401, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if w := as(t, s, tc.who, tc.method, tc.path, ""); w.Code != tc.status || !strings.Contains(w.Body.String(), tc.says) {
				t.Errorf("%s %s = %d %s, want %d and %q", tc.method, tc.path, w.Code, w.Body, tc.status, tc.says)
			}
		})
	}

	// What is given out for the key lives as long as that and its user.
	tokens := token(t, s, who, "repository:team/app:pull")
	if tokens.Refresh == "" {
		t.Error("a person got no refresh token")
	}
	refresh := func() int {
		return as(t, s, "", "POST", tokenPath, "grant_type=refresh_token&refresh_token="+tokens.Refresh, "Content-Type", "application/x-www-form-urlencoded").Code
	}
	in := func(name string, want bool) {
		t.Helper()
		status := map[bool]int{true: 200, false: 401}[want]
		if a, b, c := as(t, s, who, "GET", "/v2/", "").Code, as(t, s, tokens.Token, "GET", "/v2/", "").Code, refresh(); a != status || b != status || c != status {
			t.Errorf("%s: key %d, token %d, refresh token %d, want %d", name, a, b, c, status)
		}
	}
	in("at first", true)
	set := func(list []oidc.Issuer) {
		t.Helper()
		if err := s.issuers.Set(list); err != nil {
			t.Fatal(err)
		}
	}
	set(nil)
	in("without the issuer", false)
	set(i.forPeople(0))
	in("with it again", true)

	// Another login says what the groups are now. A name is not for two.
	if w, made := logIn(t, s, i.idToken(t, "bob", "1")); w.Code != 200 || len(made.Groups) != 0 {
		t.Errorf("a login without groups = %d %s", w.Code, w.Body)
	}
	if w := as(t, s, who, "POST", "/v2/team/app/blobs/uploads/", ""); w.Code != 403 {
		t.Errorf("a push without the group = %d %s", w.Code, w.Body)
	}
	if w, _ := logIn(t, s, i.idToken(t, "bob", "2", "dev")); w.Code != 401 || !strings.Contains(w.Body.String(), "the user corp+bob is somebody else") {
		t.Errorf("a login of another by the name = %d %s", w.Code, w.Body)
	}
	if w, _ := logIn(t, s, i.idToken(t, "bob", "1")+"x"); w.Code != 401 {
		t.Errorf("a login with a forged token = %d %s", w.Code, w.Body)
	}

	// Administrators shut people out, but do not make them others.
	for _, body := range []string{`{"password":"something long enough"}`, `{"groups":["admins"]}`} {
		if w := as(t, s, ann, "PUT", "/berth/v1/users/corp+bob", body, "Content-Type", "application/json"); w.Code != 400 || !strings.Contains(w.Body.String(), "change them there") {
			t.Errorf("PUT %s = %d %s", body, w.Code, w.Body)
		}
	}
	in("after all that", true)
	if w := as(t, s, ann, "PUT", "/berth/v1/users/corp+bob", `{"disabled":true}`, "Content-Type", "application/json"); w.Code != 200 {
		t.Fatal(w.Code, w.Body)
	}
	in("disabled", false)
	if w, _ := logIn(t, s, i.idToken(t, "bob", "1")); w.Code != 401 || !strings.Contains(w.Body.String(), "is disabled") {
		t.Errorf("a login of who is disabled = %d %s", w.Code, w.Body)
	}
	if w := as(t, s, ann, "DELETE", "/berth/v1/users/corp+bob", ""); w.Code != 200 {
		t.Fatal(w.Code, w.Body)
	}
	if w, _ := logIn(t, s, i.idToken(t, "bob", "2")); w.Code != 200 {
		t.Errorf("a login by a name that is free again = %d %s", w.Code, w.Body)
	}
	in("deleted, and made again as another", false)
	if w := as(t, s, ann, "POST", "/berth/v1/users", `{"name":"corp+eve","password":"something long enough"}`, "Content-Type", "application/json"); w.Code != 400 {
		t.Errorf("a user of berth's own by such a name = %d %s", w.Code, w.Body)
	}

	// The issuer is down.
	set(nil)
	set(i.forPeople(0))
	i.Close()
	if w, _ := logIn(t, s, i.idToken(t, "ann", "3")); w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("a login while the issuer is down = %d %s", w.Code, w.Body)
	}
}

// TestLoginLasts waits for the day of the next login.
func TestLoginLasts(t *testing.T) {
	i := newIssuer(t)
	s, _ := people(t, func(c *Config) { c.OIDC = i.forPeople(2 * time.Second) })
	t.Cleanup(s.issuers.Close)
	_, made := logIn(t, s, i.idToken(t, "bob", "1"))
	who := "corp+bob:" + made.Key.Secret
	if until := time.Until(made.Until); until > 2*time.Second {
		t.Errorf("it lasts %s", until)
	}
	w := as(t, s, who, "POST", "/berth/v1/users/~/keys", `{"description":"for ever"}`, "Content-Type", "application/json")
	var forEver wire.Key
	if err := json.Unmarshal(w.Body.Bytes(), &forEver); err != nil || w.Code != 200 {
		t.Fatal(w.Code, w.Body)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for _, secret := range []string{made.Key.Secret, forEver.Secret} {
		for tries := 0; as(t, s, "corp+bob:"+secret, "GET", "/v2/", "").Code != 401; tries++ {
			if <-tick.C; tries == 100 {
				t.Fatal("a login lasts for ever")
			}
		}
	}
}

// TestLoginFlood makes wrong tokens cost who sends them.
func TestLoginFlood(t *testing.T) {
	i := newIssuer(t)
	s, _ := people(t, func(c *Config) { c.OIDC = i.forPeople(0) })
	t.Cleanup(s.issuers.Close)
	for n := 0; ; n++ {
		w, _ := logIn(t, s, fmt.Sprint("wrong", n))
		if w.Code == 429 && w.Header().Get("Retry-After") != "" {
			return
		}
		if w.Code != 401 || n > 1000 {
			t.Fatalf("wrong token %d: %d %s", n, w.Code, w.Body)
		}
	}
}

// TestLoginAudit looks for logins in the audit log, without their tokens.
func TestLoginAudit(t *testing.T) {
	i := newIssuer(t)
	s, _ := recorded(t, func(c *Config) { c.OIDC = i.forPeople(0) })
	t.Cleanup(s.issuers.Close)
	after := ""
	_, made := logIn(t, s, i.idToken(t, "bob", "1", "dev"))
	logIn(t, s, i.idToken(t, "bob", "2", "dev"))
	var got []string
	for _, rec := range news(t, s, &after) {
		got = append(got, facts(rec)+" "+rec.From)
	}
	want := []string{
		"user:corp+bob|id_token|login||" + made.Key.ID + "|issuer id_token description|allowed|200 192.0.2.1",
		"unknown|id_token|login||issuer id_token description|denied|401 192.0.2.1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the audit log says\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
