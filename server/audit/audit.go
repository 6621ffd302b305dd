// Package audit keeps the record of who did what: lines of JSON in files that
// only grow, are rotated by size, and are limited in number. The reasons are in
// docs/design/0013-audit.md.
package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"berth.internal/internal/control"
	"berth.internal/internal/durable"
	"berth.internal/internal/httpx"
)

const (
	every    = time.Second      // between two looks at what is to be synced or told
	telling  = 10 * time.Second // between two complaints in the log
	maxField = 256              // bytes of a field
	maxText  = 1024             // bytes of Detail and Reason
	maxLine  = 16 << 10         // bytes of a line; those that are written have less
)

// Settings are what can be changed while the server runs.
type Settings struct {
	On       bool
	Pulls    bool  // pulls are recorded, too
	FileSize int64 // bytes after which a new file is begun
	Files    int   // that are kept
}

// Config is what a Log is made from.
type Config struct {
	// Dir is the directory of the files. It is made if it is missing; the one above
	// it must be there.
	Dir string

	Settings Settings

	// Who fills in who sent the request: Who, Credential and From.
	Who func(r *http.Request, rec *control.AuditRecord)

	Log *slog.Logger
}

// Log is the audit log of a server. It is safe for concurrent use. Make it with
// New; a nil one records nothing.
type Log struct {
	dir      string
	who      func(*http.Request, *control.AuditRecord)
	log      *slog.Logger
	settings atomic.Pointer[Settings]

	mu     sync.Mutex // held while lines are written
	file   *os.File   // the newest; nil until a line is written
	number uint64     // of file
	size   int64
	torn   bool // the last line has no end
	dirty  bool // there are lines that may not be on the disk
	flood  flood

	problem atomic.Pointer[error] // why the last line was not written
	told    time.Time             // when somebody was last told of a failure
	untold  int                   // failures since

	lines    *prometheus.CounterVec
	failures prometheus.Counter
}

// New returns a log. It begins a file with the first line.
func New(cfg Config) *Log {
	l := &Log{
		dir: cfg.Dir, who: cfg.Who, log: cfg.Log, flood: newFlood(),
		lines: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_audit_records_total", Help: "Things that the audit log has recorded, repeated refusals included.",
		}, []string{"decision"}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_audit_failures_total", Help: "Writes of the audit log that failed: what they were to record is lost.",
		}),
	}
	for _, d := range []string{control.AuditAllowed, control.AuditDenied, control.AuditFailed} {
		l.lines.WithLabelValues(d)
	}
	l.settings.Store(&cfg.Settings)
	return l
}

// Metrics returns what is measured.
func (l *Log) Metrics() []prometheus.Collector { return []prometheus.Collector{l.lines, l.failures} }

// Set changes the settings. Files that are too many go at once.
func (l *Log) Set(s Settings) {
	if l == nil {
		return
	}
	l.settings.Store(&s)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		l.prune()
	}
}

// On tells whether anything is recorded.
func (l *Log) On() bool { return l != nil && l.settings.Load().On }

// Pulls tells whether pulls are.
func (l *Log) Pulls() bool { return l.On() && l.settings.Load().Pulls }

// Problem is why the last line could not be written, or nil.
func (l *Log) Problem() error {
	if l == nil {
		return nil
	}
	if err := l.problem.Load(); err != nil {
		return *err
	}
	return nil
}

// Run makes lines durable within a second, and tells how often refusals were
// repeated, until ctx ends. Then it closes the file; lines that come later open it
// again, and are not synced.
func (l *Log) Run(ctx context.Context) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			l.write(l.flood.due(time.Now(), true)...)
			l.sync()
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.file != nil {
				_ = l.file.Close() // it is synced
				l.file = nil
			}
			return
		case <-tick.C:
			l.write(l.flood.due(time.Now(), false)...)
			l.sync()
		}
	}
}

// sync makes the lines durable. Others may be written meanwhile.
func (l *Log) sync() {
	l.mu.Lock()
	f := l.file
	if f == nil || !l.dirty {
		l.mu.Unlock()
		return
	}
	l.dirty = false
	l.mu.Unlock()
	if err := f.Sync(); err != nil && !errors.Is(err, os.ErrClosed) { // closed: rotated, and synced then
		l.mu.Lock()
		defer l.mu.Unlock()
		l.fail(err)
	}
}

// Add records something at once. r is the request that it belongs to, or nil: then
// rec says who did it.
func (l *Log) Add(r *http.Request, rec control.AuditRecord) {
	if !l.On() {
		return
	}
	l.fill(r, &rec)
	l.record(rec)
}

// fill adds what is the same for all that is recorded of a request.
func (l *Log) fill(r *http.Request, rec *control.AuditRecord) {
	rec.Time = time.Now().UTC()
	if r == nil {
		return
	}
	rec.RequestID = httpx.RequestID(r.Context())
	who, credential := rec.Who, rec.Credential
	l.who(r, rec)
	if who != "" {
		rec.Who = who
	}
	if credential != "" {
		rec.Credential = credential
	}
}

// record writes one or more records, but what was refused only as far as it is
// news.
func (l *Log) record(recs ...control.AuditRecord) {
	var news []control.AuditRecord
	for _, rec := range recs {
		l.lines.WithLabelValues(rec.Decision).Inc()
		clip(&rec)
		if rec.Decision != control.AuditDenied || l.flood.first(rec) {
			news = append(news, rec)
		}
	}
	l.write(news...)
}

// clip bounds what comes from outside.
func clip(rec *control.AuditRecord) {
	for _, field := range []*string{
		&rec.RequestID, &rec.Who, &rec.Credential, &rec.From, &rec.Action, &rec.Repo, &rec.Tag, &rec.Digest, &rec.Was, &rec.Object, &rec.Rule,
	} {
		*field = short(*field, maxField)
	}
	rec.Detail, rec.Reason = short(rec.Detail, maxText), short(rec.Reason, maxText)
}

// short returns at most n bytes of s.
func short(s string, n int) string {
	if len(s) <= n {
		return s
	}
	const more = "…"
	for n -= len(more); n > 0 && !utf8.RuneStart(s[n]); n-- {
	}
	return strings.ToValidUTF8(s[:n], "?") + more
}

// write appends the records to the newest file, in one piece.
func (l *Log) write(recs ...control.AuditRecord) {
	if len(recs) == 0 {
		return
	}
	var lines bytes.Buffer
	enc := json.NewEncoder(&lines)
	enc.SetEscapeHTML(false)
	for _, rec := range recs {
		if err := enc.Encode(rec); err != nil {
			panic(err) // of strings and numbers
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.append(lines.Bytes()); err != nil {
		l.fail(err)
		return
	}
	if l.problem.Swap(nil) != nil {
		l.log.Info("the audit log is written again")
	}
}

func (l *Log) append(lines []byte) error {
	if l.file == nil {
		if err := l.open(); err != nil {
			return err
		}
	}
	if s := l.settings.Load(); l.size > 0 && l.size+int64(len(lines)) > s.FileSize {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	if l.torn {
		lines = append([]byte("\n"), lines...)
	}
	n, err := l.file.Write(lines)
	l.size += int64(n)
	if n > 0 {
		l.torn, l.dirty = lines[n-1] != '\n', true
	}
	return err
}

// open goes on with the newest file, or begins the first. A line that was torn
// stays: what is there is not changed.
func (l *Log) open() error {
	if err := os.Mkdir(l.dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := durable.SyncDir(filepath.Dir(l.dir)); err != nil {
		return err
	}
	files, err := list(l.dir)
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return l.begin(1)
	}
	newest := files[len(files)-1]
	f, err := os.OpenFile(path(l.dir, newest), os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	last := []byte{'\n'}
	if err == nil && info.Size() > 0 {
		_, err = f.ReadAt(last, info.Size()-1)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.file, l.number, l.size, l.torn, l.dirty = f, newest, info.Size(), last[0] != '\n', true
	return nil
}

// rotate begins the next file.
func (l *Log) rotate() error {
	old := l.file
	if err := old.Sync(); err != nil {
		return err
	}
	if err := l.begin(l.number + 1); err != nil {
		return err
	}
	_ = old.Close() // it is synced
	l.prune()
	return nil
}

// begin makes the file of that number the newest.
func (l *Log) begin(number uint64) error {
	f, err := os.OpenFile(path(l.dir, number), os.O_CREATE|os.O_EXCL|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if err := durable.SyncDir(l.dir); err != nil {
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	l.file, l.number, l.size, l.torn, l.dirty = f, number, 0, false, false
	return nil
}

// prune removes the oldest files of too many.
func (l *Log) prune() {
	files, err := list(l.dir)
	if err != nil {
		l.fail(err)
		return
	}
	for len(files) > l.settings.Load().Files {
		if err := os.Remove(path(l.dir, files[0])); err != nil && !errors.Is(err, os.ErrNotExist) {
			l.fail(err)
			return
		}
		files = files[1:]
	}
}

// fail tells that something was not recorded, but not each time: a disk that is
// full may hold the server's log, too.
func (l *Log) fail(err error) {
	l.failures.Inc()
	l.untold++
	first := l.problem.Swap(&err) == nil
	if now := time.Now(); first || now.Sub(l.told) >= telling {
		l.log.Error("the audit log cannot be written: what happens is not recorded", "failures", l.untold, "error", err)
		l.told, l.untold = now, 0
	}
}

const suffix = ".jsonl"

func path(dir string, number uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%08d%s", number, suffix))
}
