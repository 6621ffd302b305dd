package server

import (
	"berth.internal/auth"
	"berth.internal/auth/policy"
)

// localNode is the name of the node in the registry's own process.
const localNode = "local"

// base are the rules that the configuration stands for, beside those of the
// policy.
func (c Config) base() []policy.Rule {
	rules := c.rulesForAnonymous()
	if c.LocalNode != nil {
		rules = append(rules, policy.Rule{
			Subject: string(auth.Node) + ":" + localNode, Repositories: "**", Allow: []auth.Action{auth.Pull}, Comment: "the node of berth up",
		})
	}
	return rules
}

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
