package client

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"
)

// identityToken is the user name that says the password is a refresh token, a
// custom of Docker's credential helpers.
const identityToken = "<token>"

const (
	minTokenLife = time.Minute      // of a token that does not say how long it lives
	tokenMargin  = 10 * time.Second // a token is renewed this long before its end
	maxTokenBody = 1 << 20
)

// auth answers a registry's question who is there, by Basic authentication or
// with tokens from the service that it names (the "Docker token flow"). Its
// errors never hold a secret.
type auth struct {
	origin   *url.URL
	http     *http.Client
	username string
	secret   string // the password, if it is in no file
	file     string // that holds the password

	asking chan struct{} // holds one element while somebody asks for a token

	mu     sync.Mutex
	asked  challenge // what the registry asked for; scheme empty: nothing yet
	tokens map[string]token
}

type token struct {
	value string
	until time.Time
}

func newAuth(origin *url.URL, c *http.Client, o Options) *auth {
	return &auth{
		origin: origin, http: c, username: o.Username, secret: o.Password, file: o.PasswordFile,
		asking: make(chan struct{}, 1), tokens: map[string]token{},
	}
}

// password returns the password as it is now.
func (a *auth) password() (string, error) {
	if a.file == "" {
		return a.secret, nil
	}
	return readPassword(a.file)
}

// maxPassword is the largest file with a password, in bytes. Identity tokens of
// some registries are long.
const maxPassword = 64 << 10

// readPassword returns what is in the file, without the end of its line.
func readPassword(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errPassword, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxPassword+1))
	password := strings.TrimRight(string(text), "\r\n")
	switch {
	case err != nil:
		return "", fmt.Errorf("%w: %w", errPassword, err)
	case password == "":
		return "", fmt.Errorf("%w: %s is empty", errPassword, path)
	case len(text) > maxPassword || strings.ContainsAny(password, "\r\n\x00"):
		return "", fmt.Errorf("%w: %s holds more than one line", errPassword, path)
	}
	return password, nil
}

// errPassword says that there is no password to show. Asking again does not help.
var errPassword = errors.New("read the password for the registry")

// who is the user, for messages.
func (a *auth) who() string {
	switch a.username {
	case "":
		return "anonymous users"
	case identityToken:
		return "this user"
	}
	return a.username
}

// header returns what to send as Authorization, as far as it is known what the
// registry wants.
func (a *auth) header(ctx context.Context, scope string) (string, error) {
	a.mu.Lock()
	asked := a.asked
	a.mu.Unlock()
	switch {
	case asked.scheme == "bearer":
		t, err := a.token(ctx, asked, scope)
		if err != nil {
			return "", err
		}
		return "Bearer " + t, nil
	case asked.scheme == "basic" && a.username != "":
		password, err := a.password()
		if err != nil {
			return "", err
		}
		return basicOf(a.username, password), nil
	}
	return "", nil
}

func basicOf(username, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(username+":"+password))
}

// learn reads the challenge of a 401 and says whether there is something new to
// try. sent is the Authorization that was refused.
func (a *auth) learn(resp *http.Response, scope, sent string) (bool, error) {
	var basic, bearer *challenge
	for _, c := range parseChallenges(resp.Header.Values("WWW-Authenticate")) {
		switch c.scheme {
		case "basic":
			basic = &c
		case "bearer":
			bearer = &c
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case !sameOrigin(resp.Request.URL, a.origin): // after a redirect: not ours to answer
		return false, nil
	case bearer != nil && bearer.params["realm"] != "":
		if t, ok := a.tokens[scope]; ok && "Bearer "+t.value == sent {
			delete(a.tokens, scope) // expired before its time, or revoked
		}
		a.asked = *bearer
		return true, nil
	case basic != nil && a.username != "" && a.username != identityToken:
		a.asked = *basic
		if strings.HasPrefix(sent, "Basic ") {
			// It is worth another try only if the file holds another password now.
			password, err := a.password()
			return err == nil && sent != basicOf(a.username, password), nil
		}
		return true, nil
	}
	return false, nil
}

// token returns a token for scope: the one at hand, or a new one. Only one
// caller asks the service at a time; the others then find its answer.
func (a *auth) token(ctx context.Context, asked challenge, scope string) (string, error) {
	select {
	case a.asking <- struct{}{}:
		defer func() { <-a.asking }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	a.mu.Lock()
	t, ok := a.tokens[scope]
	a.mu.Unlock()
	if ok && time.Now().Before(t.until) {
		return t.value, nil
	}
	t, err := a.fetch(ctx, asked, scope)
	if err != nil {
		return "", err
	}
	a.mu.Lock()
	a.tokens[scope] = t
	a.mu.Unlock()
	return t.value, nil
}

// fetch asks the token service: by GET with Basic authentication, and by POST
// (OAuth2) with an identity token or where GET is not offered.
func (a *auth) fetch(ctx context.Context, asked challenge, scope string) (token, error) {
	realm, err := a.origin.Parse(asked.params["realm"])
	if err != nil || realm.Host == "" || realm.User != nil || realm.Scheme != "http" && realm.Scheme != "https" {
		return token{}, errors.New("the registry names a token service that has no address")
	}
	if a.origin.Scheme == "https" && realm.Scheme == "http" && !loopback(realm.Hostname()) {
		return token{}, fmt.Errorf("the registry wants the password sent to %s without TLS", realm.Host)
	}
	scopes := strings.Fields(scope)
	if len(scopes) == 0 {
		scopes = strings.Fields(asked.params["scope"])
	}
	service := asked.params["service"]
	if a.username == identityToken {
		return a.post(ctx, realm, service, scopes)
	}
	t, status, err := a.get(ctx, realm, service, scopes)
	if a.username != "" && (status == http.StatusNotFound || status == http.StatusMethodNotAllowed) {
		return a.post(ctx, realm, service, scopes)
	}
	return t, err
}

func (a *auth) get(ctx context.Context, realm *url.URL, service string, scopes []string) (token, int, error) {
	u := *realm
	q := u.Query()
	if service != "" {
		q.Set("service", service)
	}
	if a.username != "" {
		q.Set("account", a.username)
	}
	q["scope"] = scopes
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return token{}, 0, err
	}
	if a.username != "" {
		password, err := a.password()
		if err != nil {
			return token{}, 0, err
		}
		req.SetBasicAuth(a.username, password)
	}
	return a.ask(req)
}

func (a *auth) post(ctx context.Context, realm *url.URL, service string, scopes []string) (token, error) {
	password, err := a.password()
	if err != nil {
		return token{}, err
	}
	form := url.Values{"client_id": {"berth"}, "service": {service}, "scope": {strings.Join(scopes, " ")}}
	if a.username == identityToken {
		form.Set("grant_type", "refresh_token")
		form.Set("refresh_token", password)
	} else {
		form.Set("grant_type", "password")
		form.Set("username", a.username)
		form.Set("password", password)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(form.Encode()))
	if err != nil {
		return token{}, err
	}
	// A redirect must not carry the form to another host.
	req.GetBody = nil
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	t, _, err := a.ask(req)
	return t, err
}

// ask returns the token, and the status of the answer if there was one.
func (a *auth) ask(req *http.Request) (token, int, error) {
	resp, err := a.http.Do(req)
	if err != nil {
		return token{}, 0, fmt.Errorf("ask the token service at %s: %w", req.URL.Host, withoutURL(err))
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		return token{}, resp.StatusCode, fmt.Errorf("%w: the token service at %s does not accept the password of %s",
			ErrUnauthorized, req.URL.Host, a.who())
	case resp.StatusCode != http.StatusOK:
		return token{}, resp.StatusCode, fmt.Errorf("the token service at %s answered %s", req.URL.Host, printable(resp.Status))
	}
	var body struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"` // seconds
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxTokenBody)).Decode(&body); err != nil {
		return token{}, resp.StatusCode, fmt.Errorf("the token service at %s did not answer with JSON", req.URL.Host)
	}
	if body.Token == "" {
		body.Token = body.AccessToken
	}
	if body.Token == "" || strings.ContainsFunc(body.Token, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return token{}, resp.StatusCode, fmt.Errorf("the token service at %s sent no usable token", req.URL.Host)
	}
	life := minTokenLife
	if body.ExpiresIn > int64(minTokenLife/time.Second) && body.ExpiresIn < 1<<31 {
		life = time.Duration(body.ExpiresIn) * time.Second
	}
	return token{body.Token, time.Now().Add(life - tokenMargin)}, resp.StatusCode, nil
}

// withoutURL takes the address off an error of net/http: a query can hold
// secrets.
func withoutURL(err error) error {
	var u *url.Error
	for errors.As(err, &u) {
		err = u.Err
	}
	return err
}

// Scopes of the Docker token flow.
func pullScope(repo string) string   { return "repository:" + repo + ":pull" }
func pushScope(repo string) string   { return "repository:" + repo + ":pull,push" }
func deleteScope(repo string) string { return "repository:" + repo + ":delete" }

// catalogScope is the right to list all repositories.
const catalogScope = "registry:catalog:*"
