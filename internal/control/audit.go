package control

import "time"

// AuditRecord is one thing that happened, as the audit log keeps it: a line of
// JSON. What a field does not say is absent.
type AuditRecord struct {
	Time      time.Time `json:"time"`
	RequestID string    `json:"request_id,omitempty"`

	// Who is the caller: user:NAME, robot:NAME, anonymous, socket (root of the
	// server's machine) or server (itself). Of a login that failed it is the account
	// that was named, or unknown if there is none of that name: people type
	// passwords where the name belongs.
	Who        string `json:"who"`
	Credential string `json:"credential,omitempty"` // basic, token, id_token, refresh, socket or none
	From       string `json:"from,omitempty"`       // address of the client, as far as trusted proxies tell it

	Action string `json:"action"` // such as manifest.push; berth admin audit --help lists them
	Repo   string `json:"repo,omitempty"`
	Tag    string `json:"tag,omitempty"`
	Digest string `json:"digest,omitempty"`
	Was    string `json:"was,omitempty"`    // the digest that the tag was on just before
	Object string `json:"object,omitempty"` // what else it was done to: an account, a job, a directory
	Detail string `json:"detail,omitempty"` // for people: what was changed or given out

	Decision string `json:"decision"`         // allowed, denied or failed
	Rule     string `json:"rule,omitempty"`   // of the policy, that decided
	Reason   string `json:"reason,omitempty"` // why it was denied
	Status   int    `json:"status,omitempty"` // of the answer

	// Repeats is how often the same was refused again since it was recorded last.
	Repeats int `json:"repeats,omitempty"`
}

// The decisions of an AuditRecord.
const (
	AuditAllowed = "allowed"
	AuditDenied  = "denied"
	AuditFailed  = "failed" // it was allowed, and did not come about
)

// AuditQuery asks for records of the audit log. Who, Repo and Action are patterns
// such as team/** or manifest.*; a Who without a kind is the user of that name.
type AuditQuery struct {
	Who    string    `json:"who,omitempty"`
	Repo   string    `json:"repo,omitempty"`
	Action string    `json:"action,omitempty"`
	Denied bool      `json:"denied,omitempty"` // only what was denied
	Since  time.Time `json:"since,omitzero"`   // at that time or later
	Until  time.Time `json:"until,omitzero"`   // before that time
	After  string    `json:"after,omitempty"`  // Next of the page before; absent: from the oldest on
	Limit  int       `json:"limit,omitempty"`  // records of a page: 1 to 10000, by default 100
	Tail   bool      `json:"tail,omitempty"`   // the last Limit records instead
}

// AuditPage is one page of the audit log, oldest first.
type AuditPage struct {
	Records []AuditRecord `json:"records"`
	Next    string        `json:"next"`              // the place behind them, also where there is nothing yet
	More    bool          `json:"more"`              // there may be more behind them now, also if Records are few
	Damaged int           `json:"damaged,omitempty"` // lines that cannot be read, such as one that a power cut tore
}
