package control

// Policy says who may do what.
type Policy struct {
	Rules    []PolicyRule `json:"rules"`
	Added    []PolicyRule `json:"added,omitempty"`   // by the server's configuration
	Source   string       `json:"source"`            // default, api or file
	Revision uint64       `json:"revision"`          // to be sent as If-Match; zero: none was ever put
	Problem  string       `json:"problem,omitempty"` // why a later version is not in force
}

// PolicyRule allows or denies a subject some actions on some repositories.
// docs/design/0012-policy.md says which of several decides.
type PolicyRule struct {
	Subject      string   `json:"subject"`         // user:NAME, group:NAME, robot:NAME, node:NAME, claim:ISSUER+KEY=PATTERN, everyone or anonymous
	Repositories string   `json:"repositories"`    // a pattern such as team/**
	Allow        []string `json:"allow,omitempty"` // or Deny: pull, push, overwrite, delete, admin
	Deny         []string `json:"deny,omitempty"`
	Comment      string   `json:"comment,omitempty"`
}

// PolicyUpdate is a policy that replaces the one whose revision If-Match names.
type PolicyUpdate struct {
	Rules []PolicyRule `json:"rules"`
}

// PolicyQuestion asks what a caller may do.
type PolicyQuestion struct {
	Subject string            `json:"subject"`          // user:NAME, robot:NAME, node:NAME, job:ISSUER or anonymous
	Groups  []string          `json:"groups,omitempty"` // that a user is in; absent: those that the server knows
	Claims  map[string]string `json:"claims,omitempty"` // of a job's token, by its issuer's words
	Action  string            `json:"action"`
	Repo    string            `json:"repo,omitempty"` // for admin none

	// Rules, if they are given, are asked instead of the policy in force.
	Rules []PolicyRule `json:"rules,omitempty"`
}

// PolicyAnswer is what policy decides.
type PolicyAnswer struct {
	Allowed bool   `json:"allowed"`
	Rule    string `json:"rule,omitempty"` // that decided; absent: none matched
	Why     string `json:"why"`
}
