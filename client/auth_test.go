package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"berth.internal/client/registrytest"
	"github.com/opencontainers/go-digest"
)

const secret = "open-sesame"

// tokenService hands out tokens that are their scope. It takes user ann with
// the secret, or the secret as an identity token.
type tokenService struct {
	postOnly bool
	asked    atomic.Int64
}

func (s *tokenService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.asked.Add(1)
	user, password, ok := r.BasicAuth()
	if s.postOnly && r.Method == http.MethodGet {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if err := r.ParseForm(); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	switch {
	case r.Method == http.MethodPost && r.PostForm.Get("grant_type") == "password":
		user, password, ok = r.PostForm.Get("username"), r.PostForm.Get("password"), true
	case r.Method == http.MethodPost:
		user, password, ok = "ann", r.PostForm.Get("refresh_token"), true
	}
	if ok && (user != "ann" || password != secret) {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{ // the client reads it
		"token": "for/" + strings.ReplaceAll(strings.Join(r.Form["scope"], " "), " ", "/"), "expires_in": 300,
	})
}

// guarded is a registry that wants a token for the repository that the path
// names, and forgets all tokens once when told to.
func guarded(t *testing.T, service http.Handler) (address string, forget *atomic.Bool) {
	tokens := httptest.NewServer(service)
	t.Cleanup(tokens.Close)
	forget = new(atomic.Bool)
	return proxy(t, registrytest.Docker(t), func(w http.ResponseWriter, r *http.Request) bool {
		scope := "repository:a:pull"
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			scope += ",push"
		}
		if strings.Contains(r.Header.Get("Authorization"), "Bearer for/"+scope) && !forget.CompareAndSwap(true, false) {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="s",scope=%q`, tokens.URL+"/token", scope))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}), forget
}

func TestTokens(t *testing.T) {
	for _, tc := range []struct {
		name           string
		service        *tokenService
		user, password string
	}{
		{"anonymous", new(tokenService), "", ""},
		{"get", new(tokenService), "ann", secret},
		{"post", &tokenService{postOnly: true}, "ann", secret},
		{"identity token", new(tokenService), identityToken, secret},
	} {
		t.Run(tc.name, func(t *testing.T) {
			address, forget := guarded(t, tc.service)
			r := dial(t, Options{Registry: address, Username: tc.user, Password: tc.password})
			desc, b := content(300_000)
			if _, err := r.PushBlob(t.Context(), "a", desc, opener(b), PushOptions{}); err != nil {
				t.Fatal(err)
			}
			tc.service.asked.Store(0)
			var all sync.WaitGroup
			for range 10 {
				all.Go(func() {
					if _, ok, err := r.HasBlob(t.Context(), "a", desc.Digest); !ok || err != nil {
						t.Errorf("HasBlob = %v, %v", ok, err)
					}
				})
			}
			all.Wait()
			if n := tc.service.asked.Load(); n > 2 { // POST after GET
				t.Errorf("10 requests at once asked for %d tokens", n)
			}
			forget.Store(true)
			desc, b = content(300_001)
			if _, err := r.PushBlob(t.Context(), "a", desc, opener(b), PushOptions{}); err != nil {
				t.Errorf("PushBlob when the token has expired = %v", err)
			}
		})
	}
}

func TestWrongPassword(t *testing.T) {
	basic := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "ann" || password != secret {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer basic.Close()
	bearer, _ := guarded(t, new(tokenService))
	for _, address := range []string{basic.URL, bearer} {
		const wrong = "wrong-but-secret"
		_, err := dial(t, Options{Registry: address, Username: "ann", Password: wrong}).Resolve(t.Context(), "a", "1")
		if !errors.Is(err, ErrUnauthorized) || !strings.Contains(err.Error(), "does not accept the password of ann") || strings.Contains(err.Error(), wrong) {
			t.Errorf("Resolve with a wrong password = %v", err)
		}
	}
	if err := dial(t, Options{Registry: basic.URL, Username: "ann", Password: secret}).Ping(t.Context()); err != nil {
		t.Errorf("Ping with the right password = %v", err)
	}
	err := dial(t, Options{Registry: basic.URL}).Ping(t.Context())
	if !errors.Is(err, ErrUnauthorized) || !strings.Contains(err.Error(), "log in with") {
		t.Errorf("Ping without a password = %v", err)
	}
}

// TestPasswordFile changes the password while a client uses it.
func TestPasswordFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, bad := range []string{"", "\n", "two\nlines\n", strings.Repeat("x", maxPassword+1)} {
		write(bad)
		if _, err := New(Options{Registry: "localhost", Username: "ann", PasswordFile: file}); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("New with a file of %d bytes = %v, want an error that names it", len(bad), err)
		}
	}
	var want atomic.Value
	want.Store("first")
	basic := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "ann" || password != want.Load() {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer basic.Close()
	service := &tokenService{}
	bearer, forget := guarded(t, service)
	write("first\n")
	byBasic := dial(t, Options{Registry: basic.URL, Username: "ann", PasswordFile: file})
	if err := byBasic.Ping(t.Context()); err != nil {
		t.Fatalf("Ping = %v", err)
	}
	want.Store("second")
	if err := byBasic.Ping(t.Context()); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("Ping with an old password = %v, want ErrUnauthorized", err)
	}
	write("second\r\n")
	if err := byBasic.Ping(t.Context()); err != nil {
		t.Errorf("Ping after the file has changed = %v", err)
	}
	write("wrong")
	byToken := dial(t, Options{Registry: bearer, Username: "ann", PasswordFile: file})
	desc, _ := content(10)
	if _, _, err := byToken.HasBlob(t.Context(), "a", desc.Digest); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("HasBlob with a wrong password = %v, want ErrUnauthorized", err)
	}
	write(secret)
	if _, _, err := byToken.HasBlob(t.Context(), "a", desc.Digest); err != nil {
		t.Errorf("HasBlob after the file has changed = %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	forget.Store(true)
	if _, _, err := byToken.HasBlob(t.Context(), "a", desc.Digest); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("HasBlob without the file = %v, want an error that names it", err)
	}
}

// TestAs asks one registry as two people at the same time.
func TestAs(t *testing.T) {
	address, _ := guarded(t, new(tokenService))
	wrong := dial(t, Options{Registry: address, Username: "bob", Password: "wrong"})
	right := wrong.As("ann", secret)
	desc, _ := content(10)
	if _, _, err := right.HasBlob(t.Context(), "a", desc.Digest); err != nil {
		t.Errorf("HasBlob as ann = %v", err)
	}
	if _, _, err := wrong.HasBlob(t.Context(), "a", desc.Digest); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("HasBlob as bob = %v, want ErrUnauthorized", err)
	}
}

// TestRedirectKeepsSecrets sends blobs from another port, as a registry that
// keeps them in an object store does.
func TestRedirectKeepsSecrets(t *testing.T) {
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("the password went to another host")
		}
		if r.URL.Query().Get("sign") == "fail" {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		_, _ = io.WriteString(w, "blob") // the client reads it
	}))
	defer store.Close()
	signature := "ok"
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.Redirect(w, r, store.URL+"/x?sign="+signature, http.StatusTemporaryRedirect)
	}))
	defer srv.Close()
	r := dial(t, Options{Registry: srv.URL, Username: "ann", Password: secret})
	rc, err := r.Blob(t.Context(), "a", digest.FromString("blob"), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(rc); err != nil || string(b) != "blob" {
		t.Errorf("Blob = %q, %v", b, err)
	}
	_ = rc.Close() // read to its end
	store.Close()
	signature = "fragile"
	if _, err = r.Blob(t.Context(), "a", digest.FromString("blob"), 0, -1); err == nil || strings.Contains(err.Error(), signature) || strings.Contains(err.Error(), secret) {
		t.Errorf("Blob from a store that is gone = %v, want an error without the signature", err)
	}
}

func TestTokenServiceWithoutTLS(t *testing.T) {
	r := dial(t, Options{Registry: "https://registry.example.com", Username: "ann", Password: secret})
	_, err := r.auth.fetch(t.Context(), challenge{params: map[string]string{"realm": "http://tokens.example.com/"}}, "")
	if err == nil || !strings.Contains(err.Error(), "without TLS") {
		t.Errorf("a token service without TLS = %v, want a refusal", err)
	}
}
