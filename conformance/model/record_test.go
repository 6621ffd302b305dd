package model_test

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"
)

// moment is the time since the run began, on the clients' clock, which never
// goes back.
type moment = time.Duration

const never = moment(math.MaxInt64)

// window is the time from before a request was sent until after its answer
// came. What the request did or saw, it did or saw at one moment in between.
type window struct{ from, to moment }

// before tells whether w had ended when o began.
func (w window) before(o window) bool { return w.to < o.from }

// outcome is what is known of the effect of a request.
type outcome int

const (
	open    outcome = iota // no answer came, or not yet: it may have had its effect
	done                   // it had its effect
	refused                // it had none
)

// op is a request.
type op struct {
	window
	outcome outcome
	what    string
	said    string
}

func (o *op) String() string {
	to := "          "
	if o.to != never {
		to = fmt.Sprintf("%10.4f", o.to.Seconds())
	}
	return fmt.Sprintf("%10.4f %s  %s: %s", o.from.Seconds(), to, o.what, cmp.Or(o.said, "no answer"))
}

// holding is a thing in a repository.
type holding struct {
	repo string
	of   *thing
}

func (h holding) String() string { return h.repo + "@" + h.of.name }

// tagName is a tag of a repository.
type tagName struct{ repo, tag string }

func (t tagName) String() string { return t.repo + ":" + t.tag }

// effect is what a request does if it succeeds.
type effect struct {
	puts   []holding // become held
	drops  []holding // are no longer held
	purges []holding // can no longer be restored
	moves  []move    // of tags
}

// move puts a tag on a manifest, or on none. If only is not nil, it does
// nothing to a tag that is on another manifest.
type move struct {
	tag      tagName
	to, only *thing
}

// record is what clients asked and were told, and what follows from it: what a
// request under way may see, and what it must see. It is a checker of
// linearizability for many small registers, that leaves some errors out but has
// no false alarms: an answer is wrong only if no order of the requests explains
// it, whatever those did that got no answer.
type record struct {
	settings
	began time.Time
	fail  func()

	mu      sync.Mutex
	things  []*thing
	tags    map[tagName]*tag
	held    map[holding]*held
	open    map[*op]bool
	touched map[string][]*op // by name of holding or tag: the last requests about it
	count   int
	failure error
}

func newRecord(s settings, fail func()) *record {
	return &record{
		settings: s, began: time.Now(), fail: fail,
		tags: map[tagName]*tag{}, held: map[holding]*held{}, open: map[*op]bool{}, touched: map[string][]*op{},
	}
}

func (r *record) now() moment { return time.Since(r.began) }

// tag is a register: the manifest that a tag is on.
type tag struct {
	writes []write
	ever   map[*thing]bool // what somebody tried to put it on
}

// write is a request that may have moved the tag.
type write struct {
	*op
	to, only *thing // as in move
}

// may tells whether the tag can have been on d, nil for none, at a moment of w:
// somebody put it there, and nobody certainly moved it between that and w.
func (t *tag) may(d *thing, w window) bool {
	return slices.ContainsFunc(t.writes, func(from write) bool {
		if from.outcome == refused || from.to != d || w.before(from.window) {
			return false
		}
		if from.only != nil && !t.may(from.only, from.window) {
			return false
		}
		return !slices.ContainsFunc(t.writes, func(x write) bool {
			return x.outcome == done && from.before(x.window) && x.before(w) && x.moves(d)
		})
	})
}

// moves tells whether x takes a tag from d.
func (x write) moves(d *thing) bool { return x.to != d && (x.only == nil || x.only == d) }

// keeps tells whether the tag certainly kept d from being collected in all of w:
// it was put there before, and was not moved, or not longer than grace ago. With
// no grace it tells whether the tag was certainly on d.
func (t *tag) keeps(d *thing, w window, grace time.Duration) *op {
	for _, from := range t.writes {
		if from.outcome != done || from.to != d || from.only != nil || !from.before(w) {
			continue
		}
		if !slices.ContainsFunc(t.writes, func(x write) bool {
			if x.outcome == refused || !x.moves(d) || x.before(from.window) || w.before(x.window) {
				return false
			}
			return x.only != nil || w.to >= x.from+grace
		}) {
			return from.op
		}
	}
	return nil
}

// held is a register: whether a repository holds a thing. The collector may
// take it at any time, unless there is a reason that it must not.
type held struct {
	puts, drops []*op
	purges      []*op // out of the trash
	promises    []promise
	seen        *op // the last that found it held
}

// promise is a request that was told that the thing is there until a time.
type promise struct {
	*op
	until moment
}

// may tells whether it can have been held at a moment of w.
func (h *held) may(w window) bool {
	return slices.ContainsFunc(h.puts, func(put *op) bool {
		if put.outcome == refused || w.before(put.window) {
			return false
		}
		return !slices.ContainsFunc(h.drops, func(x *op) bool {
			return x.outcome == done && put.before(x.window) && x.before(w)
		})
	})
}

// undisturbed tells whether nobody can have deleted it from o to the end of w.
func (h *held) undisturbed(o *op, w window) bool {
	return !slices.ContainsFunc(h.drops, func(x *op) bool {
		return x.outcome != refused && !x.before(o.window) && !w.before(x.window)
	})
}

// tag returns the register of a tag, which at first is on nothing.
func (r *record) tag(name tagName) *tag {
	t := r.tags[name]
	if t == nil {
		t = &tag{writes: []write{{op: &op{outcome: done, what: "the beginning"}}}, ever: map[*thing]bool{}}
		r.tags[name] = t
	}
	return t
}

func (r *record) holding(h holding) *held {
	if r.held[h] == nil {
		r.held[h] = &held{}
	}
	return r.held[h]
}

// must says why repo must have held the thing in all of w. It is empty if there
// is no reason.
func (r *record) must(h holding, w window) string {
	state := r.holding(h)
	for _, p := range state.promises {
		if p.before(w) && w.to < p.until && state.undisturbed(p.op, w) {
			return fmt.Sprintf("%s is promised until %.4f by %q", h, p.until.Seconds(), p.what)
		}
	}
	if h.of.manifest {
		if by := state.seen; r.review(h.of) == forever && by != nil && by.before(w) && state.undisturbed(by, w) {
			return fmt.Sprintf("%s was there when %q, and is kept without a tag", h, by.what)
		}
		for name, t := range r.tags {
			if name.repo != h.repo {
				continue
			}
			if by := t.keeps(h.of, w, max(r.review(h.of), r.trash)); by != nil {
				return fmt.Sprintf("%s is on %s since %q", name, h, by.what)
			}
		}
	}
	for _, parent := range h.of.parents {
		if why := r.must(holding{h.repo, parent}, w); why != "" {
			return fmt.Sprintf("%s names %s; %s", parent.name, h, why)
		}
	}
	if h.of.subject != nil && state.seen != nil && state.seen.before(w) && state.undisturbed(state.seen, w) {
		if why := r.stays(holding{h.repo, h.of.subject}, window{state.seen.from, w.to}); why != "" {
			return fmt.Sprintf("%s is the subject of %s, which was there when %q; %s", h.of.subject.name, h, state.seen.what, why)
		}
	}
	return ""
}

// stays is must for a manifest that may also be in the trash, if it must have
// been held before that.
func (r *record) stays(h holding, w window) string {
	if why := r.must(h, w); why != "" {
		return why
	}
	for _, x := range r.holding(h).drops {
		if x.from <= w.from || !x.before(window{w.to, w.to}) {
			continue
		}
		held, trashed := r.must(h, window{w.from, x.from - 1}), r.restorable(h, window{w.to, w.to})
		if held != "" && trashed != "" {
			return held + "; " + trashed
		}
	}
	return ""
}

// begin takes note of a request that is about to be sent, and of all that it
// may do. about is what else the request is of interest to.
func (r *record) begin(what string, e effect, about ...fmt.Stringer) *op {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count++
	o := &op{what: what, window: window{r.now(), never}}
	r.open[o] = true
	r.add(o, e)
	for _, subject := range append(about, e.subjects()...) {
		r.touch(subject.String(), o)
	}
	return o
}

// add enters o into the registers that it changes.
func (r *record) add(o *op, e effect) {
	for _, h := range e.puts {
		state := r.holding(h)
		state.puts = append(state.puts, o)
	}
	for _, h := range e.drops {
		state := r.holding(h)
		state.drops = append(state.drops, o)
	}
	for _, h := range e.purges {
		state := r.holding(h)
		state.purges = append(state.purges, o)
	}
	for _, m := range e.moves {
		t := r.tag(m.tag)
		t.writes = append(t.writes, write{o, m.to, m.only})
		if m.to != nil {
			t.ever[m.to] = true
		}
	}
}

// remove is the reverse of add.
func (r *record) remove(o *op, e effect) {
	other := func(x *op) bool { return x == o }
	for _, h := range e.puts {
		state := r.holding(h)
		state.puts = slices.DeleteFunc(state.puts, other)
	}
	for _, h := range e.drops {
		state := r.holding(h)
		state.drops = slices.DeleteFunc(state.drops, other)
	}
	for _, h := range e.purges {
		state := r.holding(h)
		state.purges = slices.DeleteFunc(state.purges, other)
	}
	for _, m := range e.moves {
		t := r.tag(m.tag)
		t.writes = slices.DeleteFunc(t.writes, func(w write) bool { return w.op == o })
	}
}

// subjects are what e is about.
func (e effect) subjects() (list []fmt.Stringer) {
	for _, h := range slices.Concat(e.puts, e.drops, e.purges) {
		list = append(list, h)
	}
	for _, m := range e.moves {
		list = append(list, m.tag)
	}
	return list
}

// touch keeps the last requests about a holding or a tag, for the report of a
// failure.
func (r *record) touch(name string, o *op) {
	const most = 40
	list := r.touched[name]
	if slices.Contains(list, o) {
		return
	}
	if len(list) == most {
		list = list[1:]
	}
	r.touched[name] = append(list, o)
}

// end takes note of an answer.
func (r *record) end(o *op, result outcome, said string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.finish(o, result, said)
}

// endAs is end for an answer that says which of what it might do the request
// has done.
func (r *record) endAs(o *op, said string, might, did effect) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.finish(o, done, said)
	r.remove(o, might)
	r.add(o, did)
}

func (r *record) finish(o *op, result outcome, said string) {
	o.to, o.outcome, o.said = r.now(), result, said
	delete(r.open, o)
}

// note adds to what is known of an answer.
func (r *record) note(o *op, said string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o.said += ": " + said
}

// died says that the server has ended: what got no answer has happened by now,
// or never will.
func (r *record) died() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for o := range r.open {
		o.to = r.now()
	}
	clear(r.open)
}

// present says that a request found h held.
func (r *record) present(o *op, h holding) {
	r.mu.Lock()
	defer r.mu.Unlock()
	state := r.holding(h)
	if !state.may(o.window) {
		r.wrong(o, []fmt.Stringer{h}, "%s cannot be there: nobody pushed it since it was deleted, or ever", h)
	}
	if state.seen == nil || state.seen.from < o.from {
		state.seen = o
	}
}

// absent says that a request found that h is not held.
func (r *record) absent(o *op, h holding) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if why := r.must(h, o.window); why != "" {
		r.wrong(o, r.relatives(h), "%s must be there: %s", h, why)
	}
}

// restorable says why h, a manifest, must be in the trash in all of w, or
// empty: it was deleted lately, and neither purged nor pushed again.
func (r *record) restorable(h holding, w window) string {
	state := r.holding(h)
	since := func(x *op, list []*op) bool {
		return slices.ContainsFunc(list, func(o *op) bool {
			return o.outcome != refused && !o.before(x.window) && !w.before(o.window)
		})
	}
	for _, x := range state.drops {
		if x.outcome != done || !x.before(w) || w.to >= x.from+r.trash || since(x, state.puts) || since(x, state.purges) {
			continue
		}
		if slices.ContainsFunc(h.of.closure(), func(t *thing) bool { return since(x, r.holding(holding{h.repo, t}).purges) }) {
			continue
		}
		return fmt.Sprintf("%q took it to the trash until %.4f at least", x.what, (x.from + r.trash).Seconds())
	}
	return ""
}

// lost says that a request did not find h in the trash.
func (r *record) lost(o *op, h holding) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if why := r.restorable(h, o.window); why != "" {
		r.wrong(o, r.relatives(h), "%s must be in the trash: %s", h, why)
	}
}

// relatives is what the presence of h depends on.
func (r *record) relatives(h holding) []fmt.Stringer {
	all := []fmt.Stringer{h}
	for _, parent := range h.of.parents {
		all = append(all, r.relatives(holding{h.repo, parent})...)
	}
	if h.of.subject != nil {
		all = append(all, holding{h.repo, h.of.subject})
	}
	if h.of.manifest {
		for name, t := range r.tags {
			if name.repo == h.repo && slices.ContainsFunc(t.writes, func(w write) bool { return w.to == h.of }) {
				all = append(all, name)
			}
		}
	}
	return all
}

// promised says that a request was answered in a way that keeps h for grace
// from when it was sent.
func (r *record) promised(o *op, h holding, grace time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	state := r.holding(h)
	state.promises = slices.DeleteFunc(state.promises, func(p promise) bool { return p.until < r.now()-time.Minute })
	state.promises = append(state.promises, promise{o, o.from + grace})
}

// sawSet says that a request was refused because one of the tags is set once. It
// must be on something, and not on what the request would have put there.
func (r *record) sawSet(o *op, names []tagName, d *thing) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var about []fmt.Stringer
	for _, name := range names {
		about = append(about, name)
		if t := r.tag(name); r.set(name) && slices.ContainsFunc(t.writes, func(w write) bool {
			return w.to != nil && w.to != d && t.may(w.to, o.window)
		}) {
			return
		}
	}
	r.wrong(o, about, "none of %v can stand in the way of %s", names, d)
}

// moved says that a request put tags on d. One that is set once must not have
// been on anything else when the request was sent, since nothing takes it away.
func (r *record) moved(o *op, names []tagName, d *thing) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := window{o.from - 1, o.from - 1}
	for _, name := range names {
		t := r.tag(name)
		for other := range t.ever {
			if by := t.keeps(other, before, 0); r.set(name) && other != d && by != nil {
				r.wrong(o, []fmt.Stringer{name}, "%s is set once, and on %s since %q", name, other, by.what)
			}
		}
	}
}

// sawSetOn says that a manifest was not deleted, since a tag on it is set once.
func (r *record) sawSetOn(o *op, h holding) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, t := range r.tags {
		if name.repo == h.repo && r.set(name) && t.may(h.of, o.window) {
			return
		}
	}
	r.wrong(o, r.relatives(h), "no tag that is set once can be on %s", h)
}

// saw says that a request found the tag on d, or on nothing.
func (r *record) saw(o *op, name tagName, d *thing) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.tag(name).may(d, o.window) {
		r.wrong(o, []fmt.Stringer{name}, "%s cannot be on %s", name, d)
	}
}

// sawSome says that a request found the tag on some manifest.
func (r *record) sawSome(o *op, name tagName) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.tag(name)
	if !slices.ContainsFunc(t.writes, func(w write) bool { return w.to != nil && t.may(w.to, o.window) }) {
		r.wrong(o, []fmt.Stringer{name}, "%s cannot be there", name)
	}
}

// sawOther says that a request found the tag not on d.
func (r *record) sawOther(o *op, name tagName, d *thing) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if by := r.tag(name).keeps(d, o.window, 0); by != nil {
		r.wrong(o, []fmt.Stringer{name}, "%s must be on %s since %q", name, d, by.what)
	}
}

// unused says that a request deleted h, which nothing may do while a manifest
// names it.
func (r *record) unused(o *op, h holding) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, parent := range h.of.parents {
		if why := r.must(holding{h.repo, parent}, o.window); why != "" {
			r.wrong(o, r.relatives(h), "%s was deleted, though %s names it: %s", h, parent.name, why)
		}
	}
}

// used says that a request found that a manifest names h.
func (r *record) used(o *op, h holding) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.ContainsFunc(h.of.parents, func(parent *thing) bool {
		return r.holding(holding{h.repo, parent}).may(o.window)
	}) {
		r.wrong(o, r.relatives(h), "no manifest can name %s", h)
	}
}

// settled says that the tag was found on d while nobody did anything. What was
// before is of no interest any more.
func (r *record) settled(o *op, name tagName, d *thing) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tag(name).writes = []write{{op: &op{window: o.window, outcome: done, what: o.what}, to: d}}
}

// forget drops what can no longer matter, while nobody does anything.
func (r *record) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := window{r.now(), r.now()}
	for h, state := range r.held {
		state.promises = slices.DeleteFunc(state.promises, func(p promise) bool {
			return p.until < now.from || !state.undisturbed(p.op, now)
		})
		if state.seen != nil && !state.undisturbed(state.seen, now) {
			state.seen = nil
		}
		if !state.may(now) {
			state.puts = nil
			if r.restorable(h, now) == "" {
				delete(r.held, h)
			}
			continue
		}
		state.puts, state.drops, state.purges = []*op{{window: now, what: "what was before"}}, nil, nil
	}
}

// wrong reports the first error, with the last requests about its subjects. The
// caller holds mu.
func (r *record) wrong(o *op, subjects []fmt.Stringer, format string, args ...any) {
	if r.failure != nil {
		return
	}
	var ops []*op
	for _, s := range subjects {
		ops = append(ops, r.touched[s.String()]...)
	}
	slices.SortFunc(ops, func(a, b *op) int { return cmp.Compare(a.from, b.from) })
	ops = slices.Compact(ops)
	var b strings.Builder
	fmt.Fprintf(&b, format, args...)
	fmt.Fprintf(&b, "\nbut, as request number %d:\n%s\nThe last requests about it:\n", r.count, o)
	const most = 60
	for _, o := range ops[max(0, len(ops)-most):] {
		fmt.Fprintln(&b, o)
	}
	r.failure = fmt.Errorf("%s", b.String())
	r.fail()
}

// complain is wrong for callers without mu.
func (r *record) complain(o *op, subjects []fmt.Stringer, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wrong(o, subjects, format, args...)
}

// result is the first error, and how many requests there were.
func (r *record) result() (requests int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count, r.failure
}
