// Package auth says who is asking, and what they may do.
package auth

import (
	"slices"
	"time"
)

// Kind is what sort of caller somebody is.
type Kind string

// The kinds of callers.
const (
	Anonymous Kind = "anonymous" // has not said who they are
	User      Kind = "user"
	Robot     Kind = "robot"
	Node      Kind = "node"
	Job       Kind = "job"    // a CI job, or another program, that an issuer of OIDC tokens vouches for
	Socket    Kind = "socket" // came by the admin socket: root of the server's machine, who may do everything
)

// Action is something that may be done with a repository or, Admin, with a
// server.
type Action string

// The actions that policy knows. Moving a tag that exists needs Overwrite beside
// Push.
const (
	Pull      Action = "pull"
	Push      Action = "push"
	Overwrite Action = "overwrite"
	Delete    Action = "delete"
	Admin     Action = "admin"
)

// Actions returns all of them.
func Actions() []Action { return []Action{Pull, Push, Overwrite, Delete, Admin} }

// Caller is who asks.
type Caller struct {
	Kind   Kind
	Name   string            // empty for Anonymous and Socket
	Groups []string          // of a user, or that the claims of a job put it in
	Claims map[string]string // of a job's token, such as gitlab+project_path
	Key    string            // id of the API key that a user came by; empty: by another way

	// Limits, if not nil, are what the credential is good for at most: that of a
	// robot, an API key or a token. Policy must allow it as well.
	Limits []Grant

	// Expires, if not zero, is when all must end that the credential opens.
	Expires time.Time
}

// Grant is some actions on the repositories that a pattern matches.
type Grant struct {
	Repositories string   `json:"repositories" yaml:"repositories"` // a pattern such as team/**
	Actions      []Action `json:"actions" yaml:"actions"`
}

// String names the caller in logs, for people.
func (c Caller) String() string {
	if c.Name == "" {
		return string(c.Kind)
	}
	return string(c.Kind) + " " + c.Name
}

// In tells whether the caller is in the group.
func (c Caller) In(group string) bool { return slices.Contains(c.Groups, group) }

// Decision is an answer of policy, with its reason.
type Decision struct {
	Allowed bool
	Rule    string // the rule that decided, as its owner wrote it; empty: none matched
	Why     string // for people: which right is missing, or what gave it
}

// Decider says what a caller may do. It is safe for concurrent use, and a
// decision costs no input or output.
type Decider interface {
	Decide(c Caller, repo string, a Action) Decision
}
