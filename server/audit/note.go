package audit

import (
	"net/http"

	"berth.internal/internal/control"
	"berth.internal/internal/httpx"
	"berth.internal/internal/oci"
)

// Note is what those who handle a request say of it. It is recorded when the
// answer begins: before the client learns of it.
type Note struct {
	Action string
	Repo   string
	Digest string
	Object string
	Detail string
	Tags   []Tag // a record for each; none: one record without

	// Who and Credential, if they are not empty, are of whom the request lets in.
	Who        string
	Credential string

	rule   string // that allowed it
	keep   bool   // recorded whatever comes of it, unless one is asked to log in
	denied bool   // by denier, for the reason why, if the answer says so
	denier string
	why    string
}

// Tag is a tag that was set or removed.
type Tag struct {
	Name string
	Was  string // the digest that it was on; empty: it was not there
}

// Note returns the note of the request, a new one if it has none.
func (l *Log) Note(r *http.Request) *Note {
	rec := httpx.RecorderOf(r.Context())
	if rec == nil || !l.On() {
		return new(Note)
	}
	if n, ok := rec.Note.(*Note); ok {
		return n
	}
	n := new(Note)
	rec.Note = n
	rec.BeforeAnswer = func() { l.end(r, n, rec.Status) }
	return n
}

// Noted returns the note that the request has, or nil.
func Noted(r *http.Request) *Note {
	rec := httpx.RecorderOf(r.Context())
	if rec == nil {
		return nil
	}
	n, _ := rec.Note.(*Note)
	return n
}

// Does says what the request is about to do. It is recorded whether it succeeds
// or not.
func (n *Note) Does(action string) {
	n.Action, n.keep = action, true
}

// Names says what the request is about, as its path does: a tag or a digest. What
// is neither, or not yet known to be, is left out.
func (n *Note) Names(ref string) {
	if d, err := oci.ParseDigest(ref); err == nil {
		n.Digest = d.String()
	} else if tag, err := oci.ParseTag(ref); err == nil {
		n.Tags = []Tag{{Name: tag}}
	}
}

// Allow says which rule allows it, if that was not said before.
func (n *Note) Allow(rule string) {
	if n != nil && n.rule == "" {
		n.rule = rule
	}
}

// Deny says who denies an action and why. It counts if that is what is answered:
// some only ask what they might do.
func (n *Note) Deny(action, repo, rule, why string) {
	n.denied, n.denier, n.why = true, rule, why
	if n.Action == "" {
		n.Action = action
	}
	if n.Repo == "" {
		n.Repo = repo
	}
}

// end records the note of a request that is answered with status.
func (l *Log) end(r *http.Request, n *Note, status int) {
	rec := control.AuditRecord{Who: n.Who, Credential: n.Credential, Action: n.Action, Repo: n.Repo, Digest: n.Digest, Object: n.Object, Detail: n.Detail, Status: status}
	switch {
	case n.denied && (status == http.StatusUnauthorized || status == http.StatusForbidden || status == http.StatusConflict):
		rec.Decision, rec.Rule, rec.Reason = control.AuditDenied, n.denier, n.why
	case !n.keep, status == http.StatusUnauthorized: // the latter asks to log in
		return
	case status >= http.StatusBadRequest:
		rec.Decision, rec.Rule = control.AuditFailed, n.rule
	default:
		rec.Decision, rec.Rule = control.AuditAllowed, n.rule
	}
	l.fill(r, &rec)
	if len(n.Tags) == 0 {
		l.record(rec)
		return
	}
	recs := make([]control.AuditRecord, len(n.Tags))
	for i, tag := range n.Tags {
		recs[i] = rec
		recs[i].Tag, recs[i].Was = tag.Name, tag.Was
	}
	l.record(recs...)
}
