package contexts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestPath(t *testing.T) {
	for _, tc := range []struct{ xdg, home, want string }{
		{"/xdg", "/home/ann", "/xdg/berth/contexts.yaml"},
		{"", "/home/ann", "/home/ann/.config/berth/contexts.yaml"},
		{"relative", "/home/ann", "/home/ann/.config/berth/contexts.yaml"},
	} {
		t.Setenv("XDG_CONFIG_HOME", tc.xdg)
		t.Setenv("HOME", tc.home)
		if got, err := Path(); got != tc.want || err != nil {
			t.Errorf("Path() with %q = %s, %v, want %s", tc.xdg, got, err, tc.want)
		}
	}
}

func TestChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "berth", "contexts.yaml")
	if f, err := Load(path); err != nil || len(f.Contexts) != 0 {
		t.Errorf("without a file: %+v, %v", f, err)
	}
	end := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	want := File{Current: "prod", Contexts: map[string]Context{
		"prod":       {Server: "https://registry.example.com:5000", CA: "-----BEGIN\nx\n", User: "ann", Secret: "berth_key_A_B", Key: "A", Expires: end},
		"[::1]:5000": {Server: "http://[::1]:5000"},
	}}
	if err := Change(path, func(f *File) error { *f = want; return nil }); err != nil {
		t.Fatal(err)
	}
	got, err := Load(path)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("what is read is %+v, %v, want %+v", got, err, want)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file = %v, %v, want mode 0600", info, err)
	}
	boom := errors.New("boom")
	if err := Change(path, func(f *File) error { f.Current = "x"; return boom }); !errors.Is(err, boom) {
		t.Errorf("a change that fails = %v", err)
	}
	if got, err := Load(path); err != nil || got.Current != "prod" {
		t.Errorf("after a change that failed: %+v, %v", got, err)
	}
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() {
			err := Change(path, func(f *File) error {
				f.Contexts[fmt.Sprintf("c%d", i)] = Context{Server: "https://x"}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got, err := Load(path); err != nil || len(got.Contexts) != 12 {
		t.Errorf("after ten changes at a time there are %v, %v", got.Names(), err)
	}
}

func TestRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "contexts.yaml")
	for _, tc := range []struct {
		name, text string
		mode       os.FileMode
		says       string
	}{
		{"for all to read", "current: x", 0o644, "chmod 600"},
		{"unknown key", "contexts: {a: {server: https://a, passwd: s3cret}}", 0o600, "there is no key passwd"},
		{"no URL", "contexts: {a: {server: a, secret: s3cret}}", 0o600, `"a" has no good name, or no URL`},
		{"a secret in the URL", "contexts: {a: {server: 'https://u:s3cret@a'}}", 0o600, "no URL"},
		{"a bad name", "contexts: {'a b': {server: https://a}}", 0o600, "no good name"},
		{"no YAML", "\tsecret: s3cret", 0o600, "contexts.yaml"},
		{"a list", "contexts: [s3cret]", 0o600, "contexts.yaml"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := errors.Join(os.WriteFile(path, []byte(tc.text), tc.mode), os.Chmod(path, tc.mode)); err != nil {
				t.Fatal(err)
			}
			_, err := Load(path)
			if err == nil || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("Load() = %v, want …%s… and no secret", err, tc.says)
			}
			if changed := Change(path, func(*File) error { return nil }); changed == nil {
				t.Error("a file that cannot be read is overwritten")
			}
		})
	}
	if _, err := Load(filepath.Dir(path)); err == nil {
		t.Error("a directory is read")
	}
}

func TestFind(t *testing.T) {
	f := File{Current: "b", Contexts: map[string]Context{
		"a": {Server: "https://one:5000"}, "b": {Server: "https://two"}, "c": {Server: "http://one:5000", Secret: "s"}, "d": {Server: "https://two", Secret: "s"},
	}}
	for name, want := range map[string]string{"": "b", "a": "a", "x": ""} {
		if got, _, err := f.Find(name); got != want || (err != nil) != (want == "") {
			t.Errorf("Find(%q) = %q, %v", name, got, err)
		}
	}
	if _, _, err := (File{}).Find(""); !errors.Is(err, ErrUnknown) {
		t.Errorf("without any: %v", err)
	}
	for host, want := range map[string]Context{"one:5000": f.Contexts["c"], "two": f.Contexts["b"], "two:5000": {}, "": {}} {
		if got, ok := f.At(host); got != want || ok != (want.Server != "") {
			t.Errorf("At(%q) = %+v, %v, want %+v", host, got, ok, want)
		}
	}
}

// FuzzParse writes what was read, and reads it again.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "current: a\ncontexts:\n  a: {server: 'https://a', secret: x, expires: 2030-01-01T00:00:00Z}\n", "contexts: {a: 1}", "{", "a: &a [*a]", "contexts: {a: {server: https://a, ca: \"\\0\"}}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		file, err := parse("x", text)
		if err != nil {
			return
		}
		again, err := format(file)
		if err != nil {
			t.Fatalf("%q is read as %+v, and not written: %v", text, file, err)
		}
		back, err := parse("x", again)
		if err != nil || len(back.Contexts) != len(file.Contexts) || back.Current != file.Current {
			t.Fatalf("%+v is written as %q and read as %+v, %v", file, again, back, err)
		}
		for name, c := range file.Contexts {
			b := back.Contexts[name]
			if same := b.Expires.Equal(c.Expires); !same || b.Server != c.Server || b.CA != c.CA || b.User != c.User || b.Secret != c.Secret || b.Key != c.Key {
				t.Errorf("%+v becomes %+v", c, b)
			}
		}
	})
}
