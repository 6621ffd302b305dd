package control

import "time"

// HistoryQuery asks for the changes of the tags of a repository.
type HistoryQuery struct {
	Repo  string `json:"repo"`
	Tag   string `json:"tag,omitempty"`   // of this one only
	After string `json:"after,omitempty"` // Next of the page before
	Limit int    `json:"limit,omitempty"` // tags of a page: 1 to 1000, by default 100
}

// History is what tags were on.
type History struct {
	Tags []TagHistory `json:"tags"`
	Next string       `json:"next,omitempty"` // empty: these are the last
}

// TagHistory is the life of a tag, latest change first: all changes that the
// server remembers if one tag was asked for, else the last two.
type TagHistory struct {
	Tag     string      `json:"tag"`
	Changes []TagChange `json:"changes"`
}

// TagChange is one step in the life of a tag.
type TagChange struct {
	Time   time.Time `json:"time"`
	Digest string    `json:"digest,omitempty"` // absent: the tag was deleted
	State  string    `json:"state,omitempty"`  // of that manifest now: there, trash or gone
}

// TrashQuery asks for the manifests in the trash of a repository.
type TrashQuery struct {
	Repo  string `json:"repo"`
	After string `json:"after,omitempty"` // Next of the page before
	Limit int    `json:"limit,omitempty"` // entries of a page: 1 to 1000, by default 100
}

// Trash is one page of what can be restored.
type Trash struct {
	Manifests []Trashed `json:"manifests"`
	Next      string    `json:"next,omitempty"` // empty: these are the last
}

// Trashed is a manifest that was deleted.
type Trashed struct {
	Digest    string    `json:"digest"`
	MediaType string    `json:"media_type"`
	SizeBytes int64     `json:"size_bytes"` // of the manifest itself
	Tags      []string  `json:"tags"`       // that it was deleted with
	Deleted   time.Time `json:"deleted"`
	Until     time.Time `json:"until"` // then it goes for good
}

// RestoreRequest says what is to be as it was. With Tag alone, the tag goes back
// to what it was on before its last change. With Tag and Digest, it goes to that
// manifest. With Digest alone, the manifest comes back from the trash with the
// tags that it was deleted with, as far as they are on nothing now.
type RestoreRequest struct {
	Repo   string `json:"repo"`
	Tag    string `json:"tag,omitempty"`
	Digest string `json:"digest,omitempty"`
}

// Restored is what was restored.
type Restored struct {
	Digest string   `json:"digest"`
	Tags   []string `json:"tags"` // that are on it now because of this
}

// PurgeRequest names a manifest in the trash that goes for good now.
type PurgeRequest struct {
	Repo   string `json:"repo"`
	Digest string `json:"digest"`
}
