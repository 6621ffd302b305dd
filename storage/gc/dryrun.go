package gc

import (
	"context"
	"fmt"
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
// them: that waits for its own grace. Errors: storage.ErrCursor.
func (c *Collector) DryRun(ctx context.Context, look Look) (page []Entry, next string, err error) {
	now, err := c.index.Now(ctx)
	if err != nil {
		return nil, "", fmt.Errorf("dry run: %w", err)
	}
	until := now
	if look.Ahead {
		until = now.Add(ahead)
	}
	parts := []part{
		{"uploads", func(from string, n int) ([]Entry, string, error) { return c.idle(ctx, until, from, n) }},
		{"reviews", func(from string, n int) ([]Entry, string, error) { return c.queued(ctx, until, from, n) }},
		// Whether bytes on their way in will be named cannot be told.
		{"bytes", func(from string, n int) ([]Entry, string, error) { return c.orphans(ctx, now, from, n) }},
	}
	at, from, ok := strings.Cut(look.After, ".")
	if look.After == "" {
		at, ok = parts[0].name, true
	}
	for len(parts) > 0 && parts[0].name != at {
		parts = parts[1:]
	}
	if len(parts) == 0 || !ok {
		return nil, "", fmt.Errorf("dry run after %.40q: %w", look.After, storage.ErrCursor)
	}
	for _, p := range parts {
		if len(page) >= look.N {
			return page, p.name + ".", nil
		}
		list, next, err := p.list(from, look.N-len(page))
		if err != nil {
			return nil, "", fmt.Errorf("dry run: %w", err)
		}
		for i := range list {
			if err := c.measure(ctx, &list[i]); err != nil {
				return nil, "", fmt.Errorf("dry run: %w", err)
			}
		}
		page = append(page, list...)
		if next != "" {
			return page, p.name + "." + next, nil
		}
		from = ""
	}
	return page, "", nil
}

// part is one of the lists that a round goes through.
type part struct {
	name string // a place in it is this, a point, and the list's own cursor
	list func(from string, n int) (list []Entry, next string, err error)
}

// idle are the uploads that will have expired at until, if nobody goes on with
// them.
func (c *Collector) idle(ctx context.Context, until time.Time, from string, n int) ([]Entry, string, error) {
	idle, next, err := c.index.Idle(ctx, until.Add(-c.config().SessionExpiry), from, n)
	list := make([]Entry, len(idle))
	for i, s := range idle {
		list[i] = c.upload(s)
	}
	return list, next, err
}

// queued are the entries of the queue that are due at until.
func (c *Collector) queued(ctx context.Context, until time.Time, from string, n int) ([]Entry, string, error) {
	verdicts, next, err := c.index.Queued(ctx, c.config().Policy, until, from, n)
	list := make([]Entry, len(verdicts))
	for i, v := range verdicts {
		list[i] = reviewed(v)
	}
	return list, next, err
}

// orphans are the bytes that nobody can name any more.
func (c *Collector) orphans(ctx context.Context, now time.Time, from string, n int) ([]Entry, string, error) {
	keys, next, err := c.index.Orphans(ctx, now, from, n)
	list := make([]Entry, len(keys))
	for i, key := range keys {
		list[i] = orphan(key)
	}
	return list, next, err
}

func (c *Collector) upload(s storage.Session) Entry {
	return Entry{
		Kind: Upload, Repo: s.Repo, Upload: s.ID, Size: s.State.Size, Due: s.Updated.Add(c.config().SessionExpiry), Goes: true,
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
