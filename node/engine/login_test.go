package engine

import (
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/registry"

	"berth.internal/client"
	"berth.internal/node/host"
	"berth.internal/node/image"
)

// forLogins returns an engine whose registry is registry.example.com, at 10.0.0.1:5000.
func forLogins() *Engine {
	return New(nil, Config{Registry: "registry.example.com", Endpoints: []string{"10.0.0.1:5000"}}, slog.New(slog.DiscardHandler))
}

func TestLogins(t *testing.T) {
	e := forLogins()
	for _, tc := range []struct {
		name, json, want string // want: user and password, or what the error says
	}{
		{"none", `{}`, ""},
		{"a password", `{"username":"ann","password":"s3cret"}`, "ann s3cret"},
		{"for its name", `{"username":"ann","password":"s3cret","serveraddress":"registry.example.com"}`, "ann s3cret"},
		{"for its address", `{"username":"ann","password":"s3cret","serveraddress":"https://10.0.0.1:5000/v1/"}`, "ann s3cret"},
		{"an identity token", `{"username":"ann","identitytoken":"s3cret"}`, "<token> s3cret"},
		{"an old form", `{"auth":"YW5uOnMzY3JldA=="}`, "ann s3cret"},
		{"for who is nobody's business", `{"username":"ann","password":"s3cret","serveraddress":"https://index.docker.io/v1/"}`, ""},
		{"for another registry", `{"username":"ann","password":"s3cret","serveraddress":"10.0.0.1:6000"}`, "error: 10.0.0.1:6000"},
		{"a bearer token", `{"registrytoken":"s3cret"}`, "error: registrytoken is not supported"},
		{"half a login", `{"password":"s3cret"}`, "error: both username and password"},
		{"a damaged pair", `{"auth":"s3cret"}`, "error: auth is not base64"},
		{"no JSON", `s3cret`, "error: not a login in JSON"},
		{"too much", `{"username":"` + strings.Repeat("s3cret", maxLogin/6) + `","password":"a"}`, "error: not a login"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, enc := range []*base64.Encoding{base64.URLEncoding, base64.RawURLEncoding} {
				r := httptest.NewRequestWithContext(t.Context(), "POST", "/images/create", nil)
				r.Header.Set(registry.AuthHeader, enc.EncodeToString([]byte(tc.json)))
				l, err := e.loginOf(r)
				got := ""
				if l != nil {
					got = l.Username + " " + l.Password
				}
				if says, fails := strings.CutPrefix(tc.want, "error: "); fails {
					if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "s3cret") {
						t.Errorf("the error is %v, want one that says %q, without the secret", err, says)
					}
				} else if err != nil || got != tc.want {
					t.Errorf("the login is %q, %v, want %q", got, err, tc.want)
				}
			}
		})
	}
	r := httptest.NewRequestWithContext(t.Context(), "POST", "/images/create", nil)
	if l, err := e.loginOf(r); l != nil || err != nil {
		t.Errorf("without a header the login is %v, %v", l, err)
	}
	r.Header.Set(registry.AuthHeader, "s3cret!")
	if _, err := e.loginOf(r); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("a header that is no base64 = %v", err)
	}
}

// TestPullFailures: clients tell by the status whether there is such an image
// (docker-py's ImageNotFound), and whether to log in.
func TestPullFailures(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want int
	}{
		{&client.Error{Status: 404, Text: "no such tag"}, 404},
		{&client.Error{Status: 401, Text: "log in"}, 401},
		{&client.Error{Status: 403, Text: "not for ann"}, 403},
		{&client.Error{Status: 500, Text: "broken"}, 500},
		{image.ErrPlatform, 404},
		{host.ErrInvalid, 400},
	} {
		if got := status(pullFailure(fmt.Errorf("pull x: %w", tc.err))); got != tc.want {
			t.Errorf("%v is answered with %d, want %d", tc.err, got, tc.want)
		}
	}
}

// FuzzLogin holds that a login is for the node's registry, is whole, and that no
// error repeats what it was read from.
func FuzzLogin(f *testing.F) {
	for _, seed := range []string{`{"username":"ann","password":"s"}`, `{"auth":"YW5uOnM=","serveraddress":"10.0.0.1:5000"}`, `{"identitytoken":"x"}`, `[]`} {
		f.Add([]byte(seed))
	}
	e := forLogins()
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := e.readLogin(text, "it")
		if err != nil && l != nil || l != nil && (l.Username == "" || l.Password == "") {
			t.Errorf("%q = %+v, %v", text, l, err)
		}
	})
}
