package auth

import (
	"fmt"
	"slices"
	"strings"

	"berth.internal/internal/oci"
)

// Access is what a token is good for with one resource, as the token flow of
// Docker's registries has it.
type Access struct {
	Type    string   `json:"type"` // repository or registry
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// The resources that tokens are for.
const (
	typeRepository = "repository"
	typeRegistry   = "registry"
	nameCatalog    = "catalog"
	everyAction    = "*"
)

// maxScopes is how many scopes one token may be asked for.
const maxScopes = 100

// ParseScopes reads scopes, each of which may be several with spaces between:
// type:name:action,action. A name may hold colons. Scopes of types and actions
// that there are not here are dropped, since a client gets what there is of what
// it asks for; of one resource there is one Access in the answer. Errors: too
// many; what is no scope.
func ParseScopes(scopes []string) ([]Access, error) {
	var all []Access
	n := 0
	for _, several := range scopes {
		for scope := range strings.FieldsSeq(several) {
			if n++; n > maxScopes {
				return nil, fmt.Errorf("a token is for at most %d scopes", maxScopes)
			}
			a, err := parseScope(scope)
			if err != nil {
				return nil, err
			}
			if a.Type != "" {
				all = merge(all, a)
			}
		}
	}
	return all, nil
}

// parseScope reads one scope. Type is empty if it is one for somebody else.
func parseScope(scope string) (Access, error) {
	kind, rest, ok := strings.Cut(scope, ":")
	last := strings.LastIndexByte(rest, ':')
	if !ok || kind == "" || last < 1 {
		return Access{}, fmt.Errorf("%.100q is not a scope such as repository:team/app:pull,push", scope)
	}
	name, actions := rest[:last], strings.Split(rest[last+1:], ",")
	if base, class, ok := strings.Cut(kind, "("); ok && base == typeRepository && strings.HasSuffix(class, ")") {
		kind = typeRepository // a class says what the images are for, such as plugins
	}
	a := Access{Type: kind, Name: name}
	switch {
	case kind == typeRepository:
		if _, err := oci.ParseName(name); err != nil {
			return Access{}, nil // nothing can be there, and nothing is granted
		}
		for _, action := range actions {
			switch action {
			case string(Pull), string(Push), string(Delete), everyAction:
				a.Actions = append(a.Actions, action)
			}
		}
	case kind == typeRegistry && name == nameCatalog:
		if slices.Contains(actions, everyAction) {
			a.Actions = []string{everyAction}
		}
	}
	if len(a.Actions) == 0 {
		return Access{}, nil
	}
	return a, nil
}

func merge(all []Access, a Access) []Access {
	for i := range all {
		if have := &all[i]; have.Type == a.Type && have.Name == a.Name {
			have.Actions = append(have.Actions, a.Actions...)
			slices.Sort(have.Actions)
			have.Actions = slices.Compact(have.Actions)
			return all
		}
	}
	slices.Sort(a.Actions)
	a.Actions = slices.Compact(a.Actions)
	return append(all, a)
}

// allowed is what of the access the caller may have.
func allowed(c Caller, asked []Access, d Decider) []Access {
	granted := []Access{}
	for _, a := range asked {
		g := Access{Type: a.Type, Name: a.Name, Actions: []string{}}
		switch a.Type {
		case typeRepository:
			wants := func(actions ...Action) bool {
				return slices.ContainsFunc(actions, func(x Action) bool { return slices.Contains(a.Actions, string(x)) })
			}
			for _, action := range []Action{Pull, Push, Overwrite, Delete} {
				// Clients know no overwrite: they ask for push.
				asks := wants(action, everyAction) || action == Overwrite && wants(Push)
				if asks && d.Decide(c, a.Name, action).Allowed {
					g.Actions = append(g.Actions, string(action))
				}
			}
		case typeRegistry: // what the catalog shows is decided name by name
			g.Actions = append(g.Actions, everyAction)
		}
		if len(g.Actions) > 0 {
			granted = append(granted, g)
		}
	}
	return granted
}

// grants are the limits of a token with this access, and whether it is good for
// the catalog.
func grants(access []Access) (limits []Grant, catalog bool) {
	limits = []Grant{} // not nil: good for nothing
	for _, a := range access {
		switch a.Type {
		case typeRepository:
			g := Grant{Repositories: a.Name}
			for _, action := range a.Actions {
				g.Actions = append(g.Actions, Action(action))
			}
			limits = append(limits, g)
		case typeRegistry:
			catalog = catalog || a.Name == nameCatalog
		}
	}
	return limits, catalog
}
