package policy

import (
	"errors"
	"fmt"

	"go.yaml.in/yaml/v3"

	"berth.internal/internal/config"
)

// Parse reads a policy from YAML, of which JSON is a part. The error joins all
// that is wrong with it, each with its line; name is what it calls the text.
func Parse(name string, text []byte) (Policy, error) {
	var p Policy
	if len(text) > MaxBytes {
		return p, fmt.Errorf("%s: a policy has at most %d bytes", name, MaxBytes)
	}
	if err := config.Text(name, text, &p); err != nil {
		return p, err
	}
	if p.Rules == nil {
		return p, fmt.Errorf("%s: there is no list rules; rules: [] is a policy that allows nothing", name)
	}
	err := p.Validate()
	wrong, ok := errors.AsType[Problems](err)
	if !ok {
		return p, err
	}
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		return p, fmt.Errorf("%s: %w", name, err)
	}
	rules := member(document.Content[0], "rules")
	var errs []error
	for _, one := range wrong {
		rule := target(rules.Content[one.Rule])
		line := rule.Line
		if at := member(rule, one.Field); at != nil {
			line = at.Line
		}
		errs = append(errs, fmt.Errorf("%s: line %d: %s: %s", name, line, one.Field, one.Says))
	}
	return p, errors.Join(errs...)
}

// member is what the key of a mapping stands for, or nil.
func member(of *yaml.Node, key string) *yaml.Node {
	of = target(of)
	for i := 0; i+1 < len(of.Content); i += 2 {
		if of.Kind == yaml.MappingNode && of.Content[i].Value == key {
			return target(of.Content[i+1])
		}
	}
	return nil
}

// target is n, or what it is an alias of.
func target(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// YAML is the policy as text for people, which Parse reads.
func (p Policy) YAML() ([]byte, error) {
	if p.Rules == nil {
		p.Rules = []Rule{}
	}
	return yaml.Marshal(p)
}
