package policy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"berth.internal/auth"
	"berth.internal/auth/policy"
	"berth.internal/storage"
	"berth.internal/storage/kv"
	"berth.internal/storage/mem"
)

func TestParse(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"good", "rules:\n- subject: user:ann\n  repositories: team/**\n  allow: [pull, push]\n  comment: Ann's\n", ""},
		{"JSON", `{"rules": [{"subject": "everyone", "repositories": "**", "deny": ["push"]}]}`, ""},
		{"nobody", "rules: []\n", ""},
		{"nothing", "", "P: there is no list rules; rules: [] is a policy that allows nothing"},
		{"unknown keys, all at once", "rulez: []\nrules:\n- subjects: x\n", "P: line 1: there is no key rulez\nP: line 3: there is no key subjects"},
		{"wrong types", "rules:\n- subject: [a]\n  allow: pull\n", "P: line 2: a seq is not a text\nP: line 3: `pull` is not what belongs here"},
		{
			"mistakes, all at once", "rules:\n# Ann\n- subject: ann\n  repositories: Team\n  allow: [pull]\n- subject: everyone\n  repositories: '**'\n  deny:\n  - pul\n- subject: everyone\n  repositories: '**'\n",
			"P: line 3: subject: \"ann\" is none of user:NAME, group:NAME, robot:NAME, node:NAME, claim:ISSUER+KEY=PATTERN, everyone and anonymous\n" +
				"P: line 4: repositories: \"Team\": no repository has the character 'T' in its name: names are in small letters, digits and . _ - /\n" +
				"P: line 9: deny: \"pul\" is none of the actions pull, push, overwrite, delete, admin\n" +
				"P: line 10: allow: a rule has allow or deny with a list of actions: pull, push, overwrite, delete, admin",
		},
		{"by alias", "rules:\n- &a\n  subject: ann\n  repositories: a\n  allow: [pull]\n- *a\n", "P: line 3: subject: \"ann\" is none"},
		{"too long", strings.Repeat("#", policy.MaxBytes+1), "P: a policy has at most 1048576 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := policy.Parse("P", []byte(tc.text))
			switch {
			case err == nil && tc.want == "":
				text, err := p.YAML()
				if err != nil {
					t.Fatal(err)
				}
				again, err := policy.Parse("again", text)
				if a, b := asJSON(t, p), asJSON(t, again); err != nil || a != b {
					t.Errorf("%s is %s, written as %s is %s, %v", tc.text, a, text, b, err)
				}
			case err == nil || tc.want == "" || !strings.HasPrefix(err.Error(), tc.want):
				t.Errorf("Parse(%.200q)\n got %v\nwant %s", tc.text, err, tc.want)
			}
		})
	}
}

func asJSON(t *testing.T, p policy.Policy) string {
	t.Helper()
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// FuzzParse reads any text: what is accepted can be written and read again, and
// is the same.
func FuzzParse(f *testing.F) {
	f.Add("rules:\n- subject: user:ann\n  repositories: team/{a,b}**\n  allow: [pull]\n")
	f.Add("rules:\n- &a {subject: everyone, repositories: '**', deny: [admin]}\n- *a\n")
	f.Add("rules: [{subject: 'claim:ci+a=b/**', repositories: '[a-z]?', allow: [pull, push]}]")
	f.Add("? rules\n: - !!map {}\n")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := policy.Parse("P", []byte(text))
		if err != nil {
			return
		}
		written, err := p.YAML()
		if err != nil {
			t.Fatal(err)
		}
		again, err := policy.Parse("P", written)
		if err != nil || asJSON(t, p) != asJSON(t, again) {
			t.Errorf("%q is written as %q, which is %v, %v", text, written, again, err)
		}
	})
}

// logged is a log to look at.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), s)
}

// running starts a Live as a server does.
func running(t *testing.T, cfg policy.LiveConfig) (l *policy.Live, log *logged) {
	t.Helper()
	log = &logged{}
	cfg.Log = slog.New(slog.NewTextHandler(log, nil))
	l = policy.New(cfg)
	if err := l.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { l.Run(ctx); close(done) }()
	t.Cleanup(func() { stop(); <-done })
	return l, log
}

func push(l *policy.Live) bool { return l.Decide(ann, "team/app", auth.Push).Allowed }

func TestRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		records := mem.NewIndex(kv.Options{})
		here, _ := running(t, policy.LiveConfig{Records: records})
		there, log := running(t, policy.LiveConfig{Records: records})
		if v := here.Version(); v.Source != policy.SourceDefault || v.Revision != 0 || push(here) {
			t.Errorf("the first policy is %+v", v)
		}

		// A change is in force here at once, elsewhere soon.
		rev, err := here.Put(t.Context(), parse(t, "user:ann allow push team/**"), 0)
		if err != nil || !push(here) {
			t.Fatalf("Put() = %v, %v; ann may push: %v", rev, err, push(here))
		}
		synctest.Wait()
		if v := there.Version(); v.Revision != rev || v.Source != policy.SourceAPI || !push(there) {
			t.Errorf("on another server: %+v", v)
		}
		if _, err := there.Put(t.Context(), parse(t), 0); !errors.Is(err, storage.ErrConflict) {
			t.Errorf("Put() of an old revision = %v", err)
		}
		if _, err := there.Put(t.Context(), parse(t, "ann allow push team/**"), rev); !strings.Contains(err.Error(), "rules[0].subject") {
			t.Errorf("Put() of a wrong policy = %v", err)
		}

		// Another record, of a similar key, is none of its business.
		if _, err := records.Put(t.Context(), "policy-notes", []byte("x"), 0); err != nil {
			t.Fatal(err)
		}
		// What a newer berth has written is not understood by half.
		broken, err := records.Put(t.Context(), "policy", []byte(`{"rules":[],"when":"night"}`), rev)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if v := there.Version(); v.Problem == nil || v.Revision != broken || !push(there) || log.count("level=ERROR") != 1 {
			t.Errorf("with a broken record: %+v, log %s", v, log.b.String())
		}
		// It can be replaced.
		if rev, err = there.Put(t.Context(), parse(t), broken); err != nil || push(there) || there.Version().Problem != nil {
			t.Errorf("Put() over a broken record = %v, %+v", err, there.Version())
		}
		synctest.Wait()
		if push(here) {
			t.Error("the repaired policy is not in force on the other server")
		}
		if err := records.Delete(t.Context(), "policy", rev); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if v := here.Version(); v.Source != policy.SourceDefault || v.Revision != 0 {
			t.Errorf("without a record: %+v", v)
		}
	})
}

// failing is Records that fail, after some good calls, until they are mended.
type failing struct {
	storage.Records
	mu   sync.Mutex
	good int
	err  error
}

func (f *failing) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *failing) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.good > 0 {
		f.good--
		return nil
	}
	return f.err
}

func (f *failing) List(ctx context.Context, prefix, after string, n int) ([]storage.Record, uint64, error) {
	if err := f.get(); err != nil {
		return nil, 0, err
	}
	return f.Records.List(ctx, prefix, after, n)
}

func (f *failing) Watch(ctx context.Context, prefix string, cursor uint64, n int) ([]storage.Change, uint64, error) {
	if err := f.get(); err != nil {
		return nil, 0, err
	}
	return f.Records.Watch(ctx, prefix, cursor, n)
}

// TestRecordsFail loses changes, since the disk fails: they are found later.
func TestRecordsFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		index := mem.NewIndex(kv.Options{})
		records := &failing{Records: index, good: 1, err: errors.New("input/output error")} // Load is well, Run is not
		l, log := running(t, policy.LiveConfig{Records: records})
		synctest.Wait()
		value := asJSON(t, parse(t, "user:ann allow push team/**"))
		if _, err := index.Put(t.Context(), "policy", []byte(value), 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // of the bubble
		if push(l) || log.count("input/output error") < 2 {
			t.Errorf("while the disk fails: %+v, and %d complaints", l.Version(), log.count("input/output error"))
		}
		records.set(nil)
		time.Sleep(time.Minute)
		if !push(l) {
			t.Errorf("later the policy is still %+v", l.Version())
		}
	})
}

// TestCompacted has changes that are told to nobody.
func TestCompacted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		index := mem.NewIndex(kv.Options{})
		l, _ := running(t, policy.LiveConfig{Records: &compacted{Records: index}})
		if _, err := index.Put(t.Context(), "policy", []byte(asJSON(t, parse(t, "user:ann allow push team/**"))), 0); err != nil {
			t.Fatal(err)
		}
		if synctest.Wait(); !push(l) {
			t.Errorf("the policy is %+v", l.Version())
		}
	})
}

// compacted says once that the cursor is too old.
type compacted struct {
	storage.Records
	said atomic.Bool
}

func (c *compacted) Watch(ctx context.Context, prefix string, cursor uint64, n int) ([]storage.Change, uint64, error) {
	if !c.said.Swap(true) {
		return nil, 0, storage.ErrCompacted
	}
	return c.Records.Watch(ctx, prefix, cursor, n)
}

func TestFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "policy.yaml")
		write := func(text string) {
			t.Helper()
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(file, time.Time{}, time.Now()); err != nil { // by the bubble's clock
				t.Fatal(err)
			}
		}
		const annPushes = "rules:\n- {subject: 'user:ann', repositories: 'team/**', allow: [push]}\n"
		if err := policy.New(policy.LiveConfig{File: file, Log: slog.New(slog.DiscardHandler)}).Load(t.Context()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("Load() without a file = %v", err)
		}
		write(annPushes)
		changes := ""
		l, log := running(t, policy.LiveConfig{File: file, Changed: func(before, after policy.Policy) {
			changes += policy.Changes(before, after) + "\n"
		}})
		if v := l.Version(); v.Source != policy.SourceFile || !push(l) {
			t.Errorf("the policy is %+v", v)
		}
		if _, err := l.Put(t.Context(), policy.Default(), 0); !errors.Is(err, policy.ErrFile) {
			t.Errorf("Put() = %v, want ErrFile", err)
		}
		time.Sleep(time.Minute)
		write("rules:\n- {subject: ann}\n")
		time.Sleep(time.Minute)
		if v := l.Version(); v.Problem == nil || !push(l) || log.count("level=ERROR") != 1 {
			t.Errorf("with a broken file: %+v", v)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if v := l.Version(); !errors.Is(v.Problem, os.ErrNotExist) || !push(l) || log.count("level=ERROR") != 2 {
			t.Errorf("without the file: %+v", v)
		}
		write(annPushes)
		time.Sleep(time.Minute)
		if v := l.Version(); v.Problem != nil || !push(l) {
			t.Errorf("with the file again: %+v", v)
		}

		// What is being written is not read before it stands still, unless asked.
		for range 10 {
			write("rules: []\n")
			time.Sleep(time.Second)
			if !push(l) {
				t.Fatal("a file that changes was read")
			}
		}
		l.Reload()
		synctest.Wait()
		if push(l) {
			t.Error("Reload() did not read the file")
		}
		if !strings.HasSuffix(changes, "\n- user:ann allow push on team/**\n") {
			t.Errorf("told of the changes %q", changes)
		}
	})
}

// TestBase has rules of the configuration, which the policy does not show.
func TestBase(t *testing.T) {
	records := mem.NewIndex(kv.Options{})
	l := policy.New(policy.LiveConfig{Records: records, Base: parse(t, "anonymous allow pull **").Rules, Log: slog.New(slog.DiscardHandler)})
	if !l.Decide(nobody, "a", auth.Pull).Allowed || len(l.Version().Policy.Rules) != 1 {
		t.Errorf("the policy is %+v", l.Version())
	}
	if _, err := l.Put(t.Context(), parse(t, "anonymous deny pull secret/**"), 0); err != nil {
		t.Fatal(err)
	}
	if !l.Decide(nobody, "a", auth.Pull).Allowed || l.Decide(nobody, "secret/a", auth.Pull).Allowed {
		t.Errorf("the policy is %+v", l.Version())
	}
}
