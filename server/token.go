package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strings"
	"time"

	"berth.internal/auth"
	wire "berth.internal/internal/control"
	"berth.internal/internal/httpx"
	"berth.internal/internal/oci"
)

// The token service, as Docker's registries have it.
const (
	authPath  = "/auth/"
	tokenPath = "/auth/token"
	keysPath  = "/auth/jwks"
)

// maxForm is the largest body of a request for a token, in bytes.
const maxForm = 64 << 10

// tokenRequest is what a client asks for.
type tokenRequest struct {
	scopes  []string
	service string
	offline bool // with a refresh token
	caller  auth.Caller
	by      string // the credential
}

// authenticates tells whether there is anything to answer below authPath.
func (s *Server) authenticates(w http.ResponseWriter) error {
	w.Header().Set("Cache-Control", "no-store")
	if !s.identities.InUse() {
		return oci.Unsupported.With("this registry has no users, and gives out no tokens", nil).At(http.StatusNotFound)
	}
	return nil
}

// jwks answers keysPath: the public keys of our tokens.
func (s *Server) jwks(w http.ResponseWriter, r *http.Request) error {
	if err := s.authenticates(w); err != nil {
		return err
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		return oci.Unsupported
	}
	keys, err := s.identities.Keys(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, struct {
		Keys []auth.JWK `json:"keys"`
	}{keys})
}

// token answers tokenPath.
func (s *Server) token(w http.ResponseWriter, r *http.Request) error {
	if err := s.authenticates(w); err != nil {
		return err
	}
	var q tokenRequest
	var err error
	switch r.Method {
	case http.MethodGet:
		q, err = s.tokenByQuery(r)
	case http.MethodPost:
		q, err = s.tokenByForm(w, r)
	default:
		w.Header().Set("Allow", "GET, POST")
		return oci.Unsupported
	}
	if err == nil {
		err = s.giveToken(w, r, q)
	}
	return tooMany(err)
}

// login returns who has the name and the password.
func (s *Server) login(r *http.Request, name, password string) (auth.Caller, error) {
	c, fresh, err := s.identities.Basic(r.Context(), name, password, s.client(r))
	s.loggedIn(r, name, c, fresh, err)
	if errors.Is(err, auth.ErrCredentials) {
		return c, wrongLogin(err)
	}
	return c, tooMany(err)
}

func wrongLogin(err error) error {
	message := "the name or the password is wrong"
	if refused, ok := errors.AsType[*auth.RefusedError](err); ok {
		message = refused.Error()
	}
	return httpx.WithHeader(oci.Unauthorized.With(message, nil).Because(err), "WWW-Authenticate", basicChallenge)
}

// tokenByQuery reads a GET, with Basic or without a name.
func (s *Server) tokenByQuery(r *http.Request) (tokenRequest, error) {
	query := r.URL.Query()
	q := tokenRequest{
		scopes: query["scope"], service: query.Get("service"), offline: query.Get("offline_token") == "true",
		caller: auth.Caller{Kind: auth.Anonymous},
	}
	shown, err := parseAuthorization(r.Header["Authorization"])
	switch {
	case err != nil || shown.scheme == "bearer": // no token begets another: they are to end
		s.shutOut(r, "", errAuthorization)
		return q, wrongLogin(errAuthorization)
	case shown.scheme == "basic":
		q.by = "basic"
		q.caller, err = s.login(r, shown.name, shown.password)
	default:
		c, certified, wrong := s.certified(r)
		if bad, ok := errors.AsType[*certificateError](wrong); ok {
			return q, httpx.WithHeader(oci.Unauthorized.With(bad.Error(), nil), "WWW-Authenticate", basicChallenge)
		}
		if err = wrong; certified {
			q.caller, q.by = c, "certificate"
		}
	}
	return q, err
}

// tokenByForm reads a POST, as in RFC 6749, sections 4.3 and 6.
func (s *Server) tokenByForm(w http.ResponseWriter, r *http.Request) (tokenRequest, error) {
	bad := func(message string) error { return oci.Unsupported.With(message, nil).At(http.StatusBadRequest) }
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/x-www-form-urlencoded" {
		return tokenRequest{}, bad("the body must be a form, with Content-Type: application/x-www-form-urlencoded")
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		return tokenRequest{}, oci.Unsupported.With("the form cannot be read", nil).At(http.StatusBadRequest).Because(err)
	}
	f := r.PostForm
	q := tokenRequest{scopes: f["scope"], service: f.Get("service"), offline: f.Get("access_type") == "offline"}
	var err error
	switch grant := f.Get("grant_type"); grant {
	case "password":
		q.by = "basic"
		q.caller, err = s.login(r, f.Get("username"), f.Get("password"))
	case "refresh_token":
		q.caller, err = s.identities.Refresh(r.Context(), f.Get("refresh_token"))
		q.by = "refresh"
		if errors.Is(err, auth.ErrCredentials) {
			s.shutOut(r, q.by, auth.ErrToken)
			err = httpx.WithHeader(oci.Unauthorized.With("the refresh token is not valid, or not any more: log in again", nil).Because(err), "WWW-Authenticate", basicChallenge)
		}
		q.offline = false // it goes on to be good
	default:
		err = bad(fmt.Sprintf("%.40q is not a grant_type of this service: these are password and refresh_token", grant))
	}
	return q, err
}

// giveToken answers with a token for what the caller may do of what is asked.
func (s *Server) giveToken(w http.ResponseWriter, r *http.Request, q tokenRequest) error {
	if q.service != "" && q.service != auth.ServiceName {
		return oci.Unsupported.With(fmt.Sprintf("this is the token service of %q, not of %.80q", auth.ServiceName, q.service), nil).At(http.StatusBadRequest)
	}
	asked, err := auth.ParseScopes(q.scopes)
	if err != nil {
		return oci.Unsupported.With(err.Error(), nil).At(http.StatusBadRequest)
	}
	token, err := s.identities.Issue(r.Context(), q.caller, asked, s.decider)
	if errors.Is(err, auth.ErrCredentials) { // disabled just now
		return wrongLogin(err)
	} else if err != nil {
		return err
	}
	answer := struct {
		Token     string    `json:"token"`
		Access    string    `json:"access_token"`
		ExpiresIn int       `json:"expires_in"` // seconds
		IssuedAt  time.Time `json:"issued_at"`
		Refresh   string    `json:"refresh_token,omitempty"`
	}{Token: token.Value, Access: token.Value, ExpiresIn: int(token.Expires.Sub(token.Issued).Seconds()), IssuedAt: token.Issued.UTC()}
	if q.offline && (q.caller.Kind == auth.User || q.caller.Kind == auth.Robot) { // a job comes with its own token
		if answer.Refresh, err = s.identities.IssueRefresh(r.Context(), q.caller); err != nil {
			return err
		}
	}
	if q.caller.Kind != auth.Anonymous {
		s.audit.Add(r, wire.AuditRecord{
			Who: subjectOf(q.caller), Credential: credentialOf(q.caller, q.by), Action: "token", Detail: accessText(token.Access), Decision: wire.AuditAllowed, Status: http.StatusOK,
		})
	}
	return writeJSON(w, answer)
}

// accessText is what a token is good for.
func accessText(list []auth.Access) string {
	var words []string
	for _, a := range list {
		words = append(words, a.Name+":"+strings.Join(a.Actions, ","))
	}
	return strings.Join(words, " ")
}

func writeJSON(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, err = w.Write(append(b, '\n'))
	return err
}
