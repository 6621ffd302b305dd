package model_test

import (
	"slices"
	"testing"
)

// TestTagRule holds the rule for tags against what orders of requests allow. A
// tag is written at given times and read from 100 to 110.
func TestTagRule(t *testing.T) {
	a, b := &thing{name: "a", manifest: true}, &thing{name: "b", manifest: true}
	wrote := func(to *thing, from, until moment, result outcome) write {
		return write{op: &op{window: window{from, until}, outcome: result}, to: to}
	}
	deleted := func(only *thing, from, until moment, result outcome) write {
		return write{op: &op{window: window{from, until}, outcome: result}, only: only}
	}
	for _, tc := range []struct {
		name   string
		writes []write
		may    []*thing // be on these
		must   *thing   // be on this
		kept   *thing   // is this from the collector, whose grace is 50
	}{
		{"never written", nil, []*thing{nil}, nil, nil},
		{"written", []write{wrote(a, 10, 20, done)}, []*thing{a}, a, a},
		{"refused", []write{wrote(a, 10, 20, refused)}, []*thing{nil}, nil, nil},
		{"without answer", []write{wrote(a, 10, 20, open)}, []*thing{nil, a}, nil, nil},
		{"under way", []write{wrote(a, 105, never, open)}, []*thing{nil, a}, nil, nil},
		{"done while it is read", []write{wrote(a, 105, 107, done)}, []*thing{nil, a}, nil, nil},
		{"written later", []write{wrote(a, 115, 120, done)}, []*thing{nil}, nil, nil},
		{"moved long ago", []write{wrote(a, 10, 20, done), wrote(b, 30, 40, done)}, []*thing{b}, b, b},
		{"moved", []write{wrote(a, 10, 20, done), wrote(b, 70, 80, done)}, []*thing{b}, b, a},
		{"moved at once with it", []write{wrote(a, 10, 40, done), wrote(b, 30, 40, done)}, []*thing{a, b}, nil, nil},
		{"moved without answer", []write{wrote(a, 10, 20, done), wrote(b, 70, 80, open)}, []*thing{a, b}, nil, a},
		{"perhaps moved, but written again", []write{wrote(b, 10, 20, open), wrote(a, 30, 40, done)}, []*thing{a}, a, a},
		{"deleted", []write{wrote(a, 10, 20, done), deleted(nil, 30, 40, done)}, []*thing{nil}, nil, nil},
		{"deleted with its manifest", []write{wrote(a, 10, 20, done), deleted(a, 70, 80, done)}, []*thing{nil}, nil, nil},
		{"another manifest deleted", []write{wrote(a, 10, 20, done), deleted(b, 70, 80, done)}, []*thing{a}, a, a},
		{"perhaps deleted with its manifest", []write{wrote(a, 10, 20, done), deleted(a, 70, 80, open)}, []*thing{nil, a}, nil, nil},
		{"deleted with what it was on before", []write{wrote(a, 10, 20, done), wrote(b, 30, 40, done), deleted(a, 70, 80, done)}, []*thing{b}, b, b},
		{"deleted with what it was perhaps on", []write{wrote(a, 10, 20, done), wrote(b, 30, 80, open), deleted(b, 70, 80, done)}, []*thing{nil, a, b}, nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			reg := newRecord(settings{grace: 50, untagged: 50, dangling: 50}, func() {}).tag(tagName{"repo", "tag"})
			reg.writes = append(reg.writes, tc.writes...)
			read := window{100, 110}
			for _, d := range []*thing{nil, a, b} {
				if got := reg.may(d, read); got != slices.Contains(tc.may, d) {
					t.Errorf("may be on %s: %v", d, got)
				}
				if d == nil {
					continue
				}
				if got := reg.keeps(d, read, 0) != nil; got != (d == tc.must) {
					t.Errorf("must be on %s: %v", d, got)
				}
				if got := reg.keeps(d, read, 50) != nil; got != (d == tc.kept || d == tc.must) {
					t.Errorf("keeps %s: %v", d, got)
				}
			}
		})
	}
}

// TestHoldingRule does the same with a layer. It was pushed from 10 to 20, which
// promises it until 1000 unless somebody deletes it.
func TestHoldingRule(t *testing.T) {
	at := func(from, to moment, result outcome) *op {
		return &op{window: window{from, to}, outcome: result}
	}
	push := at(10, 20, done)
	for _, tc := range []struct {
		name      string
		more      []*op // pushes
		drops     []*op
		may, must bool
	}{
		{"pushed", nil, nil, true, true},
		{"deleted", nil, []*op{at(30, 40, done)}, false, false},
		{"not deleted", nil, []*op{at(30, 40, refused)}, true, true},
		{"perhaps deleted", nil, []*op{at(30, 40, open)}, true, false},
		{"deleted before", nil, []*op{at(0, 5, done)}, true, true},
		{"deleted while it was pushed", nil, []*op{at(15, 25, done)}, true, false},
		{"deleted later", nil, []*op{at(115, 120, done)}, true, true},
		{"deleted while it is read", nil, []*op{at(105, 107, done)}, true, false},
		{"deleted and pushed again", []*op{at(50, 60, done)}, []*op{at(30, 40, done)}, true, false}, // no promise of the second here
		{"deleted and perhaps pushed again", []*op{at(50, 60, open)}, []*op{at(30, 40, done)}, true, false},
		{"deleted and refused again", []*op{at(50, 60, refused)}, []*op{at(30, 40, done)}, false, false},
		{"deleted and pushed again later", []*op{at(150, 160, done)}, []*op{at(30, 40, done)}, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRecord(settings{grace: 50, untagged: 50, dangling: 50}, func() {})
			h := holding{"repo", &thing{name: "layer"}}
			read := window{100, 110}
			state := r.holding(h)
			if state.may(read) || r.must(h, read) != "" {
				t.Error("what nobody pushed is there")
			}
			state.puts, state.drops = append([]*op{push}, tc.more...), tc.drops
			state.promises = []promise{{push, 1000}}
			if got := state.may(read); got != tc.may {
				t.Errorf("may be there: %v", got)
			}
			if got := r.must(h, read); (got != "") != tc.must {
				t.Errorf("must be there: %q", got)
			}
			if got := r.must(h, window{990, 1000}); got != "" {
				t.Errorf("must be there after the promise: %q", got)
			}
		})
	}
}

// TestReferencesRule holds what is named by what must be there.
func TestReferencesRule(t *testing.T) {
	r := newRecord(settings{grace: 50, untagged: 50, dangling: 50}, func() {})
	layer := r.blob("layer", []byte("layer"))
	image := r.image("image", "", nil, "", layer)
	index := r.index("index", image)
	artifact := r.image("artifact", "application/x", index, "", layer)
	on := func(name string, d *thing, from, to moment) {
		r.tag(tagName{"repo", name}).writes = []write{{op: &op{window: window{from, to}, outcome: done}, to: d}}
	}
	read := window{100, 110}
	want := func(when string, things ...*thing) {
		t.Helper()
		for _, of := range []*thing{layer, image, index, artifact} {
			if got := r.must(holding{"repo", of}, read); (got != "") != slices.Contains(things, of) {
				t.Errorf("%s: %s must be there: %q", when, of, got)
			}
			if got := r.must(holding{"other", of}, read); got != "" {
				t.Errorf("%s: %s must be in another repository: %q", when, of, got)
			}
		}
	}
	want("without tags")
	on("1", image, 10, 20)
	want("with a tag on the image", image, layer)
	on("1", index, 10, 20)
	want("with a tag on the index", index, image, layer)
	r.holding(holding{"repo", artifact}).seen = &op{window: window{5, 30}, outcome: done}
	want("with an artifact that is perhaps older than its subject", index, image, layer)
	r.holding(holding{"repo", artifact}).seen = &op{window: window{25, 30}, outcome: done}
	want("with an artifact", index, image, layer, artifact)
	r.holding(holding{"repo", artifact}).drops = []*op{{window: window{50, 60}}}
	want("with an artifact that is perhaps deleted", index, image, layer)
	r.untagged = 0
	r.tag(tagName{"repo", "1"}).writes = nil
	r.holding(holding{"repo", image}).seen = &op{window: window{10, 20}, outcome: done}
	want("with an image that nobody takes, though it has no tag", image, layer)
}
