package server

import (
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth.internal/auth/oidc"
	"berth.internal/internal/config"
)

// TestEveryKeyIsDecided sees to it that of each key somebody has thought about what
// happens when it changes.
func TestEveryKeyIsDecided(t *testing.T) {
	restart := []string{
		"listen", "tls.", "data", "anonymous", "policy", "htpasswd", "admin_password_file", "secret_key_file", "ldap.", "reserve", "upload_expiry",
		"collect.untagged", "collect.dangling",
	}
	keys := config.Keys(DefaultConfig())
	for _, key := range keys {
		waits := slices.ContainsFunc(restart, func(r string) bool { return key == r || strings.HasSuffix(r, ".") && strings.HasPrefix(key, r) })
		if follows := slices.Contains(followed(), key); follows == waits {
			t.Errorf("%s is followed: %v, needs a restart: %v; decide, and say so here and in the design page", key, follows, waits)
		}
	}
	for _, key := range followed() {
		if !slices.Contains(keys, key) {
			t.Errorf("there is no key %s", key)
		}
	}
}

// TestReload changes the configuration of a server that runs.
func TestReload(t *testing.T) {
	next, broken := DefaultConfig(), error(nil)
	s, _ := recorded(t, func(c *Config) {
		dir := c.Audit.Dir
		next.Audit.Dir = dir
		c.Reread = func() (Config, []string, error) { return next, []string{"socket"}, broken }
	})
	reload := func(who string) *httptest.ResponseRecorder {
		return as(t, s, who, "POST", "/berth/v1/config/reload", "")
	}
	if w := tagged(t, s, ann, "team/app", "v1", "a"); w.Code != 201 {
		t.Fatal(w.Code, w.Body)
	}
	next.ImmutableTags = []TagPattern{{Repositories: "team/**", Tags: "v*"}}
	next.MaxManifest, next.TrustedProxies, next.Collect.Rate, next.Scrub.Rate = 64<<10, []string{"192.0.2.1"}, 7, 1<<20
	next.Listen, next.Collect.Untagged = "127.0.0.1:1", true
	const want = `{"changed":["trusted_proxies","max_manifest","immutable_tags","collect.rate","scrub.rate"],"need_restart":["socket","listen","collect.untagged"]}` + "\n"
	if w := reload(bob); w.Code != 403 {
		t.Errorf("bob reloads: %d %s", w.Code, w.Body)
	}
	if w := tagged(t, s, ann, "team/app", "v1", "b"); w.Code != 201 {
		t.Errorf("before the reload: %d %s", w.Code, w.Body)
	}
	if w := reload(ann); w.Code != 200 || w.Body.String() != want {
		t.Errorf("POST /config/reload = %d %s, want %s", w.Code, w.Body, want)
	}
	if w := tagged(t, s, ann, "team/app", "v1", "c"); w.Code != 409 {
		t.Errorf("an immutable tag moves: %d %s", w.Code, w.Body)
	}
	if w := tagged(t, s, ann, "team/app", "large", strings.Repeat("x", 70<<10)); w.Code != 413 {
		t.Errorf("a manifest of 70 KiB: %d", w.Code)
	}
	if now := s.now.Load(); now.Listen != "127.0.0.1:5000" || now.Collect.Untagged || s.cfg.Listen != now.Listen {
		t.Errorf("what needs a restart is in force: %+v", now.Config)
	}
	w := as(t, s, ann, "GET", "/berth/v1/config", "", "X-Forwarded-For", "198.51.100.9")
	for _, part := range []string{`"max_manifest":"64KiB"`, `"listen":"127.0.0.1:5000"`, `"need_restart":["socket","listen","collect.untagged"]`} {
		if !strings.Contains(w.Body.String(), part) {
			t.Errorf("GET /config = %d %s, lacks %s", w.Code, w.Body, part)
		}
	}

	broken = errors.New("berth.yaml: line 3: grace: must be positive")
	next.MaxManifest = 4 << 20
	if w := reload(ann); w.Code != 400 || !strings.Contains(w.Body.String(), "line 3: grace") {
		t.Errorf("a broken configuration = %d %s", w.Code, w.Body)
	}
	if w := tagged(t, s, ann, "team/app", "large", strings.Repeat("x", 70<<10)); w.Code != 413 {
		t.Errorf("with a broken configuration the limit is another one: %d", w.Code)
	}
	if w := as(t, s, "", "GET", "/readyz", ""); w.Code != 200 || !strings.Contains(w.Body.String(), "configuration") {
		t.Errorf("GET /readyz = %d %s", w.Code, w.Body)
	}
	broken = nil
	s.Hangup(t.Context())
	if w := tagged(t, s, ann, "team/app", "large", strings.Repeat("x", 70<<10)); w.Code != 201 {
		t.Errorf("after the repair: %d %s", w.Code, w.Body)
	}
	if w := as(t, s, "", "GET", "/readyz", ""); w.Body.Len() > 0 {
		t.Errorf("GET /readyz = %s", w.Body)
	}
	after := ""
	var told []string
	for _, r := range news(t, s, &after) {
		if r.Action == "config.reload" {
			told = append(told, fmt.Sprintf("%s %s %s", r.Who, r.Decision, r.Detail))
		}
	}
	if got := strings.Join(told, "\n"); got != "user:bob denied \nuser:ann allowed trusted_proxies max_manifest immutable_tags collect.rate scrub.rate\nuser:ann failed \nserver allowed max_manifest" {
		t.Errorf("recorded:\n%s", got)
	}
}

// TestReloadIssuers takes an issuer away from who is in by it, and gives it back.
func TestReloadIssuers(t *testing.T) {
	i := newIssuer(t)
	next := DefaultConfig()
	s, _ := people(t, func(c *Config) { c.Reread = func() (Config, []string, error) { return next, nil, nil } })
	t.Cleanup(s.issuers.Close)
	job := i.token(t, "team/app", time.Hour)
	for _, step := range []struct {
		name    string
		issuers []oidc.Issuer
		reload  int
		status  int // of the job
	}{
		{"none", nil, 200, 401},
		{"one", i.config(), 200, 200},
		{"for people only", i.forPeople(0), 200, 401},
		{"one again", i.config(), 200, 200},
		{"with a file that is not there", []oidc.Issuer{{Name: "gitlab", URL: i.URL, CA: "/nonexistent", Jobs: i.config()[0].Jobs}}, 400, 200},
		{"none again", nil, 200, 401},
	} {
		next.OIDC = step.issuers
		if w := as(t, s, ann, "POST", "/berth/v1/config/reload", ""); w.Code != step.reload {
			t.Errorf("%s: the reload = %d %s", step.name, w.Code, w.Body)
		}
		if w := as(t, s, "oidc+gitlab:"+job, "GET", "/v2/", ""); w.Code != step.status {
			t.Errorf("%s: the job = %d %s, want %d", step.name, w.Code, w.Body, step.status)
		}
	}
}

// TestCheckFiles finds what is wrong with the files that a configuration names.
func TestCheckFiles(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad")
	if err := os.WriteFile(bad, []byte("rules: [{subject: x}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := DefaultConfig()
	if err := c.CheckFiles(); err != nil {
		t.Error(err)
	}
	c.Policy, c.TLS.Cert, c.TLS.Key, c.TLS.ClientCA, c.Htpasswd = bad, bad, bad, bad, filepath.Join(dir, "none")
	c.OIDC = []oidc.Issuer{{Name: "a", URL: "https://a.test", CA: bad}, {Name: "b", URL: "https://b.test", Keys: bad}}
	c.ShutdownTimeout = time.Second
	err := c.CheckFiles()
	if err == nil {
		t.Fatal("nothing is wrong")
	}
	for _, want := range []string{"policy: ", "tls.cert: ", "tls.client_ca: ", "htpasswd: open", "oidc[0].ca: ", "oidc[1].keys: "} {
		if !strings.Contains("\n"+err.Error(), "\n"+want) {
			t.Errorf("CheckFiles() = %v, lacks %s", err, want)
		}
	}
}
