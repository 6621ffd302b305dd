package storagetest

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
)

// TestModel does random things to an Index and to a naive model of it, and
// compares what they answer and, after each step, what they hold. The
// invariant: what a tagged manifest requires is held, and its content is known.
func TestModel(t *testing.T, fresh NewData, seeds int) {
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			m := &model{
				fixture:   newFixture(t, fresh),
				rand:      rand.New(rand.NewPCG(uint64(seed), 1)),
				blobs:     map[held]int64{},
				manifests: map[held]storage.Manifest{},
				tags:      map[[2]string]digest.Digest{},
				keys:      map[digest.Digest]storage.Key{},
				orphaned:  map[storage.Key]bool{},
			}
			for range 300 {
				m.step()
				m.check()
				if t.Failed() {
					t.FailNow()
				}
			}
			m.settle()
		})
	}
}

// held is a digest in a repository.
type held struct {
	repo   string
	digest digest.Digest
}

// model is what the Index should hold, in maps. For a blob it knows the time
// before which review must leave it alone.
type model struct {
	*fixture
	rand *rand.Rand

	blobs     map[held]int64
	manifests map[held]storage.Manifest
	tags      map[[2]string]digest.Digest
	keys      map[digest.Digest]storage.Key // of all content that is held
	orphaned  map[storage.Key]bool
	nextKey   int
	log       []string
}

func (m *model) repo() string { return []string{"a", "a/b", "c"}[m.rand.IntN(3)] }
func (m *model) tag() string  { return []string{"latest", "1", "2"}[m.rand.IntN(3)] }
func (m *model) data() string { return fmt.Sprint("blob ", m.rand.IntN(6)) }

// step does one random thing.
func (m *model) step() {
	steps := []func(){
		m.putBlob, m.putBlob, m.mount, m.deleteBlob, m.promise,
		m.putManifest, m.putManifest, m.putManifest, m.deleteManifest, m.deleteTag,
		m.review, m.review, m.sweep,
		func() { m.clock.add(time.Duration(m.rand.IntN(60)) * time.Minute) },
	}
	if m.rand.IntN(40) == 0 {
		steps = []func(){m.reopen}
	}
	steps[m.rand.IntN(len(steps))]()
}

// did compares an answer with the model's.
func (m *model) did(what string, err error, want ...error) {
	m.t.Helper()
	m.log = append(m.log, fmt.Sprintf("%s: %v", what, err))
	for _, w := range want {
		if w == nil && err == nil || w != nil && errors.Is(err, w) {
			return
		}
	}
	m.t.Fatalf("%s = %v, want one of %v; before that:\n%q", what, err, want, m.log)
}

// when is want if the condition holds, else nil.
func when(condition bool, want error) error {
	if condition {
		return want
	}
	return nil
}

// safe is the time until which review must leave what was just promised alone.
func (m *model) safe() int64 { return m.clock.Now().Add(grace).UnixNano() }

func (m *model) putBlob() {
	repo, data := m.repo(), m.data()
	m.nextKey++
	c := stored(data, storage.Key(fmt.Sprint("key-", m.nextKey)))
	m.did("intend", m.Intend(m.t.Context(), c.Key, grace), nil)
	got, err := m.PutBlob(m.t.Context(), storage.BlobPut{Repo: repo, Content: c, Grace: grace})
	m.did("put blob "+data+" in "+repo, err, nil)
	if first, ok := m.keys[c.Digest]; ok {
		m.orphaned[c.Key] = true
		c.Key = first
	}
	m.keys[c.Digest] = c.Key
	same(m.t, got, c)
	m.blobs[held{repo, c.Digest}] = m.safe()
}

func (m *model) mount() {
	to, from, d := m.repo(), m.repo(), digest.FromString(m.data())
	_, ok := m.blobs[held{from, d}]
	_, err := m.Mount(m.t.Context(), to, from, d, grace)
	m.did("mount", err, when(!ok, storage.ErrNotFound))
	if ok {
		m.blobs[held{to, d}] = m.safe()
	}
}

func (m *model) promise() {
	repo, d := m.repo(), digest.FromString(m.data())
	_, ok := m.blobs[held{repo, d}]
	_, err := m.Promise(m.t.Context(), repo, d, grace)
	m.did("promise", err, when(!ok, storage.ErrNotFound))
	if ok { // half of the grace is what a promise is good for at least
		m.blobs[held{repo, d}] = max(m.blobs[held{repo, d}], m.clock.Now().Add(grace/2).UnixNano())
	}
}

// parents returns the manifests of repo that refer to d.
func (m *model) parents(repo string, d digest.Digest) (list []digest.Digest) {
	for h, man := range m.manifests {
		refers := func(r storage.Reference) bool { return r.Digest == d }
		if h.repo == repo && slices.ContainsFunc(man.References, refers) {
			list = append(list, h.digest)
		}
	}
	return list
}

func (m *model) deleteBlob() {
	repo, d := m.repo(), digest.FromString(m.data())
	_, ok := m.blobs[held{repo, d}]
	used := len(m.parents(repo, d)) > 0
	err := m.DeleteBlob(m.t.Context(), repo, d)
	switch {
	case !ok:
		m.did("delete blob", err, storage.ErrNotFound)
	case used:
		m.did("delete blob", err, storage.ErrReferenced)
	default:
		m.did("delete blob", err, nil)
		m.drop(held{repo, d}, false)
	}
}

// drop takes h out of the model, and its content with the last holder.
func (m *model) drop(h held, manifest bool) {
	if manifest {
		delete(m.manifests, h)
	} else {
		delete(m.blobs, h)
	}
	for other := range m.blobs {
		if other.digest == h.digest {
			return
		}
	}
	for other := range m.manifests {
		if other.digest == h.digest {
			return
		}
	}
	if k := m.keys[h.digest]; k != "" {
		m.orphaned[k] = true
	}
	delete(m.keys, h.digest)
}

func (m *model) putManifest() {
	repo := m.repo()
	man := image(fmt.Sprint("manifest ", m.rand.IntN(5)))
	// What a manifest says follows from its bytes.
	says := rand.New(rand.NewPCG(uint64(man.Digest.Encoded()[0]), 2))
	for range says.IntN(3) {
		man.References = append(man.References, layers(digest.FromString(fmt.Sprint("blob ", says.IntN(6))))...)
	}
	for i := range 5 { // an index of what comes after it: no circles
		child := image(fmt.Sprint("manifest ", i))
		if child.Digest > man.Digest && says.IntN(2) == 0 {
			man.References = append(man.References, children(child.Digest)...)
		}
		if child.Digest > man.Digest && says.IntN(4) == 0 {
			man.Subject = child.Digest
		}
	}
	var tags []string
	if m.rand.IntN(3) > 0 {
		tags = append(tags, m.tag())
	}
	missing := false
	for _, ref := range man.References {
		_, blob := m.blobs[held{repo, ref.Digest}]
		_, child := m.manifests[held{repo, ref.Digest}]
		missing = missing || !blob && (!ref.Manifest || !child)
	}
	err := m.PutManifest(m.t.Context(), storage.ManifestPut{Repo: repo, Manifest: man, Tags: tags, Grace: grace})
	if missing {
		if _, ok := errors.AsType[*storage.MissingError](err); !ok {
			m.t.Fatalf("put manifest with missing references = %v; before that:\n%q", err, m.log)
		}
		return
	}
	m.did(fmt.Sprintf("put %s in %s as %s", man.Inline, repo, tags), err, nil)
	m.manifests[held{repo, man.Digest}] = man
	m.keys[man.Digest] = ""
	for _, tag := range tags {
		m.tags[[2]string{repo, tag}] = man.Digest
	}
}

func (m *model) deleteManifest() {
	repo, d := m.repo(), image(fmt.Sprint("manifest ", m.rand.IntN(5))).Digest
	_, ok := m.manifests[held{repo, d}]
	used := len(m.parents(repo, d)) > 0
	err := m.DeleteManifest(m.t.Context(), repo, d, grace)
	switch {
	case !ok:
		m.did("delete manifest", err, storage.ErrNotFound)
	case used:
		m.did("delete manifest", err, storage.ErrReferenced)
	default:
		m.did("delete manifest", err, nil)
		m.drop(held{repo, d}, true)
		maps.DeleteFunc(m.tags, func(at [2]string, on digest.Digest) bool { return at[0] == repo && on == d })
	}
}

func (m *model) deleteTag() {
	at := [2]string{m.repo(), m.tag()}
	_, ok := m.tags[at]
	m.did("delete tag", m.DeleteTag(m.t.Context(), at[0], at[1], grace), when(!ok, storage.ErrNotFound))
	delete(m.tags, at)
}

func (m *model) review() {
	list, err := m.Review(m.t.Context(), storage.ReviewPolicy{Untagged: true, Grace: grace}, 1+m.rand.IntN(5))
	m.did("review", err, nil)
	for _, v := range list {
		if !v.Condemned {
			continue
		}
		m.log = append(m.log, fmt.Sprintf("condemned %+v", v))
		h := held{v.Repo, v.Digest}
		if len(m.parents(v.Repo, v.Digest)) > 0 {
			m.t.Fatalf("%+v was condemned, but is referred to; before that:\n%q", v, m.log)
		}
		if !v.Manifest {
			if until := m.blobs[h]; until > m.clock.Now().UnixNano() {
				m.t.Fatalf("%+v was condemned before its grace time; before that:\n%q", v, m.log)
			}
			m.drop(h, false)
			continue
		}
		_, subject := m.manifests[held{v.Repo, m.manifests[h].Subject}]
		for at, on := range m.tags {
			if at[0] == v.Repo && on == v.Digest || subject {
				m.t.Fatalf("%+v was condemned, but is tagged or has its subject; before that:\n%q", v, m.log)
			}
		}
		m.drop(h, true)
	}
}

// sweep does what a collector does with orphans.
func (m *model) sweep() {
	keys, err := m.Orphans(m.t.Context(), m.clock.Now(), 100)
	m.did("orphans", err, nil)
	slices.Sort(keys)
	equal(m.t, "Orphans", keys, slices.Sorted(maps.Keys(m.orphaned))...)
	for _, k := range keys {
		m.did("forget", m.Forget(m.t.Context(), k), nil)
		delete(m.orphaned, k)
	}
}

// settle lets all grace times pass, and looks whether all is gone that nothing
// keeps.
func (m *model) settle() {
	m.t.Helper()
	for range 10 { // a chain of manifests is shorter
		m.clock.add(grace)
		for range 20 {
			m.review()
		}
	}
	m.check()
	for h := range m.blobs {
		if len(m.parents(h.repo, h.digest)) == 0 {
			m.t.Errorf("blob %s in %s stays, though nothing refers to it; before that:\n%q", h.digest, h.repo, m.log)
		}
	}
	for h, man := range m.manifests {
		_, subject := m.manifests[held{h.repo, man.Subject}]
		tagged := slices.Contains(slices.Collect(maps.Values(m.tags)), h.digest)
		if !subject && !tagged && len(m.parents(h.repo, h.digest)) == 0 {
			m.t.Errorf("manifest %s in %s stays, though nothing keeps it; before that:\n%q", h.digest, h.repo, m.log)
		}
	}
}

// check compares all that the Index holds with the model, and looks at the
// invariant.
func (m *model) check() {
	m.t.Helper()
	for _, repo := range []string{"a", "a/b", "c"} {
		for i := range 6 {
			d := digest.FromString(fmt.Sprint("blob ", i))
			_, ok := m.blobs[held{repo, d}]
			m.hasBlob(repo, d, ok)
		}
		for i := range 5 {
			d := image(fmt.Sprint("manifest ", i)).Digest
			_, ok := m.manifests[held{repo, d}]
			m.hasManifest(repo, d, ok)
		}
		for _, tag := range []string{"latest", "1", "2"} {
			d := m.tags[[2]string{repo, tag}]
			m.tagged(repo, tag, d)
			if d != "" {
				m.complete(repo, d)
			}
		}
	}
}

// complete checks that manifest d can be pulled in full.
func (m *model) complete(repo string, d digest.Digest) {
	m.t.Helper()
	man, err := m.Manifest(m.t.Context(), repo, d)
	if err != nil {
		m.t.Fatalf("manifest %s of a tagged one: %v; before that:\n%q", d, err, m.log)
	}
	for _, ref := range man.References {
		if _, ok := m.manifests[held{repo, ref.Digest}]; ok {
			m.complete(repo, ref.Digest)
			continue
		}
		c, err := m.Blob(m.t.Context(), repo, ref.Digest)
		if err != nil || c.Key == "" || m.orphaned[c.Key] {
			m.t.Fatalf("layer %s of a tagged manifest = %+v, %v; before that:\n%q", ref.Digest, c, err, m.log)
		}
	}
}
