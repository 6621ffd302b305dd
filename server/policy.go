package server

import (
	"berth.internal/auth"
	"berth.internal/auth/policy"
)

// rulesForAnonymous are the rules that Anonymous stands for. Who logs in may do no
// less.
func (c Config) rulesForAnonymous() []policy.Rule {
	rule := policy.Rule{Subject: string(auth.Anonymous), Repositories: "**", Comment: "anonymous: " + string(c.Anonymous)}
	switch c.Anonymous {
	case AnonymousPull:
		rule.Allow = []auth.Action{auth.Pull}
	case AnonymousPush:
		rule.Allow = []auth.Action{auth.Pull, auth.Push, auth.Overwrite, auth.Delete}
	default:
		return nil
	}
	everyone := rule
	everyone.Subject = "everyone"
	return []policy.Rule{rule, everyone}
}
