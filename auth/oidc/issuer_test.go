package oidc

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// fakeIssuer publishes keys on a loopback address, and signs with them.
type fakeIssuer struct {
	*httptest.Server
	t *testing.T

	mu        sync.Mutex
	keys      []jose.JSONWebKey
	published any              // instead of keys, if it is not nil
	meta      map[string]any   // instead of what is usual
	before    http.HandlerFunc // may answer instead
	asked     atomic.Int32     // for its keys
}

func newIssuer(t *testing.T) *fakeIssuer {
	t.Helper()
	f := &fakeIssuer{t: t, meta: map[string]any{}}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	f.keys = []jose.JSONWebKey{{Key: rsaKey, KeyID: "one", Algorithm: "RS256", Use: "sig"}}
	return f
}

func (f *fakeIssuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	before := f.before
	f.mu.Unlock()
	if before != nil {
		before(w, r)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var answer any
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		meta := map[string]any{"issuer": f.URL, "jwks_uri": f.URL + "/jwks"}
		maps.Copy(meta, f.meta)
		answer = meta
	case "/jwks":
		f.asked.Add(1)
		set := jose.JSONWebKeySet{}
		for _, k := range f.keys {
			set.Keys = append(set.Keys, k.Public())
		}
		if answer = set; f.published != nil {
			answer = f.published
		}
	default:
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) // the test sees what is missing
}

func (f *fakeIssuer) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// Keys are made once: of RSA that takes long.
var (
	rsaKey   = must(rsa.GenerateKey(rand.Reader, 2048))
	otherKey = must(rsa.GenerateKey(rand.Reader, 2048))
	smallKey = must(rsa.GenerateKey(rand.Reader, 1024))
	ecKey    = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	edKey    = must2(ed25519.GenerateKey(rand.Reader))
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func must2[S, T any](_ S, v T, err error) T { return must(v, err) }

// claims are those of a good token, with changes; a value of nil takes one away.
func (f *fakeIssuer) claims(change map[string]any) map[string]any {
	now := time.Now()
	all := map[string]any{
		"iss": f.URL, "sub": "project_path:team/app:ref:main", "aud": audience, "exp": now.Add(time.Minute).Unix(), "nbf": now.Unix(), "iat": now.Unix(),
		"project_path": "team/app", "namespace_path": "team", "ref": "main", "ref_protected": "true", "project_id": 42, "user_access_level": nil,
		"kubernetes.io": map[string]any{"namespace": "ci", "pod": map[string]any{"name": "p"}}, "groups": []string{"a", "b"},
	}
	for key, value := range change {
		if all[key] = value; value == nil {
			delete(all, key)
		}
	}
	return all
}

const audience = "https://registry.test"

// sign makes a token of claims with a key of one's own.
func sign(t *testing.T, alg jose.SignatureAlgorithm, key any, head map[jose.HeaderKey]any, claims any) string {
	t.Helper()
	opts := &jose.SignerOptions{ExtraHeaders: head}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, opts)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign(must(json.Marshal(claims)))
	if err != nil {
		t.Fatal(err)
	}
	return must(jws.CompactSerialize())
}

// good makes a token that is right, but for changes of its claims.
func (f *fakeIssuer) good(change map[string]any) string {
	f.t.Helper()
	return sign(f.t, jose.RS256, rsaKey, map[jose.HeaderKey]any{"kid": "one", "typ": "JWT"}, f.claims(change))
}

// raw puts parts together, and signs them with RS256 if key is not nil.
func raw(head string, payload []byte, key *rsa.PrivateKey) string {
	enc := base64.RawURLEncoding
	text := enc.EncodeToString([]byte(head)) + "." + enc.EncodeToString(payload)
	if key == nil {
		return text + "."
	}
	h := crypto.SHA256.New()
	_, _ = h.Write([]byte(text)) // never fails
	return text + "." + enc.EncodeToString(must(rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, h.Sum(nil))))
}

// issuers are those of a registry that knows f as ci.
func (f *fakeIssuer) issuers(change func(*Issuer)) *Issuers {
	f.t.Helper()
	one := Issuer{Name: "ci", URL: f.URL, Jobs: &Jobs{
		Audience: audience, Require: map[string]string{"namespace_path": "team"},
		Groups: []Group{
			{Name: "release", Claims: map[string]string{"project_path": "team/*", "ref_protected": "true"}},
			{Name: "k8s", Claims: map[string]string{"kubernetes.io/namespace": "prod"}},
		},
	}}
	if change != nil {
		change(&one)
	}
	s, err := New([]Issuer{one}, slog.New(slog.DiscardHandler))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(s.Close)
	return s
}
