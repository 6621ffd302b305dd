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
				trash:     map[held]trashed{},
				hidden:    map[held]bool{},
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

// trashed is a manifest in the trash.
type trashed struct {
	storage.Manifest
	tags []string
}

// model is what the Index should hold, in maps. For a blob it knows the time
// before which review must leave it alone.
type model struct {
	*fixture
	rand *rand.Rand

	blobs     map[held]int64
	manifests map[held]storage.Manifest
	tags      map[[2]string]digest.Digest
	trash     map[held]trashed
	hidden    map[held]bool                 // blobs that were deleted while something in the trash needed them
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
		m.deleteManifest, m.restore, m.restore, m.purge,
		m.review, m.review, m.sweep, m.foresee,
		func() { m.clock.add(time.Duration(m.rand.IntN(60)) * time.Minute) },
	}
	switch m.rand.IntN(80) {
	case 0, 1:
		steps = []func(){m.reopen}
	case 2:
		steps = []func(){m.clean}
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

// rules are those of one step: sometimes there is trash.
func (m *model) rules() storage.Rules {
	r := rules
	if m.rand.IntN(3) > 0 {
		r.Trash = 2 * grace
	}
	return r
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
	m.hold(held{repo, c.Digest})
}

func (m *model) mount() {
	to, from, d := m.repo(), m.repo(), digest.FromString(m.data())
	_, ok := m.blobs[held{from, d}]
	_, err := m.Mount(m.t.Context(), to, from, d, grace)
	m.did("mount", err, when(!ok, storage.ErrNotFound))
	if ok {
		m.hold(held{to, d})
	}
}

// hold lets the model hold a blob.
func (m *model) hold(h held) {
	m.blobs[h] = m.safe()
	delete(m.hidden, h)
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
		if h.repo == repo && refers(man, d) {
			list = append(list, h.digest)
		}
	}
	return list
}

// needed tells whether a manifest in the trash of repo refers to d.
func (m *model) needed(repo string, d digest.Digest) bool {
	for h, man := range m.trash {
		if h.repo == repo && refers(man.Manifest, d) {
			return true
		}
	}
	return false
}

func refers(man storage.Manifest, d digest.Digest) bool {
	return slices.ContainsFunc(man.References, func(r storage.Reference) bool { return r.Digest == d })
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
		if m.needed(repo, d) {
			m.hidden[held{repo, d}] = true
		}
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
	m.dropContent(h)
}

// dropContent takes the content of h out of the model if nothing holds it.
func (m *model) dropContent(h held) {
	same := func(other held) bool { return other.digest == h.digest }
	if slices.ContainsFunc(slices.Collect(maps.Keys(m.blobs)), same) || slices.ContainsFunc(slices.Collect(maps.Keys(m.manifests)), same) ||
		slices.ContainsFunc(slices.Collect(maps.Keys(m.trash)), same) || slices.ContainsFunc(slices.Collect(maps.Keys(m.hidden)), same) {
		return
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
	err := m.PutManifest(m.t.Context(), storage.ManifestPut{Repo: repo, Manifest: man, Tags: tags, Rules: m.rules()})
	if missing {
		if _, ok := errors.AsType[*storage.MissingError](err); !ok {
			m.t.Fatalf("put manifest with missing references = %v; before that:\n%q", err, m.log)
		}
		return
	}
	m.did(fmt.Sprintf("put %s in %s as %s", man.Inline, repo, tags), err, nil)
	m.manifests[held{repo, man.Digest}] = man
	m.keys[man.Digest] = ""
	m.leaveTrash(held{repo, man.Digest})
	for _, tag := range tags {
		m.tags[[2]string{repo, tag}] = man.Digest
	}
}

// leaveTrash takes h out of the trash, and the blobs that only it kept.
func (m *model) leaveTrash(h held) {
	man, ok := m.trash[h]
	if !ok {
		return
	}
	delete(m.trash, h)
	for _, ref := range man.References {
		if blob := (held{h.repo, ref.Digest}); m.hidden[blob] && !m.needed(h.repo, ref.Digest) {
			delete(m.hidden, blob)
			m.dropContent(blob)
		}
	}
	m.dropContent(h)
}

func (m *model) purge() {
	h := held{m.repo(), image(fmt.Sprint("manifest ", m.rand.IntN(5))).Digest}
	_, ok := m.trash[h]
	m.did("purge", m.Purge(m.t.Context(), h.repo, h.digest, rules), when(!ok, storage.ErrNotFound))
	m.leaveTrash(h)
}

func (m *model) restore() {
	h := held{m.repo(), image(fmt.Sprint("manifest ", m.rand.IntN(5))).Digest}
	_, live := m.manifests[h]
	gone, ok := m.trash[h]
	var tags []string
	if m.rand.IntN(2) == 0 {
		tags = append(tags, m.tag())
	}
	set, err := m.Restore(m.t.Context(), h.repo, h.digest, tags, m.rules())
	switch {
	case !live && !ok:
		m.did("restore", err, storage.ErrNotFound)
		return
	case !live && !m.whole(h.repo, gone.Manifest):
		if _, missing := errors.AsType[*storage.MissingError](err); !missing {
			m.t.Fatalf("restore of what cannot be whole = %v; before that:\n%q", err, m.log)
		}
		return
	}
	m.did(fmt.Sprintf("restore %s in %s as %q", h.digest, h.repo, tags), err, nil)
	if !live && tags == nil {
		for _, tag := range gone.tags {
			if m.tags[[2]string{h.repo, tag}] == "" {
				tags = append(tags, tag)
			}
		}
	}
	equal(m.t, "tags restored", set, tags...)
	if !live {
		m.revive(h)
	}
	for _, tag := range tags {
		m.tags[[2]string{h.repo, tag}] = h.digest
	}
}

// whole tells whether all that man refers to is held or in the trash.
func (m *model) whole(repo string, man storage.Manifest) bool {
	return !slices.ContainsFunc(man.References, func(ref storage.Reference) bool {
		h := held{repo, ref.Digest}
		_, blob := m.blobs[h]
		_, child := m.manifests[h]
		gone, inTrash := m.trash[h]
		whole := blob || m.hidden[h] || ref.Manifest && (child || inTrash && m.whole(repo, gone.Manifest))
		return !whole
	})
}

// revive brings h back from the trash, after all that it refers to.
func (m *model) revive(h held) {
	man := m.trash[h].Manifest
	for _, ref := range man.References {
		child := held{h.repo, ref.Digest}
		_, blob := m.blobs[child]
		_, live := m.manifests[child]
		_, inTrash := m.trash[child]
		switch {
		case blob || ref.Manifest && live:
		case ref.Manifest && inTrash:
			m.revive(child)
		case m.hidden[child]:
			m.hold(child)
		}
	}
	m.manifests[h] = man
	m.leaveTrash(h)
}

func (m *model) deleteManifest() {
	repo, d := m.repo(), image(fmt.Sprint("manifest ", m.rand.IntN(5))).Digest
	_, ok := m.manifests[held{repo, d}]
	used := len(m.parents(repo, d)) > 0
	under := m.rules()
	err := m.DeleteManifest(m.t.Context(), repo, d, under)
	switch {
	case !ok:
		m.did("delete manifest", err, storage.ErrNotFound)
	case used:
		m.did("delete manifest", err, storage.ErrReferenced)
	default:
		m.did("delete manifest", err, nil)
		var tags []string
		for _, tag := range []string{"1", "2", "latest"} {
			if at := [2]string{repo, tag}; m.tags[at] == d {
				tags = append(tags, tag)
				delete(m.tags, at)
			}
		}
		if under.Trash > 0 {
			m.trash[held{repo, d}] = trashed{m.manifests[held{repo, d}], tags}
		}
		m.drop(held{repo, d}, true)
	}
}

func (m *model) deleteTag() {
	at := [2]string{m.repo(), m.tag()}
	_, ok := m.tags[at]
	m.did("delete tag", m.DeleteTag(m.t.Context(), at[0], at[1], m.rules()), when(!ok, storage.ErrNotFound))
	delete(m.tags, at)
}

func (m *model) review() { m.reviewed(1 + m.rand.IntN(5)) }

func (m *model) reviewed(n int) []storage.Verdict {
	list, err := m.Review(m.t.Context(), everything, n)
	m.did("review", err, nil)
	for _, v := range list {
		if !v.Condemned {
			continue
		}
		m.log = append(m.log, fmt.Sprintf("condemned %+v", v))
		h := held{v.Repo, v.Digest}
		if v.Kind == storage.KindHistory {
			continue
		}
		if v.Kind == storage.KindTrash {
			m.leaveTrash(h)
			continue
		}
		if len(m.parents(v.Repo, v.Digest)) > 0 || m.needed(v.Repo, v.Digest) {
			m.t.Fatalf("%+v was condemned, but is referred to; before that:\n%q", v, m.log)
		}
		if v.Kind == storage.KindBlob {
			if until := m.blobs[h]; until > m.clock.Now().UnixNano() {
				m.t.Fatalf("%+v was condemned before its grace time; before that:\n%q", v, m.log)
			}
			m.drop(h, false)
			continue
		}
		_, subject := m.manifests[held{v.Repo, m.manifests[h].Subject}]
		_, inTrash := m.trash[held{v.Repo, m.manifests[h].Subject}]
		subject = subject || inTrash
		for at, on := range m.tags {
			if at[0] == v.Repo && on == v.Digest || subject {
				m.t.Fatalf("%+v was condemned, but is tagged or has its subject; before that:\n%q", v, m.log)
			}
		}
		m.drop(h, true)
	}
	return list
}

// foresee asks what a review would do, in pages, and lets it do that: the first
// verdict is as it was told.
func (m *model) foresee() {
	n := 1 + m.rand.IntN(5)
	queued, orphans, idle := m.inPages(n)
	all, allOrphans, allIdle := m.inPages(1000)
	what := fmt.Sprint(" in pages of ", n)
	equal(m.t, "Queued"+what, queued, all...)
	equal(m.t, "Orphans"+what, orphans, allOrphans...)
	equal(m.t, "Idle"+what, idle, allIdle...)
	told, _, err := m.Queued(m.t.Context(), everything, m.clock.Now(), "", 1)
	m.did("queued", err, nil)
	done := m.reviewed(1)
	equal(m.t, "Review after Queued", done, told...)
}

// sweep does what a collector does with orphans.
func (m *model) sweep() {
	keys, _, err := m.Orphans(m.t.Context(), m.clock.Now(), "", 100)
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
	m.clean()
	if len(m.trash)+len(m.hidden) > 0 {
		m.t.Errorf("the trash still has %v, and blobs for it %v; before that:\n%q", m.trash, m.hidden, m.log)
	}
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
		var gone []digest.Digest
		for h := range m.trash {
			if h.repo == repo {
				gone = append(gone, h.digest)
			}
		}
		m.inTrash(repo, gone...)
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
