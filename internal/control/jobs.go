package control

import (
	"encoding/json"
	"time"
)

// JobState is how far a job is.
type JobState string

// The states of a job.
const (
	JobRunning JobState = "running"
	JobDone    JobState = "done"
	JobFailed  JobState = "failed" // or cancelled; Error says why, Result what was done until then
)

// Job is work that takes longer than a request. Its server remembers it, and
// forgets it when it stops.
type Job struct {
	ID       string          `json:"id"`
	Kind     string          `json:"kind"` // such as gc; one of a kind runs at a time
	Path     string          `json:"path"` // of this record
	State    JobState        `json:"state"`
	Revision uint64          `json:"revision"` // grows with every change
	Started  time.Time       `json:"started"`
	Ended    time.Time       `json:"ended,omitzero"`
	Progress Progress        `json:"progress,omitzero"`
	Result   json.RawMessage `json:"result,omitempty"` // of the type that its operation names
	Error    *Error          `json:"error,omitempty"`
}

// Progress is how far a job has come.
type Progress struct {
	Doing string `json:"doing"`           // for people, such as "deleting"
	Done  int64  `json:"done"`            // units
	Total int64  `json:"total,omitempty"` // units; zero if it is not known
	Unit  string `json:"unit"`            // "bytes", or what is counted
}

// JobQuery asks for one job.
type JobQuery struct {
	ID string `json:"id"`

	// Watch, if it is not zero, is a revision: the answer waits until the job
	// has a later one or has ended, for a minute at most.
	Watch uint64 `json:"watch,omitempty"`
}

// JobID names one job.
type JobID struct {
	ID string `json:"id"`
}

// Jobs are those that run, and the last that have ended, oldest first.
type Jobs struct {
	Jobs []Job `json:"jobs"`
}
