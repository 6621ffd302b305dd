package config_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"berth.internal/internal/config"
)

type wide struct {
	Name   string   `yaml:"name"`
	Token  string   `yaml:"token"`
	URL    string   `yaml:"url"`
	File   string   `yaml:"password_file"`
	Lists  []item   `yaml:"lists"`
	Words  []string `yaml:"words"`
	Inner  part     `yaml:"inner"`
	Hidden int      `yaml:"-"`
	Shared `yaml:",inline"`
}

type item struct {
	Tags   string `yaml:"tags"`
	Secret string `yaml:"client_secret"`
}

type part struct {
	Wait time.Duration `yaml:"wait"`
	On   bool          `yaml:"on"`
}

func TestKeys(t *testing.T) {
	before := wide{Name: "a", Words: []string{"x"}}
	after := wide{Name: "b", Words: []string{"x", "y"}, Inner: part{On: true}, Hidden: 7}
	if got := strings.Join(config.Keys(before), " "); got != "name token url password_file lists words inner.wait inner.on name" {
		t.Errorf("Keys() = %s", got)
	}
	if got := config.Changed(before, after); !slices.Equal(got, []string{"name", "words", "inner.on"}) {
		t.Errorf("Changed() = %s", got)
	}
	config.Copy(&before, after, []string{"inner.on", "words"})
	if before.Name != "a" || !before.Inner.On || len(before.Words) != 2 || before.Hidden != 0 {
		t.Errorf("Copy() made %+v", before)
	}
}

// TestYAML reads back what it writes, but for secrets.
func TestYAML(t *testing.T) {
	type outer struct {
		URL   string   `yaml:"url"`
		Token string   `yaml:"token"`
		File  string   `yaml:"password_file"`
		Lists []item   `yaml:"lists"`
		Inner part     `yaml:"inner"`
		Words []string `yaml:"words"`
	}
	cfg := outer{
		URL: "https://ann:s3cret@host/path", Token: "s3cret", File: "/etc/password",
		Lists: []item{{"v*", "s3cret"}}, Inner: part{Wait: time.Hour, On: true}, Words: []string{"true", "1"},
	}
	text, err := config.YAML(cfg)
	if err != nil || strings.Contains(string(text), "s3cret") {
		t.Fatalf("YAML() = %s, %v", text, err)
	}
	var back outer
	if err := config.Text("text", text, &back); err != nil {
		t.Fatal(err)
	}
	want := cfg
	want.URL, want.Token, want.Lists = "https://ann:hidden@host/path", "(hidden)", []item{{"v*", "(hidden)"}}
	if changed := config.Changed(want, back); len(changed) > 0 {
		t.Errorf("%s reads as %+v, want %+v", text, back, want)
	}
	fromJSON, err := config.FromJSON([]byte(`{"b":"true","a":{"wait":"1h0m0s"},"c":[],"d":["x",1]}`))
	if want := "b: \"true\"\na:\n  wait: 1h0m0s\nc: []\nd:\n  - x\n  - 1\n"; err != nil || string(fromJSON) != want {
		t.Errorf("FromJSON() = %q, %v, want %q", fromJSON, err, want)
	}
}

func TestLocate(t *testing.T) {
	text := "# first\nname: x\n\nlists:\n  - tags: a\n  - {tags: b}\ninner:\n  wait: 1s\n"
	wrong := errors.Join(errors.New("name: is wrong"), errors.New("lists[1].tags: is wrong"), errors.New("inner.wait: is wrong"), errors.New("inner: is wrong"),
		errors.New("inner.on: is wrong"), errors.New("url: is wrong"), errors.New("token: is wrong"), errors.New("nothing"))
	env := func(name string) (string, bool) { return "x", name == "BERTH_TOKEN" || name == "BERTH_INNER_ON" }
	got := config.Locate(wrong, "f.yaml", []byte(text), env, wide{}, map[string]string{"inner.wait": "--wait"})
	want := `f.yaml: line 2: name: is wrong
f.yaml: line 6: lists[1].tags: is wrong
--wait: is wrong
f.yaml: line 7: inner: is wrong
BERTH_INNER_ON: is wrong
url: is wrong
BERTH_TOKEN: is wrong
nothing`
	if got == nil || got.Error() != want {
		t.Errorf("Locate() =\n%v\nwant\n%s", got, want)
	}
	if config.Locate(nil, "f", nil, env, wide{}, nil) != nil {
		t.Error("an error of none")
	}
}

// FuzzLocate never loses a line, whatever the file.
func FuzzLocate(f *testing.F) {
	f.Add("a: 1\n", "a: b\nc")
	f.Add("a: &x [*x]\n", "a[0]: b")
	f.Add("? [a]\n: b\n", "a[: b")
	f.Fuzz(func(t *testing.T, text, wrong string) {
		if strings.TrimSpace(wrong) == "" {
			return
		}
		got := config.Locate(errors.New(wrong), "f", []byte(text), func(string) (string, bool) { return "", false }, wide{}, nil)
		lines, want := strings.Split(got.Error(), "\n"), strings.Split(wrong, "\n")
		if len(lines) != len(want) {
			t.Fatalf("%q became %q", want, lines)
		}
		for i := range lines {
			if !strings.HasSuffix(lines[i], want[i]) {
				t.Errorf("line %q became %q", want[i], lines[i])
			}
		}
	})
}
