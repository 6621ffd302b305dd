// Package signin gets an ID token for a person from an OpenID provider: in a browser
// on this machine (OAuth 2.0 for native apps, RFC 8252), or on any other (device
// flow, RFC 8628).
package signin

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
)

const (
	maxAnswer = 1 << 20          // bytes of an answer of the provider
	patience  = 30 * time.Second // with one request to it
)

// callback is the path of the redirect URI that berth is registered with.
const callback = "/callback"

// Provider is an OpenID provider that knows berth as a client. Make it with Find.
type Provider struct {
	http     *http.Client
	provider *oidc.Provider
	config   oauth2.Config
}

// Options say which provider it is.
type Options struct {
	Issuer   string // its URL
	ClientID string
	Scopes   []string // beside openid
	CA       []byte   // certificates in PEM to trust beside the system's
}

// Find asks the provider what it can do.
func Find(ctx context.Context, o Options) (*Provider, error) {
	u, err := url.Parse(o.Issuer)
	if err != nil || u.User != nil || !safe(u) {
		return nil, fmt.Errorf("%.200q is no https URL of an OpenID provider", o.Issuer)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if len(o.CA) > 0 {
		roots, err := x509.SystemCertPool()
		if err != nil {
			roots = x509.NewCertPool()
		}
		roots.AppendCertsFromPEM(o.CA)
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	p := &Provider{http: &http.Client{Transport: limited{transport}, Timeout: patience}}
	if p.provider, err = oidc.NewProvider(p.with(ctx), o.Issuer); err != nil {
		return nil, fmt.Errorf("ask %s how to log in there: %w", o.Issuer, err)
	}
	p.config = oauth2.Config{ClientID: o.ClientID, Endpoint: p.provider.Endpoint(), Scopes: append([]string{oidc.ScopeOpenID}, o.Scopes...)}
	return p, nil
}

// safe tells whether nobody on the way can answer in the place of u.
func safe(u *url.URL) bool {
	ip := net.ParseIP(u.Hostname())
	return u.Host != "" && (u.Scheme == "https" || u.Scheme == "http" && (u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()))
}

// with makes both libraries use our client.
func (p *Provider) with(ctx context.Context) context.Context {
	return oidc.ClientContext(ctx, p.http)
}

// limited cuts answers that are too large.
type limited struct{ http.RoundTripper }

func (l limited) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := l.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = http.MaxBytesReader(nil, resp.Body, maxAnswer)
	}
	return resp, err
}

// Browser gets an ID token by a page that show is told, and that must be opened in a
// browser on this machine.
func (p *Provider) Browser(ctx context.Context, show func(page string)) (idToken string, err error) {
	if at, err := url.Parse(p.config.Endpoint.AuthURL); err != nil || !safe(at) {
		return "", errors.New("this provider has no page to log in on, by https")
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("wait for the browser: %w", err)
	}
	config := p.config
	config.RedirectURL = "http://" + l.Addr().String() + callback
	state, nonce, verifier := rand.Text(), rand.Text(), oauth2.GenerateVerifier()
	back := &returned{state: state, came: make(chan answer, 1)}
	server := &http.Server{Handler: back, ReadHeaderTimeout: patience, MaxHeaderBytes: 64 << 10}
	served := make(chan struct{})
	go func() {
		_ = server.Serve(l) // until it is shut down
		close(served)
	}()
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second) // for the last page to go out
		defer cancel()
		if server.Shutdown(ctx) != nil {
			_ = server.Close() // ends it all the same
		}
		<-served
	}()
	show(config.AuthCodeURL(state, oidc.Nonce(nonce), oauth2.S256ChallengeOption(verifier)))
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case a := <-back.came:
		if a.err != nil {
			return "", a.err
		}
		token, err := config.Exchange(p.with(ctx), a.code, oauth2.VerifierOption(verifier))
		if err != nil {
			return "", fmt.Errorf("get the ID token: %w", plain(err))
		}
		return p.idToken(ctx, token, nonce)
	}
}

// answer is what the browser came back with.
type answer struct {
	code string
	err  error
}

// returned is the page that the provider sends the browser back to.
type returned struct {
	state string
	came  chan answer
}

func (b *returned) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'")
	w.Header().Set("Cache-Control", "no-store")
	q := r.URL.Query()
	// Without the state, which only the page has that was shown, it is somebody else
	// who wants us to log in as them.
	if r.URL.Path != callback || r.Method != http.MethodGet || subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(b.state)) != 1 {
		http.Error(w, "This is not the page that berth login waits for.", http.StatusNotFound)
		return
	}
	a := answer{code: q.Get("code")}
	switch {
	case q.Get("error") != "":
		a.err = fmt.Errorf("the provider says: %.60q %.200q", q.Get("error"), q.Get("error_description"))
	case a.code == "":
		a.err = errors.New("the provider sent the browser back without a code")
	}
	if a.err != nil {
		_, _ = io.WriteString(w, "The login has failed; berth login says why. You can close this page.\n") // it is seen or not
	} else {
		_, _ = io.WriteString(w, "You can close this page and go back to berth login.\n") // as above
	}
	select {
	case b.came <- a:
	default: // it has come already
	}
}

// Device gets an ID token by a page that show is told, with a code to type there,
// which may be opened in a browser on any machine. complete is the page with the code
// in it, or empty.
func (p *Provider) Device(ctx context.Context, show func(page, code, complete string)) (idToken string, err error) {
	if p.config.Endpoint.DeviceAuthURL == "" {
		return "", errors.New("this provider has no device flow: log in without --device")
	}
	asked, err := p.config.DeviceAuth(p.with(ctx))
	if err != nil {
		return "", fmt.Errorf("ask for a code: %w", plain(err))
	}
	if page, err := url.Parse(asked.VerificationURI); err != nil || !safe(page) {
		return "", errors.New("the provider names no page to type the code on, by https")
	}
	show(asked.VerificationURI, asked.UserCode, asked.VerificationURIComplete)
	token, err := p.config.DeviceAccessToken(p.with(ctx), asked)
	if err != nil {
		return "", fmt.Errorf("get the ID token: %w", plain(err))
	}
	return p.idToken(ctx, token, "")
}

// idToken takes the ID token out of an answer, and checks that it is for us.
func (p *Provider) idToken(ctx context.Context, token *oauth2.Token, nonce string) (string, error) {
	raw, _ := token.Extra("id_token").(string)
	if raw == "" {
		return "", errors.New("the provider gave no ID token")
	}
	checked, err := p.provider.VerifierContext(p.with(ctx), &oidc.Config{ClientID: p.config.ClientID}).Verify(p.with(ctx), raw)
	if err != nil {
		return "", fmt.Errorf("check the ID token: %w", err)
	}
	if checked.Nonce != nonce {
		return "", errors.New("check the ID token: it was made for another login")
	}
	return raw, nil
}

// plain makes the provider's answer readable, and leaves out what it may hold beside.
func plain(err error) error {
	if told, ok := errors.AsType[*oauth2.RetrieveError](err); ok && told.ErrorCode != "" {
		return fmt.Errorf("the provider says: %.60q %.200q", told.ErrorCode, told.ErrorDescription)
	}
	if told, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
		return fmt.Errorf("the provider answered %s", told.Response.Status)
	}
	return err
}
