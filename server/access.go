package server

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"

	"berth.internal/auth"
	"berth.internal/auth/policy"
	wire "berth.internal/internal/control"
	"berth.internal/internal/httpx"
	"berth.internal/internal/oci"
	"berth.internal/server/audit"
	"berth.internal/server/control"
	"berth.internal/server/registry"
)

// adminKey is the key of the mark that a request came by the admin socket.
type adminKey struct{}

func asAdmin(ctx context.Context) context.Context { return context.WithValue(ctx, adminKey{}, true) }

func isAdmin(r *http.Request) bool { return r.Context().Value(adminKey{}) != nil }

// nodeKey is the key of the mark that a request came from the node in this process.
type nodeKey struct{}

func asNode(ctx context.Context) context.Context { return context.WithValue(ctx, nodeKey{}, true) }

func isNode(r *http.Request) bool {
	return r.Header[wire.NodeHeader] != nil && r.Context().Value(nodeKey{}) != nil
}

// visitor is who sent a request, as far as it says.
type visitor struct {
	*auth.Session // which may be shared, and is not changed
	shown         credential
	last          *shownToken // the token, if the connection remembers it
	err           error       // why the credential that was shown is good for nothing
}

// credential is what a request shows of its sender.
type credential struct {
	scheme   string   // basic, bearer or, without any, empty
	name     string   // basic
	password string   // basic; of bearer, the token
	sum      auth.Sum // of a token, if authorization has read it
}

var errAuthorization = errors.New("the header Authorization is neither Basic nor Bearer, or damaged")

// parseAuthorization reads the values of the header Authorization (RFC 9110,
// section 11.6.2; RFC 7617; RFC 6750).
func parseAuthorization(values []string) (credential, error) {
	if len(values) == 0 {
		return credential{}, nil
	}
	scheme, rest, ok := strings.Cut(values[0], " ")
	rest = strings.Trim(rest, " ")
	switch {
	case len(values) > 1 || !ok || rest == "":
	case strings.EqualFold(scheme, "bearer"):
		// One after the other: ContainsAny looks at a token letter by letter.
		if strings.IndexByte(rest, ' ') < 0 && strings.IndexByte(rest, '\t') < 0 && strings.IndexByte(rest, ',') < 0 {
			return credential{scheme: "bearer", password: rest}, nil
		}
	case strings.EqualFold(scheme, "basic"):
		pair, err := base64.StdEncoding.DecodeString(rest)
		name, password, found := strings.Cut(string(pair), ":")
		if err == nil && found {
			return credential{scheme: "basic", name: name, password: password}, nil
		}
	}
	return credential{}, errAuthorization
}

// lastKey is the key of a connection's last token in the context of its requests.
type lastKey struct{}

// lastToken is what the requests of a connection have shown last, if that was a
// token: most clients send the same one with each.
type lastToken struct{ atomic.Pointer[shownToken] }

type shownToken struct {
	header  string
	read    credential
	decided atomic.Pointer[decided]
}

// decided is what a policy said last of a token's session: the requests of a pull
// are for one repository. It holds as long as both are the same.
type decided struct {
	session *auth.Session
	policy  *policy.Version
	repo    string
	action  registry.Action
	is      auth.Decision
}

// authorize reads what r shows.
func (v *visitor) authorize(r *http.Request) {
	values := r.Header["Authorization"]
	last, _ := r.Context().Value(lastKey{}).(*lastToken)
	if last != nil && len(values) == 1 {
		if before := last.Load(); before != nil && before.header == values[0] {
			v.shown, v.last = before.read, before
			return
		}
	}
	v.shown, v.err = parseAuthorization(values)
	if v.shown.scheme == "bearer" {
		v.shown.sum = auth.SumOf(v.shown.password)
		if last != nil {
			v.last = &shownToken{header: values[0], read: v.shown}
			last.Store(v.last)
		}
	}
}

// decide asks the policy whether v may do a with repo.
func (s *Server) decide(v *visitor, repo string, a registry.Action) auth.Decision {
	if v.last == nil {
		return s.decider.Decide(v.Caller, repo, auth.Action(a))
	}
	now := s.policy.Current() // before the decision: a later policy is not taken for this one
	if d := v.last.decided.Load(); d != nil && d.session == v.Session && d.policy == now && d.action == a && d.repo == repo {
		return d.is
	}
	d := &decided{session: v.Session, policy: now, repo: repo, action: a, is: s.decider.Decide(v.Caller, repo, auth.Action(a))}
	v.last.decided.Store(d)
	return d.is
}

// visitorOf returns who identify has found.
func visitorOf(r *http.Request) *visitor {
	if rec := httpx.RecorderOf(r.Context()); rec != nil && rec.Who != nil {
		return rec.Who.(*visitor)
	}
	return anonymous
}

// anonymous is who has not said who he is. It is not changed.
var anonymous = &visitor{Session: sessionOf(auth.Caller{Kind: auth.Anonymous})}

func sessionOf(c auth.Caller) *auth.Session { return &auth.Session{Caller: c, Owner: c} }

// identify finds out who sent the request, once for all that is asked about it.
// Without users, credentials say nothing.
func (s *Server) identify(r *http.Request) {
	if !isAdmin(r) && !isNode(r) && (r.Header["Authorization"] == nil && s.clients == nil || !s.identities.InUse()) {
		return
	}
	v := *anonymous
	if isAdmin(r) {
		v.Session = sessionOf(auth.Caller{Kind: auth.Socket})
	} else if isNode(r) {
		v.Session = sessionOf(auth.Caller{Kind: auth.Node, Name: localNode})
	} else {
		s.recognize(r, &v)
	}
	httpx.RecorderOf(r.Context()).Who = &v
}

func (s *Server) recognize(r *http.Request, v *visitor) {
	if v.authorize(r); v.err != nil {
		s.shutOut(r, "", v.err)
		return
	}
	var session *auth.Session
	switch v.shown.scheme {
	case "":
		c, shown, err := s.certified(r)
		if v.err = err; err != nil || !shown {
			return
		}
		session = &auth.Session{Caller: c, Owner: c, Catalog: true}
	case "bearer":
		session, v.err = s.identities.BearerBySum(r.Context(), v.shown.password, v.shown.sum)
		switch {
		case v.err != nil:
			s.shutOut(r, "token", v.err)
		case session.Fresh:
			s.audit.Add(r, wire.AuditRecord{Who: subjectOf(session.Owner), Credential: "token", Action: "login", Decision: wire.AuditAllowed})
		}
	default:
		var c auth.Caller
		var fresh bool
		c, fresh, v.err = s.identities.Basic(r.Context(), v.shown.name, v.shown.password, s.client(r))
		session = sessionOf(c)
		session.Catalog = true
		s.loggedIn(r, v.shown.name, c, fresh, v.err)
	}
	if v.err == nil {
		v.Session = session
	}
}

// owner names who an upload belongs to.
func (s *Server) owner(r *http.Request) string {
	if v := visitorOf(r); v.Owner.Kind != auth.Anonymous {
		return v.Owner.String()
	}
	return ""
}

// access returns nil if the sender of r may do a with repo. Without users, what
// --anonymous says holds, and the listener keeps other machines out.
func (s *Server) access(r *http.Request, repo string, a registry.Action) error {
	v := visitorOf(r)
	switch {
	case v.err != nil:
		return s.refuse(r, repo, a, v)
	case v.Caller.Kind == auth.Socket:
		return nil
	case !s.identities.InUse() && v.Caller.Kind != auth.Node:
		err := s.withoutUsers(repo, a)
		if err != nil {
			s.audit.Note(r).Deny(string(a), repo, "", err.Error())
		}
		return err
	case repo == "" && (v.Caller.Kind != auth.Anonymous || v.shown.scheme != "" && s.decider.Decide(v.Owner, "", auth.Pull).Allowed):
		return nil // what they see there is decided name by name
	case repo == "": // docker login begins here, also where everybody may pull
		return s.challenge(r, repo, a, v, oci.Unauthorized)
	}
	d := s.decide(v, repo, a)
	if d.Allowed {
		audit.Noted(r).Allow(d.Rule)
		return nil
	}
	if v.shown.scheme == "bearer" {
		if owner := s.decider.Decide(v.Owner, repo, auth.Action(a)); owner.Allowed {
			return s.challenge(r, repo, a, v, oci.Unauthorized.With(d.Why, nil))
		} else if v.Owner.Kind != auth.Anonymous {
			d = owner // what the token lacks is not what its owner lacks
		}
	}
	if v.Caller.Kind != auth.Anonymous || v.shown.scheme != "" { // else one is asked to log in, as at the beginning of each pull
		s.audit.Note(r).Deny(string(a), repo, d.Rule, d.Why)
	}
	if v.Caller.Kind == auth.Anonymous {
		return s.challenge(r, repo, a, v, oci.Unauthorized.With(d.Why, nil))
	}
	return oci.Denied.With(d.Why, nil)
}

// lists tells whether the catalog shows repo to the sender of r.
func (s *Server) lists(r *http.Request, repo string) bool {
	v := visitorOf(r)
	switch {
	case v.Caller.Kind == auth.Socket:
		return true
	case !s.identities.InUse() && v.Caller.Kind != auth.Node:
		return s.withoutUsers(repo, registry.Pull) == nil
	case v.Catalog:
		return s.decider.Decide(v.Owner, repo, auth.Pull).Allowed
	}
	return s.decider.Decide(v.Caller, repo, auth.Pull).Allowed
}

// withoutUsers decides on a server that has none: as the policy says, and what it
// does not say is allowed where only this machine reaches it (AnonymousNone).
func (s *Server) withoutUsers(repo string, a registry.Action) error {
	d := s.policy.Decide(auth.Caller{Kind: auth.Anonymous}, repo, auth.Action(a))
	switch {
	case d.Allowed, s.cfg.Anonymous == AnonymousNone && d.Rule == "" && !s.cfg.Public():
		return nil
	case s.cfg.Public():
		return oci.Denied.With("the registry has no users any more: its administrator can make one with berth user add", nil)
	}
	return oci.Denied.With(d.Why, nil)
}

// refuse answers a credential that is good for nothing.
func (s *Server) refuse(r *http.Request, repo string, a registry.Action, v *visitor) error {
	if bad, ok := errors.AsType[*certificateError](v.err); ok {
		return s.challenge(r, repo, a, v, oci.Unauthorized.With(bad.Error(), nil))
	}
	switch {
	case errors.Is(v.err, auth.ErrCredentials), errors.Is(v.err, auth.ErrToken), errors.Is(v.err, errAuthorization):
		message := "the name or the password is wrong"
		if refused, ok := errors.AsType[*auth.RefusedError](v.err); ok {
			message = refused.Error()
		} else if errors.Is(v.err, auth.ErrToken) {
			message = "the token is not valid, or not any more: get another one"
		} else if errors.Is(v.err, errAuthorization) {
			message = errAuthorization.Error()
		}
		return s.challenge(r, repo, a, v, oci.Unauthorized.With(message, nil).Because(v.err))
	}
	return tooMany(v.err)
}

// tooMany says in the words of the API that it cannot be told now who somebody is.
func tooMany(err error) error {
	if _, said := errors.AsType[*oci.Error](err); said {
		return err
	}
	if limited, ok := errors.AsType[*auth.LimitedError](err); ok {
		return httpx.WithHeader(oci.TooManyRequests.With(limited.Error(), nil), "Retry-After", strconv.Itoa(limited.Seconds()))
	}
	if errors.Is(err, auth.ErrUnavailable) {
		return httpx.WithHeader(oci.Unknown.With("the directory of users does not answer: try again in some seconds, and if that goes on tell the registry's administrator", nil).
			At(http.StatusServiceUnavailable).Because(err), "Retry-After", "5")
	}
	if errors.Is(err, auth.ErrBusy) {
		return httpx.WithHeader(oci.TooManyRequests.With(err.Error()+": try again in a second", nil), "Retry-After", "1")
	}
	if errors.Is(err, auth.ErrIssuer) {
		unavailable := oci.Unknown.With(auth.ErrIssuer.Error()+" to this registry: try again later; the registry's log says more", nil)
		return httpx.WithHeader(unavailable.At(http.StatusServiceUnavailable).Because(err), "Retry-After", "5")
	}
	return err
}

// wider asks a client that mounts with a token that is not good for the source to
// fetch one that is, if its owner may have that. Otherwise the mount is only not
// done: clients take a refusal for the end of their push.
func (s *Server) wider(r *http.Request, repo, source string) error {
	v := visitorOf(r)
	if v.shown.scheme != "bearer" || !s.decider.Decide(v.Owner, source, auth.Pull).Allowed {
		return nil
	}
	err := oci.Unauthorized.With("the token is good for "+repo+", and not for pulling from "+source+" as well: get one that is", nil)
	return s.challengeFor(r, v, err, scopeOf(repo, registry.Push)+" "+scopeOf(source, registry.Pull))
}

// challenge adds to err how one logs in: by a token, or by Basic for clients that
// know no tokens (RFC 9110, section 11.6.1).
func (s *Server) challenge(r *http.Request, repo string, a registry.Action, v *visitor, err *oci.Error) error {
	scope := ""
	switch {
	case repo != "":
		scope = scopeOf(repo, a)
	case strings.HasSuffix(r.URL.Path, "/_catalog"):
		scope = "registry:catalog:*"
	}
	return s.challengeFor(r, v, err, scope)
}

func (s *Server) challengeFor(r *http.Request, v *visitor, err *oci.Error, scope string) error {
	bearer := fmt.Sprintf("Bearer realm=%q,service=%q", s.now.Load().proxies.origin(r)+tokenPath, auth.ServiceName)
	if scope != "" {
		bearer += fmt.Sprintf(",scope=%q", scope)
	}
	if v.shown.scheme == "bearer" {
		why := "insufficient_scope"
		if v.err != nil {
			why = "invalid_token"
		}
		bearer += fmt.Sprintf(",error=%q", why)
	}
	return httpx.WithHeader(err, "WWW-Authenticate", bearer, basicChallenge)
}

const basicChallenge = `Basic realm="berth",charset="UTF-8"`

// scopeOf is what a client asks a token for that it wants to do a with repo with.
func scopeOf(repo string, a registry.Action) string {
	if a == registry.Push || a == registry.Overwrite {
		a = "pull,push"
	}
	return "repository:" + repo + ":" + string(a)
}

// controlAccess is access for the control API. Without users administrators come
// by the admin socket only.
func (s *Server) controlAccess(r *http.Request, repo string, needs control.Right) error {
	v := visitorOf(r)
	switch {
	case v.err != nil && (needs == control.Self || needs == control.Admin): // what is named is no repository
		return s.refuse(r, "", registry.Action(needs), v)
	case v.err != nil:
		return s.refuse(r, repo, registry.Action(needs), v)
	case v.Caller.Kind == auth.Socket:
		return nil
	case (needs == control.Admin || needs == control.Self) && !s.identities.InUse():
		s.audit.Note(r).Deny(string(needs), "", "", "the server has no users")
		if needs == control.Self {
			return wire.Denied.With("this server is without users, so nobody can log in and none has keys; the first one is made on the server's own machine, by registry/admin.sock in its data directory: berth user add")
		}
		return wire.Denied.With("a server without users is administered on its own machine, by the socket registry/admin.sock in its data directory: run berth admin there, as the server's user or root")
	case (needs == control.Admin || needs == control.Self) && v.Caller.Kind == auth.Anonymous:
		s.audit.Note(r).Deny(string(needs), "", "", "nobody has logged in")
		return httpx.WithHeader(wire.Unauthenticated, "WWW-Authenticate", basicChallenge)
	case needs == control.Self && v.Caller.Kind == auth.User && (repo == v.Caller.Name || repo == control.Myself):
		if v.Caller.Limits != nil {
			s.audit.Note(r).Deny(string(needs), "", "", "the credential has limits")
			return wire.Denied.With("this credential is good for some repositories only: use the password, or a key without limits")
		}
		return nil
	case needs == control.Self:
		d := s.decider.Decide(v.Caller, "", auth.Admin)
		if !d.Allowed {
			s.audit.Note(r).Deny(string(needs), "", d.Rule, d.Why)
			return wire.Denied.With("these belong to another user: " + d.Why)
		}
		audit.Noted(r).Allow(d.Rule)
		return nil
	case needs == control.Admin:
		d := s.decider.Decide(v.Caller, "", auth.Admin)
		if !d.Allowed {
			s.audit.Note(r).Deny(string(needs), "", d.Rule, d.Why)
			return wire.Denied.With(d.Why)
		}
		audit.Noted(r).Allow(d.Rule)
		return nil
	case repo == "" && v.Caller.Kind == auth.Anonymous && s.identities.InUse():
		return wire.Unauthenticated
	}
	return s.access(r, repo, registry.Action(needs))
}
