package layout

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth.internal/client"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// tarOf makes an archive of entries and what is in them.
func tarOf(t testing.TB, entries ...any) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(entries); i += 2 {
		hdr, ok := entries[i].(tar.Header)
		if !ok {
			hdr = tar.Header{Typeflag: tar.TypeReg, Name: entries[i].(string)}
		}
		content := entries[i+1].(string)
		if hdr.Typeflag == tar.TypeReg {
			hdr.Size = int64(len(content))
		}
		if err := w.WriteHeader(&hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(t testing.TB, content []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "archive.tar")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func closing(t *testing.T, c io.Closer) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// TestNotAnImage wants an error that says what is wrong with each file.
func TestNotAnImage(t *testing.T) {
	const mark = `{"imageLayoutVersion":"1.0.0"}`
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	none := digest.FromString("none").String()
	whole := tarOf(t, "oci-layout", mark, "index.json", strings.Repeat(" ", 2000))
	for _, tc := range []struct {
		name    string
		content []byte
		oci     string
		docker  string
	}{
		{"empty file", nil, "not a tar archive, or an empty one", "not a tar archive, or an empty one"},
		{"text", []byte(strings.Repeat("hello ", 200)), "not a tar archive, or a damaged one", "not a tar archive, or a damaged one"},
		{"gzip", []byte("\x1f\x8b\x08\x00 and more"), "unpack it first", "unpack it first"},
		{"other tar", tarOf(t, "etc/passwd", "root"), "it has no file oci-layout", "it has no file manifest.json"},
		{"truncated", whole[:len(whole)-2500], "the archive ends in the middle of index.json", "the archive ends in the middle of index.json"},
		{"a layout", tarOf(t, "oci-layout", mark, "index.json", `{"manifests":[]}`), "there is no image here", "name it oci-archive:FILE"},
		{"docker's", tarOf(t, "manifest.json", `[]`), "name it docker-archive:FILE", "there is no image here"},
		{"later version", tarOf(t, "oci-layout", `{"imageLayoutVersion":"9.0"}`), `of version "9.0"`, ""},
		{"no index", tarOf(t, "oci-layout", mark), "this OCI image layout is not complete", ""},
		{"index is text", tarOf(t, "oci-layout", mark, "index.json", "x"), "not a valid index", ""},
		{"bad digest", tarOf(t, "oci-layout", mark, "index.json", `{"manifests":[{"digest":"sha256:../../etc/passwd","size":1}]}`), "without a right digest", ""},
		{"bad size", tarOf(t, "oci-layout", mark, "index.json", `{"manifests":[{"digest":"`+none+`","size":-1}]}`), "without a right digest", ""},
		{"two images", tarOf(t, "oci-layout", mark, "index.json", `{"manifests":[{"digest":"`+none+`"},{"digest":"`+none+`"}]}`), "add :TAG to choose one", ""},
		{"links in a circle", tarOf(t, link("manifest.json", "b"), "", link("b", "manifest.json"), ""), "", "it has no file manifest.json"},
		{"link out", tarOf(t, link("manifest.json", "../../../../etc/passwd"), ""), "", "it has no file manifest.json"},
		{"manifest is text", tarOf(t, "manifest.json", "x"), "", "not one of docker save"},
		{"no config", tarOf(t, "manifest.json", `[{"Config":"../../etc/passwd"}]`), "", "config is missing"},
		{"config is text", tarOf(t, "manifest.json", `[{"Config":"c"}]`, "c", "x"), "", "not the config of an image"},
		{"fewer layers", tarOf(t, "manifest.json", `[{"Config":"c","Layers":["a"]}]`, "c", "{}"), "", "the config names 0 layers, manifest.json 1"},
		{"no layer", tarOf(t, "manifest.json", `[{"Config":"c","Layers":["a"]}]`, "c", `{"rootfs":{"diff_ids":["`+none+`"]}}`), "", "layer a is missing"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			name := file(t, tc.content)
			if _, err := OpenOCIArchive(name, ""); tc.oci != "" && (err == nil || !strings.Contains(err.Error(), tc.oci) || !strings.Contains(err.Error(), name)) {
				t.Errorf("OpenOCIArchive = %v, want %s: … %s", err, name, tc.oci)
			}
			if _, err := OpenDocker(name, ""); tc.docker != "" && (err == nil || !strings.Contains(err.Error(), tc.docker) || !strings.Contains(err.Error(), name)) {
				t.Errorf("OpenDocker = %v, want %s: … %s", err, name, tc.docker)
			}
		})
	}
}

// TestDirectoryStaysInside has a layout whose blob is a link out of it.
func TestDirectoryStaysInside(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	dir := t.TempDir()
	d := digest.FromString("secret")
	blob := filepath.Join(dir, blobPath(d))
	for _, err := range []error{
		os.WriteFile(secret, []byte("secret"), 0o600),
		os.MkdirAll(filepath.Dir(blob), 0o700),
		os.Symlink(secret, blob),
		os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o600),
		os.WriteFile(filepath.Join(dir, "index.json"), []byte(`{"manifests":[{"digest":"`+d.String()+`","size":6}]}`), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	l, err := OpenOCI(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	defer closing(t, l)
	if _, err := l.Manifest(t.Context(), v1.Descriptor{Digest: d, Size: 6}); err == nil {
		t.Error("a manifest was read through a link out of the layout")
	}
	if _, err := l.Blob(t.Context(), v1.Descriptor{Digest: d, Size: 6}, 0); err == nil {
		t.Error("a blob was read through a link out of the layout")
	}
}

func TestDamagedLayout(t *testing.T) {
	d := v1.Descriptor{Digest: digest.FromString("right"), Size: 5}
	name := file(t, tarOf(t, "oci-layout", `{"imageLayoutVersion":"1.0.0"}`, blobPath(d.Digest), "wrong!",
		"index.json", `{"manifests":[{"digest":"`+d.Digest.String()+`","size":5}]}`))
	l, err := OpenOCIArchive(name, "")
	if err != nil {
		t.Fatal(err)
	}
	defer closing(t, l)
	if _, err := l.Manifest(t.Context(), d); err == nil || !strings.Contains(err.Error(), "is damaged") {
		t.Errorf("Manifest = %v, want that the archive is damaged", err)
	}
	if _, err := l.Blob(t.Context(), d, 0); err == nil || !strings.Contains(err.Error(), "6 bytes instead of 5") {
		t.Errorf("Blob = %v, want that its size is wrong", err)
	}
}

func TestChoose(t *testing.T) {
	desc := func(name string) v1.Descriptor {
		return tagged(v1.Descriptor{Digest: digest.FromString(name)}, name)
	}
	a, b, c, none := desc("1"), desc("2"), desc("reg:5000/app:3"), desc("")
	for _, tc := range []struct {
		name string
		all  []v1.Descriptor
		tag  string
		want string // name, or a part of the error
	}{
		{"the only one", []v1.Descriptor{a}, "", "1"},
		{"the only one without a name", []v1.Descriptor{none}, "", ""},
		{"by tag", []v1.Descriptor{a, b}, "2", "2"},
		{"by the tag of a name", []v1.Descriptor{a, c}, "3", "reg:5000/app:3"},
		{"by name", []v1.Descriptor{a, c}, "reg:5000/app:3", "reg:5000/app:3"},
		{"the only named one", []v1.Descriptor{none, a}, "", "1"},
		{"many", []v1.Descriptor{a, b}, "", "add :TAG to choose one; tags here: 1, 2"},
		{"another", []v1.Descriptor{a, b}, "9", `no image tagged "9"; tags here: 1, 2`},
		{"nothing", nil, "9", "no image here"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, err := choose(tc.all, tc.tag)
			if err != nil && !strings.Contains(err.Error(), tc.want) || err == nil && d.Annotations[v1.AnnotationRefName] != tc.want {
				t.Errorf("choose %q = %q, %v, want %q", tc.tag, d.Annotations[v1.AnnotationRefName], err, tc.want)
			}
		})
	}
}

// TestEnter moves tags in an index.
func TestEnter(t *testing.T) {
	x, y := v1.Descriptor{Digest: digest.FromString("x")}, v1.Descriptor{Digest: digest.FromString("y")}
	var index v1.Index
	for _, d := range []v1.Descriptor{tagged(x, "1"), tagged(y, "2"), tagged(x, ""), tagged(y, "1"), tagged(x, "3"), tagged(x, "")} {
		index = enter(index, d)
	}
	var got []string
	for _, d := range index.Manifests {
		got = append(got, d.Annotations[v1.AnnotationRefName]+"="+map[digest.Digest]string{x.Digest: "x", y.Digest: "y"}[d.Digest])
	}
	if want := []string{"2=y", "1=y", "3=x"}; !slices.Equal(got, want) {
		t.Errorf("the index has %q, want %q", got, want)
	}
}

// TestTargetsLeaveNothing breaks off in the middle.
func TestTargetsLeaveNothing(t *testing.T) {
	type target interface {
		PutBlob(ctx context.Context, d v1.Descriptor, open func(int64) (io.ReadCloser, error), progress func(int64)) (client.PushResult, error)
		io.Closer
	}
	broken := errors.New("broken off")
	for _, tc := range []struct {
		name   string
		create func(at string) (target, error)
	}{
		{"oci", func(at string) (target, error) { return CreateOCI(at, "1") }},
		{"oci-archive", func(at string) (target, error) { return CreateOCIArchive(at, "1") }},
		{"docker-archive", func(at string) (target, error) { return CreateDocker(at, "app:1") }},
	} {
		for what, content := range map[string]string{"short": "12345", "long": "12345678901", "wrong": "0123456780", "error": ""} {
			dir := t.TempDir()
			dst, err := tc.create(filepath.Join(dir, "x"))
			if err != nil {
				t.Fatal(err)
			}
			d := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: digest.FromString("1234567890"), Size: 10}
			_, err = dst.PutBlob(t.Context(), d, func(int64) (io.ReadCloser, error) {
				if content == "" {
					return nil, broken
				}
				return io.NopCloser(strings.NewReader(content)), nil
			}, func(int64) {})
			if err == nil {
				t.Errorf("%s: PutBlob took a blob that is %s", tc.name, what)
			}
			if err := dst.Close(); err != nil {
				t.Error(err)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("%s: after a blob that is %s there is still %v, %v", tc.name, what, left, err)
			}
		}
	}
}

func TestCreateRefuses(t *testing.T) {
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "thesis.tex"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateOCI(full, "1"); err == nil || !strings.Contains(err.Error(), "neither empty nor an image layout") {
		t.Errorf("CreateOCI in a directory of other things = %v", err)
	}
	if _, err := CreateOCIArchive(full, "1"); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("CreateOCIArchive over a directory = %v", err)
	}
	if _, err := CreateDocker(filepath.Join(full, "no", "such"), "1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("CreateDocker in no directory = %v", err)
	}
}

// FuzzIndex reads the table of any archive: whatever it lists lies within.
func FuzzIndex(f *testing.F) {
	f.Add(tarOf(f, "a", "content", tar.Header{Typeflag: tar.TypeSymlink, Name: "b", Linkname: "../a"}, ""))
	f.Add(tarOf(f, strings.Repeat("long/", 60)+"x", "content", tar.Header{Typeflag: tar.TypeDir, Name: "d/"}, ""))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := index(bytes.NewReader(b), int64(len(b)))
		for name, e := range entries {
			if err == nil && (e.offset < 0 || e.size < 0 || e.offset+e.size > int64(len(b)) || strings.HasPrefix(name, "../") || strings.HasPrefix(e.link, "../")) {
				t.Errorf("%q is at %+v of %d bytes", name, e, len(b))
			}
		}
	})
}

// FuzzIndexJSON reads any index.json and manifest.json: what is chosen has a
// right digest, and no choice is made up.
func FuzzIndexJSON(f *testing.F) {
	f.Add(`{"manifests":[{"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":1,"annotations":{"org.opencontainers.image.ref.name":"1"}}]}`, "1")
	f.Add(`[{"Config":"c","RepoTags":["app:1"],"Layers":["a"]}]`, "app:1")
	f.Fuzz(func(t *testing.T, raw, tag string) {
		if x, err := parseIndex([]byte(raw)); err == nil {
			if d, err := choose(x.Manifests, tag); err == nil && d.Digest.Validate() != nil {
				t.Errorf("of %s a manifest with digest %q was chosen", raw, d.Digest)
			}
		}
		if image, err := chooseDocker([]byte(raw), tag); err == nil && tag != "" &&
			!slices.ContainsFunc(image.RepoTags, func(s string) bool { return strings.HasSuffix(s, tag) }) {
			t.Errorf("of %s an image called %q was chosen for %q", raw, image.RepoTags, tag)
		}
	})
}
