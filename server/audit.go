package server

import (
	"errors"
	"net/http"

	"berth.internal/auth"
	"berth.internal/auth/policy"
	wire "berth.internal/internal/control"
)

// sender fills in who sent r, for the audit log.
func (s *Server) sender(r *http.Request, rec *wire.AuditRecord) {
	v := visitorOf(r)
	rec.Who = subjectOf(v.Owner)
	switch {
	case v.Owner.Kind == auth.Socket:
		rec.Credential = "socket"
		return // from this machine
	case v.Owner.Kind == auth.Node && v.shown.scheme == "":
		rec.Credential = "none"
		return // in this process
	case v.shown.scheme == "bearer":
		rec.Credential = credentialOf(v.Owner, "token")
	case v.shown.scheme == "" && v.Owner.Kind != auth.Anonymous:
		rec.Credential = "certificate"
	case v.shown.scheme == "":
		rec.Credential = "none"
	default:
		rec.Credential = credentialOf(v.Owner, v.shown.scheme)
	}
	rec.From = s.client(r)
}

// subjectOf names the caller as the policy does.
func subjectOf(c auth.Caller) string {
	if c.Name == "" {
		return string(c.Kind)
	}
	return string(c.Kind) + ":" + c.Name
}

// credentialOf names what c was recognized by, such as basic: the API key, if there
// is one behind it.
func credentialOf(c auth.Caller, by string) string {
	if c.Key != "" {
		return "key:" + c.Key
	}
	return by
}

// loggedIn records what became of a name and a password, which are c's: once for a
// right one that was not remembered.
func (s *Server) loggedIn(r *http.Request, name string, c auth.Caller, fresh bool, err error) {
	if err == nil && !fresh || !s.audit.On() {
		return
	}
	rec := wire.AuditRecord{Who: s.identities.Subject(name), Credential: credentialOf(c, "basic"), Action: "login", Decision: wire.AuditAllowed}
	switch {
	case err == nil:
		rec.Who = subjectOf(c) // a directory may spell the name otherwise
	case rec.Who == "":
		rec.Who = "unknown"
	}
	if err != nil {
		rec.Decision, rec.Reason = wire.AuditDenied, reasonOf(err)
	}
	s.audit.Add(r, rec)
}

// policyChanged records that another version of the policy's file is in force.
func (s *Server) policyChanged(before, after policy.Policy) {
	if changes := policy.Changes(before, after); changes != "" {
		s.audit.Add(nil, wire.AuditRecord{Who: "server", Action: "policy.change", Object: s.cfg.Policy, Detail: changes, Decision: wire.AuditAllowed})
	}
}

// shutOut records a credential, other than a password, that is good for nothing.
func (s *Server) shutOut(r *http.Request, credential string, err error) {
	s.audit.Add(r, wire.AuditRecord{Who: "unknown", Credential: credential, Action: "login", Decision: wire.AuditDenied, Reason: reasonOf(err)})
}

// reasonOf says why a credential is refused, without anything that came with it.
func reasonOf(err error) string {
	if refused, ok := errors.AsType[*auth.RefusedError](err); ok {
		if refused.Issuer == "" {
			return "the token is of no issuer that is known here"
		}
		return "the token of " + refused.Issuer + " is not accepted"
	}
	switch {
	case errors.Is(err, auth.ErrExpired):
		return "the token has expired"
	case errors.Is(err, auth.ErrToken):
		return "the token is not valid"
	case errors.Is(err, auth.ErrCredentials):
		return "wrong name or password"
	case errors.Is(err, errAuthorization):
		return "the header Authorization cannot be read"
	case errors.Is(err, auth.ErrUnavailable):
		return auth.ErrUnavailable.Error()
	case errors.Is(err, auth.ErrBusy):
		return "too many logins at once"
	}
	if bad, ok := errors.AsType[*certificateError](err); ok {
		return bad.Error()
	}
	if _, limited := errors.AsType[*auth.LimitedError](err); limited {
		return "too many wrong passwords"
	}
	return "it could not be looked up; the log says why"
}
