package control

import "time"

// FsckRequest asks for a check of all data.
type FsckRequest struct {
	Deep bool `json:"deep,omitempty"` // read and hash every byte, instead of counting them
}

// FsckReport is what a check has seen.
type FsckReport struct {
	Contents    int64     `json:"contents"` // digests that the index has content for
	Bytes       int64     `json:"bytes"`    // of them
	Files       int64     `json:"files"`    // of the store
	Deep        bool      `json:"deep"`
	Findings    []Finding `json:"findings"`
	More        int64     `json:"more,omitempty"` // findings that are not listed
	TookSeconds float64   `json:"took_seconds"`
}

// Finding is something that is not as it should be.
type Finding struct {
	Kind   string `json:"kind"`             // index, damaged, quarantined or unnamed
	Digest string `json:"digest,omitempty"` // of damaged content
	Key    string `json:"key,omitempty"`    // of bytes in the store that nothing names
	What   string `json:"what"`
	Next   string `json:"next"` // what to do
}

// ScrubState is how far the scrub is.
type ScrubState struct {
	Began    time.Time `json:"began,omitzero"` // of the last pass; absent: there was none
	Ended    time.Time `json:"ended,omitzero"` // absent: it is under way
	After    string    `json:"after,omitempty"`
	Contents int64     `json:"contents"` // that it has read
	Bytes    int64     `json:"bytes"`
	Damaged  int64     `json:"damaged"`  // that it quarantined
	Released int64     `json:"released"` // that are whole again
}

// QuarantineQuery asks for what is quarantined.
type QuarantineQuery struct {
	After string `json:"after,omitempty"` // Next of the page before
	Limit int    `json:"limit,omitempty"` // entries of a page: 1 to 1000, by default 100
}

// Quarantine is one page of the content that is damaged.
type Quarantine struct {
	Contents []Quarantined `json:"contents"`
	Next     string        `json:"next,omitempty"` // empty: these are the last
}

// Quarantined is content that is known to be damaged.
type Quarantined struct {
	Digest    string    `json:"digest"`
	SizeBytes int64     `json:"size_bytes"`
	Why       string    `json:"why"`
	Since     time.Time `json:"since"`
	Holders   []string  `json:"holders"` // the first ten repositories that hold it
}
