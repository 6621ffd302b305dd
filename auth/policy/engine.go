package policy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"berth.internal/auth"
)

// Engine decides by one policy. Make it with Compile; it never changes.
//
// Of all rules that are for the caller, name the action and match the
// repository, one decides: that with the longest match (see pattern; a pattern
// with braces is as long as the alternative that matches); of equally long ones
// a rule that denies; of these the one with the closest subject, which is user,
// robot or node before claim, then group, then everyone; and of these the first.
// If there is none, the answer is no.
//
// A repository of "" is the server as a whole. There Admin is decided by the
// rules for **. Everything else, such as Pull for the catalog, is allowed to who
// may do it with some repository, as far as a single rule can tell.
type Engine struct {
	policy Policy
	rules  map[string]map[string]ruleset // by kind and name of the subject
}

// ruleset is the rules of one subject by their pattern.head, each list in order of
// precedence: a subject such as everyone has a rule for every team, and all but a few
// are for names that begin otherwise.
type ruleset map[uint32][]rule

// subject is whom a rule is for.
type subject struct {
	kind string
	name string // of a claim: its issuer and key
}

// The kinds of subjects that are no auth.Kind.
const (
	kindEveryone = "everyone"
	kindGroup    = "group"
	kindClaim    = "claim"
)

// rule is a Rule for one pattern.
type rule struct {
	pattern
	actions  actions
	denies   bool
	distance uint8 // of the subject: zero is closest
	order    int32
	value    string         // pattern of a claim's value
	decision *auth.Decision // if it allows; Why of one that denies names the caller
}

// actions is a set of auth.Actions.
type actions uint8

// bit returns the set of a alone; of an action that does not exist it is empty.
func bit(a auth.Action) actions {
	switch a {
	case auth.Pull:
		return 1
	case auth.Push:
		return 2
	case auth.Overwrite:
		return 4
	case auth.Delete:
		return 8
	case auth.Admin:
		return 16
	}
	return 0
}

// Compile makes an engine. The error is all that is wrong with p, as Problems.
func Compile(p Policy) (*Engine, error) {
	e := &Engine{policy: p, rules: map[string]map[string]ruleset{}}
	var wrong Problems
	for i, r := range p.Rules {
		problem := func(field, format string, args ...any) {
			wrong = append(wrong, Problem{Rule: i, Field: field, Says: fmt.Sprintf(format, args...)})
		}
		who, values, err := parseSubject(r.Subject)
		if err != nil {
			problem("subject", "%v", err)
		}
		where, err := patterns(r.Repositories)
		if err != nil {
			problem("repositories", "%v", err)
		}
		list, field := r.Allow, "allow"
		switch {
		case len(r.Allow) == 0 && len(r.Deny) == 0:
			problem(field, "a rule has allow or deny with a list of actions: %s", words(auth.Actions()))
		case len(r.Allow) > 0 && len(r.Deny) > 0:
			problem("deny", "a rule allows or denies, not both: make it two rules")
		case len(r.Deny) > 0:
			list, field = r.Deny, "deny"
		}
		var set actions
		for _, a := range list {
			switch b := bit(a); {
			case b == 0:
				problem(field, "%q is none of the actions %s", clip(string(a)), words(auth.Actions()))
			case set&b != 0:
				problem(field, "%s is there twice", a)
			default:
				set |= b
			}
		}
		if set&bit(auth.Admin) != 0 && r.Repositories != "**" && r.Repositories != "" {
			problem(field, "admin is a right on the server as a whole: give it with a rule for **")
		}
		if len(wrong) > 0 {
			continue
		}
		text := r.String()
		decision := &auth.Decision{Allowed: len(r.Deny) == 0, Rule: text, Why: "the rule \"" + text + "\" allows it"}
		for _, one := range where {
			for _, value := range values {
				e.add(who, rule{
					pattern: one, value: value.text, actions: set, denies: len(r.Deny) > 0, distance: distance(who.kind), order: int32(i),
					decision: decision,
				})
			}
		}
	}
	if wrong != nil {
		return nil, wrong
	}
	for _, named := range e.rules {
		for _, list := range named {
			list.sort()
		}
	}
	return e, nil
}

func (e *Engine) add(who subject, r rule) {
	if e.rules[who.kind] == nil {
		e.rules[who.kind] = map[string]ruleset{}
	}
	list := e.rules[who.kind][who.name]
	if list == nil {
		list = ruleset{}
		e.rules[who.kind][who.name] = list
	}
	list[r.head] = append(list[r.head], r)
}

func (l ruleset) sort() {
	for _, rules := range l {
		slices.SortStableFunc(rules, func(a, b rule) int {
			switch {
			case a.before(&b):
				return -1
			case b.before(&a):
				return 1
			}
			return 0
		})
	}
}

// before tells whether a decides where both could.
func (a *rule) before(b *rule) bool {
	if a.rank != b.rank {
		return a.rank > b.rank
	}
	if a.denies != b.denies {
		return a.denies
	}
	if a.distance != b.distance {
		return a.distance < b.distance
	}
	return a.order < b.order
}

func distance(kind string) uint8 {
	switch kind {
	case kindClaim:
		return 1
	case kindGroup:
		return 2
	case kindEveryone:
		return 3
	}
	return 0
}

// parseSubject reads a subject, and of a claim the patterns of its value; of
// others that is one, which is empty.
func parseSubject(text string) (who subject, values []pattern, err error) {
	values = []pattern{{}}
	kind, name, named := strings.Cut(text, ":")
	switch kind {
	case string(auth.Anonymous), kindEveryone:
		if named {
			return who, nil, fmt.Errorf("%s has no name", kind)
		}
		return subject{kind: kind}, values, nil
	case string(auth.User), string(auth.Robot), string(auth.Node), kindGroup, kindClaim:
	default:
		return who, nil, fmt.Errorf("%q is none of user:NAME, group:NAME, robot:NAME, node:NAME, claim:ISSUER+KEY=PATTERN, everyone and anonymous", clip(text))
	}
	if kind == kindClaim {
		key, pattern, ok := strings.Cut(name, "=")
		if !ok || key == "" || pattern == "" {
			return who, nil, fmt.Errorf("%q is not a claim with a pattern of its value, such as claim:gitlab+project_path=team/*", clip(text))
		}
		// Issuers that know nothing of each other use the same names.
		if issuer, claim, named := auth.CutIssuer(key); !named || issuer == "" || claim == "" {
			return who, nil, fmt.Errorf("%q does not say which issuer makes the claim: write claim:ISSUER+%s, with a name from oidc in the server's configuration",
				clip(text), clip(name))
		}
		if values, err = read(pattern, alphabet{has: inValue}); err != nil {
			return who, nil, err
		}
		name = key
	}
	switch {
	case name == "":
		return who, nil, fmt.Errorf("%s: needs a name", kind)
	case len(text) > maxName:
		return who, nil, fmt.Errorf("a subject has at most %d bytes", maxName)
	case strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\uFFFD' }):
		return who, nil, errors.New("a name has neither spaces nor control characters")
	}
	return subject{kind: kind, name: name}, values, nil
}

// Policy returns what the engine was made from. It must not be changed.
func (e *Engine) Policy() Policy { return e.policy }

// Decide implements auth.Decider.
func (e *Engine) Decide(c auth.Caller, repo string, a auth.Action) auth.Decision {
	if c.Kind == auth.Socket {
		return auth.Decision{Allowed: true, Why: "the admin socket may do everything"}
	}
	r := e.find(c, repo, a)
	switch {
	case r == nil:
		return auth.Decision{Why: unmatched(c, repo, a)}
	case r.denies:
		return auth.Decision{Rule: r.decision.Rule, Why: fmt.Sprintf("%s may not %s: the rule %q denies it", caller(c), doing(a, repo), r.decision.Rule)}
	case c.Limits != nil && !within(c.Limits, repo, a):
		return auth.Decision{Why: fmt.Sprintf("%s may not %s with this credential, which is good for %s only: use another one",
			caller(c), doing(a, repo), grants(c.Limits))}
	}
	return *r.decision
}

// find returns the rule that decides, or nil.
func (e *Engine) find(c auth.Caller, repo string, a auth.Action) *rule {
	q := question{repo: repo, head: headOf(repo), action: bit(a), admin: a == auth.Admin}
	switch c.Kind {
	case auth.Anonymous:
		q.ask(e.rules[string(auth.Anonymous)][""], "")
		return q.best
	case auth.User, auth.Robot, auth.Node, auth.Job:
	default:
		return nil
	}
	q.ask(e.rules[string(c.Kind)][c.Name], "")
	q.ask(e.rules[kindEveryone][""], "")
	if groups := e.rules[kindGroup]; groups != nil {
		for _, g := range c.Groups {
			q.ask(groups[g], "")
		}
	}
	if claims := e.rules[kindClaim]; claims != nil {
		for key, value := range c.Claims {
			q.ask(claims[key], value)
		}
	}
	return q.best
}

// question is one that is asked of several subjects' rules.
type question struct {
	repo   string
	head   uint32 // of repo
	action actions
	admin  bool
	best   *rule
}

// ask looks for a better rule among those of a subject, which may have none. value
// is that of the claim.
func (q *question) ask(list ruleset, value string) {
	switch {
	case len(list) == 0:
	case q.repo == "":
		for _, rules := range list {
			q.look(rules, value)
		}
	default:
		q.look(list[q.head], value)
		q.look(list[0], value)
	}
}

// look is ask for rules in order of precedence.
func (q *question) look(rules []rule, value string) {
	for i := range rules {
		r := &rules[i]
		if q.best != nil && r.rank <= q.best.rank && !r.before(q.best) {
			return // nor are those behind it
		}
		if r.actions&q.action != 0 && q.matches(r) && (r.value == "" || matchWords(r.value, value)) {
			q.best = r
			return
		}
	}
}

func (q *question) matches(r *rule) bool {
	switch {
	case q.repo != "":
		return r.match(q.repo)
	case q.admin:
		return r.how == always
	}
	return !r.denies
}

// within tells whether a credential with these limits is good for a on repo.
func within(limits []auth.Grant, repo string, a auth.Action) bool {
	for i := range limits {
		g := &limits[i]
		if !slices.Contains(g.Actions, a) {
			continue
		}
		if g.Repositories == "**" || repo == "" && a != auth.Admin || repo != "" && (repo == g.Repositories || Match(g.Repositories, repo)) {
			return true
		}
	}
	return false
}

// unmatched says what is missing where no rule matches.
func unmatched(c auth.Caller, repo string, a auth.Action) string {
	where := cmp.Or(repo, "**")
	if c.Kind == auth.Anonymous {
		// No Sprintf: a server without users asks this for each request, and lets
		// it pass all the same.
		return caller(c) + " may not " + doing(a, repo) + ": log in; an administrator can also allow it to everybody with berth policy allow anonymous " + string(a) + " " + where
	}
	subject := string(c.Kind) + ":" + c.Name
	if issuer, sub, ok := auth.CutIssuer(c.Name); ok && c.Kind == auth.Job {
		subject = "claim:" + auth.Of(issuer, "sub") + "=" + sub
	}
	return fmt.Sprintf("%s may not %s: no rule allows it; an administrator can grant it with berth policy allow %s %s %s",
		caller(c), doing(a, repo), subject, a, where)
}

// caller names c in a sentence.
func caller(c auth.Caller) string {
	if c.Kind == auth.Anonymous {
		return "who has not logged in"
	}
	return c.String()
}

// doing is what somebody may do or not.
func doing(a auth.Action, repo string) string {
	switch {
	case a == auth.Admin:
		return "administer this server"
	case repo == "" && a == auth.Pull:
		return "pull anything"
	case repo == "":
		return string(a) + " anywhere"
	}
	switch a {
	case auth.Pull:
		return "pull " + repo
	case auth.Push:
		return "push to " + repo
	case auth.Overwrite:
		return "move the tags of " + repo
	case auth.Delete:
		return "delete in " + repo
	}
	return string(a) + " " + repo
}

func grants(list []auth.Grant) string {
	var parts []string
	for _, g := range list {
		parts = append(parts, words(g.Actions)+" on "+g.Repositories)
	}
	return cmp.Or(strings.Join(parts, ", "), "nothing")
}

func words(list []auth.Action) string {
	var words []string
	for _, a := range list {
		words = append(words, string(a))
	}
	return strings.Join(words, ", ")
}

// clip makes somebody's word short enough to be repeated.
func clip(s string) string {
	if r := []rune(strings.ToValidUTF8(s, "")); len(r) > 60 {
		return string(r[:60]) + "…"
	}
	return s
}
