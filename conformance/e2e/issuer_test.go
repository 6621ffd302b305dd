package e2e_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// issuer signs OIDC tokens, and publishes its key on a loopback address.
type issuer struct {
	*httptest.Server
	t   *testing.T
	key *ecdsa.PrivateKey
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes() // 4, X, Y
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{t: t, key: key}
	enc := base64.RawURLEncoding
	i.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if strings.HasSuffix(r.URL.Path, "/keys") {
			fmt.Fprintf(w, `{"keys":[{"kty":"EC","crv":"P-256","kid":"one","use":"sig","x":%q,"y":%q}]}`, enc.EncodeToString(point[1:33]), enc.EncodeToString(point[33:]))
			return
		}
		fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, i.URL, i.URL+"/keys")
	}))
	t.Cleanup(i.Close)
	return i
}

// config is what berth is told of the issuer.
func (i *issuer) config() string {
	return fmt.Sprintf("oidc: [{name: corp, issuer: %q, jobs: {audience: registry, require: {project: '*'}}, people: {client_id: berth}}]\n", i.URL)
}

// sign makes a token with these claims, beside those that each has.
func (i *issuer) sign(claims map[string]any) string {
	i.t.Helper()
	now := time.Now().Unix()
	all := map[string]any{"iss": i.URL, "sub": "somebody", "iat": now, "exp": now + 300}
	maps.Copy(all, claims)
	payload, err := json.Marshal(all)
	if err != nil {
		i.t.Fatal(err)
	}
	enc := base64.RawURLEncoding
	text := enc.EncodeToString([]byte(`{"alg":"ES256","typ":"JWT","kid":"one"}`)) + "." + enc.EncodeToString(payload)
	hash := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, i.key, hash[:])
	if err != nil {
		i.t.Fatal(err)
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return text + "." + enc.EncodeToString(signature)
}

// byIssuer uses the tokens of an issuer, rightly and wrongly.
func (s *secrets) byIssuer(i *issuer) {
	s.t.Helper()
	const form, jsonBody = "application/x-www-form-urlencoded", "application/json"
	token := func(what string, claims map[string]any) string {
		made := s.know(what, i.sign(claims))
		s.know("signature of "+what, made[strings.LastIndexByte(made, '.')+1:])
		return made
	}
	job := token("a job's token", map[string]any{"aud": "registry", "project": "app"})
	s.want(200, s.do("oidc+corp:"+job, "GET", "/v2/", "", ""))
	s.want(200, s.do("Bearer "+job, "GET", "/v2/", "", ""))
	var granted struct {
		Token string `json:"token"`
	}
	s.shown(s.do("oidc+corp:"+job, "GET", "/auth/token?service=berth&offline_token=true&scope=repository:team/app:pull", "", ""), &granted)
	s.know("token for a job", granted.Token)
	s.do("Bearer "+granted.Token, "GET", "/v2/team/app/tags/list", "", "")
	for what, claims := range map[string]map[string]any{
		"a token for somebody else": {"aud": "other", "project": "app"}, "a token without its claim": {"aud": "registry"},
		"an expired token": {"aud": "registry", "project": "app", "exp": 1}, "a token with a bad claim": {"aud": "registry", "project": strings.Repeat("a", 2000)},
	} {
		bad := token(what, claims)
		for _, who := range []string{"oidc+corp:" + bad, "Bearer " + bad, "oidc+other:" + bad, "ann:" + bad} {
			s.do(who, "GET", "/v2/team/app/tags/list", "", "")
			s.do(who, "GET", "/auth/token?scope=repository:team/app:pull", "", "")
			s.do(who, "GET", "/berth/v1/users", "", "")
		}
		s.do("", "POST", "/auth/token", form, "grant_type=password&username=oidc%2Bcorp&password="+bad)
		s.do("", "POST", "/berth/v1/login", jsonBody, fmt.Sprintf(`{"issuer":"corp","id_token":%q}`, bad))
	}
	id := token("an ID token", map[string]any{"aud": "berth", "preferred_username": "paul"})
	var made struct {
		Key struct{ Secret string }
	}
	s.shown(s.do("", "POST", "/berth/v1/login", jsonBody, fmt.Sprintf(`{"issuer":"corp","id_token":%q}`, id)), &made)
	key := s.know("the API key for an ID token", made.Key.Secret)
	s.want(200, s.do("corp+paul:"+key, "GET", "/v2/", "", ""))
	s.do("corp+paul:"+id, "GET", "/v2/", "", "")
	s.do("Bearer "+id, "GET", "/v2/", "", "")
	s.do("", "POST", "/berth/v1/login", jsonBody, fmt.Sprintf(`{"issuer":"corp","id_tokens":%q}`, id))
	s.do("", "POST", "/berth/v1/login", jsonBody, fmt.Sprintf(`{"issuer":%q,"id_token":"x"}`, id)) // where it does not belong
}
