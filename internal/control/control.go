// Package control has the words of the control API: what servers, and their
// administrators and nodes, say to each other below /berth/v1. They are the
// same on both sides. Names in JSON are in snake case, times in UTC, sizes in
// bytes; an absent field means "not said". The reasons are in
// docs/design/0002-control-api.md.
package control

// Base is the path below which the API is.
const Base = "/berth/v1"

// MaxBody is the largest body of a request, in bytes.
const MaxBody = 1 << 20

// None is the request of an operation that asks nothing more than its path
// says.
type None struct{}

// Server is what a server says about itself.
type Server struct {
	Name  string `json:"name"` // of the registry
	Ready bool   `json:"ready"`

	// The rest is for callers that the server knows.

	Version  string   `json:"version,omitempty"`
	Features []string `json:"features,omitempty"` // by name, in ASCII order
	Parts    []Part   `json:"parts,omitempty"`    // what readiness consists of
}

// Part is a part of a server that is ready or not.
type Part struct {
	Name   string `json:"name"`
	Ready  bool   `json:"ready"`
	Reason string `json:"reason,omitempty"` // why not, or what is amiss all the same; for administrators only
}

// NodeHeader is the header by which the node of berth up tells its requests from
// those that it makes for somebody who has given it a login. It counts only from
// within the process.
const NodeHeader = "Berth-Node"
