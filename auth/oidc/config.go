package oidc

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"berth.internal/auth/policy"
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
	// against. Default those of the system.
	CA string `yaml:"ca"`

	// Jobs lets CI jobs in with the tokens that the issuer gives them.
	Jobs *Jobs `yaml:"jobs"`
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
	nameGrammar  = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)
	groupGrammar = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._@/-]{0,63}$`)
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
		case !nameGrammar.MatchString(one.Name):
			wrong(".name", "%.80q is not a name: it has 1 to 32 small letters, digits and dashes", one.Name)
		case slices.Contains(reserved, one.Name):
			wrong(".name", "%s+ begins names of berth's own: choose another", one.Name)
		case names[one.Name]:
			wrong(".name", "another issuer has the name %s, too", one.Name)
		}
		switch err := checkURL(one.URL); {
		case err != nil:
			wrong(".issuer", "%w", err)
		case urls[one.URL]:
			wrong(".issuer", "%s is there twice", one.URL)
		}
		names[one.Name], urls[one.URL] = true, true
		if one.Jobs == nil {
			wrong("", "%s is for nobody: say in jobs whom it lets in", one.Name)
			continue
		}
		j := one.Jobs
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
			if !groupGrammar.MatchString(g.Name) {
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

func checkURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case text == "":
		return errors.New("must be the issuer's URL, such as https://gitlab.example.com")
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return fmt.Errorf("%.200q is not a URL such as https://gitlab.example.com", text)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.ContainsAny(text, "?#"):
		return errors.New("an issuer's URL has neither a password nor ? or #")
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
