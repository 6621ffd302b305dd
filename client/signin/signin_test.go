package signin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// provider is one that answers as told. What signs ID tokens for real is in
// conformance/e2e.
func provider(t *testing.T, token http.HandlerFunc) *Provider {
	t.Helper()
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]string{ // the test sees what is missing
			"issuer": server.URL, "authorization_endpoint": server.URL + "/auth", "token_endpoint": server.URL + "/token",
			"device_authorization_endpoint": server.URL + "/device", "jwks_uri": server.URL + "/jwks",
		})
	})
	if token != nil {
		mux.HandleFunc("/token", token)
	}
	mux.HandleFunc("/device", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"device_code":"d","user_code":"U","verification_uri":"http://elsewhere.test/","expires_in":60}`)
	})
	p, err := Find(t.Context(), Options{Issuer: server.URL, ClientID: "berth"})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestBrowser(t *testing.T) {
	refuses := func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil || r.PostForm.Get("code_verifier") == "" || r.PostForm.Get("code") != "right" {
			http.Error(w, "no code or verifier", http.StatusTeapot)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"error":"invalid_grant","error_description":"the code is old"}`)
	}
	gives := func(answer string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, answer)
		}
	}
	for _, tc := range []struct {
		name  string
		token http.HandlerFunc
		query string // that the browser comes back with; STATE stands for the right one
		want  string
	}{
		{"refused at the provider", nil, "state=STATE&error=access_denied&error_description=no", `the provider says: "access_denied" "no"`},
		{"without a code", nil, "state=STATE", "without a code"},
		{"a code that is refused", refuses, "state=STATE&code=right", `get the ID token: the provider says: "invalid_grant" "the code is old"`},
		{"no ID token", gives(`{"access_token":"a","token_type":"Bearer"}`), "state=STATE&code=right", "gave no ID token"},
		{"a bad ID token", gives(`{"access_token":"a","token_type":"Bearer","id_token":"e30.e30.e30"}`), "state=STATE&code=right", "check the ID token"},
		{"something else", gives(`<html>`), "state=STATE&code=right", "get the ID token"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := provider(t, tc.token)
			_, err := p.Browser(t.Context(), func(page string) {
				u, err := url.Parse(page)
				if err != nil {
					t.Fatal(err)
				}
				q := u.Query()
				back := q.Get("redirect_uri")
				if q.Get("code_challenge_method") != "S256" || q.Get("nonce") == "" || !strings.HasPrefix(back, "http://127.0.0.1:") || q.Get("scope") != "openid" {
					t.Errorf("the page is %s", page)
				}
				// Others who find the port are not who is waited for.
				for _, wrong := range []string{"", "?state=", "?state=wrong&code=right", "?code=right", "/x?state=" + q.Get("state") + "&code=right"} {
					if status := visit(t, back+wrong); status != http.StatusNotFound {
						t.Errorf("%s is answered %d", wrong, status)
					}
				}
				if status := visit(t, back+"?"+strings.ReplaceAll(tc.query, "STATE", q.Get("state"))); status != http.StatusOK {
					t.Errorf("the right page is answered %d", status)
				}
			})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Browser = %v, want %q", err, tc.want)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := provider(t, nil).Browser(ctx, func(string) { cancel() }); err == nil {
		t.Error("Browser went on after its context had ended")
	}
}

func visit(t *testing.T, page string) int {
	t.Helper()
	resp, err := http.Get(page)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode
}

func TestDeviceRefuses(t *testing.T) {
	_, err := provider(t, nil).Device(t.Context(), func(page, _, _ string) { t.Errorf("it shows %s, which anybody can answer", page) })
	if err == nil || !strings.Contains(err.Error(), "by https") {
		t.Errorf("Device = %v", err)
	}
}

func TestFindRefuses(t *testing.T) {
	large := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"issuer":"`+strings.Repeat("a", maxAnswer)+`"}`)
	}))
	defer large.Close()
	for _, tc := range []struct{ issuer, want string }{
		{"http://idp.test", "is no https URL"},
		{"file:///etc/passwd", "is no https URL"},
		{"https://user:secret@idp.test", "is no https URL"},
		{"", "is no https URL"},
		{large.URL, "too large"},
	} {
		if _, err := Find(t.Context(), Options{Issuer: tc.issuer, ClientID: "berth"}); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("Find(%q) = %v, want %q", tc.issuer, err, tc.want)
		}
	}
}
