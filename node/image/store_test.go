package image_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"berth.internal/node/image"
)

func TestGet(t *testing.T) {
	r := newRegistry()
	s := openStore(t, onTmpfs(t), image.Options{})
	ids := map[byte]int{}
	var all []image.Image
	for i := range 20 { // among so many, two ids begin alike
		r.push(t, r.make(t, tarOf(t, file(fmt.Sprint(i), ""))), fmt.Sprintf("v%d", i))
		img := pull(t, s, r, fmt.Sprintf("app:v%d", i))
		ids[img.ID.Encoded()[0]]++
		all = append(all, img)
	}
	r.push(t, r.make(t, tarOf(t, file("latest", ""))), "latest")
	latest := pull(t, s, r, "app")
	app := registryName + "/app"
	for _, tc := range []struct {
		name string
		want image.Image
		err  error
	}{
		{app + ":v3", all[3], nil},
		{app, latest, nil},
		{app + ":latest", latest, nil},
		{app + "@" + all[4].Manifest.Digest.String(), all[4], nil},
		{app + ":other@" + all[4].Manifest.Digest.String(), all[4], nil},
		{all[5].ID.String(), all[5], nil},
		{all[5].ID.Encoded(), all[5], nil},
		{all[5].ID.Encoded()[:20], all[5], nil},
		{"sha256:" + all[5].ID.Encoded()[:20], all[5], nil},
		{app + ":none", image.Image{}, image.ErrNotFound},
		{"", image.Image{}, image.ErrNotFound},
		{"sha256:", image.Image{}, image.ErrNotFound},
		{strings.Repeat("0", 64), image.Image{}, image.ErrNotFound},
	} {
		got, err := s.Get(tc.name)
		if got.ID != tc.want.ID || !errors.Is(err, tc.err) {
			t.Errorf("Get(%q) = %s, %v, want %s, %v", tc.name, got.ID, err, tc.want.ID, tc.err)
		}
	}
	for c, n := range ids {
		if n < 2 {
			continue
		}
		if _, err := s.Get(string(c)); !errors.Is(err, image.ErrAmbiguous) {
			t.Errorf("Get(%q), which %d images match, = %v", c, n, err)
		}
	}
	if n := len(s.List()); n != 21 {
		t.Errorf("List has %d images, want 21", n)
	}
}

func TestTagMoves(t *testing.T) {
	r := newRegistry()
	root := onTmpfs(t)
	s := openStore(t, root, image.Options{})
	r.push(t, r.make(t, tarOf(t, file("old", ""))), "latest")
	old := pull(t, s, r, "app")
	r.push(t, r.make(t, tarOf(t, file("new", ""))), "latest")
	fresh := pull(t, s, r, "app")
	if err := s.Tag(fresh.ID, ref(t, "team/other:2")); err != nil {
		t.Fatal(err)
	}
	if err := s.Tag(fresh.ID, ref(t, "team/other@"+old.Manifest.Digest.String())); err == nil {
		t.Error("Tag with a digest succeeded")
	}
	if err := s.Tag(digest.FromString("none"), ref(t, "x:1")); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("Tag of no image = %v", err)
	}
	for _, s := range []*image.Store{s, openStore(t, root, image.Options{})} {
		got, err := s.Get(old.ID.String())
		if err != nil || len(got.RepoTags) != 0 || len(got.RepoDigests) != 1 {
			t.Errorf("the old image is %v, %v, want it with its digest only", names(got), err)
		}
		got, err = s.Get(fresh.ID.String())
		if want := []string{registryName + "/app:latest", registryName + "/team/other:2"}; err != nil || !slices.Equal(got.RepoTags, want) {
			t.Errorf("the new image is %v, %v, want %v", names(got), err, want)
		}
	}
}

func TestRemove(t *testing.T) {
	app := registryName + "/app"
	shared, own := tarOf(t, file("shared", "")), tarOf(t, file("own", ""))
	for _, tc := range []struct {
		name   string
		remove string // ID and DIGEST stand for the image's
		force  bool
		tags   []string // beside app:1
		held   bool
		want   []string // SHARED and OWN stand for the layers
		err    any      // target of errors.Is or errors.As
	}{
		{name: "last tag", remove: app + ":1", want: []string{app + ":1", app + "@DIGEST", "ID", "OWN"}},
		{name: "one of two tags", remove: app + ":1", tags: []string{"app:2"}, want: []string{app + ":1"}},
		{name: "one of two repositories", remove: app + ":1", tags: []string{"b:2"}, want: []string{app + ":1", app + "@DIGEST"}},
		{name: "digest", remove: app + "@DIGEST", want: []string{app + "@DIGEST"}},
		{name: "id", remove: "ID", tags: []string{"app:2"}, want: []string{app + ":1", app + ":2", app + "@DIGEST", "ID", "OWN"}},
		{name: "id in two repositories", remove: "ID", tags: []string{"b:2"}, err: image.ErrNames},
		{name: "id in two repositories, forced", remove: "ID", force: true, tags: []string{"b:2"}, want: []string{app + ":1", app + "@DIGEST", registryName + "/b:2", "ID", "OWN"}},
		{name: "in use", remove: app + ":1", held: true, err: new(*image.InUseError)},
		{name: "in use, another tag is left", remove: app + ":1", tags: []string{"app:2"}, held: true, want: []string{app + ":1"}},
		{name: "in use, forced", remove: app + ":1", held: true, force: true, want: []string{app + ":1", app + "@DIGEST"}},
		{name: "unknown", remove: app + ":none", err: image.ErrNotFound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRegistry()
			root := onTmpfs(t)
			s := openStore(t, root, image.Options{})
			m := r.make(t, shared, own)
			r.push(t, m, "1")
			r.push(t, r.make(t, shared), "1-base")
			img := pull(t, s, r, "app:1")
			pull(t, s, r, "app:1-base")
			for _, tag := range tc.tags {
				if err := s.Tag(img.ID, ref(t, tag)); err != nil {
					t.Fatal(err)
				}
			}
			if tc.held {
				for range 2 {
					if err := s.Retain(img.ID, "web"); err != nil {
						t.Fatal(err)
					}
				}
			}
			text := strings.NewReplacer("ID", img.ID.String(), "DIGEST", img.Manifest.Digest.String(), "OWN", m.config.RootFS.DiffIDs[1].String())
			steps, err := s.Remove(text.Replace(tc.remove), tc.force)
			var got []string
			for _, step := range steps {
				got = append(got, step.Untagged+step.Deleted.String())
			}
			for i := range tc.want {
				tc.want[i] = text.Replace(tc.want[i])
			}
			if !slices.Equal(got, tc.want) || !is(err, tc.err) {
				t.Errorf("Remove = %q, %v, want %q, %v", got, err, tc.want, tc.err)
			}
			deleted := slices.Contains(tc.want, img.ID.String())
			if _, err := s.Get(img.ID.String()); deleted != errors.Is(err, image.ErrNotFound) {
				t.Errorf("afterwards Get = %v", err)
			}
			if err := s.Release(img.ID, "web"); err != nil {
				t.Fatal(err)
			}
			again, err := openStore(t, root, image.Options{}).Get(img.ID.String())
			if gone := deleted || tc.held && tc.force; gone != errors.Is(err, image.ErrNotFound) {
				t.Errorf("after release and restart Get = %v, %v", names(again), err)
			}
			onlyComplete(t, root)
		})
	}
}

func is(err error, target any) bool {
	switch target := target.(type) {
	case nil:
		return err == nil
	case error:
		return errors.Is(err, target)
	default:
		return errors.As(err, reflect.ValueOf(target).Interface())
	}
}

func TestSweep(t *testing.T) {
	r := newRegistry()
	root := onTmpfs(t)
	s := openStore(t, root, image.Options{})
	r.push(t, r.make(t, tarOf(t, file("kept", ""))), "kept")
	r.push(t, r.make(t, tarOf(t, file("lost", ""))), "lost", "held")
	kept := pull(t, s, r, "app:kept")
	lost := pull(t, s, r, "app:lost")
	if err := s.Retain(lost.ID, "web"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove(lost.ID.String(), true); err != nil {
		t.Fatal(err)
	}
	// A crash now, and a pull that left a layer and a part of another.
	s = openStore(t, root, image.Options{})
	r.push(t, r.make(t, tarOf(t, file("orphan", ""))), "orphan")
	orphan := pull(t, s, r, "app:orphan")
	if err := os.Remove(filepath.Join(root, "records", orphan.ID.Encoded()+".json")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "partial", "sha256-"+orphan.ID.Encoded(), "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, root, image.Options{})
	if err := s.Retain(lost.ID, "web"); err != nil {
		t.Fatalf("Retain after the restart = %v", err)
	}
	if err := s.Sweep(time.Hour); err != nil {
		t.Fatal(err)
	}
	if got := layersOf(t, root); got != 3 {
		t.Errorf("after a sweep of what is older than an hour %d layers are left, want 3", got)
	}
	if err := s.Sweep(0); err != nil {
		t.Fatal(err)
	}
	if got := layersOf(t, root); got != 2 {
		t.Errorf("after a sweep %d layers are left, want those of the kept and the held image", got)
	}
	onlyComplete(t, root)
	s = openStore(t, root, image.Options{})
	if err := s.Sweep(0); err != nil {
		t.Fatal(err)
	}
	if list := s.List(); len(list) != 1 || list[0].ID != kept.ID || layersOf(t, root) != 1 {
		t.Errorf("with no holder left: %d images, %d layers, want the kept one", len(list), layersOf(t, root))
	}
}

func layersOf(t *testing.T, root string) int {
	t.Helper()
	dirs, err := os.ReadDir(filepath.Join(root, "layers", "sha256"))
	if err != nil {
		t.Fatal(err)
	}
	return len(dirs)
}

func TestOpenNewer(t *testing.T) {
	root := onTmpfs(t)
	openStore(t, root, image.Options{})
	if err := os.WriteFile(filepath.Join(root, "names.json"), []byte(`{"version":2}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := image.Open(root, image.Options{}); !errors.Is(err, image.ErrVersion) || !strings.Contains(err.Error(), "names.json") {
		t.Errorf("Open = %v, want ErrVersion that names the file", err)
	}
}

// TestOpenWithoutLayer holds that an image which lost a layer is not there, and
// that pulling repairs it.
func TestOpenWithoutLayer(t *testing.T) {
	r := newRegistry()
	root := onTmpfs(t)
	m := r.make(t, tarOf(t, file("a", "")), tarOf(t, file("b", "")))
	r.push(t, m, "latest")
	pull(t, openStore(t, root, image.Options{}), r, "app")
	if err := os.RemoveAll(filepath.Join(root, "layers", "sha256", m.config.RootFS.DiffIDs[0].Encoded())); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, root, image.Options{})
	if list := s.List(); len(list) != 0 {
		t.Errorf("List = %v, want nothing", list)
	}
	img := pull(t, s, r, "app")
	if len(names(img)) != 2 {
		t.Errorf("repaired image has names %v", names(img))
	}
}
