package oci_test

import (
	"strings"
	"testing"

	"berth.internal/internal/oci"
	"github.com/opencontainers/go-digest"
)

func TestParseReference(t *testing.T) {
	d := digest.FromString("manifest")
	for _, tc := range []struct {
		in, name, identifier, full string
	}{
		{"redis", "reg:5000/redis", "latest", "reg:5000/redis:latest"},
		{"redis:7", "reg:5000/redis", "7", "reg:5000/redis:7"},
		{"library/redis", "reg:5000/redis", "latest", "reg:5000/redis:latest"},
		{"docker.io/redis", "reg:5000/redis", "latest", "reg:5000/redis:latest"},
		{"docker.io/library/redis:7", "reg:5000/redis", "7", "reg:5000/redis:7"},
		{"index.docker.io/library/redis", "reg:5000/redis", "latest", "reg:5000/redis:latest"},
		{"docker.io/team/app", "reg:5000/team/app", "latest", "reg:5000/team/app:latest"},
		{"library/team/app", "reg:5000/library/team/app", "latest", "reg:5000/library/team/app:latest"},
		{"team/app:1", "reg:5000/team/app", "1", "reg:5000/team/app:1"},
		{"reg:5000/library/redis", "reg:5000/library/redis", "latest", "reg:5000/library/redis:latest"},
		{"other:5000/team/app:1", "other:5000/team/app", "1", "other:5000/team/app:1"},
		{"localhost/app", "localhost/app", "latest", "localhost/app:latest"},
		{"[::1]:5000/app", "[::1]:5000/app", "latest", "[::1]:5000/app:latest"},
		{"registry-1.docker.io/library/redis", "registry-1.docker.io/library/redis", "latest", "registry-1.docker.io/library/redis:latest"},
		{"app@" + d.String(), "reg:5000/app", d.String(), "reg:5000/app@" + d.String()},
		{"app:1@" + d.String(), "reg:5000/app", d.String(), "reg:5000/app:1@" + d.String()},
	} {
		t.Run(tc.in, func(t *testing.T) {
			ref, err := oci.ParseReference(tc.in, "reg:5000")
			if err != nil {
				t.Fatal(err)
			}
			if ref.Name() != tc.name || ref.Identifier() != tc.identifier || ref.String() != tc.full {
				t.Errorf("ParseReference(%q) = %q, %q, %q, want %q, %q, %q",
					tc.in, ref.Name(), ref.Identifier(), ref, tc.name, tc.identifier, tc.full)
			}
		})
	}
}

func TestParseReferenceRefuses(t *testing.T) {
	for _, in := range []string{
		"", ":", "app:", "app@", "App", "team/App", "app:1:2", "app//x", "../app", "/app", "app ", "app@sha256:12",
		"http://reg:5000/app", "app@md5:" + strings.Repeat("0", 32), strings.Repeat("0", 64), strings.Repeat("a", 256),
		"app:" + strings.Repeat("a", 129), "under_score.example/app",
	} {
		if ref, err := oci.ParseReference(in, "reg:5000"); err == nil {
			t.Errorf("ParseReference(%q) = %+v, want an error", in, ref)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"redis", "docker.io/library/redis:7", "reg:5000/a/b@sha256:" + strings.Repeat("0", 64), "[::1]:5000/a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := oci.ParseReference(s, "reg:5000")
		if err != nil {
			return
		}
		if !nameGrammar.MatchString(ref.Repository) || ref.Tag != "" && !tagGrammar.MatchString(ref.Tag) || ref.Digest != "" && ref.Digest.Validate() != nil || ref.Registry == "" {
			t.Errorf("ParseReference(%q) = %+v, of which not all is legal in the spec", s, ref)
		}
		again, err := oci.ParseReference(ref.String(), "elsewhere:5000")
		if err != nil {
			t.Fatalf("ParseReference(%q) = %q, which it does not read back: %v", s, ref, err)
		}
		if again.Name() != ref.Name() || again.Identifier() != ref.Identifier() {
			t.Errorf("ParseReference(%q) = %q, read back as %q", s, ref, again)
		}
	})
}

// FuzzReferenceOf puts a reference together from parts that the spec's grammar
// allows, or not.
func FuzzReferenceOf(f *testing.F) {
	f.Add("team/app", "1.0", true)
	f.Add("a__b", "", false)
	f.Add(strings.Repeat("0", 64), "latest", true)
	f.Fuzz(func(t *testing.T, name, tag string, tagged bool) {
		s, want := "reg:5000/"+name, oci.DefaultTag
		if tagged {
			s, want = s+":"+tag, tag
		}
		legal := len(name) <= oci.MaxName && nameGrammar.MatchString(name) && (!tagged || tagGrammar.MatchString(tag))
		ref, err := oci.ParseReference(s, "elsewhere")
		switch {
		case legal && (err != nil || ref.Registry != "reg:5000" || ref.Repository != name || ref.Identifier() != want):
			t.Errorf("ParseReference(%q) = %+v, %v, want its parts", s, ref, err)
		case err == nil && !legal && !strings.ContainsAny(name+tag, ":@"): // which may part it elsewhere
			t.Errorf("ParseReference(%q) = %+v, want an error", s, ref)
		}
	})
}
