package care

import (
	"context"
	"fmt"
	"hash/maphash"
	"time"

	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
)

// Kind is what sort of damage a Finding is.
type Kind string

// The kinds of findings.
const (
	Index       Kind = "index"       // rows of the Index that do not go together
	Damaged     Kind = "damaged"     // bytes that are missing or not what their digest says
	Quarantined Kind = "quarantined" // damage that is known and contained
	Unnamed     Kind = "unnamed"     // bytes in the Store that nothing names
)

// Finding is something that is not as it should be.
type Finding struct {
	Kind   Kind
	Digest digest.Digest // of Damaged and Quarantined
	Key    storage.Key   // of Unnamed
	What   string        // what is wrong, for people
	Next   string        // what to do
}

// Progress is how far a check has come.
type Progress struct {
	Doing string
	Done  int64
	Unit  string
}

// Options say what Check looks at.
type Options struct {
	Deep bool  // read and hash all bytes, instead of counting them
	Rate int64 // bytes read in a second; zero: as fast as it goes
}

// Report is what Check has seen.
type Report struct {
	Contents int64 // digests that the Index has content for
	Bytes    int64 // of them
	Keys     int64 // of the Store
	Findings []Finding
	More     int64 // findings beyond maxFindings
}

// maxFindings bounds a report. A registry with more is past reading lists.
const maxFindings = 10_000

func (r *Report) add(f Finding) {
	if len(r.Findings) == maxFindings {
		r.More++
		return
	}
	r.Findings = append(r.Findings, f)
}

// Check compares the Index with itself, what it names with what the Store has,
// and the other way round. It changes nothing. While others push, delete and
// collect, it looks twice at whatever seems wrong, so that what is merely new or
// gone is no finding. Uploads are not looked at: one without a session is either
// under way or swept at the next start.
func Check(ctx context.Context, store storage.Store, index storage.Index, o Options, tell func(Progress)) (Report, error) {
	c := check{
		reader: newReader(store, index, o.Rate), o: o, tell: tell,
		named: map[uint64]struct{}{}, seed: maphash.MakeSeed(),
	}
	for _, step := range []func(context.Context) error{c.rows, c.quarantined, c.contents, c.keys} {
		if err := step(ctx); err != nil {
			return c.report, fmt.Errorf("check: %w", err)
		}
	}
	return c.report, nil
}

type check struct {
	*reader
	o      Options
	tell   func(Progress)
	report Report

	// named has a hash of every key that the Index names or has announced. Two
	// keys with one hash could hide a finding, one time in 2^64, until the next
	// process with another seed.
	named map[uint64]struct{}
	seed  maphash.Seed
}

func (c *check) hash(k storage.Key) uint64 { return maphash.String(c.seed, string(k)) }

// rows lets the Index check itself.
func (c *check) rows(ctx context.Context) error {
	const rows = 2000
	next, done := "", int64(0)
	for again := true; again; again = next != "" {
		problems, at, err := c.index.Check(ctx, next, rows)
		if err != nil {
			return err
		}
		for _, p := range problems {
			c.report.add(Finding{Kind: Index, What: p, Next: "restore a backup beside this registry and compare; please report it, this should not happen"})
		}
		next = at
		done += rows
		c.tell(Progress{Doing: "checking the index", Done: done, Unit: "rows"})
	}
	return nil
}

func (c *check) quarantined(ctx context.Context) error {
	for after := digest.Digest(""); ; {
		list, err := c.index.Quarantined(ctx, after, page)
		if err != nil || len(list) == 0 {
			return err
		}
		for _, q := range list {
			c.report.add(Finding{
				Kind: Quarantined, Digest: q.Digest,
				What: fmt.Sprintf("it is quarantined since %s: %s; held by %q", q.Since.Format(time.RFC3339), q.Why, q.Holders),
				Next: "push an image that has it again, or restore it from a backup",
			})
		}
		after = list[len(list)-1].Digest
	}
}

// contents compares what the Index names with what the Store has.
func (c *check) contents(ctx context.Context) error {
	return contents(ctx, c.index, "", func(content storage.Content) error {
		c.report.Contents++
		c.report.Bytes += max(content.Size, 0)
		if content.Key != "" {
			c.named[c.hash(content.Key)] = struct{}{}
		}
		wrong, err := c.verify(ctx, content, c.o.Deep)
		if err != nil {
			return err
		}
		if wrong != "" && !c.known(content.Digest) {
			c.report.add(Finding{
				Kind: Damaged, Digest: content.Digest, What: wrong,
				Next: "berth admin scrub --now quarantines it; then push an image that has it again",
			})
		}
		if c.o.Deep {
			c.tell(Progress{Doing: "reading", Done: c.report.Bytes, Unit: "bytes"})
		} else {
			c.tell(Progress{Doing: "comparing", Done: c.report.Contents, Unit: "blobs"})
		}
		return nil
	})
}

// known tells whether the damage of d is in the report already.
func (c *check) known(d digest.Digest) bool {
	for _, f := range c.report.Findings {
		if f.Kind == Quarantined && f.Digest == d {
			return true
		}
	}
	return false
}

// keys looks for bytes that nothing names. A key that came after the contents
// were listed is in a second list of them.
func (c *check) keys(ctx context.Context) error {
	if err := c.announced(ctx, func(k storage.Key) { c.named[c.hash(k)] = struct{}{} }); err != nil {
		return err
	}
	suspects := map[storage.Key]bool{}
	for k, err := range c.store.Keys(ctx) {
		if err != nil {
			return err
		}
		c.report.Keys++
		c.tell(Progress{Doing: "looking for bytes without a name", Done: c.report.Keys, Unit: "files"})
		if _, ok := c.named[c.hash(k)]; !ok {
			suspects[k] = true
		}
	}
	if len(suspects) == 0 {
		return nil
	}
	// A key is announced, then named, then announced as an orphan, then gone.
	// Looked at in the order of its life and then at its end, none slips through.
	forget := func(k storage.Key) { delete(suspects, k) }
	err := c.announced(ctx, forget)
	if err == nil {
		err = contents(ctx, c.index, "", func(content storage.Content) error {
			delete(suspects, content.Key)
			return nil
		})
	}
	if err == nil {
		err = c.announced(ctx, forget)
	}
	if err != nil {
		return err
	}
	for k := range suspects {
		blob, err := c.store.Open(ctx, k)
		if storage.IsNotFound(err) {
			continue
		}
		what := "nothing names these bytes"
		if err == nil {
			what = fmt.Sprintf("nothing names these %d bytes", blob.Size())
			if err := blob.Close(); err != nil {
				return err
			}
		}
		c.report.add(Finding{Kind: Unnamed, Key: k, What: what, Next: "they take space and do no harm; please report it, this should not happen"})
	}
	return nil
}

// announced calls f with the keys that are about to be named, or to be deleted.
func (c *check) announced(ctx context.Context, f func(storage.Key)) error {
	for next, again := "", true; again; again = next != "" {
		var keys []storage.Key
		var err error
		if keys, next, err = c.index.Orphans(ctx, time.Unix(1<<40, 0), next, page); err != nil {
			return err
		}
		for _, k := range keys {
			f(k)
		}
	}
	return nil
}
