package audit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"berth.internal/internal/control"
	"berth.internal/internal/httpx"
	"berth.internal/server/audit"
)

func settings() audit.Settings { return audit.Settings{On: true, FileSize: 1 << 20, Files: 3} }

func open(t *testing.T, dir string, s audit.Settings, logged *bytes.Buffer) *audit.Log {
	t.Helper()
	if logged == nil {
		logged = new(bytes.Buffer)
	}
	return audit.New(audit.Config{Dir: dir, Settings: s, Log: slog.New(slog.NewTextHandler(logged, nil)), Who: func(_ *http.Request, rec *control.AuditRecord) {
		rec.Who, rec.Credential, rec.From = "user:ann", "basic", "192.0.2.1"
	}})
}

func add(l *audit.Log, action, repo, decision string) {
	l.Add(nil, control.AuditRecord{Who: "user:ann", Action: action, Repo: repo, Decision: decision})
}

// all reads the whole log, page by page.
func all(t *testing.T, l *audit.Log, q control.AuditQuery) (recs []control.AuditRecord, damaged int) {
	t.Helper()
	q.Limit = max(q.Limit, 7)
	for {
		page, err := l.Read(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		recs, damaged = append(recs, page.Records...), damaged+page.Damaged
		if !page.More {
			return recs, damaged
		}
		if page.Next == q.After {
			t.Fatalf("the page behind %q does not go on", q.After)
		}
		q.After = page.Next
	}
}

func actions(recs []control.AuditRecord) string {
	var words []string
	for _, r := range recs {
		words = append(words, r.Action)
	}
	return strings.Join(words, " ")
}

// TestRotation holds the files to their size, number and mode.
func TestRotation(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	s := settings()
	s.FileSize = 1000
	l := open(t, dir, s, nil)
	for i := range 100 {
		add(l, fmt.Sprintf("a%02d", i), "team/app", control.AuditAllowed)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 3 {
		t.Fatalf("files %q, %v; want 3", files, err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory has %v, %v", info.Mode(), err)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 || info.Size() > 1000 {
			t.Errorf("%s has %v and %d bytes, %v", f, info.Mode(), info.Size(), err)
		}
	}
	recs, damaged := all(t, l, control.AuditQuery{})
	if n := len(recs); n < 15 || n > 30 || recs[n-1].Action != "a99" || damaged != 0 {
		t.Errorf("%d records, %d damaged: %s", n, damaged, actions(recs))
	}
	again := open(t, dir, s, nil) // goes on where that one ended
	add(again, "later", "team/app", control.AuditAllowed)
	if recs, _ = all(t, again, control.AuditQuery{Action: "{a99,later}"}); actions(recs) != "a99 later" {
		t.Errorf("after a restart: %s", actions(recs))
	}
	s.Files = 2
	again.Set(s)
	if files, _ = filepath.Glob(filepath.Join(dir, "*")); len(files) != 2 {
		t.Errorf("files %q, want 2 as set", files)
	}
}

// TestTornLine reads behind a line that a crash has torn.
func TestTornLine(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, settings(), nil)
	add(l, "one", "", control.AuditAllowed)
	f, err := os.OpenFile(filepath.Join(dir, "00000001.jsonl"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"time":"2026-01-02T03:04:05Z","action":"torn"`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if recs, damaged := all(t, l, control.AuditQuery{}); actions(recs) != "one" || damaged != 0 {
		t.Errorf("while it may still be written: %s, %d damaged", actions(recs), damaged)
	}
	l = open(t, dir, settings(), nil)
	add(l, "two", "", control.AuditAllowed)
	if recs, damaged := all(t, l, control.AuditQuery{}); actions(recs) != "one two" || damaged != 1 {
		t.Errorf("after the restart: %s, %d damaged, want one two, 1", actions(recs), damaged)
	}
}

// TestFailure tells of lines that cannot be written, once, and goes on when they
// can.
func TestFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "audit")
		if err := os.WriteFile(dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		var logged bytes.Buffer
		l := open(t, dir, settings(), &logged)
		for range 100 {
			add(l, "lost", "", control.AuditAllowed)
		}
		if n := strings.Count(logged.String(), "is not recorded"); n != 1 || l.Problem() == nil {
			t.Errorf("told %d times, problem %v; want 1 and one: %s", n, l.Problem(), &logged)
		}
		time.Sleep(11 * time.Second)
		add(l, "lost", "", control.AuditAllowed)
		if !strings.Contains(logged.String(), "failures=100") {
			t.Errorf("the second time: %s", &logged)
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		add(l, "kept", "", control.AuditAllowed)
		if recs, _ := all(t, l, control.AuditQuery{}); actions(recs) != "kept" || l.Problem() != nil || !strings.Contains(logged.String(), "written again") {
			t.Errorf("afterwards: %s, %v, %s", actions(recs), l.Problem(), &logged)
		}
	})
}

// TestFlood counts refusals that are repeated instead of writing each.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		l := open(t, dir, settings(), nil)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { l.Run(ctx) })
		for range 500 {
			add(l, "login", "", control.AuditDenied)
		}
		add(l, "login", "other", control.AuditDenied)
		add(l, "push", "", control.AuditAllowed)
		add(l, "push", "", control.AuditAllowed)
		if recs, _ := all(t, l, control.AuditQuery{}); actions(recs) != "login login push push" {
			t.Errorf("at once: %s", actions(recs))
		}
		time.Sleep(15 * time.Second)
		if recs, _ := all(t, l, control.AuditQuery{}); actions(recs) != "login login push push login" || recs[4].Repeats != 499 {
			t.Errorf("after a while: %s, repeats %d, want 499", actions(recs), recs[4].Repeats)
		}
		// Of many different ones only so many are written, and the rest is counted.
		for i := range 100_000 {
			add(l, "login", fmt.Sprint("r", i), control.AuditDenied)
		}
		time.Sleep(time.Minute)
		cancel()
		running.Wait()
		recs, _ := all(t, l, control.AuditQuery{Denied: true})
		counted := 0
		for _, r := range recs {
			counted += max(r.Repeats, 1)
		}
		if len(recs) > 1200 || counted != 100_501 {
			t.Errorf("%d records of %d refusals, want at most 1200 of 100501", len(recs), counted)
		}
		if last := recs[len(recs)-1]; last.Action != "flood" {
			t.Errorf("the last record is %+v", last)
		}
	})
}

// TestQuery asks for parts of the log.
func TestQuery(t *testing.T) {
	dir := t.TempDir()
	s := settings()
	s.FileSize, s.Files = 2000, 100
	l := open(t, dir, s, nil)
	for i := range 50 {
		l.Add(nil, control.AuditRecord{Who: "user:ann", Action: "manifest.push", Repo: fmt.Sprintf("team/app%d", i), Decision: control.AuditAllowed})
	}
	l.Add(nil, control.AuditRecord{Who: "robot:ci", Action: "pull", Repo: "secret/app", Decision: control.AuditDenied})
	l.Add(nil, control.AuditRecord{Who: "socket", Action: "policy.change", Decision: control.AuditAllowed})
	recs, _ := all(t, l, control.AuditQuery{})
	if len(recs) != 52 {
		t.Fatalf("%d records, want 52", len(recs))
	}
	middle := recs[25].Time
	for _, tc := range []struct {
		name string
		q    control.AuditQuery
		want int
	}{
		{"everything", control.AuditQuery{}, 52},
		{"a user", control.AuditQuery{Who: "ann"}, 50},
		{"a user by its kind", control.AuditQuery{Who: "user:a*"}, 50},
		{"robots", control.AuditQuery{Who: "robot:*"}, 1},
		{"the socket", control.AuditQuery{Who: "socket"}, 1},
		{"repositories", control.AuditQuery{Repo: "team/app1*"}, 11},
		{"actions", control.AuditQuery{Action: "*.{push,change}"}, 51},
		{"denied", control.AuditQuery{Denied: true}, 1},
		{"since", control.AuditQuery{Since: middle}, 27},
		{"until", control.AuditQuery{Until: middle}, 25},
		{"nothing", control.AuditQuery{Who: "eve"}, 0},
	} {
		recs, _ := all(t, l, tc.q)
		if len(recs) != tc.want {
			t.Errorf("%s: %d records, want %d", tc.name, len(recs), tc.want)
		}
		tc.q.Tail, tc.q.Limit = true, 10
		page, err := l.Read(t.Context(), tc.q)
		if err != nil || page.More || len(page.Records) != min(10, tc.want) {
			t.Errorf("%s, tail: %d records, more %v, %v", tc.name, len(page.Records), page.More, err)
		}
		if n := len(page.Records); n > 0 && page.Records[n-1] != recs[len(recs)-1] {
			t.Errorf("%s, tail: the last is %+v, want %+v", tc.name, page.Records[n-1], recs[len(recs)-1])
		}
		// Behind the tail comes what is new.
		after, err := l.Read(t.Context(), control.AuditQuery{After: page.Next, Limit: 10})
		if err != nil || len(after.Records) != 0 || after.Next != page.Next {
			t.Errorf("%s, behind the tail: %+v, %v", tc.name, after, err)
		}
	}
	for _, q := range []control.AuditQuery{{Repo: "a["}, {Who: "{"}, {After: "x"}, {After: "1.-1"}, {After: "1.0", Tail: true}} {
		q.Limit = 1
		_, err := l.Read(t.Context(), q)
		if wrong, ok := errors.AsType[*audit.QueryError](err); !ok {
			t.Errorf("%+v = %v, want a QueryError", q, err)
		} else if wrong.Field == "" {
			t.Errorf("%+v = %v names no field", q, err)
		}
	}
}

// TestNotes records before the answer, and what the answer says.
func TestNotes(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, settings(), nil)
	for _, tc := range []struct {
		name   string
		status int
		notes  func(n *audit.Note)
		want   string // decision, tag, rule and reason of each record
	}{
		{"nothing to say", 200, func(*audit.Note) {}, ""},
		{"done", 201, func(n *audit.Note) { n.Does("x"); n.Allow("R"); n.Allow("S") }, "allowed//R/"},
		{"two tags", 201, func(n *audit.Note) { n.Does("x"); n.Tags = []audit.Tag{{Name: "1"}, {Name: "2"}} }, "allowed/1// allowed/2//"},
		{"failed", 400, func(n *audit.Note) { n.Does("x"); n.Allow("R") }, "failed//R/"},
		{"asked only", 200, func(n *audit.Note) { n.Deny("pull", "r", "D", "why") }, ""},
		{"asked beside", 201, func(n *audit.Note) { n.Does("x"); n.Allow("R"); n.Deny("overwrite", "r", "D", "why") }, "allowed//R/"},
		{"denied", 403, func(n *audit.Note) { n.Deny("pull", "r", "D", "why") }, "denied//D/why"},
		{"denied change", 403, func(n *audit.Note) { n.Does("x"); n.Deny("pull", "r", "D", "why") }, "denied//D/why"},
		{"asked to log in", 401, func(n *audit.Note) { n.Does("x") }, ""},
		{"long", 403, func(n *audit.Note) { n.Deny("pull", strings.Repeat("é", 500), "", "w\nhy") }, "denied///w\nhy"},
	} {
		var before []control.AuditRecord
		h := httpx.Log(slog.New(slog.DiscardHandler), nil, func(*http.Request, *httpx.Recorder, time.Duration) {},
			http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				tc.notes(l.Note(r))
				if before, _ = all(t, l, control.AuditQuery{}); audit.Noted(r) != l.Note(r) {
					t.Errorf("%s: another note", tc.name)
				}
				w.WriteHeader(tc.status)
			}))
		w := &late{ResponseWriter: httptest.NewRecorder(), look: func() int {
			now, _ := all(t, l, control.AuditQuery{})
			return len(now)
		}}
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "PUT", "/", nil))
		now, _ := all(t, l, control.AuditQuery{})
		if w.there != len(now) {
			t.Errorf("%s: %d records were there when the answer began, and %d in the end", tc.name, w.there, len(now))
		}
		var words []string
		for _, r := range now[len(before):] {
			words = append(words, strings.Join([]string{r.Decision, r.Tag, r.Rule, r.Reason}, "/"))
			if r.RequestID == "" || r.Who != "user:ann" || r.From != "192.0.2.1" || r.Status != tc.status || len(r.Repo) > 256 {
				t.Errorf("%s: %+v", tc.name, r)
			}
		}
		if got := strings.Join(words, " "); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

// late looks at something when the header goes out.
type late struct {
	http.ResponseWriter
	look  func() int
	there int
}

func (l *late) WriteHeader(status int) { l.there = l.look(); l.ResponseWriter.WriteHeader(status) }

// TestOff records nothing, also without a log.
func TestOff(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	off := settings()
	off.On = false
	for _, l := range []*audit.Log{nil, open(t, dir, off, nil)} {
		r := httptest.NewRequestWithContext(t.Context(), "PUT", "/", nil)
		l.Note(r).Does("x")
		l.Add(r, control.AuditRecord{Action: "x"})
		if page, err := l.Read(t.Context(), control.AuditQuery{Limit: 1}); err != nil || len(page.Records) != 0 || l.On() || l.Pulls() {
			t.Errorf("%+v, %v", page, err)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("there is a directory: %v", err)
	}
}

// FuzzRead reads files that hold anything: what is a record is found, what is
// none is counted, and pages of any size come to the same.
func FuzzRead(f *testing.F) {
	const good = `{"time":"2026-01-02T03:04:05Z","who":"user:ann","action":"x","decision":"allowed"}` + "\n"
	f.Add([]byte(good+good), uint8(1))
	f.Add([]byte(good+`{"time":"2026`), uint8(3))
	f.Add([]byte("\n\n"+good+"null\n[]\n{}\n"), uint8(2))
	f.Add([]byte(`{"time":"2026-01-02T03:04:05Z","action":"`+strings.Repeat("x", 20_000)+"\"}\n"+good), uint8(1))
	f.Fuzz(func(t *testing.T, text []byte, limit uint8) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "00000001.jsonl"), text, 0o600); err != nil {
			t.Fatal(err)
		}
		want, wrong := 0, 0
		whole := text[:bytes.LastIndexByte(text, '\n')+1]
		for ln := range bytes.Lines(whole) {
			var r control.AuditRecord
			if len(ln) <= 16<<10 && json.Unmarshal(ln, &r) == nil && !r.Time.IsZero() && r.Action != "" && r.Decision != "" {
				want++
			} else {
				wrong++
			}
		}
		l := open(t, dir, settings(), nil)
		recs, damaged := all(t, l, control.AuditQuery{Limit: int(limit)})
		if len(recs) != want || damaged != wrong {
			t.Errorf("%d records and %d damaged lines, want %d and %d", len(recs), damaged, want, wrong)
		}
		page, err := l.Read(t.Context(), control.AuditQuery{Limit: int(limit) + 1, Tail: true})
		if err != nil || len(page.Records) != min(want, int(limit)+1) {
			t.Errorf("tail: %d records, %v", len(page.Records), err)
		}
	})
}

// TestManyAtOnce writes, reads, rotates and changes the settings at the same time:
// no record is torn or lost.
func TestManyAtOnce(t *testing.T) {
	dir := t.TempDir()
	s := settings()
	s.FileSize, s.Files = 2000, 1000
	l := open(t, dir, s, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var running, writing sync.WaitGroup
	running.Go(func() { l.Run(ctx) })
	running.Go(func() {
		for ctx.Err() == nil {
			if page, err := l.Read(t.Context(), control.AuditQuery{Limit: 50, Tail: true}); err != nil || page.Damaged > 0 {
				t.Errorf("while it is written: %d damaged, %v", page.Damaged, err)
				return
			}
			l.Set(s)
		}
	})
	const writers, each = 8, 100
	for w := range writers {
		writing.Go(func() {
			for i := range each {
				add(l, fmt.Sprintf("w%d.%d", w, i), "team/app", control.AuditAllowed)
			}
		})
	}
	writing.Wait()
	cancel()
	running.Wait()
	recs, damaged := all(t, l, control.AuditQuery{})
	seen := map[string]bool{}
	for _, r := range recs {
		seen[r.Action] = true
	}
	if len(recs) != writers*each || len(seen) != writers*each || damaged != 0 {
		t.Errorf("%d records, %d different, %d damaged; want %d", len(recs), len(seen), damaged, writers*each)
	}
}

// BenchmarkAdd is what a line costs, and a request that has none.
func BenchmarkAdd(b *testing.B) {
	l := audit.New(audit.Config{Dir: b.TempDir(), Settings: audit.Settings{On: true, FileSize: 16 << 20, Files: 4}, Log: slog.New(slog.DiscardHandler)})
	rec := control.AuditRecord{
		Who: "user:ann", Credential: "token", From: "192.0.2.1", Action: "manifest.push", Repo: "team/app", Tag: "latest",
		Digest: "sha256:" + strings.Repeat("0", 64), Decision: control.AuditAllowed, Rule: "group:dev allow pull,push on team/**", Status: 201,
	}
	b.Run("line", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			l.Add(nil, rec)
		}
	})
	b.Run("none", func(b *testing.B) {
		r := httptest.NewRequestWithContext(b.Context(), "GET", "/", nil)
		b.ReportAllocs()
		for b.Loop() {
			audit.Noted(r).Allow("rule")
			if l.Pulls() {
				b.Fatal("pulls are recorded")
			}
		}
	})
}
