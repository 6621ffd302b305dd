package server

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	wire "berth.internal/internal/control"
)

// key makes an API key at the control API as who.
func key(t *testing.T, s *Server, who, user, body string) wire.Key {
	t.Helper()
	w := as(t, s, who, "POST", wire.Base+"/users/"+user+"/keys", body, "Content-Type", "application/json")
	var k wire.Key
	if err := json.Unmarshal(w.Body.Bytes(), &k); err != nil || w.Code != 200 || k.Secret == "" || k.ID == "" {
		t.Fatalf("POST /users/%s/keys %s as %.3s = %d %s", user, body, who, w.Code, w.Body)
	}
	return k
}

// TestKeysBelongToTheirUsers asks for bob's keys as everybody.
func TestKeysBelongToTheirUsers(t *testing.T) {
	s, secret := people(t, nil)
	limited := key(t, s, bob, "bob", `{"grants":[{"repositories":"team/**","actions":["pull"]}]}`)
	for _, tc := range []struct {
		name, who string
		status    int
	}{
		{"himself", bob, 200},
		{"a key of his", "bob:" + key(t, s, bob, "~", `{}`).Secret, 200},
		{"an administrator", ann, 200},
		{"a key of an administrator", "ann:" + key(t, s, ann, "ann", `{}`).Secret, 200},
		{"a key of his with limits", "bob:" + limited.Secret, 403},
		{"a key of an administrator with limits", "ann:" + key(t, s, ann, "ann", `{"grants":[{"repositories":"**","actions":["pull"]}]}`).Secret, 403},
		{"a token of his", token(t, s, bob, "repository:a:pull").Token, 403},
		{"a robot", "robot+ci:" + secret, 403},
		{"nobody", "", 401},
		{"a wrong password", "bob:wrong", 401},
		{"his key with another name", "ann:" + limited.Secret, 401},
	} {
		t.Run(tc.name, func(t *testing.T) {
			victim := key(t, s, ann, "bob", `{"description":"victim"}`)
			got := []int{
				as(t, s, tc.who, "GET", wire.Base+"/users/bob/keys", "").Code,
				as(t, s, tc.who, "POST", wire.Base+"/users/bob/keys", `{}`, "Content-Type", "application/json").Code,
				as(t, s, tc.who, "DELETE", wire.Base+"/users/bob/keys/"+victim.ID, "").Code,
			}
			if want := []int{tc.status, tc.status, tc.status}; !slices.Equal(got, want) {
				t.Errorf("list, create and delete = %v, want %v", got, want)
			}
			if left := as(t, s, ann, "GET", wire.Base+"/users/bob/keys", "").Body.String(); strings.Contains(left, victim.ID) != (tc.status != 200) || strings.Contains(left, "secret") {
				t.Errorf("then there are %s", left)
			}
		})
	}
	if w := as(t, s, bob, "GET", wire.Base+"/users/ann/keys", ""); w.Code != 403 {
		t.Errorf("an administrator's keys as bob = %d %s", w.Code, w.Body)
	}
	for path, want := range map[string]int{"/users/bob/keys/nothere": 404, "/users/eve/keys/nothere": 404} {
		if w := as(t, s, ann, "DELETE", wire.Base+path, ""); w.Code != want {
			t.Errorf("DELETE %s = %d %s", path, w.Code, w.Body)
		}
	}
	for body, want := range map[string]int{
		`{"grants":[{"repositories":"[","actions":["pull"]}]}`: 400, `{"grants":[]}`: 400, `{"expires":"2001-01-01T00:00:00Z"}`: 400, `{"user":"ann"}`: 400, `{"id":"x"}`: 400,
	} {
		if w := as(t, s, bob, "POST", wire.Base+"/users/bob/keys", body, "Content-Type", "application/json"); w.Code != want {
			t.Errorf("POST %s = %d %s, want %d", body, w.Code, w.Body, want)
		}
	}
	if w := as(t, s, "robot+ci:"+secret, "GET", wire.Base+"/users/~/keys", ""); w.Code != 403 {
		t.Errorf("a robot's own keys = %d %s", w.Code, w.Body)
	}
}

// TestKeyAsPassword uses a key as clients do, and what comes of its end.
func TestKeyAsPassword(t *testing.T) {
	s, _ := people(t, nil)
	k := key(t, s, ann, "ann", fmt.Sprintf(`{"grants":[{"repositories":"team/**","actions":["pull","push"]}],"expires":%q}`, time.Now().Add(time.Hour).UTC().Format(time.RFC3339)))
	who := "ann:" + k.Secret
	answer := token(t, s, who, "repository:team/app:pull,push,delete", "repository:other:pull")
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {answer.Refresh}, "scope": {"repository:team/app:pull repository:other:pull"}}.Encode()
	upload := func(who, repo string) int { return as(t, s, who, "POST", "/v2/"+repo+"/blobs/uploads/", "").Code }
	refreshed := func() (string, int) {
		w := as(t, s, "", "POST", tokenPath, form, "Content-Type", "application/x-www-form-urlencoded")
		var a tokenAnswer
		_ = json.Unmarshal(w.Body.Bytes(), &a) // of an error it has no token
		return a.Token, w.Code
	}
	again, code := refreshed()
	got := []int{
		upload(who, "team/app"), upload(who, "other"), upload(answer.Token, "team/app"), upload(answer.Token, "other"), code,
		as(t, s, again, "GET", "/v2/team/app/tags/list", "").Code, as(t, s, again, "GET", "/v2/other/tags/list", "").Code,
		as(t, s, who, "GET", wire.Base+"/users", "").Code,
	}
	if want := []int{202, 403, 202, 403, 200, 404, 403, 403}; !slices.Equal(got, want) {
		t.Errorf("with a key that is good for team/: %v, want %v", got, want)
	}
	if w := as(t, s, ann, "DELETE", wire.Base+"/users/ann/keys/"+k.ID, ""); w.Code != 200 {
		t.Fatalf("DELETE = %d %s", w.Code, w.Body)
	}
	_, code = refreshed()
	if got := []int{upload(who, "team/app"), upload(answer.Token, "team/app"), upload(again, "team/app"), code}; !slices.Equal(got, []int{401, 401, 401, 401}) {
		t.Errorf("after its end: %v", got)
	}
}

// TestOwnPassword lets users change their password, who have to know the old one.
func TestOwnPassword(t *testing.T) {
	htpasswd := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(htpasswd, []byte("carl:$2a$05$OGVfhND3179VrSu5QM.a2O9SQxCctsJa/iYcX/OyNJO6UgPK7rc0m\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, _ := people(t, func(c *Config) { c.Htpasswd = htpasswd })
	k := key(t, s, bob, "~", `{}`).Secret
	for _, tc := range []struct {
		name, who, user, old, fresh string
		status                      int
		says                        string
	}{
		{"without the old one", bob, "~", "", "another password", 400, `"field":"password"`},
		{"with a wrong one", bob, "~", "password of ann", "another password", 400, `"field":"password"`},
		{"with a key for it", bob, "~", k, "another password", 400, `"field":"password"`},
		{"too short", bob, "~", "password of bob", "short", 400, "a password has 8"},
		{"somebody else's", bob, "ann", "password of ann", "another password", 403, "belong to another user"},
		{"of an htpasswd file", "carl:an old password", "~", "an old password", "another password", 400, "not kept by this server"},
		{"right, who came by a key", "bob:" + k, "~", "password of bob", "another password", 200, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			body := fmt.Sprintf(`{"password":%q,"new_password":%q}`, tc.old, tc.fresh)
			w := as(t, s, tc.who, "POST", wire.Base+"/users/"+tc.user+"/password", body, "Content-Type", "application/json")
			if w.Code != tc.status || !strings.Contains(w.Body.String(), tc.says) || tc.old != "" && strings.Contains(w.Body.String(), tc.old) {
				t.Errorf("POST = %d %s, want %d with %s", w.Code, w.Body, tc.status, tc.says)
			}
		})
	}
	got := []int{}
	for _, who := range []string{bob, "bob:" + k, "bob:another password"} {
		got = append(got, as(t, s, who, "GET", "/v2/", "").Code)
	}
	if !slices.Equal(got, []int{401, 401, 200}) {
		t.Errorf("then the old one, a key of before and the new one are answered %v", got)
	}
	var w *httptest.ResponseRecorder
	for i := range 30 {
		body := fmt.Sprintf(`{"password":"guess %d","new_password":"another password"}`, i)
		w = as(t, s, "bob:another password", "POST", wire.Base+"/users/~/password", body, "Content-Type", "application/json")
	}
	if w.Code != 429 || w.Header().Get("Retry-After") == "" {
		t.Errorf("after many guesses = %d %s", w.Code, w.Body)
	}
}
