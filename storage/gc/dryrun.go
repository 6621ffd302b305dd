package gc

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
)

// Kind is what an Entry is.
type Kind string

// The kinds of entries.
const (
	Upload   Kind = "upload"   // that nobody went on with
	Blob     Kind = "blob"     // that a repository holds
	Manifest Kind = "manifest" // that a repository holds
	Trash    Kind = "trash"    // a manifest that was deleted, and can be restored until it goes
	History  Kind = "history"  // of a tag that was deleted
	Bytes    Kind = "bytes"    // in the Store, under a key
)

// Entry is something that a round takes away, or reviews and keeps.
type Entry struct {
	Kind   Kind
	Repo   string        // not of bytes
	Digest digest.Digest // of a blob or manifest
	Tag    string        // of a history
	Upload string        // the session of an upload
	Key    storage.Key   // of bytes
	Size   int64         // bytes; 0 if it is not known
	Due    time.Time     // zero for bytes, which are due
	Goes   bool
	Why    string // for people

	// Holders is how many repositories hold a blob that goes, counted up to
	// MaxHolders: its bytes go with the last of them.
	Holders int
}

// MaxHolders is how far holders are counted.
const MaxHolders = 100

// ErrCursor is what DryRun gives for a cursor that is not its own.
var ErrCursor = errors.New("not a place in the collector's work")

// Look is what DryRun looks at.
type Look struct {
	After string // the place that the last call returned; empty at first
	Ahead bool   // also at what is not due yet; but not at bytes on their way in
	N     int    // at up to so many entries
}

// ahead is later than anything is due.
const ahead = 100 * 365 * 24 * time.Hour

// DryRun tells what a round would do with what is due, or will do with what is
// queued if nothing changes until it is due. It changes nothing. An empty next
// says that these entries are the last. What they would free in turn is not among
// them: that waits for its own grace. Errors: ErrCursor.
func (c *Collector) DryRun(ctx context.Context, look Look) (page []Entry, next string, err error) {
	now, err := c.index.Now(ctx)
	if err != nil {
		return nil, "", fmt.Errorf("dry run: %w", err)
	}
	until := now
	if look.Ahead {
		until = now.Add(ahead)
	}
	steps := []struct {
		name  string
		first func(ctx context.Context, now, until time.Time, n int) ([]Entry, error)
	}{
		{"uploads", c.firstUploads}, {"reviews", c.firstReviews}, {"bytes", c.firstBytes},
	}
	step, seen := 0, 0
	if look.After != "" {
		name, number, _ := strings.Cut(look.After, ".")
		for step < len(steps) && steps[step].name != name {
			step++
		}
		if seen, err = strconv.Atoi(number); err != nil || seen < 0 || seen > 1<<30 || step == len(steps) {
			return nil, "", fmt.Errorf("dry run after %.40q: %w", look.After, ErrCursor)
		}
	}
	for ; step < len(steps); step, seen = step+1, 0 {
		room := look.N - len(page)
		list, err := steps[step].first(ctx, now, until, seen+room)
		if err != nil {
			return nil, "", fmt.Errorf("dry run: %w", err)
		}
		list = list[min(seen, len(list)):]
		for _, e := range list {
			if err := c.measure(ctx, &e); err != nil {
				return nil, "", fmt.Errorf("dry run: %w", err)
			}
			page = append(page, e)
		}
		if len(list) == room {
			return page, fmt.Sprintf("%s.%d", steps[step].name, seen+room), nil
		}
	}
	return page, "", nil
}

// firstUploads are those that will have expired at until, if nobody goes on
// with them.
func (c *Collector) firstUploads(ctx context.Context, _, until time.Time, n int) ([]Entry, error) {
	idle, err := c.index.Idle(ctx, until.Add(-c.config.SessionExpiry), n)
	list := make([]Entry, len(idle))
	for i, s := range idle {
		list[i] = c.upload(s)
	}
	return list, err
}

// firstReviews are the entries of the queue that are due at until.
func (c *Collector) firstReviews(ctx context.Context, now, until time.Time, n int) ([]Entry, error) {
	policy := c.config.Policy
	policy.DryRun, policy.Ahead = true, until.Sub(now)
	verdicts, err := c.index.Review(ctx, policy, n)
	list := make([]Entry, len(verdicts))
	for i, v := range verdicts {
		list[i] = reviewed(v)
		if list[i].Kind == Trash && v.Due.After(now) {
			list[i].Why = "it was deleted, and can be restored until then"
		}
	}
	return list, err
}

// firstBytes are those that nobody can name any more. Whether bytes on their
// way in will be named cannot be told, so until does not matter.
func (c *Collector) firstBytes(ctx context.Context, now, _ time.Time, n int) ([]Entry, error) {
	keys, err := c.index.Orphans(ctx, now, n)
	list := make([]Entry, len(keys))
	for i, key := range keys {
		list[i] = orphan(key)
	}
	return list, err
}

func (c *Collector) upload(s storage.Session) Entry {
	return Entry{
		Kind: Upload, Repo: s.Repo, Upload: s.ID, Size: s.State.Size, Due: s.Updated.Add(c.config.SessionExpiry), Goes: true,
		Why: fmt.Sprintf("nobody went on with it since %s", s.Updated.UTC().Format(time.RFC3339)),
	}
}

func orphan(key storage.Key) Entry {
	return Entry{Kind: Bytes, Key: key, Goes: true, Why: "no repository names these bytes any more"}
}

func reviewed(v storage.Verdict) Entry {
	e := Entry{Kind: Blob, Repo: v.Repo, Digest: v.Digest, Tag: v.Tag, Size: v.Size, Due: v.Due, Goes: v.Condemned, Why: v.Why}
	switch v.Kind {
	case storage.KindManifest:
		e.Kind = Manifest
	case storage.KindTrash:
		e.Kind = Trash
	case storage.KindHistory:
		e.Kind = History
	}
	return e
}

// measure finds out what a list does not say: who else holds a blob, and how
// large bytes are.
func (c *Collector) measure(ctx context.Context, e *Entry) error {
	switch {
	case e.Kind == Blob && e.Goes:
		holders, err := c.index.Holders(ctx, e.Digest, "", MaxHolders)
		e.Holders = len(holders)
		return err
	case e.Kind == Bytes:
		blob, err := c.store.Open(ctx, e.Key)
		switch {
		case storage.IsNotFound(err): // announced, and never written
			return nil
		case err != nil:
			return err
		}
		e.Size = blob.Size()
		return blob.Close()
	}
	return nil
}
