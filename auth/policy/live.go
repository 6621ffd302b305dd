package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"berth.internal/auth"
	"berth.internal/internal/follow"
	"berth.internal/storage"
)

// key is that of the policy in the Records.
const key = "policy"

// pause is the time after a failure of the Records.
const pause = 5 * time.Second

// The places where a policy comes from.
const (
	SourceDefault = "default"
	SourceAPI     = "api"
	SourceFile    = "file"
)

// ErrFile says that the policy is in a file, where it must be changed.
var ErrFile = errors.New("the policy is in a file")

// LiveConfig says where a policy is.
type LiveConfig struct {
	// Records holds the policy, and tells of changes made by other servers.
	Records storage.Records

	// File, if it is not empty, is a YAML file that holds the policy instead.
	File string

	// Base are rules of the server's configuration, which count beside those of
	// the policy.
	Base []Rule

	// Changed, if it is not nil, is told when another version of File is in force.
	Changed func(before, after Policy)

	Log *slog.Logger
}

// Live is the policy in force. It follows changes; a new version that cannot be
// read changes nothing. Make it with New.
type Live struct {
	LiveConfig
	now  atomic.Pointer[Version]
	file *follow.Files

	mu   sync.Mutex // held while now is replaced
	last uint64     // revision of the latest change that was seen, good or not
}

// Version is a policy in force.
type Version struct {
	Policy   Policy
	Revision uint64 // of the record, also if that is not in force; zero: there is none
	Source   string
	Problem  error // why a later version is not in force
	engine   *Engine
}

// New returns the default policy, which Load and Run bring up to date. It panics
// if the rules of cfg.Base are wrong.
func New(cfg LiveConfig) *Live {
	l := &Live{LiveConfig: cfg, file: follow.New(cfg.File)}
	if err := l.adopt(Version{Policy: Default(), Source: SourceDefault}); err != nil {
		panic(err)
	}
	return l
}

// Decide implements auth.Decider.
func (l *Live) Decide(c auth.Caller, repo string, a auth.Action) auth.Decision {
	return l.now.Load().engine.Decide(c, repo, a)
}

// Current is Version for who only asks whether it is another one than before. It is
// not changed.
func (l *Live) Current() *Version { return l.now.Load() }

// Version returns what is in force.
func (l *Live) Version() Version { return *l.now.Load() }

// adopt puts v in force.
func (l *Live) adopt(v Version) (err error) {
	if _, err := Compile(v.Policy); err != nil {
		return err // as Problems of its own rules
	}
	if v.engine, err = Compile(Policy{Rules: slices.Concat(v.Policy.Rules, l.Base)}); err != nil {
		return err
	}
	l.now.Store(&v)
	return nil
}

// refuse remembers why a later version is not in force.
func (l *Live) refuse(ctx context.Context, rev uint64, err error) {
	v := *l.now.Load()
	if v.Problem == nil || v.Problem.Error() != err.Error() {
		l.Log.ErrorContext(ctx, "the policy cannot be read: the one before it stays in force", "error", err)
	}
	v.Problem, v.Revision = err, rev
	l.now.Store(&v)
}

// Load reads the policy. It fails if a file cannot be read. A record that
// cannot is a Problem: then the default policy is in force, and whoever comes by
// the admin socket can replace it.
func (l *Live) Load(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.File != "" {
		l.readFile(ctx)
		if err := l.now.Load().Problem; err != nil {
			return err
		}
		return nil
	}
	_, err := l.readRecord(ctx)
	return err
}

// Run follows changes of the policy until ctx ends.
func (l *Live) Run(ctx context.Context) {
	if l.File == "" {
		l.followRecord(ctx)
		return
	}
	l.file.Run(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.readFile(ctx)
	})
}

// Reload makes Run read the file at once.
func (l *Live) Reload() { l.file.Ask() }

// readFile puts what the file holds in force, if it can be read.
func (l *Live) readFile(ctx context.Context) {
	p, err := func() (Policy, error) {
		f, err := os.Open(l.File)
		if err != nil {
			return Policy{}, fmt.Errorf("read the policy: %w", err)
		}
		defer f.Close()
		text, err := io.ReadAll(io.LimitReader(f, MaxBytes+1))
		if err != nil {
			return Policy{}, fmt.Errorf("read the policy: %w", err)
		}
		return Parse(l.File, text)
	}()
	before := l.now.Load()
	if err == nil {
		err = l.adopt(Version{Policy: p, Source: SourceFile})
	}
	if err != nil {
		l.refuse(ctx, 0, err)
		return
	}
	if l.Changed != nil && before.Source == SourceFile {
		l.Changed(before.Policy, p)
	}
	l.Log.InfoContext(ctx, "the policy is in force", "source", SourceFile, "rules", len(p.Rules))
}

func (l *Live) followRecord(ctx context.Context) {
	var cursor uint64
	listed := false
	for ctx.Err() == nil {
		var err error
		if !listed {
			l.mu.Lock()
			cursor, err = l.readRecord(ctx)
			l.mu.Unlock()
		} else {
			var changes []storage.Change
			if changes, cursor, err = l.Records.Watch(ctx, key, cursor, 100); err == nil {
				l.mu.Lock()
				for _, c := range changes {
					l.take(ctx, c)
				}
				l.mu.Unlock()
			}
		}
		listed = err == nil
		if err == nil || ctx.Err() != nil || errors.Is(err, storage.ErrCompacted) {
			continue
		}
		l.Log.ErrorContext(ctx, "changes of the policy cannot be read; it is tried again", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// readRecord puts the record in force and returns the cursor to watch from.
func (l *Live) readRecord(ctx context.Context) (uint64, error) {
	list, cursor, err := l.Records.List(ctx, key, "", 1)
	if err != nil {
		return 0, fmt.Errorf("read the policy: %w", err)
	}
	if len(list) == 1 && list[0].Key == key {
		l.take(ctx, storage.Change{Record: list[0]})
	} else {
		l.take(ctx, storage.Change{Record: storage.Record{Key: key, Revision: cursor}, Deleted: true})
	}
	return cursor, nil
}

// take puts a change of the record in force.
func (l *Live) take(ctx context.Context, c storage.Change) {
	if c.Key != key || c.Revision <= l.last {
		return
	}
	l.last = c.Revision
	if c.Deleted {
		_ = l.adopt(Version{Policy: Default(), Source: SourceDefault}) // New has done it before
		return
	}
	var p Policy
	d := json.NewDecoder(bytes.NewReader(c.Value))
	d.DisallowUnknownFields() // of a newer berth: half of a rule is none
	err := d.Decode(&p)
	if err == nil {
		err = l.adopt(Version{Policy: p, Revision: c.Revision, Source: SourceAPI})
	}
	if err != nil {
		l.refuse(ctx, c.Revision, fmt.Errorf("the policy of revision %d: %w", c.Revision, err))
		return
	}
	l.Log.InfoContext(ctx, "the policy is in force", "source", SourceAPI, "revision", c.Revision, "rules", len(p.Rules))
}

// Put replaces the policy of revision rev, zero if none was ever put, and
// returns its new revision. It is in force here when Put returns, and on other
// servers soon.
//
// Errors: Problems; ErrFile; storage.ErrConflict if rev is not its revision.
func (l *Live) Put(ctx context.Context, p Policy, rev uint64) (uint64, error) {
	if l.File != "" {
		return 0, ErrFile
	}
	if err := p.Validate(); err != nil {
		return 0, err
	}
	value, err := json.Marshal(p)
	if err != nil {
		return 0, err
	}
	if rev, err = l.Records.Put(ctx, key, value, rev); err != nil {
		return 0, fmt.Errorf("write the policy: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.take(ctx, storage.Change{Record: storage.Record{Key: key, Value: value, Revision: rev}})
	return rev, nil
}
