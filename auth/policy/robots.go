package policy

import (
	"slices"

	"berth.internal/auth"
)

// WithRobots is a policy, beside what robots were made for: the grants that who
// made a robot gave it are rules for it, but any rule of the policy comes first.
type WithRobots struct {
	auth.Decider // the policy
}

// Decide implements auth.Decider.
func (w WithRobots) Decide(c auth.Caller, repo string, a auth.Action) auth.Decision {
	said := w.Decider.Decide(c, repo, a)
	if said.Allowed || said.Rule != "" || c.Kind != auth.Robot || a == auth.Admin {
		return said
	}
	for _, g := range c.Limits {
		if slices.Contains(g.Actions, a) && Match(g.Repositories, repo) {
			return auth.Decision{Allowed: true, Rule: c.String(), Why: c.String() + " was made for it"}
		}
	}
	return said
}
