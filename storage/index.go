package storage

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Index keeps names: which repository holds which content, tags, references,
// upload sessions, and the collector's queue. Every method that changes
// something is one transaction, durable when it returns nil; when it returns an
// error nothing has changed, but for errors of the medium itself, after which
// the caller must assume either. No method costs more than O(log n) for each
// row it returns or changes.
//
// Repository names, tags and digests are valid when they get here: the index
// checks none.
type Index interface {
	Clock
	Blobs
	Manifests
	Trash
	Sessions
	Collector
	Care
	Close() error
}

// Rules are the policy under which names change.
type Rules struct {
	Grace    time.Duration // until review of a blob that may have lost its last use
	Untagged time.Duration // until review of a manifest that may have lost its last name
	Dangling time.Duration // until review of a referrer that may have lost its subject
	Trash    time.Duration // how long what is taken away can be restored; zero: not at all
	Orphan   time.Duration // until bytes that got no name may go; zero: IntendGrace

	// Immutable tells the tags of the repository that are set once: they are
	// neither moved nor taken away. It is called within the transaction, so it
	// must be fast and call nothing here. Nil: none are.
	Immutable func(tag string) bool
}

// Clock is the time that all servers of one Index agree on.
type Clock interface {
	Now(ctx context.Context) (time.Time, error)
}

// Content says where the bytes of a digest are: in the Store under Key, or
// Inline if Key is empty.
type Content struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
	Key    Key           `json:"key,omitempty"`
	Inline []byte        `json:"inline,omitempty"`
}

// Blobs is the role of the Index that names blobs. A digest has one content in
// the whole Index, whatever the number of repositories that hold it; a
// repository sees only what it holds.
type Blobs interface {
	// Blob returns the content that repo holds under d. Errors: ErrNotFound.
	Blob(ctx context.Context, repo string, d digest.Digest) (Content, error)

	// Promise is Blob for an answer that lets a client skip an upload: what is
	// inline stays where it is, and Inline is nil. If d
	// waits for review, the review is moved to grace from now, written only
	// when less than half of grace is left. Otherwise it is a read. No event
	// moves a review to an earlier time. Errors: ErrNotFound.
	Promise(ctx context.Context, repo string, d digest.Digest, grace time.Duration) (Content, error)

	// PutBlob lets repo hold put.Content and queues it for review. If the
	// Index has content for that digest already, that one stays and put's key
	// becomes an orphan, due at once. The content named is returned. The
	// session put.Session ends. Errors: ErrNotFound if put.Content.Key was not
	// announced by Intend or has been given up since.
	PutBlob(ctx context.Context, put BlobPut) (Content, error)

	// Mount lets repo hold what from holds under d, and queues it for review.
	// Errors: ErrNotFound.
	Mount(ctx context.Context, repo, from string, d digest.Digest, grace time.Duration) (Content, error)

	// Holders returns up to n repositories that hold blob d, after the
	// repository after, in ASCII order.
	Holders(ctx context.Context, d digest.Digest, after string, n int) ([]string, error)

	// DeleteBlob takes d from repo; other repositories keep it. If a manifest in
	// the trash of repo needs it, it goes there too. Errors: ErrNotFound;
	// ErrReferenced if a manifest of repo names it.
	DeleteBlob(ctx context.Context, repo string, d digest.Digest) error
}

// BlobPut is a blob to be named.
type BlobPut struct {
	Repo    string
	Content Content
	Session string        // upload session that ends with this, if any
	Grace   time.Duration // time until review
	Orphan  time.Duration // as in Rules, for who puts the bytes
}

// Manifest is a manifest as the Index keeps it.
type Manifest struct {
	Content
	MediaType    string            `json:"mediaType"`
	ArtifactType string            `json:"artifactType,omitempty"` // as a referrer's descriptor shows it (image-spec, "Guidelines for Artifact Usage")
	Annotations  map[string]string `json:"annotations,omitempty"`
	Subject      digest.Digest     `json:"subject,omitempty"`
	References   []Reference       `json:"references,omitempty"`
	Pushed       time.Time         `json:"pushed"` // set by the Index, at the first push to this repository
}

// Reference is content that a manifest names.
type Reference struct {
	Digest   digest.Digest `json:"digest"`
	Manifest bool          `json:"manifest,omitempty"` // child of an index: a manifest, or a blob if the repository holds no such manifest
	Optional bool          `json:"optional,omitempty"` // need not exist: sparse, foreign, or inlined in the descriptor
}

// Manifests is the role of the Index that keeps manifests, their tags and what
// they refer to.
type Manifests interface {
	// Manifest returns the manifest that repo holds under d. Errors:
	// ErrNotFound.
	Manifest(ctx context.Context, repo string, d digest.Digest) (Manifest, error)

	// Tagged returns the manifest that tag names in repo. Errors: ErrNotFound.
	Tagged(ctx context.Context, repo, tag string) (Manifest, error)

	// PromiseManifest is to Manifest what Promise is to Blob.
	PromiseManifest(ctx context.Context, repo string, d digest.Digest, grace time.Duration) (Manifest, error)

	// PutManifest lets repo hold the manifest and moves all of put.Tags to it,
	// in one transaction that also checks that everything it requires is held
	// by repo. Errors: *MissingError; ErrConflict if a tag is not on
	// put.IfMatch, or is there in spite of put.IfAbsent; ErrImmutable if it would move a tag that must not be;
	// ErrNotFound as in PutBlob.
	PutManifest(ctx context.Context, put ManifestPut) error

	// DeleteManifest takes manifest d and every tag on it from repo, into the
	// trash if there is one; else what it referred to is queued for review.
	// Errors: ErrNotFound; ErrReferenced if an index of repo names it;
	// ErrImmutable if a tag on it must stay.
	DeleteManifest(ctx context.Context, repo string, d digest.Digest, rules Rules) error

	// DeleteTag takes the tag from repo and queues its manifest for review.
	// Errors: ErrNotFound, ErrImmutable.
	DeleteTag(ctx context.Context, repo, tag string, rules Rules) error

	// Tags returns up to n tags of repo in ASCII order, after the tag after,
	// which need not exist. Errors: ErrNotFound if repo holds nothing.
	Tags(ctx context.Context, repo, after string, n int) ([]string, error)

	// History returns up to n past and present targets of tag, latest first.
	// The Index remembers the last HistoryMax, and those of a tag that is gone
	// as long as the rules kept what was deleted with it in the trash.
	History(ctx context.Context, repo, tag string, n int) ([]TagChange, error)

	// PastTags is Tags with those that are gone, as far as History remembers
	// them. An unknown repository has none.
	PastTags(ctx context.Context, repo, after string, n int) ([]string, error)

	// Repositories returns up to n repositories that hold a manifest, in ASCII
	// order, after the repository after, which need not exist.
	Repositories(ctx context.Context, after string, n int) ([]string, error)

	// Referrers returns up to n descriptors of the manifests of repo whose
	// subject is d, in order of their digests, after the digest after. If
	// artifactType is not empty, only those of that type. An unknown
	// repository or subject has none.
	Referrers(ctx context.Context, repo string, d digest.Digest, artifactType string, after digest.Digest, n int) ([]v1.Descriptor, error)
}

// ManifestPut is a manifest to be named.
type ManifestPut struct {
	Repo     string
	Manifest Manifest
	Tags     []string
	IfMatch  digest.Digest // if not empty, what every tag of Tags must be on now
	IfAbsent bool          // no tag of Tags may exist now
	Rules    Rules
}

// HistoryMax is how many changes of a tag the Index remembers.
const HistoryMax = 1000

// TagChange is one step in the life of a tag.
type TagChange struct {
	Digest digest.Digest `json:"digest"` // empty: the tag was deleted
	Time   time.Time     `json:"time"`
}

// MissingError says what a manifest refers to and its repository does not hold.
type MissingError struct {
	Digests []digest.Digest
}

func (e *MissingError) Error() string {
	s := make([]string, len(e.Digests))
	for i, d := range e.Digests {
		s[i] = d.String()
	}
	return fmt.Sprintf("manifest refers to content that the repository does not hold: %s", strings.Join(s, ", "))
}

// Trash is the role of the Index that brings back what was taken away. What is
// in the trash is invisible, and keeps all that it refers to.
type Trash interface {
	// Trashed returns up to n manifests in the trash of repo, in order of their
	// digests, after the digest after.
	Trashed(ctx context.Context, repo string, after digest.Digest, n int) ([]Trashed, error)

	// TrashedManifest returns manifest d in the trash of repo. Errors:
	// ErrNotFound.
	TrashedManifest(ctx context.Context, repo string, d digest.Digest) (Trashed, error)

	// Restore lets repo hold manifest d again, with all that it refers to and
	// that is in the trash too, and moves tags to it; if tags is nil, those that
	// it was deleted with and that are on nothing now. A manifest that was not
	// deleted only gets the tags. It returns the tags that were set. Errors:
	// ErrNotFound if d is neither held nor in the trash; *MissingError if what it
	// requires is gone; ErrImmutable as in PutManifest.
	Restore(ctx context.Context, repo string, d digest.Digest, tags []string, rules Rules) ([]string, error)

	// Purge takes manifest d out of the trash for good, and queues what it kept.
	// Errors: ErrNotFound.
	Purge(ctx context.Context, repo string, d digest.Digest, rules Rules) error
}

// Trashed is a manifest that was deleted and can be restored.
type Trashed struct {
	Manifest           // of its content only digest and size
	Tags     []string  // those that it was deleted with
	Deleted  time.Time // when
	Until    time.Time // when it goes for good
}

// Session is an upload that a client may go on with.
type Session struct {
	ID      string      `json:"id"` // the client's word for it; State.ID is the Store's
	Repo    string      `json:"repo"`
	Owner   string      `json:"owner"` // who began it; nobody else may go on
	State   UploadState `json:"state"`
	Updated time.Time   `json:"updated"` // set by the Index
}

// Sessions is the role of the Index that keeps upload sessions.
type Sessions interface {
	// PutSession writes the session. One that was read from the Index, as its
	// Updated tells, must still be there. Errors: ErrNotFound.
	PutSession(ctx context.Context, s Session) error

	// Session returns the session id. Errors: ErrNotFound.
	Session(ctx context.Context, id string) (Session, error)

	// EndSession removes the session. Ending an absent one is no error.
	EndSession(ctx context.Context, id string) error

	// Idle returns up to n sessions that were last written before the given
	// time, longest idle first, from the place next that the last call returned on,
	// empty at first. An empty next says that there are no more. Errors: ErrCursor.
	Idle(ctx context.Context, before time.Time, from string, n int) (list []Session, next string, err error)

	// Expire returns what Idle does from the beginning, and ends these sessions:
	// nobody goes on with them any more, and the caller discards their bytes.
	Expire(ctx context.Context, before time.Time, n int) ([]Session, error)
}

// Collector is the role of the Index that finds what can go. It never looks at
// everything: each event that may free something queues it for review.
type Collector interface {
	// Intend records that bytes are about to appear under key. If PutBlob or
	// PutManifest does not name it within grace, it is an orphan.
	Intend(ctx context.Context, key Key, grace time.Duration) error

	// Review takes up to n due entries from the queue and condemns, in the same
	// transaction, those that nothing refers to: from then on their repository
	// does not hold them, and a key that no repository holds any more is an
	// orphan, due at once. It returns what it did with each.
	Review(ctx context.Context, policy ReviewPolicy, n int) ([]Verdict, error)

	// Queued tells what Review would decide on up to n entries of the queue that
	// are due at the time until or before, earliest first, from a place on as Idle
	// does, if all stayed as it is. It changes nothing. Errors: ErrCursor.
	Queued(ctx context.Context, policy ReviewPolicy, until time.Time, from string, n int) (list []Verdict, next string, err error)

	// Orphans returns up to n keys that were due at the time until or before,
	// earliest first, from a place on as Idle does. A key that is due can no longer be named, so
	// its bytes may go. Only who has all data to itself may ask for a time after
	// Now. Errors: ErrCursor.
	Orphans(ctx context.Context, until time.Time, from string, n int) (keys []Key, next string, err error)

	// Forget removes the records of orphans, after their bytes are gone.
	Forget(ctx context.Context, keys ...Key) error
}

// ReviewPolicy says what review may condemn.
type ReviewPolicy struct {
	Untagged bool  // manifests without tag, parent and subject; if false they are kept
	Dangling bool  // referrers without tag and parent whose subject is gone; if false they are kept
	Rules    Rules // for what is freed by that
}

// Kind is what an entry of the collector's queue is about.
type Kind string

// The kinds of entries.
const (
	KindBlob     Kind = "blob"
	KindManifest Kind = "manifest"
	KindTrash    Kind = "deleted manifest" // in the trash
	KindHistory  Kind = "tag history"      // of a tag that was deleted
)

// Verdict is what review decided on one entry of the queue.
type Verdict struct {
	Kind      Kind
	Repo      string
	Digest    digest.Digest // empty for KindHistory
	Tag       string        // for KindHistory
	Size      int64         // bytes
	Due       time.Time
	Condemned bool
	Why       string // for people: "tagged 1.2", "no manifest refers to it"
}

// Care is the role of the Index that finds and contains damage.
type Care interface {
	// Contents returns up to n contents, quarantined ones too, in order of their
	// digests, after the digest after. One that the Index has lost has Size -1.
	Contents(ctx context.Context, after digest.Digest, n int) ([]Content, error)

	// Check compares up to n rows with those that must go with them, from the
	// place next that the last call returned on, empty at first. It returns what
	// is wrong, a sentence each, and an empty next when it has seen all.
	Check(ctx context.Context, from string, n int) (problems []string, next string, err error)

	// Quarantine says that content c is damaged and why. Until the same content
	// is put again, everything that returns it returns a *QuarantinedError, and
	// no manifest that requires it is taken. If the digest has other content
	// meanwhile, or none, nothing happens and the answer is false. An empty why
	// ends the quarantine.
	Quarantine(ctx context.Context, c Content, why string) (bool, error)

	// Quarantined returns up to n quarantined contents, in order of their
	// digests, after the digest after.
	Quarantined(ctx context.Context, after digest.Digest, n int) ([]Quarantined, error)

	// Requeue queues manifests that have no tag and are not queued, as a policy
	// that has changed wants them reviewed. It looks at up to n manifests, from
	// the place that the last call returned on, and returns an empty next at the
	// end.
	Requeue(ctx context.Context, from string, n int, rules Rules) (next string, err error)
}

// Quarantined is content that is known to be damaged.
type Quarantined struct {
	Digest  digest.Digest
	Size    int64 // bytes
	Why     string
	Since   time.Time
	Holders []string // the first ten repositories that hold it, in any way
}

// QuarantinedError is what reading damaged content gives. It is an ErrNotFound:
// who pushes the content again heals it.
type QuarantinedError struct {
	Digest digest.Digest
	Why    string
	Since  time.Time
}

func (e *QuarantinedError) Error() string {
	return fmt.Sprintf("%s is quarantined since %s: %s", e.Digest, e.Since.Format(time.RFC3339), e.Why)
}

// Is makes it an ErrNotFound.
func (e *QuarantinedError) Is(target error) bool { return target == ErrNotFound }

// IsNotFound is errors.Is(err, ErrNotFound).
func IsNotFound(err error) bool { return errors.Is(err, ErrNotFound) }
