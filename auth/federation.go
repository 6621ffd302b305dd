package auth

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"
)

// OIDCPrefix begins the name under which a job shows its token as a password:
// oidc+ISSUER, with the issuer's name in the configuration. No user's name holds a
// plus.
const OIDCPrefix = "oidc+"

// Of is how what an issuer says is called here, so that it is taken neither for what
// is of berth's own nor for what another issuer says: ISSUER+name. No name of
// berth's own holds a plus.
func Of(issuer, name string) string { return issuer + "+" + name }

// CutIssuer is the way back from Of.
func CutIssuer(text string) (issuer, name string, ok bool) { return strings.Cut(text, "+") }

// ErrIssuer says that a token cannot be checked now, since its issuer does not
// answer. Its text is for the log.
var ErrIssuer = errors.New("the issuer of the token does not answer")

// RefusedError says why a token of an issuer is not accepted. It is an
// ErrCredentials, and tells who sent the token nothing that is not in it.
type RefusedError struct {
	Issuer string // its name in the configuration, as far as there is one
	Why    string // a half sentence about "it", the token
}

func (e *RefusedError) Error() string {
	if e.Issuer == "" {
		return "the token is not accepted: " + e.Why
	}
	return fmt.Sprintf("the token of %s is not accepted: %s", e.Issuer, e.Why)
}

// Is makes it an ErrCredentials.
func (e *RefusedError) Is(target error) bool { return target == ErrCredentials }

// Assertion is what a token of an issuer says of the job that shows it.
type Assertion struct {
	Issuer  string            // its name in the configuration
	Subject string            // by the issuer's words
	Claims  map[string]string // as in Caller; must not be changed
	Expires time.Time
}

// Issuers know whose tokens are accepted beside our own, and read them; that is
// auth/oidc. They are safe for concurrent use.
type Issuers interface {
	// Some tells whether there are any.
	Some() bool

	// Whose returns the name of the issuer that the token claims to be from,
	// unchecked, and of ours, or "".
	Whose(token string) string

	// Verify reads a job's token, which must be of the issuer of that name. Errors:
	// *RefusedError; ErrIssuer; ctx's.
	Verify(ctx context.Context, issuer, token string) (Assertion, error)

	// Admit returns who somebody is of whom the assertion was made, by what is
	// configured now. It costs no input or output. Errors: *RefusedError.
	Admit(a Assertion) (Caller, error)

	// Suppose returns what a token of the issuer would say that had these claims, by
	// the issuer's words.
	Suppose(issuer string, claims map[string]string) Assertion

	// Logins returns those that people log in by.
	Logins() []LoginIssuer

	// Identify reads an ID token of a person, which must be of the issuer of that
	// name, and fresh. Errors: as of Verify.
	Identify(ctx context.Context, issuer, token string) (Identity, error)

	// Vouches tells whether the user of that name and origin may come in by what is
	// configured now. It costs no input or output.
	Vouches(user string, o Origin) bool
}

// Job returns who a job would be whose token of the issuer had these claims, by the
// issuer's words. Errors: *RefusedError.
func (s *Service) Job(issuer string, claims map[string]string) (Caller, error) {
	if s.issuers == nil {
		return Caller{}, &RefusedError{Why: "this registry accepts no tokens of others"}
	}
	return s.issuers.Admit(s.issuers.Suppose(issuer, claims))
}

// job returns whose token of the issuer this is. Address is the caller's, empty if
// tries are not to be counted. A token that was verified is remembered by its
// hash; what the configuration says of it is asked each time. fresh is true if it
// was not remembered. Errors: as of Issuers.Verify; *LimitedError.
func (s *Service) job(ctx context.Context, issuer, token, address string) (_ Caller, fresh bool, _ error) {
	if s.issuers == nil {
		return Caller{}, true, &RefusedError{Why: "this registry accepts no tokens of others"}
	}
	key := sha256.Sum256([]byte(issuer + "\x00" + token))
	v, found := s.jobs.get(key)
	if !found {
		a, err := s.issuers.Verify(ctx, issuer, token)
		if errors.Is(err, ErrCredentials) && address != "" {
			// Nobody guesses signatures; the limit saves the log.
			if wait, ok := s.addresses.take(network(address)); !ok {
				return Caller{}, true, &LimitedError{wait}
			}
		}
		if err != nil {
			return Caller{}, true, err
		}
		v = verified{kind: Job, assertion: &a, expires: a.Expires}
	}
	c, err := s.admit(v.assertion)
	if err == nil && !found { // others would only take the place
		s.jobs.put(key, v)
	}
	return c, !found, err
}

// admit returns who somebody is with a verified token.
func (s *Service) admit(a *Assertion) (Caller, error) {
	if s.issuers == nil {
		return Caller{}, &RefusedError{Issuer: a.Issuer, Why: "this registry accepts no tokens of others any more"}
	}
	if !time.Now().Before(a.Expires) {
		return Caller{}, &RefusedError{Issuer: a.Issuer, Why: "it has expired, at " + a.Expires.UTC().Format(time.RFC3339)}
	}
	return s.issuers.Admit(*a)
}

// assertionOf is what our token for a job says of it.
func assertionOf(name string, claims map[string]string, expires time.Time) (*Assertion, error) {
	issuer, sub, ok := CutIssuer(name)
	if !ok {
		return nil, errors.New("it names no issuer")
	}
	return &Assertion{Issuer: issuer, Subject: sub, Claims: claims, Expires: expires}, nil
}
