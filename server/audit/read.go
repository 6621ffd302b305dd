package audit

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth.internal/auth/policy"
	"berth.internal/internal/control"
)

// scanned is how many bytes of the log a page reads at most, but for a Tail.
const scanned = 16 << 20

// QueryError says what is wrong with a query.
type QueryError struct{ Field, Says string }

func (e *QueryError) Error() string { return e.Field + ": " + e.Says }

// Read returns records, oldest first. q.Limit must be positive. Errors:
// *QueryError; ctx's; what cannot be read.
func (l *Log) Read(ctx context.Context, q control.AuditQuery) (control.AuditPage, error) {
	page := control.AuditPage{Records: []control.AuditRecord{}}
	if l == nil {
		return page, nil
	}
	at, err := check(q)
	if err != nil {
		return page, err
	}
	files, err := list(l.dir)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err == nil && q.Tail {
		err = tail(ctx, l.dir, files, q, &page)
	} else if err == nil {
		err = forward(ctx, l.dir, files, at, q, &page)
	}
	if err != nil {
		return page, fmt.Errorf("read the audit log: %w", err)
	}
	return page, nil
}

func check(q control.AuditQuery) (place, error) {
	for _, p := range []struct{ field, pattern string }{{"who", q.Who}, {"repo", q.Repo}, {"action", q.Action}} {
		if p.pattern == "" {
			continue
		}
		if err := policy.CheckValue(p.pattern); err != nil {
			return place{}, &QueryError{p.field, err.Error()}
		}
	}
	if q.After == "" {
		return place{}, nil
	}
	at, err := parsePlace(q.After)
	switch {
	case err != nil:
		return at, &QueryError{"after", "it must be what a page gave as next"}
	case q.Tail:
		return at, &QueryError{"tail", "the last records are behind no place: leave out after"}
	}
	return at, nil
}

// forward fills a page with what is behind at.
func forward(ctx context.Context, dir string, files []uint64, at place, q control.AuditQuery, page *control.AuditPage) error {
	budget := int64(scanned)
	for i, number := range files {
		newest := i == len(files)-1
		if number < at.file || !newest && old(dir, number, q.Since) {
			continue
		}
		if number > at.file {
			at = place{file: number}
		}
		for ln, err := range lines(ctx, dir, at, newest) {
			if err != nil {
				return err
			}
			budget -= ln.end - at.offset
			at.offset = ln.end
			if take(page, q, ln); len(page.Records) >= q.Limit || budget <= 0 {
				page.Next, page.More = at.String(), true
				return nil
			}
		}
	}
	page.Next = at.String()
	return nil
}

// tail fills a page with the last records.
func tail(ctx context.Context, dir string, files []uint64, q control.AuditQuery, page *control.AuditPage) error {
	page.Next = place{}.String()
	for i, number := range slices.Backward(files) {
		newest := i == len(files)-1
		if !newest && old(dir, number, q.Since) {
			return nil
		}
		at, later := place{file: number}, page.Records
		page.Records = nil
		for ln, err := range lines(ctx, dir, at, newest) {
			if err != nil {
				return err
			}
			at.offset = ln.end
			if take(page, q, ln); len(page.Records) >= 2*q.Limit {
				page.Records = slices.Delete(page.Records, 0, q.Limit)
			}
		}
		page.Records = append(page.Records, later...)
		if newest {
			page.Next = at.String()
		}
		if more := len(page.Records) - q.Limit; more >= 0 {
			page.Records = page.Records[more:]
			return nil
		}
	}
	return nil
}

// take adds the line to the page, if it is asked for.
func take(page *control.AuditPage, q control.AuditQuery, ln line) {
	switch {
	case !ln.whole:
		page.Damaged++
	case matches(q, ln.AuditRecord):
		page.Records = append(page.Records, ln.AuditRecord)
	}
}

func matches(q control.AuditQuery, rec control.AuditRecord) bool {
	match := func(pattern, s string) bool { return pattern == "" || policy.Match(pattern, s) }
	return (!q.Denied || rec.Decision == control.AuditDenied) &&
		!rec.Time.Before(q.Since) && (q.Until.IsZero() || rec.Time.Before(q.Until)) &&
		(match(q.Who, rec.Who) || match("user:"+q.Who, rec.Who)) && match(q.Repo, rec.Repo) && match(q.Action, rec.Action)
}

// line is one line of a file.
type line struct {
	control.AuditRecord
	whole bool  // else it is no record
	end   int64 // in the file, behind its newline
}

// lines goes through a file from a place on. What follows the last newline is
// left alone in the newest file: it is being written. A file that is gone has no
// lines.
func lines(ctx context.Context, dir string, from place, newest bool) iter.Seq2[line, error] {
	return func(yield func(line, error) bool) {
		f, err := os.Open(path(dir, from.file))
		if errors.Is(err, os.ErrNotExist) { // rotated away
			return
		}
		if err == nil {
			defer f.Close()
			_, err = f.Seek(from.offset, io.SeekStart)
		}
		in := bufio.NewReaderSize(f, maxLine)
		for at, n := from.offset, 0; err == nil; n++ {
			var text []byte
			size := 0
			if text, err = in.ReadSlice('\n'); errors.Is(err, bufio.ErrBufferFull) {
				for errors.Is(err, bufio.ErrBufferFull) { // longer than any of ours
					size += len(text)
					text, err = in.ReadSlice('\n')
				}
				size += len(text)
				text = nil
			} else {
				size = len(text)
			}
			if errors.Is(err, io.EOF) && (newest || size == 0) {
				return
			}
			if err != nil && !errors.Is(err, io.EOF) {
				break
			}
			if n%1000 == 999 && ctx.Err() != nil {
				err = context.Cause(ctx)
				break
			}
			at += int64(size)
			rec, whole := parse(text)
			if !yield(line{rec, whole, at}, nil) {
				return
			}
		}
		if err != nil && !errors.Is(err, io.EOF) {
			yield(line{}, err)
		}
	}
}

// parse reads a line. What a newer berth has written more is left out.
func parse(text []byte) (rec control.AuditRecord, ok bool) {
	err := json.Unmarshal(text, &rec)
	if err != nil || rec.Time.IsZero() || rec.Action == "" || rec.Decision == "" {
		return control.AuditRecord{}, false
	}
	return rec, true
}

// place is where a line begins.
type place struct {
	file   uint64
	offset int64
}

func (p place) String() string { return fmt.Sprintf("%d.%d", p.file, p.offset) }

func parsePlace(s string) (place, error) {
	file, offset, _ := strings.Cut(s, ".")
	n, errFile := strconv.ParseUint(file, 10, 64)
	at, errOffset := strconv.ParseInt(offset, 10, 64)
	if at < 0 {
		errOffset = strconv.ErrRange
	}
	return place{n, at}, cmp.Or(errFile, errOffset)
}

// list returns the numbers of the files in dir, the oldest first.
func list(dir string) ([]uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []uint64
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		if n, err := strconv.ParseUint(name, 10, 64); ok && err == nil && e.Type().IsRegular() && filepath.Base(path(dir, n)) == e.Name() {
			files = append(files, n)
		}
	}
	slices.Sort(files)
	return files, nil
}

// old tells whether all of a file was written before since.
func old(dir string, number uint64, since time.Time) bool {
	info, err := os.Stat(path(dir, number))
	const slack = time.Second // clocks of file systems go in steps
	return err == nil && !since.IsZero() && info.ModTime().Add(slack).Before(since)
}
