package oidc

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"berth.internal/auth"
)

func TestVerify(t *testing.T) {
	f := newIssuer(t)
	f.keys = append(f.keys,
		jose.JSONWebKey{Key: ecKey, KeyID: "ec"}, jose.JSONWebKey{Key: edKey, KeyID: "ed", Use: "sig"},
		jose.JSONWebKey{Key: smallKey, KeyID: "small"}, jose.JSONWebKey{Key: otherKey, KeyID: "enc", Use: "enc"})
	s := f.issuers(nil)
	s.now.Load().byName["ci"].pause = time.Millisecond
	kid := func(id string) map[jose.HeaderKey]any { return map[jose.HeaderKey]any{"kid": id} }
	der := must(x509.MarshalPKIXPublicKey(&rsaKey.PublicKey))
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	jwk := must(jose.JSONWebKey{Key: &rsaKey.PublicKey, KeyID: "one"}.MarshalJSON())
	payload := must(json.Marshal(f.claims(nil)))
	good := f.good(nil)
	head, body, signature := split3(good)
	past, future := time.Now().Add(-time.Second).Unix(), time.Now().Add(time.Hour).Unix()
	other := newIssuer(t)

	for _, tc := range []struct {
		name, token, why string // no why: it is good
	}{
		{"good", good, ""},
		{"by another key and algorithm", sign(t, jose.ES256, ecKey, kid("ec"), f.claims(nil)), ""},
		{"EdDSA", sign(t, jose.EdDSA, edKey, kid("ed"), f.claims(nil)), ""},
		{"without a key's name", sign(t, jose.ES256, ecKey, nil, f.claims(nil)), ""},
		{"several audiences", f.good(map[string]any{"aud": []string{"other", audience}}), ""},
		{"without nbf and iat", f.good(map[string]any{"nbf": nil, "iat": nil}), ""},
		{"times with a fraction", f.good(map[string]any{"exp": float64(future) + 0.5}), ""},
		{"a clock a little ahead", f.good(map[string]any{"nbf": time.Now().Add(20 * time.Second).Unix(), "iat": time.Now().Add(20 * time.Second).Unix()}), ""},

		{"another audience", f.good(map[string]any{"aud": "https://other.test"}), `it is for the audience "https://other.test", not for "https://registry.test"`},
		{"an audience that begins alike", f.good(map[string]any{"aud": audience + ".evil"}), "it is for the audience"},
		{"no audience", f.good(map[string]any{"aud": nil}), `it is for the audience ""`},
		{"an audience of numbers", f.good(map[string]any{"aud": []any{audience, 1}}), `it is for the audience ""`},
		{"a second, better audience by another spelling", f.good(map[string]any{"aud": "other", "AUD": audience}), `it is for the audience "other"`},
		{"another issuer", f.good(map[string]any{"iss": other.URL}), "it is from"},
		{"an issuer with a slash more", f.good(map[string]any{"iss": f.URL + "/"}), "it is from"},
		{"an issuer by another spelling", f.good(map[string]any{"iss": other.URL, "Iss": f.URL}), "it is from"},
		{"signed by another issuer's key of the same name", other.forged(f), "its signature is not right"},
		{"expired", f.good(map[string]any{"exp": past}), "it has expired, at 2"},
		{"never expires", f.good(map[string]any{"exp": nil}), "it does not say when it expires"},
		{"expires at a text", f.good(map[string]any{"exp": "tomorrow"}), "its claim exp is no time"},
		{"expires beyond all time", f.good(map[string]any{"exp": 1e300}), "its claim exp is no time"},
		{"expires before all time", f.good(map[string]any{"exp": -1}), "its claim exp is no time"},
		{"expiry by another spelling", f.good(map[string]any{"exp": nil, "EXP": future}), "it does not say when it expires"},
		{"not yet valid", f.good(map[string]any{"nbf": future}), "it is not valid before 2"},
		{"not yet valid, by more than clocks differ", f.good(map[string]any{"nbf": time.Now().Add(61 * time.Second).Unix()}), "it is not valid before 2"},
		{"from the future", f.good(map[string]any{"iat": future}), "it was issued in the future"},
		{"no subject", f.good(map[string]any{"sub": nil}), "it has no subject"},
		{"a subject of lines", f.good(map[string]any{"sub": "a\nb"}), "its subject is not a text"},
		{"a long subject", f.good(map[string]any{"sub": strings.Repeat("a", 256)}), "its subject is not a text"},

		{"alg none", raw(`{"alg":"none"}`, payload, nil), "its signature is of the kind \"none\""},
		{"alg None with a signature", raw(`{"alg":"None","kid":"one"}`, payload, rsaKey), "its signature is of the kind"},
		{"no alg", raw(`{"kid":"one"}`, payload, rsaKey), "its signature is of the kind \"\""},
		{"alg twice", raw(`{"alg":"none","alg":"RS256","kid":"one"}`, payload, rsaKey), `it has the claim "alg" twice`},
		{"HS256 with the public key in PEM", sign(t, jose.HS256, publicPEM, kid("one"), f.claims(nil)), "its signature is of the kind \"HS256\""},
		{"HS256 with the public key in DER", sign(t, jose.HS256, der, kid("one"), f.claims(nil)), "its signature is of the kind \"HS256\""},
		{"HS256 with the public key as JWK", sign(t, jose.HS256, jwk, kid("one"), f.claims(nil)), "its signature is of the kind \"HS256\""},
		{"of another algorithm than its key", sign(t, jose.RS512, rsaKey, kid("one"), f.claims(nil)), "it is signed with a key that the issuer has not published"},
		{"a key of its own in the header", sign(t, jose.RS256, otherKey, map[jose.HeaderKey]any{"kid": "one", "jwk": jose.JSONWebKey{Key: &otherKey.PublicKey}}, f.claims(nil)), "its signature is not right"},
		{"a place for its keys in the header", sign(t, jose.RS256, otherKey, map[jose.HeaderKey]any{"kid": "theirs", "jku": other.URL + "/jwks"}, f.claims(nil)), "it is signed with a key that the issuer has not published"},
		{"another key by the name of one", sign(t, jose.RS256, otherKey, kid("one"), f.claims(nil)), "its signature is not right"},
		{"a key nobody knows", sign(t, jose.RS256, otherKey, kid("two"), f.claims(nil)), "it is signed with a key that the issuer has not published"},
		{"a key for something else", sign(t, jose.RS256, otherKey, kid("enc"), f.claims(nil)), "it is signed with a key that the issuer has not published"},
		{"a key that is too small", sign(t, jose.RS256, smallKey, kid("small"), f.claims(nil)), "it is signed with a key that the issuer has not published"},
		{"a header that must be understood", raw(`{"alg":"RS256","kid":"one","crit":["exp"],"exp":1}`, payload, rsaKey), "its signature is not right"},
		{"a detached payload", raw(`{"alg":"RS256","kid":"one","b64":false,"crit":["b64"]}`, payload, rsaKey), "its signature is not right"},
		{"an access token", sign(t, jose.RS256, rsaKey, map[jose.HeaderKey]any{"kid": "one", "typ": "at+jwt"}, f.claims(nil)), `it is of the type "at+jwt"`},

		{"other claims under the signature", head + "." + encode(must(json.Marshal(f.claims(map[string]any{"project_path": "prod/app"})))) + "." + signature, "its signature is not right"},
		{"another header over the signature", encode([]byte(`{"alg":"RS256","kid":"one","x":1}`)) + "." + body + "." + signature, "its signature is not right"},
		{"no signature", head + "." + body + ".", "its signature is not right"},
		{"half a signature", good[:len(good)-20], "its signature is not right"},
		{"two parts", head + "." + body, "it is not a signed JWT"},
		{"five parts, encrypted", good + ".a.b", "it is not a signed JWT"},
		{"in JSON", `{"payload":"` + body + `","protected":"` + head + `","signature":"` + signature + `"}`, "it is not a signed JWT"},
		{"with padding", head + "=." + body + "." + signature, "it is not a signed JWT"},
		{"spaces around", " " + good, "it is not a signed JWT"},
		{"nothing", "", "it is not a signed JWT"},
		{"too long", good + strings.Repeat("A", MaxToken), "it has more than 16384 bytes"},
		{"a claim twice", raw(`{"alg":"RS256","kid":"one"}`, []byte(`{"sub":"a","sub":"b"}`), rsaKey), `its claims cannot be read: it has the claim "sub" twice`},
		{"a claim by two ways", raw(`{"alg":"RS256","kid":"one"}`, []byte(`{"a":{"b":"c"},"a/b":"d"}`), rsaKey), `it has the claim "a/b" twice`},
		{"claims as a list", raw(`{"alg":"RS256","kid":"one"}`, []byte(`["sub"]`), rsaKey), "it is not a JSON object"},
		{"two objects", raw(`{"alg":"RS256","kid":"one"}`, append(slices.Clone(payload), "{}"...), rsaKey), "something follows"},
		{"not UTF-8", raw(`{"alg":"RS256","kid":"one"}`, []byte("{\"sub\":\"\xff\"}"), rsaKey), "it is not UTF-8"},
		{"a long claim", f.good(map[string]any{"ref": strings.Repeat("a", maxValue+1)}), `its claim "ref" has more than 1024 bytes`},
		{"a long name", f.good(map[string]any{strings.Repeat("a", maxKey+1): "x"}), "the name of a claim has more than 128 bytes"},
		{"many claims", f.good(many(maxClaims)), "it has more than 200 claims"},
		{"deep", f.good(map[string]any{"a": deep(6)}), "it has objects in objects more than 5 deep"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, err := s.Verify(t.Context(), "ci", tc.token)
			if tc.why == "" {
				if err != nil || a.Subject != "project_path:team/app:ref:main" || a.Claims["ci+project_path"] != "team/app" {
					t.Errorf("Verify = %+v, %v, want it to be good", a, err)
				}
				return
			}
			refused, ok := errors.AsType[*auth.RefusedError](err)
			if !ok || !errors.Is(err, auth.ErrCredentials) || !strings.Contains(refused.Error(), "the token of ci is not accepted: ") || !strings.Contains(refused.Why, tc.why) {
				t.Errorf("Verify = %+v, %v, want it refused, since %s", a, err, tc.why)
			}
		})
	}
	if other.asked.Load() > 0 {
		t.Error("a token has led to the keys of somebody else")
	}
}

// forged is a token as f makes them, signed by somebody else with a key by the same
// name.
func (f *fakeIssuer) forged(of *fakeIssuer) string {
	return sign(f.t, jose.RS256, otherKey, map[jose.HeaderKey]any{"kid": "one"}, of.claims(nil))
}

func split3(token string) (a, b, c string) {
	parts := strings.Split(token, ".")
	return parts[0], parts[1], parts[2]
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func many(n int) map[string]any {
	all := map[string]any{}
	for i := range n {
		all[fmt.Sprint("c", i)] = i
	}
	return all
}

func deep(n int) any {
	if n == 0 {
		return 1
	}
	return map[string]any{"a": deep(n - 1)}
}

func TestAdmit(t *testing.T) {
	f := newIssuer(t)
	s := f.issuers(nil)
	for _, tc := range []struct {
		name   string
		change map[string]any
		groups string
		why    string
	}{
		{"as it is", nil, "[ci+release]", ""},
		{"another branch", map[string]any{"ref_protected": "false"}, "[]", ""},
		{"a truth value", map[string]any{"ref_protected": true}, "[ci+release]", ""},
		{"a claim in a claim", map[string]any{"ref_protected": nil, "kubernetes.io": map[string]any{"namespace": "prod"}}, "[ci+k8s]", ""},
		{"not required ones", map[string]any{"namespace_path": "evil"}, "", `its claim namespace_path is "evil", which this registry does not accept`},
		{"required one is not there", map[string]any{"namespace_path": nil}, "", "it lacks the claim namespace_path"},
		{"required one is a list", map[string]any{"namespace_path": []string{"team"}}, "", "it lacks the claim namespace_path"},
		{"required one by another spelling", map[string]any{"namespace_path": nil, "Namespace_Path": "team"}, "", "it lacks the claim namespace_path"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, err := s.Verify(t.Context(), "ci", f.good(tc.change))
			if err != nil {
				t.Fatal(err)
			}
			c, err := s.Admit(a)
			if tc.why != "" {
				if !errors.Is(err, auth.ErrCredentials) || !strings.Contains(err.Error(), tc.why) {
					t.Fatalf("Admit = %+v, %v, want %s", c, err, tc.why)
				}
				return
			}
			if err != nil || c.Kind != auth.Job || c.Name != "ci+project_path:team/app:ref:main" || fmt.Sprint(c.Groups) != tc.groups || c.Claims["ci+project_id"] != "42" {
				t.Errorf("Admit = %+v, %v, want groups %s", c, err, tc.groups)
			}
			if _, plain := c.Claims["project_path"]; plain {
				t.Error("a claim does not say whose it is")
			}
		})
	}
}

func TestWhose(t *testing.T) {
	f := newIssuer(t)
	s := f.issuers(nil)
	for token, want := range map[string]string{
		f.good(nil):                        "ci",
		f.good(map[string]any{"iss": "x"}): "",
		"berth":                            "",
		"a.b.c":                            "",
		strings.Repeat("a", 1<<20):         "",
	} {
		if got := s.Whose(token); got != want {
			t.Errorf("Whose(%.20s…) = %q, want %q", token, got, want)
		}
	}
	if _, err := s.Verify(t.Context(), "nobody", f.good(nil)); !errors.Is(err, auth.ErrCredentials) || !strings.Contains(err.Error(), `knows no issuer "nobody"`) {
		t.Errorf("a token for an issuer that there is not: %v", err)
	}
}

// TestSet takes rules and issuers away from somebody who is in already.
func TestSet(t *testing.T) {
	f := newIssuer(t)
	s := f.issuers(nil)
	a, err := s.Verify(t.Context(), "ci", f.good(nil))
	if err != nil {
		t.Fatal(err)
	}
	jobs := func(require string) *Jobs {
		return &Jobs{Audience: audience, Require: map[string]string{"namespace_path": require}}
	}
	for _, tc := range []struct {
		name string
		list []Issuer
		why  string
	}{
		{"without the group", []Issuer{{Name: "ci", URL: f.URL, Jobs: jobs("team")}}, ""},
		{"another rule", []Issuer{{Name: "ci", URL: f.URL, Jobs: jobs("other")}}, "its claim namespace_path"},
		{"another audience", []Issuer{{Name: "ci", URL: f.URL, Jobs: &Jobs{Audience: "x", Require: map[string]string{"namespace_path": "team"}}}}, "its issuer and audience are none"},
		{"another name", []Issuer{{Name: "gitlab", URL: f.URL, Jobs: jobs("team")}}, "its issuer and audience are none of those"},
		{"another issuer by the name", []Issuer{{Name: "ci", URL: "https://other.test", Jobs: jobs("team")}}, "its issuer and audience are none of those"},
		{"none", nil, "its issuer and audience are none of those"},
	} {
		if err := s.Set(tc.list); err != nil {
			t.Fatal(err)
		}
		c, err := s.Admit(a)
		if tc.why == "" {
			if err != nil || len(c.Groups) > 0 {
				t.Errorf("%s: Admit = %+v, %v", tc.name, c, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), tc.why) {
			t.Errorf("%s: Admit = %+v, %v, want it refused, since %s", tc.name, c, err, tc.why)
		}
	}
	if s.Some() {
		t.Error("there are issuers, but none is configured")
	}
	if err := s.Set([]Issuer{{Name: "ci", URL: f.URL, CA: "/nonexistent", Jobs: jobs("team")}}); err == nil || s.Some() {
		t.Errorf("Set with a file that is not there: %v, and there are issuers: %v", err, s.Some())
	}
}

// refused tells that err is a final no, down that the issuer does not answer.
func outcome(err error) string {
	switch {
	case err == nil:
		return "good"
	case errors.Is(err, auth.ErrIssuer):
		return "down"
	case errors.Is(err, auth.ErrCredentials):
		return "refused"
	}
	return err.Error()
}

// clock makes the issuer's provider believe in another time.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func (s *Issuers) clocked(name string) *clock {
	c := &clock{t: time.Now()}
	s.now.Load().byName[name].now = c.now
	return c
}

// TestRotation changes the issuer's keys.
func TestRotation(t *testing.T) {
	f := newIssuer(t)
	s := f.issuers(nil)
	clock := s.clocked("ci")
	verify := func(key any, kid string) string {
		_, err := s.Verify(t.Context(), "ci", sign(t, jose.RS256, key, map[jose.HeaderKey]any{"kid": kid}, f.claims(map[string]any{"exp": time.Now().Add(24 * time.Hour).Unix()})))
		return outcome(err)
	}
	step := func(what, got, want string, asked int32) {
		t.Helper()
		if n := f.asked.Load(); got != want || n != asked {
			t.Errorf("%s: %s after asking %d times, want %s after %d", what, got, n, want, asked)
		}
	}
	step("the first token", verify(rsaKey, "one"), "good", 1)
	step("another", verify(rsaKey, "one"), "good", 1)
	f.set(func() { f.keys = append(f.keys, jose.JSONWebKey{Key: otherKey, KeyID: "two"}) })
	clock.pass(keysPause)
	step("a new key", verify(otherKey, "two"), "good", 2)
	f.set(func() { f.keys = f.keys[1:] })
	step("the old key, while it is fresh", verify(rsaKey, "one"), "good", 2)
	clock.pass(keysMost + time.Second)
	step("the old key, when it is not", verify(rsaKey, "one"), "refused", 3)

	// Nobody who makes up keys makes us ask for each.
	clock.pass(keysPause)
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() { verify(rsaKey, fmt.Sprint("made-up-", i)) })
	}
	all.Wait()
	if n := f.asked.Load(); n > 10 {
		t.Errorf("fifty made up keys: asked %d times in all", n)
	}
}

// TestFreshKeys looks for keys in the background, so that a key that the issuer has
// withdrawn is withdrawn here soon, without a wait for anybody.
func TestFreshKeys(t *testing.T) {
	f := newIssuer(t)
	s := f.issuers(nil)
	clock := s.clocked("ci")
	token := f.good(nil)
	if _, err := s.Verify(t.Context(), "ci", token); err != nil {
		t.Fatal(err)
	}
	f.set(func() { f.keys = []jose.JSONWebKey{{Key: otherKey, KeyID: "two"}} })
	clock.pass(keysFresh + time.Second)
	p := s.now.Load().byName["ci"].provider
	if _, err := p.VerifySignature(t.Context(), token); err != nil {
		t.Fatalf("with keys that are not quite fresh: %v", err)
	}
	p.working.Wait()
	clock.pass(keysPause)
	if _, err := p.VerifySignature(t.Context(), token); outcome(err) != err.Error() || !strings.Contains(err.Error(), "not published") {
		t.Errorf("with a key that was withdrawn: %v", err)
	}
}

// TestDown has issuers that do not answer, or wrongly: that is no reason to doubt a
// token, nor to wait for long.
func TestDown(t *testing.T) {
	answer := func(body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) }
	}
	large := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"issuer":"`)
		for range 64 {
			fmt.Fprint(w, strings.Repeat("a", 64<<10))
		}
	}
	for _, tc := range []struct {
		name string
		set  func(f *fakeIssuer)
		says string
	}{
		{"gone", func(f *fakeIssuer) { f.Close() }, "connection refused"},
		{"failing", func(f *fakeIssuer) {
			f.before = func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", 500) }
		}, "500"},
		{"something else", func(f *fakeIssuer) { f.before = answer("<html>") }, "failed to"},
		{"a large answer", func(f *fakeIssuer) { f.before = large }, "more than 1048576 bytes"},
		{"somebody else", func(f *fakeIssuer) { f.meta["issuer"] = "https://evil.test" }, "did not match"},
		{"keys by plain HTTP elsewhere", func(f *fakeIssuer) { f.meta["jwks_uri"] = "http://keys.test/jwks" }, "keys must come by https"},
		{"keys nowhere", func(f *fakeIssuer) { f.meta["jwks_uri"] = "" }, "does not say where its keys are"},
		{"keys in a file", func(f *fakeIssuer) { f.meta["jwks_uri"] = "file:///etc/passwd" }, "does not say where its keys are"},
		{"keys missing", func(f *fakeIssuer) { f.meta["jwks_uri"] = f.URL + "/nothing" }, "404"},
		{"no keys", func(f *fakeIssuer) { f.published = map[string]any{"keys": []any{}} }, "publishes no key"},
		{"only keys that are not safe", func(f *fakeIssuer) {
			f.published = map[string]any{"keys": []any{map[string]any{"kty": "oct", "k": "c2VjcmV0"}, map[string]any{"kty": "unheard"}, 1}}
		}, "publishes no key"},
		{"too many keys", func(f *fakeIssuer) { f.published = map[string]any{"keys": make([]any, maxKeys+1)} }, "more than 100 keys"},
		{"redirects to plain HTTP elsewhere", func(f *fakeIssuer) {
			f.before = func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "http://keys.test/", http.StatusFound)
			}
		}, "keys must come by https"},
		{"redirects in a circle", func(f *fakeIssuer) {
			f.before = func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }
		}, "redirects more than three times"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newIssuer(t)
			s := f.issuers(nil)
			token := f.good(nil)
			f.set(func() { tc.set(f) })
			for range 3 {
				_, err := s.Verify(t.Context(), "ci", token)
				if outcome(err) != "down" || !strings.Contains(err.Error(), tc.says) || len(err.Error()) > 500 {
					t.Errorf("Verify: %v, want it to say that the issuer is down: %s", err, tc.says)
				}
			}
			if trouble := s.Trouble()["ci"]; outcome(trouble) != "down" {
				t.Errorf("Trouble = %v", trouble)
			}
		})
	}
}

// TestDownLater has an issuer that goes away when its keys are known, and comes
// back.
func TestDownLater(t *testing.T) {
	f := newIssuer(t)
	s := f.issuers(nil)
	clock := s.clocked("ci")
	verify := func(kid string) string {
		_, err := s.Verify(t.Context(), "ci", sign(t, jose.RS256, rsaKey, map[jose.HeaderKey]any{"kid": kid}, f.claims(map[string]any{"exp": time.Now().Add(24 * time.Hour).Unix()})))
		return outcome(err)
	}
	step := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	step("before", verify("one"), "good")
	f.set(func() { f.before = func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", 500) } })
	clock.pass(keysPause)
	step("a key that is known", verify("one"), "good")
	step("one that is not", verify("two"), "down")
	step("the known one again", verify("one"), "good")
	clock.pass(keysMost + time.Second)
	step("the known one an hour later", verify("one"), "down")
	f.set(func() { f.before = nil })
	step("right after it is back", verify("one"), "down")
	clock.pass(failPause)
	step("soon after", verify("one"), "good")
	if trouble := s.Trouble(); len(trouble) > 0 {
		t.Errorf("Trouble = %v", trouble)
	}
}

// TestSlow has an issuer that takes for ever: who asks it waits as long as he
// likes, and nobody else does.
func TestSlow(t *testing.T) {
	release := make(chan struct{})
	slow, quick := newIssuer(t), newIssuer(t)
	slow.set(func() { slow.before = func(http.ResponseWriter, *http.Request) { <-release } })
	require := map[string]string{"ref": "main"}
	s, err := New([]Issuer{
		{Name: "slow", URL: slow.URL, Jobs: &Jobs{Audience: audience, Require: require}},
		{Name: "quick", URL: quick.URL, Jobs: &Jobs{Audience: audience, Require: require}},
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Verify(ctx, "slow", slow.good(nil)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Verify with a slow issuer: %v", err)
	}
	if _, err := s.Verify(t.Context(), "quick", quick.good(nil)); err != nil {
		t.Errorf("Verify with another: %v", err)
	}
	s.Close() // does not wait for it either
	close(release)
	if _, err := s.Verify(t.Context(), "quick", quick.good(nil)); outcome(err) != "refused" {
		t.Errorf("Verify after Close: %v", err)
	}
}

// TestSetMeanwhile changes the configuration under who asks.
func TestSetMeanwhile(t *testing.T) {
	f := newIssuer(t)
	s := f.issuers(nil)
	with := []Issuer{s.now.Load().byName["ci"].Issuer}
	token := f.good(nil)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for ctx.Err() == nil {
				a, err := s.Verify(ctx, "ci", token)
				if err == nil {
					_, err = s.Admit(a)
				}
				if got := outcome(err); got != "good" && got != "refused" && got != "down" && ctx.Err() == nil {
					t.Errorf("Verify = %v", err)
				}
			}
		})
	}
	for n := range 100 {
		if err := s.Set([][]Issuer{nil, with}[n%2]); err != nil {
			t.Error(err)
		}
	}
	if a, err := s.Verify(t.Context(), "ci", token); err != nil || a.Issuer != "ci" {
		t.Errorf("after all: %+v, %v", a, err)
	}
	cancel()
	all.Wait()
}

// otherCA makes the certificate of a CA that has signed nothing.
func otherCA(t *testing.T) []byte {
	t.Helper()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, ecKey.Public(), ecKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestCA(t *testing.T) {
	f := &fakeIssuer{t: t, meta: map[string]any{}, keys: []jose.JSONWebKey{{Key: rsaKey, KeyID: "one"}}}
	f.Server = httptest.NewUnstartedServer(f)
	f.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	f.StartTLS()
	t.Cleanup(f.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	token := f.good(nil)
	s := f.issuers(func(i *Issuer) { i.CA = ca })
	if _, err := s.Verify(t.Context(), "ci", token); err != nil {
		t.Errorf("with the issuer's CA: %v", err)
	}
	with := []Issuer{s.now.Load().byName["ci"].Issuer}
	asked := f.asked.Load()
	for _, tc := range []struct {
		name string
		file []byte
		want string
	}{
		{"the same file", nil, "good"},
		{"another CA in it", otherCA(t), "down"},
	} {
		if tc.file != nil {
			if err := os.WriteFile(ca, tc.file, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Set(with); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Verify(t.Context(), "ci", token); outcome(err) != tc.want || f.asked.Load() != asked {
			t.Errorf("%s: %v, want %s", tc.name, err, tc.want)
		}
	}
	if _, err := f.issuers(nil).Verify(t.Context(), "ci", token); outcome(err) != "down" {
		t.Errorf("without: %v", err)
	}
}

// TestKeysFile has an issuer that nobody can ask.
func TestKeysFile(t *testing.T) {
	f := newIssuer(t)
	keys := filepath.Join(t.TempDir(), "keys.jwks")
	write := func(set any) {
		t.Helper()
		if err := os.WriteFile(keys, must(json.Marshal(set)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	one := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{f.keys[0].Public()}}
	write(one)
	s := f.issuers(func(i *Issuer) { i.URL, i.Keys = "https://kubernetes.default.svc", keys })
	clock := s.clocked("ci")
	verify := func(key any, kid string) string {
		_, err := s.Verify(t.Context(), "ci", sign(t, jose.RS256, key, map[jose.HeaderKey]any{"kid": kid}, f.claims(map[string]any{
			"iss": "https://kubernetes.default.svc", "exp": time.Now().Add(24 * time.Hour).Unix(),
		})))
		return outcome(err)
	}
	step := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	step("a key of the file", verify(rsaKey, "one"), "good")
	step("another", verify(otherKey, "two"), "refused")
	clock.pass(keysPause)
	one.Keys = append(one.Keys, jose.JSONWebKey{Key: &otherKey.PublicKey, KeyID: "two"})
	write(one)
	step("another, when it is in the file", verify(otherKey, "two"), "good")
	write("nothing")
	if err := s.Set([]Issuer{{Name: "new", URL: "https://new.test", Keys: keys, Jobs: &Jobs{Audience: "a", Require: map[string]string{"sub": "**"}}}}); err == nil || !strings.HasPrefix(err.Error(), "oidc[0].keys: ") {
		t.Errorf("Set with a damaged file: %v", err)
	}
	clock.pass(keysMost + time.Second)
	step("a damaged file", verify(rsaKey, "one"), "down")
	if f.asked.Load() > 0 {
		t.Error("the issuer was asked")
	}
}

func TestCheck(t *testing.T) {
	good := func() Issuer {
		return Issuer{Name: "ci", URL: "https://ci.test", Jobs: &Jobs{Audience: "a", Require: map[string]string{"ref": "ma*"}}}
	}
	for _, tc := range []struct {
		name   string
		change func(*Issuer)
		want   string // empty: it is good
	}{
		{"good", func(*Issuer) {}, ""},
		{"on this machine", func(i *Issuer) { i.URL = "http://127.0.0.1:8080/realms/x" }, ""},
		{"a pattern with slashes", func(i *Issuer) { i.Jobs.Require["sub"] = "repo:acme/*:**" }, `oidc[0].jobs.require: sub: "repo:acme/*:**": ** stands alone`},
		{"no name", func(i *Issuer) { i.Name = "" }, `oidc[0].name: "" is not a name`},
		{"a name of berth's own", func(i *Issuer) { i.Name = "robot" }, "oidc[0].name: robot+ begins names of berth's own"},
		{"a name with a slash", func(i *Issuer) { i.Name = "a/b" }, `oidc[0].name: "a/b" is not a name`},
		{"no URL", func(i *Issuer) { i.URL = "" }, "oidc[0].issuer: must be the issuer's URL"},
		{"plain HTTP", func(i *Issuer) { i.URL = "http://ci.test" }, "oidc[0].issuer: http://ci.test: keys must come by https"},
		{"a host alone", func(i *Issuer) { i.URL = "ci.test" }, "oidc[0].issuer: \"ci.test\" is not a URL"},
		{"a query", func(i *Issuer) { i.URL = "https://ci.test?a" }, "oidc[0].issuer: an issuer's URL has neither"},
		{"plain HTTP with keys from a file", func(i *Issuer) { i.URL, i.Keys = "http://ci.test", "keys" }, ""},
		{"keys from a file, and a CA", func(i *Issuer) { i.Keys, i.CA = "keys", "ca" }, "oidc[0].keys: is for jobs of an issuer that is not asked"},
		{"for nobody", func(i *Issuer) { i.Jobs = nil }, "oidc[0]: ci is for nobody"},
		{"no audience", func(i *Issuer) { i.Jobs.Audience = "" }, "oidc[0].jobs.audience: must say"},
		{"everybody's jobs", func(i *Issuer) { i.Jobs.Require = nil }, "oidc[0].jobs.require: must name a claim"},
		{"a claim without a pattern", func(i *Issuer) { i.Jobs.Require["sub"] = "" }, "oidc[0].jobs.require: sub needs a pattern"},
		{"half a pattern", func(i *Issuer) { i.Jobs.Require["sub"] = "{a" }, `oidc[0].jobs.require: sub: "{a": braces`},
		{"a claim with a space", func(i *Issuer) { i.Jobs.Require["a b"] = "x" }, `oidc[0].jobs.require: "a b" is not the name of a claim`},
		{"a group without claims", func(i *Issuer) { i.Jobs.Groups = []Group{{Name: "g"}} }, "oidc[0].jobs.groups[0].claims: must name"},
		{"a group without a name", func(i *Issuer) { i.Jobs.Groups = []Group{{Claims: map[string]string{"a": "b"}}} }, "oidc[0].jobs.groups[0].name: \"\" is not"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			i := good()
			tc.change(&i)
			err := Check([]Issuer{i})
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tc.want)) {
				t.Errorf("Check = %v, want %q", err, tc.want)
			}
		})
	}
	if err := Check([]Issuer{good(), good()}); err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("an issuer twice: %v, want a line for its name and one for its URL", err)
	}
}

// FuzzDecode holds the reader of tokens against encoding/json: of what it takes,
// both must find the same texts.
func FuzzDecode(f *testing.F) {
	for _, payload := range []string{
		`{"iss":"a","sub":"b","aud":"c","exp":1}`, `{"sub":"b","aud":["c","d"],"x":{"y":{"z":true}},"n":[1],"f":1.5e3,"z":null}`,
		`{"sub":"a","a":{"b":1},"a/b":2}`, `{"sub":"\u00e9\ud800"}`, `{"sub":"b"`, `[]`, ``, `{"sub":1}`, `{"sub":"b","exp":-1}`,
	} {
		f.Add([]byte(payload))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		tok, err := decode(raw(`{"alg":"RS256"}`, payload, nil) + "c2ln")
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\x00") {
				t.Errorf("the reason %q is no line", err)
			}
			return
		}
		var want map[string]any
		if err := json.Unmarshal(payload, &want); err != nil {
			t.Fatalf("decode takes %q, which is no JSON: %v", payload, err)
		}
		for key, value := range want {
			text, ok := value.(string)
			if got, has := tok.claims[key]; ok && got != text || !ok && has && got == "" {
				t.Errorf("decode(%q): the claim %q is %q, want %v", payload, key, got, value)
			}
		}
		if tok.subject == "" || len(tok.claims) > maxClaims {
			t.Errorf("decode(%q) = %+v", payload, tok)
		}
	})
}

// FuzzKeys takes no key that is not public, asymmetric and long enough, whatever an
// issuer publishes.
func FuzzKeys(f *testing.F) {
	one := must(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
		{Key: &rsaKey.PublicKey, KeyID: "one", Use: "sig"}, {Key: ecKey.Public(), Algorithm: "ES256"}, {Key: smallKey.Public()},
	}}.Keys[0].MarshalJSON())
	f.Add([]byte(`{"keys":[` + string(one) + `]}`))
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"c2VjcmV0"},{"kty":"EC","crv":"P-256","x":"AA","y":"AA"},{"kty":"OKP","crv":"Ed25519","x":""}]}`))
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"AQAB","e":"AQ"},{"kty":"EC","crv":"P-256","x":"AA","y":"AA","d":"AA"},1,null]}`))
	f.Add(must(json.Marshal(map[string]any{"keys": []any{jose.JSONWebKey{Key: edKey, KeyID: "private"}}})))
	f.Fuzz(func(t *testing.T, text []byte) {
		keys, err := parseKeys(text)
		if (err == nil) != (len(keys) > 0) || len(keys) > maxKeys {
			t.Fatalf("parseKeys(%q) = %d keys, %v", text, len(keys), err)
		}
		for _, key := range keys {
			if !key.IsPublic() || !key.Valid() || key.Use != "" && key.Use != "sig" {
				t.Errorf("parseKeys(%q) takes %+v", text, key)
			}
			if k, ok := key.Key.(*rsa.PublicKey); ok && k.N.BitLen() < minRSA {
				t.Errorf("parseKeys(%q) takes a key of %d bits", text, k.N.BitLen())
			}
		}
	})
}
