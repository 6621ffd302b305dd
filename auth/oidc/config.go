package oidc

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"berth.internal/auth/policy"
	"berth.internal/internal/lazyregexp"
)

// Issuer is somebody who says by signed tokens who a caller is (OpenID Connect
// Core 1.0), as the configuration has it. All that it says is named after it, see
// auth.Of: the user gitlab+ann, the group gitlab+dev, the claim gitlab+project_path.
type Issuer struct {
	// Name is what the policy and logins call the issuer: 1 to 32 small letters,
	// digits and dashes.
	Name string `yaml:"name"`

	// URL is the issuer, as its tokens spell it; it publishes its keys below it, at
	// /.well-known/openid-configuration. It is an https URL, or http on this machine.
	URL string `yaml:"issuer"`

	// CA is a file with the certificates, in PEM, that the issuer's is checked
	// against. Default those of the system; berth's container image has none: give it
	// some at /etc/ssl/certs.
	CA string `yaml:"ca"`

	// Keys is a file with the issuer's keys, as a JWK set (RFC 7517), for one that
	// publishes them where the registry cannot read them, such as a Kubernetes
	// cluster: kubectl get --raw /openid/v1/jwks. It is read again when it is needed.
	// Default none: the issuer is asked.
	Keys string `yaml:"keys"`

	// Jobs lets CI jobs in with the tokens that the issuer gives them.
	Jobs *Jobs `yaml:"jobs"`

	// People lets people log in with the accounts that they have there: berth login
	// --oidc NAME.
	People *People `yaml:"people"`
}

// People says who may log in by an issuer, and what they are called here: the user
// ISSUER+NAME, in groups ISSUER+GROUP. What they may do is a matter of the policy.
type People struct {
	// ClientID is berth's name at the issuer, where it is a public client for a native
	// application: without a secret, with PKCE (RFC 7636), and with the redirect URI
	// http://127.0.0.1/callback on any port (RFC 8252) or the device flow (RFC 8628).
	ClientID string `yaml:"client_id"`

	// Scopes are asked for beside openid. Default profile, email.
	Scopes []string `yaml:"scopes"`

	// UsernameClaim is the claim of the ID token that names the user: 1 to 64
	// letters, digits and . _ - @. It must be one that people cannot choose freely.
	// Default preferred_username.
	UsernameClaim string `yaml:"username_claim"`

	// GroupsClaim is the claim with the groups, a list of texts or one text. Groups
	// with other characters in their names than letters, digits and . _ - @ / do not
	// count; a slash before a name is left out. Default groups.
	GroupsClaim string `yaml:"groups_claim"`

	// Require are claims that an ID token must have, as in Jobs. It is needed where
	// everybody can have an account, such as {hd: example.com} with Google. Default
	// none.
	Require map[string]string `yaml:"require"`

	// Lasts is how long somebody is known here after the last login, with the groups
	// of that: then API keys and all else are good for nothing until the next.
	// Default 720h.
	Lasts time.Duration `yaml:"lasts"`
}

// What People is where nothing else is said.
const (
	usualUsername = "preferred_username"
	usualGroups   = "groups"
	usualLasts    = 30 * 24 * time.Hour
)

// filled returns p with what is usual.
func (p People) filled() People {
	p.UsernameClaim = cmp.Or(p.UsernameClaim, usualUsername)
	p.GroupsClaim = cmp.Or(p.GroupsClaim, usualGroups)
	p.Lasts = cmp.Or(p.Lasts, usualLasts)
	if p.Scopes == nil {
		p.Scopes = []string{"profile", "email"}
	}
	return p
}

// Jobs says which tokens of an issuer are those of jobs that may come in. What
// they may do is a matter of the policy, whose subjects claim:ISSUER+KEY=PATTERN
// and group:ISSUER+NAME are for them.
type Jobs struct {
	// Audience must be among those of a token, which says whom it was made for.
	// Choose the registry's own URL, so that a token for another service is of no
	// use here.
	Audience string `yaml:"audience"`

	// Require are claims that a token must have, each with a pattern of its value: *
	// stands for any text without a slash, ** between slashes for any number of
	// words, {a,b} for one of those. At least one is needed, since on some
	// issuers everybody can run a job. A claim within another is called
	// kubernetes.io/namespace.
	Require map[string]string `yaml:"require"`

	// Groups are those that a job is in whose claims match. The policy calls them
	// group:ISSUER+NAME.
	Groups []Group `yaml:"groups"`
}

// Group is the group of the jobs that have all of these claims.
type Group struct {
	Name   string            `yaml:"name"`
	Claims map[string]string `yaml:"claims"` // patterns, as in Jobs.Require
}

var (
	nameGrammar  = lazyregexp.New(`^[a-z0-9][a-z0-9-]{0,31}$`)
	groupGrammar = lazyregexp.New(`^[a-zA-Z0-9][a-zA-Z0-9._@/-]{0,63}$`)
)

// reserved are the words that begin the names of logins, before a plus.
var reserved = []string{"robot", "oidc", "node"}

// Check returns all that is wrong with the issuers, each line beginning with the
// key.
func Check(list []Issuer) error {
	var errs []error
	names, urls := map[string]bool{}, map[string]bool{}
	for i, one := range list {
		wrong := func(key, format string, args ...any) {
			errs = append(errs, fmt.Errorf("oidc[%d]%s: %w", i, key, fmt.Errorf(format, args...)))
		}
		switch {
		case !nameGrammar().MatchString(one.Name):
			wrong(".name", "%.80q is not a name: it has 1 to 32 small letters, digits and dashes", one.Name)
		case slices.Contains(reserved, one.Name):
			wrong(".name", "%s+ begins names of berth's own: choose another", one.Name)
		case names[one.Name]:
			wrong(".name", "another issuer has the name %s, too", one.Name)
		}
		if one.Keys != "" && (one.CA != "" || one.People != nil) {
			wrong(".keys", "is for jobs of an issuer that is not asked: it goes with neither ca nor people")
		}
		switch err := checkURL(one.URL, one.Keys != ""); {
		case err != nil:
			wrong(".issuer", "%w", err)
		case urls[one.URL]:
			wrong(".issuer", "%s is there twice", one.URL)
		}
		names[one.Name], urls[one.URL] = true, true
		if one.Jobs == nil && one.People == nil {
			wrong("", "%s is for nobody: say in jobs or people whom it lets in", one.Name)
		}
		if one.People != nil {
			one.People.check(wrong)
		}
		if one.Jobs == nil {
			continue
		}
		j := one.Jobs
		if one.People != nil && j.Audience == one.People.ClientID {
			wrong(".jobs.audience", "must be another than people.client_id: a job and a person are not the same")
		}
		if j.Audience == "" {
			wrong(".jobs.audience", "must say whom the tokens are made for, such as the URL of this registry")
		}
		if len(j.Require) == 0 {
			wrong(".jobs.require", "must name a claim that tokens have, such as {namespace_path: team}: on many issuers everybody can run jobs")
		}
		for _, err := range checkClaims(j.Require) {
			wrong(".jobs.require", "%w", err)
		}
		for k, g := range j.Groups {
			key := fmt.Sprintf(".jobs.groups[%d]", k)
			if !groupGrammar().MatchString(g.Name) {
				wrong(key+".name", "%.80q is not the name of a group: it has 1 to 64 letters, digits and . _ - @ /", g.Name)
			}
			if len(g.Claims) == 0 {
				wrong(key+".claims", "must name the claims that put a job in the group")
			}
			for _, err := range checkClaims(g.Claims) {
				wrong(key+".claims", "%w", err)
			}
		}
	}
	return errors.Join(errs...)
}

// check tells wrong what is wrong with p.
func (p People) check(wrong func(key, format string, args ...any)) {
	if p.ClientID == "" || len(p.ClientID) > maxValue {
		wrong(".people.client_id", "must be berth's name at the issuer")
	}
	for _, scope := range p.Scopes {
		if scope == "" || strings.ContainsFunc(scope, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '"' || r == '\\' }) {
			wrong(".people.scopes", "%.80q is not a scope", scope)
		}
	}
	for key, claim := range map[string]string{".people.username_claim": p.UsernameClaim, ".people.groups_claim": p.GroupsClaim} {
		if claim != "" {
			if err := checkKey(claim); err != nil {
				wrong(key, "%w", err)
			}
		}
	}
	for _, err := range checkClaims(p.Require) {
		wrong(".people.require", "%w", err)
	}
	if p.Lasts < 0 {
		wrong(".people.lasts", "must not be negative")
	}
}

func checkClaims(claims map[string]string) (errs []error) {
	for _, key := range sorted(claims) {
		if err := checkKey(key); err != nil {
			errs = append(errs, err)
		}
		if claims[key] == "" {
			errs = append(errs, fmt.Errorf("%s needs a pattern of its value; ** is any", key))
		} else if err := policy.CheckValue(claims[key]); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
	}
	return errs
}

func sorted(claims map[string]string) []string {
	var keys []string
	for key := range claims {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// checkURL looks at an issuer's URL. Of one that is not asked it is but a name.
func checkURL(text string, name bool) error {
	u, err := url.Parse(text)
	switch {
	case text == "":
		return errors.New("must be the issuer's URL, such as https://gitlab.example.com")
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return fmt.Errorf("%.200q is not a URL such as https://gitlab.example.com", text)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.ContainsAny(text, "?#"):
		return errors.New("an issuer's URL has neither a password nor ? or #")
	}
	if name {
		return nil
	}
	return secure(u)
}

// secure refuses URLs that somebody on the network can answer for another.
func secure(u *url.URL) error {
	host := u.Hostname()
	ip := net.ParseIP(host)
	if u.Scheme == "https" || u.Scheme == "http" && (host == "localhost" || ip != nil && ip.IsLoopback()) {
		return nil
	}
	return fmt.Errorf("%s: keys must come by https, so that nobody can put others in their place", u.Redacted())
}
