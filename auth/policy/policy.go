// Package policy decides by rules who may do what with which repositories. It
// knows nothing of how callers prove who they are, and reaches nothing outside:
// Live keeps it up to date. The reasons are in docs/design/0012-policy.md.
package policy

import (
	"fmt"
	"strings"

	"berth.internal/auth"
)

// Limits of a policy.
const (
	MaxBytes   = 1 << 20 // of its text, or of its JSON
	maxName    = 255     // bytes of a subject
	maxPattern = 255     // bytes of a pattern
	maxSpread  = 64      // patterns that one with braces stands for
)

// Policy is an ordered list of rules. What no rule allows is denied.
type Policy struct {
	Rules []Rule `json:"rules" yaml:"rules"`
}

// Rule allows or denies a subject some actions on some repositories.
type Rule struct {
	// Subject is whom the rule is for: user:NAME, group:NAME, robot:NAME,
	// node:NAME, claim:ISSUER+KEY=PATTERN for CI jobs whose token of that issuer says
	// so, anonymous for who has not said who they are, or everyone for all who have.
	Subject string `json:"subject" yaml:"subject"`

	// Repositories is a pattern of their names: * stands for any text without a
	// slash, ? for one character, [a-z] for one of these and {a,b} for one of those;
	// ** between slashes for any number of words, so that team/** is team and all
	// below it.
	Repositories string `json:"repositories" yaml:"repositories"`

	// Allow and Deny are actions: pull, push, overwrite, delete, admin. A rule has
	// one of both lists. Admin is a right on the server as a whole, so its rules
	// are for **.
	Allow []auth.Action `json:"allow,omitempty" yaml:"allow,omitempty,flow"`
	Deny  []auth.Action `json:"deny,omitempty" yaml:"deny,omitempty,flow"`

	// Comment is for people.
	Comment string `json:"comment,omitempty" yaml:"comment,omitempty"`
}

// String is the rule in one line, as decisions name it.
func (r Rule) String() string {
	verb, actions := "allow", r.Allow
	if len(r.Deny) > 0 {
		verb, actions = "deny", r.Deny
	}
	var words []string
	for _, a := range actions {
		words = append(words, string(a))
	}
	return fmt.Sprintf("%s %s %s on %s", r.Subject, verb, strings.Join(words, ","), r.Repositories)
}

// Changes says which rules make the difference between two policies, for people.
func Changes(before, after Policy) string {
	var changes []string
	for _, side := range []struct {
		sign          string
		rules, others []Rule
	}{{"-", before.Rules, after.Rules}, {"+", after.Rules, before.Rules}} {
		known := map[string]int{}
		for _, r := range side.others {
			known[r.String()]++
		}
		for _, r := range side.rules {
			text := r.String()
			if known[text]--; known[text] < 0 {
				changes = append(changes, side.sign+" "+text)
			}
		}
	}
	return strings.Join(changes, "; ")
}

// AdminGroup is the group whose members the default policy allows everything.
const AdminGroup = "admins"

// Default is the policy of a server that was given none.
func Default() Policy {
	return Policy{Rules: []Rule{{
		Subject: "group:" + AdminGroup, Repositories: "**", Allow: auth.Actions(),
		Comment: "administrators may do everything",
	}}}
}

// Problem is something wrong with a policy.
type Problem struct {
	Rule  int    // counted from zero
	Field string // of the rule
	Says  string
}

// Problems is all that is wrong with a policy.
type Problems []Problem

func (p Problems) Error() string {
	var lines []string
	for _, one := range p {
		lines = append(lines, fmt.Sprintf("%s: %s", one.Place(), one.Says))
	}
	return strings.Join(lines, "\n")
}

// Place is where the problem is, such as rules[2].subject.
func (p Problem) Place() string { return fmt.Sprintf("rules[%d].%s", p.Rule, p.Field) }

// Validate returns all that is wrong with the policy, as Problems.
func (p Policy) Validate() error {
	_, err := Compile(p)
	return err
}
