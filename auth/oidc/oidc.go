// Package oidc accepts the signed tokens by which others say who a caller is: CI
// jobs of GitLab and GitHub, service accounts of Kubernetes. The reasons are in
// docs/design/0014-oidc.md.
package oidc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"berth.internal/auth"
	"berth.internal/auth/policy"
)

// skew is how far the issuer's clock may be ahead of ours. A token that has
// expired by ours has expired: it lives for minutes, and seconds of them are no
// matter.
const skew = 30 * time.Second

// Issuers implements auth.Issuers. Make it with New, and Close it.
type Issuers struct {
	log *slog.Logger
	now atomic.Pointer[set]

	mu sync.Mutex // held while now is replaced
}

var _ auth.Issuers = (*Issuers)(nil)

// set is the issuers that are configured. It does not change.
type set struct {
	byName map[string]*issuer
	byURL  map[string]*issuer
	all    []*issuer
}

// issuer is one of them.
type issuer struct {
	Issuer
	*provider
	require []condition
	groups  []group
}

// condition is a pattern of a claim's value.
type condition struct {
	claim string // as the issuer calls it
	key   string // as policy does
	value string
}

type group struct {
	name string // as policy calls it
	when []condition
}

// New returns the issuers of the configuration, which it checks. It asks none of
// them for anything. Errors: as of Check; files that cannot be read.
func New(list []Issuer, log *slog.Logger) (*Issuers, error) {
	s := &Issuers{log: log}
	s.now.Store(&set{})
	return s, s.Set(list)
}

// Set puts other issuers in the place of those that there are, at once, also for
// who has been let in. If it fails, all stays as it was. Errors: as of New.
func (s *Issuers) Set(list []Issuer) error {
	if err := Check(list); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old, fresh := s.now.Load(), &set{byName: map[string]*issuer{}, byURL: map[string]*issuer{}}
	for k, one := range list {
		i := &issuer{Issuer: one}
		if j := one.Jobs; j != nil {
			i.require = conditions(one.Name, j.Require)
			for _, g := range j.Groups {
				i.groups = append(i.groups, group{name: auth.Of(one.Name, g.Name), when: conditions(one.Name, g.Claims)})
			}
		}
		if one.People != nil {
			p := one.People.filled()
			i.People = &p
		}
		if same := old.byURL[one.URL]; same != nil && same.is(one) { // it keeps its keys
			i.provider = same.provider
		} else {
			var err error
			if i.provider, err = newProvider(one.URL, one.CA, one.Keys, s.log); err != nil {
				fresh.closeBut(old)
				return fmt.Errorf("oidc[%d].%w", k, err)
			}
		}
		fresh.byName[one.Name], fresh.byURL[one.URL] = i, i
		fresh.all = append(fresh.all, i)
	}
	s.now.Store(fresh)
	old.closeBut(fresh)
	return nil
}

// CheckFiles returns all that is wrong with the files that issuers name, each line
// beginning with the key.
func CheckFiles(list []Issuer) error {
	var errs []error
	for k, one := range list {
		if p, err := newProvider(one.URL, one.CA, one.Keys, slog.New(slog.DiscardHandler)); err != nil {
			errs = append(errs, fmt.Errorf("oidc[%d].%w", k, err))
		} else {
			p.close()
		}
	}
	return errors.Join(errs...)
}

// closeBut closes the providers that are not in other.
func (s *set) closeBut(other *set) {
	for _, i := range s.all {
		if !slices.ContainsFunc(other.all, func(o *issuer) bool { return o.provider == i.provider }) {
			i.close()
		}
	}
}

// Close ends what is under way, and accepts no token any more.
func (s *Issuers) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now.Swap(&set{}).closeBut(&set{})
}

func conditions(issuer string, claims map[string]string) []condition {
	var list []condition
	for _, claim := range sorted(claims) {
		list = append(list, condition{claim: claim, key: auth.Of(issuer, claim), value: claims[claim]})
	}
	return list
}

// met tells whether claims, by the names that policy has for them, are as the
// condition says.
func (c condition) met(claims map[string]string) bool {
	value, ok := claims[c.key]
	return ok && policy.Match(c.value, value)
}

// Some implements auth.Issuers.
func (s *Issuers) Some() bool { return len(s.now.Load().all) > 0 }

// Whose implements auth.Issuers.
func (s *Issuers) Whose(raw string) string {
	t, err := decode(raw)
	if err != nil {
		return ""
	}
	if i := s.now.Load().byURL[t.issuer]; i != nil && i.Jobs != nil {
		return i.Name
	}
	return ""
}

// Trouble returns why the keys of an issuer cannot be had, for each of which that
// is so, by name.
func (s *Issuers) Trouble() map[string]error {
	all := map[string]error{}
	for _, i := range s.now.Load().all {
		if err := i.trouble(); err != nil {
			all[i.Name] = err
		}
	}
	return all
}

// Verify implements auth.Issuers.
func (s *Issuers) Verify(ctx context.Context, name, raw string) (auth.Assertion, error) {
	i := s.now.Load().byName[name]
	if i == nil || i.Jobs == nil {
		return auth.Assertion{}, &auth.RefusedError{Why: fmt.Sprintf("this registry knows no issuer %.40q of tokens for jobs", name)}
	}
	t, err := i.verify(ctx, raw, i.Jobs.Audience)
	if err != nil {
		return auth.Assertion{}, err
	}
	a := auth.Assertion{Issuer: i.Name, Subject: t.subject, Claims: map[string]string{}, Expires: t.expires}
	for key, value := range t.claims {
		a.Claims[auth.Of(i.Name, key)] = value
	}
	a.Claims[auth.Of(i.Name, "aud")] = i.Jobs.Audience // of several that which counts
	return a, nil
}

// Suppose implements auth.Issuers.
func (s *Issuers) Suppose(name string, claims map[string]string) auth.Assertion {
	a := auth.Assertion{Issuer: name, Subject: claims["sub"], Claims: map[string]string{}}
	if i := s.now.Load().byName[name]; i != nil && i.Jobs != nil {
		a.Claims[auth.Of(name, "iss")], a.Claims[auth.Of(name, "aud")] = i.URL, i.Jobs.Audience
	}
	for key, value := range claims {
		a.Claims[auth.Of(name, key)] = value
	}
	return a
}

// Admit implements auth.Issuers.
func (s *Issuers) Admit(a auth.Assertion) (auth.Caller, error) {
	i := s.now.Load().byName[a.Issuer]
	if i == nil || i.Jobs == nil || i.URL != a.Claims[auth.Of(a.Issuer, "iss")] || i.Jobs.Audience != a.Claims[auth.Of(a.Issuer, "aud")] {
		return auth.Caller{}, &auth.RefusedError{Issuer: a.Issuer, Why: "its issuer and audience are none of those that this registry knows, or not any more"}
	}
	for _, c := range i.require {
		if value, ok := a.Claims[c.key]; !ok {
			return auth.Caller{}, i.refuse("it lacks the claim %s, which this registry requires", c.claim)
		} else if !policy.Match(c.value, value) {
			return auth.Caller{}, i.refuse("its claim %s is %q, which this registry does not accept", c.claim, value)
		}
	}
	caller := auth.Caller{Kind: auth.Job, Name: auth.Of(a.Issuer, a.Subject), Claims: a.Claims, Expires: a.Expires}
	for _, g := range i.groups {
		if !slices.ContainsFunc(g.when, func(c condition) bool { return !c.met(a.Claims) }) {
			caller.Groups = append(caller.Groups, g.name)
		}
	}
	return caller, nil
}

func (i *issuer) refuse(format string, args ...any) error {
	return &auth.RefusedError{Issuer: i.Name, Why: fmt.Sprintf(format, args...)}
}

// verify reads a token of the issuer for an audience.
func (i *issuer) verify(ctx context.Context, raw, audience string) (*token, error) {
	t, err := decode(raw)
	if err != nil {
		return nil, i.refuse("%v", err)
	}
	// What a token says of itself is looked at first: the reasons are worth more to
	// who sent it, and cost no question to the issuer.
	if err := t.check(i.URL, audience, i.now()); err != nil {
		return nil, i.refuse("%v", err)
	}
	keys := remembering{KeySet: i.provider}
	verifier := oidc.NewVerifier(i.URL, &keys, &oidc.Config{
		ClientID: audience, SupportedSigningAlgs: names(algorithms),
		SkipExpiryCheck: true, // check does it, with less leeway
	})
	signed, err := verifier.Verify(ctx, raw)
	switch {
	case keys.err != nil && (errors.Is(keys.err, auth.ErrIssuer) || ctx.Err() != nil):
		return nil, keys.err
	case keys.err != nil:
		return nil, i.refuse("%v", keys.err)
	case err != nil:
		return nil, i.refuse("%v", errForm)
	case signed.Subject != t.subject || !signed.Expiry.Equal(t.expires): // readers of JSON differ
		return nil, i.refuse("%v", errForm)
	}
	return t, nil
}

// remembering keeps the error of a KeySet, of which go-oidc tells only the text.
type remembering struct {
	oidc.KeySet
	err error
}

// VerifySignature implements oidc.KeySet.
func (r *remembering) VerifySignature(ctx context.Context, raw string) (payload []byte, err error) {
	payload, r.err = r.KeySet.VerifySignature(ctx, raw)
	return payload, r.err
}

// check looks at what a token says of itself. The error is for who sent it.
func (t *token) check(issuer, audience string, now time.Time) error {
	at := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	switch {
	case !slices.Contains(names(algorithms), t.Algorithm):
		return fmt.Errorf("its signature is of the kind %.20q, and only asymmetric ones count", t.Algorithm)
	case t.Type != "" && !strings.EqualFold(t.Type, "JWT"):
		return fmt.Errorf("it is of the type %.40q, not an ID token", t.Type)
	case t.issuer != issuer:
		return fmt.Errorf("it is from %.200q, not from %q", t.issuer, issuer)
	case !slices.Contains(t.audience, audience):
		return fmt.Errorf("it is for the audience %.200q, not for %q", strings.Join(t.audience, " "), audience)
	case t.expires.IsZero():
		return errors.New("it does not say when it expires")
	case !now.Before(t.expires):
		return fmt.Errorf("it has expired, at %s", at(t.expires))
	case t.notBefore.After(now.Add(skew)):
		return fmt.Errorf("it is not valid before %s; here it is %s", at(t.notBefore), at(now))
	case t.issued.After(now.Add(skew)):
		return fmt.Errorf("it was issued in the future, at %s; here it is %s", at(t.issued), at(now))
	}
	return nil
}

func names[T ~string](list []T) []string {
	var all []string
	for _, one := range list {
		all = append(all, string(one))
	}
	return all
}
