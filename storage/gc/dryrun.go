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

// DryRun tells what a round would do with up to n entries, after the place that
// the last call returned, empty at first; it changes nothing. An empty next says
// that these are the last. What manifests that go would free in turn is not in
// it: that waits for its grace. Errors: ErrCursor.
func (c *Collector) DryRun(ctx context.Context, after string, n int) (page []Entry, next string, err error) {
	steps := []struct {
		name string
		list func(ctx context.Context, n int) ([]Entry, error) // the first n entries
	}{
		{"uploads", c.dueUploads}, {"reviews", c.dueReviews}, {"bytes", c.dueBytes},
	}
	step, seen := 0, 0
	if after != "" {
		name, number, _ := strings.Cut(after, ".")
		for step < len(steps) && steps[step].name != name {
			step++
		}
		if seen, err = strconv.Atoi(number); err != nil || seen < 0 || seen > 1<<30 || step == len(steps) {
			return nil, "", fmt.Errorf("dry run after %.40q: %w", after, ErrCursor)
		}
	}
	for ; step < len(steps); step, seen = step+1, 0 {
		room := n - len(page)
		list, err := steps[step].list(ctx, seen+room)
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

// dueUploads are those that nobody went on with.
func (c *Collector) dueUploads(ctx context.Context, n int) ([]Entry, error) {
	now, err := c.index.Now(ctx)
	if err != nil {
		return nil, err
	}
	idle, err := c.index.Idle(ctx, now.Add(-c.config.SessionExpiry), n)
	list := make([]Entry, len(idle))
	for i, s := range idle {
		list[i] = c.upload(s)
	}
	return list, err
}

// dueReviews are the entries of the queue whose time has come.
func (c *Collector) dueReviews(ctx context.Context, n int) ([]Entry, error) {
	policy := c.config.Policy
	policy.DryRun = true
	verdicts, err := c.index.Review(ctx, policy, n)
	list := make([]Entry, len(verdicts))
	for i, v := range verdicts {
		list[i] = reviewed(v)
	}
	return list, err
}

// dueBytes are those that nobody can name any more.
func (c *Collector) dueBytes(ctx context.Context, n int) ([]Entry, error) {
	now, err := c.index.Now(ctx)
	if err != nil {
		return nil, err
	}
	keys, err := c.index.Orphans(ctx, now, n)
	list := make([]Entry, len(keys))
	for i, key := range keys {
		list[i] = orphan(key)
	}
	return list, err
}

func (c *Collector) upload(s storage.Session) Entry {
	return Entry{
		Kind: Upload, Repo: s.Repo, Upload: s.ID, Size: s.State.Size, Goes: true,
		Why: fmt.Sprintf("nobody went on with it since %s", s.Updated.UTC().Format(time.RFC3339)),
	}
}

func orphan(key storage.Key) Entry {
	return Entry{Kind: Bytes, Key: key, Goes: true, Why: "no repository names these bytes any more"}
}

func reviewed(v storage.Verdict) Entry {
	e := Entry{Kind: Blob, Repo: v.Repo, Digest: v.Digest, Tag: v.Tag, Size: v.Size, Goes: v.Condemned, Why: v.Why}
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
