package control

import "time"

// GCQuery asks what the collector would do now.
type GCQuery struct {
	Queued bool   `json:"queued,omitempty"` // also with what is not due yet
	After  string `json:"after,omitempty"`  // Next of the page before
	Limit  int    `json:"limit,omitempty"`  // entries of a page: 1 to 10000, by default 1000
}

// GCPlan is one page of what the collector would do now.
type GCPlan struct {
	Entries []GCEntry `json:"entries"`
	Now     time.Time `json:"now"`            // to compare the entries' times with
	Next    string    `json:"next,omitempty"` // empty: these are the last
}

// GCEntry is something that the collector takes away, or reviews and keeps.
type GCEntry struct {
	Kind      string    `json:"kind"`             // upload, blob, manifest, trash, history or bytes
	Repo      string    `json:"repo,omitempty"`   // not of bytes
	Digest    string    `json:"digest,omitempty"` // of a blob or manifest
	Tag       string    `json:"tag,omitempty"`    // of a history: the tag that was deleted
	Upload    string    `json:"upload,omitempty"` // of an upload: its id
	Key       string    `json:"key,omitempty"`    // of bytes, which no repository names
	SizeBytes int64     `json:"size_bytes"`
	Due       time.Time `json:"due,omitzero"` // absent for bytes, which are due
	Goes      bool      `json:"goes"`
	Why       string    `json:"why"`

	// Holders is how many repositories hold a blob that goes from this one,
	// counted up to 100: its bytes go with the last of them.
	Holders int `json:"holders,omitempty"`
}

// GCReport is what one round of the collector did.
type GCReport struct {
	Uploads     int64   `json:"uploads"`   // dropped
	Blobs       int64   `json:"blobs"`     // taken from their repositories
	Manifests   int64   `json:"manifests"` // taken from their repositories
	Histories   int64   `json:"histories"` // of tags that were deleted
	Kept        int64   `json:"kept"`      // reviewed, and needed
	Deleted     int64   `json:"deleted"`   // files of the store
	FreedBytes  int64   `json:"freed_bytes"`
	TookSeconds float64 `json:"took_seconds"`

	// Held says that a backup is being made, which needs the files that would
	// have been deleted: the first round after it deletes them.
	Held bool `json:"held,omitempty"`

	Gone []GCEntry `json:"gone"` // the first 1000
}
