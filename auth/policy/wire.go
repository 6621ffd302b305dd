package policy

import (
	"berth.internal/auth"
	"berth.internal/internal/control"
)

// Wire returns rules as the control API says them.
func Wire(rules []Rule) []control.PolicyRule {
	list := []control.PolicyRule{}
	for _, r := range rules {
		list = append(list, control.PolicyRule{
			Subject: r.Subject, Repositories: r.Repositories, Allow: convert[string](r.Allow), Deny: convert[string](r.Deny), Comment: r.Comment,
		})
	}
	return list
}

// FromWire returns rules of the control API, which may be wrong.
func FromWire(rules []control.PolicyRule) []Rule {
	list := []Rule{}
	for _, r := range rules {
		list = append(list, Rule{
			Subject: r.Subject, Repositories: r.Repositories, Allow: convert[auth.Action](r.Allow), Deny: convert[auth.Action](r.Deny), Comment: r.Comment,
		})
	}
	return list
}

func convert[To, From ~string](words []From) []To {
	var list []To
	for _, w := range words {
		list = append(list, To(w))
	}
	return list
}
