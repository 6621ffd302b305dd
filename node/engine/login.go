package engine

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/registry"

	"berth.internal/client"
	"berth.internal/node/host"
)

const (
	identityToken = "<token>"   // the user name that says so, as the client has it
	maxLogin      = 256 << 10   // bytes of a login, as JSON
	dockerHub     = "docker.io" // whose login Docker's tools send for a name without a registry
)

// loginOf returns whom the registry is to be asked as, from the header that
// Docker's tools send with a pull; nil: as the node itself.
func (e *Engine) loginOf(r *http.Request) (*host.Login, error) {
	header := r.Header.Get(registry.AuthHeader)
	if header == "" {
		return nil, nil
	}
	// Its bytes are in no error: they are a secret.
	text, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(header, "="))
	if err != nil {
		return nil, invalid("%s is not base64url, as Docker's tools send it", registry.AuthHeader)
	}
	return e.readLogin(text, registry.AuthHeader)
}

// readLogin reads a login in Docker's JSON. It is nil if it is empty, or one that
// is not for the node's registry and was not chosen for it either.
func (e *Engine) readLogin(text []byte, where string) (*host.Login, error) {
	var c registry.AuthConfig
	if len(text) > maxLogin || json.Unmarshal(text, &c) != nil {
		return nil, invalid("%s is not a login in JSON, as Docker's tools send it", where)
	}
	l := host.Login{Username: c.Username, Password: c.Password}
	if c.Auth != "" && l == (host.Login{}) {
		pair, err := base64.StdEncoding.DecodeString(c.Auth)
		name, password, ok := strings.Cut(string(pair), ":")
		if err != nil || !ok {
			return nil, invalid("%s: auth is not base64 of NAME:PASSWORD", where)
		}
		l = host.Login{Username: name, Password: password}
	}
	if c.IdentityToken != "" {
		l = host.Login{Username: identityToken, Password: c.IdentityToken}
	}
	if c.RegistryToken != "" {
		return nil, unsupported("%s: registrytoken is not supported: send username and password, or identitytoken", where)
	}
	if l == (host.Login{}) {
		return nil, nil
	}
	if l.Username == "" || l.Password == "" {
		return nil, invalid("%s: a login has both username and password", where)
	}
	switch at := hostOf(c.ServerAddress); {
	case at == "" || at == e.cfg.Registry || slices.Contains(e.cfg.Endpoints, at):
		return &l, nil
	case at == dockerHub || strings.HasSuffix(at, "."+dockerHub):
		return nil, nil // sent with every name without a registry, and none of our registry's business
	default:
		return nil, invalid("%s: this login is for %.100q, which is not this node's registry %s", where, at, e.cfg.Registry)
	}
}

// hostOf returns the host of a registry's address, with or without scheme and
// path.
func hostOf(address string) string {
	if _, after, ok := strings.Cut(address, "://"); ok {
		address = after
	}
	address, _, _ = strings.Cut(address, "/")
	return address
}

// checkLogin answers POST /auth, which docker login sends: 200 if the registry
// lets the login in, 401 if not.
func (e *Engine) checkLogin(w http.ResponseWriter, r *http.Request) error {
	text, err := io.ReadAll(io.LimitReader(r.Body, maxLogin+1))
	if err != nil {
		return invalid("the login could not be read: %v", err)
	}
	login, err := e.readLogin(text, "the login")
	if err != nil {
		return err
	}
	if login == nil {
		return invalid("this node's registry is %s: give its name and a login to docker login", e.cfg.Registry)
	}
	switch err := e.host.CheckLogin(r.Context(), *login); {
	case errors.Is(err, client.ErrUnauthorized):
		return &failure{http.StatusUnauthorized, err.Error()}
	case err != nil:
		return err
	}
	return writeJSON(w, http.StatusOK, registry.AuthResponse{Status: "Login Succeeded"})
}
