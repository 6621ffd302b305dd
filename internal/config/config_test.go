package config_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"berth.internal/internal/config"
	"berth.internal/internal/units"
)

type settings struct {
	Listen      string        `yaml:"listen"`
	MaxManifest units.Bytes   `yaml:"max_manifest"`
	Grace       time.Duration `yaml:"grace"`
	Workers     int           `yaml:"workers"`
	Log         struct {
		Level string `yaml:"level"`
	} `yaml:"log"`
	Inner  int `yaml:"-"`
	Shared `yaml:",inline"`
}

type Shared struct {
	Name string `yaml:"name"`
}

func defaults() settings {
	return settings{Listen: "127.0.0.1:5000", MaxManifest: 4 << 20, Workers: 2}
}

func TestFile(t *testing.T) {
	full := settings{Listen: ":80", MaxManifest: 8 << 20, Grace: 90 * time.Minute, Workers: 3}
	full.Log.Level = "debug"
	for _, tc := range []struct {
		name, text string
		want       settings
		err        string // PATH stands for the file's
	}{
		{"empty", "", defaults(), ""},
		{"comment only", "# nothing\n", defaults(), ""},
		{"all", "listen: ':80'\nmax_manifest: 8MiB\ngrace: 1h30m\nworkers: 3\nlog:\n  level: debug\n", full, ""},
		{"unknown keys, all at once", "lisetn: x\nworkers: 2\ninner: 3\n", defaults(), "PATH: line 1: there is no key lisetn\nPATH: line 3: there is no key inner"},
		{"wrong type", "workers: many\n", defaults(), "PATH: line 1: `many` is not a whole number"},
		{"wrong values, all at once", "max_manifest: big\ngrace: soon\nlisten: [a]\n", defaults(), "PATH: line 1: \"big\" is not a size such as 512k, 4MiB or 1.5g\nPATH: line 2: `soon` is not a duration such as 90s or 1h30m\nPATH: line 3: a seq is not a text"},
		{"twice", "workers: 2\nworkers: 3\n", defaults(), `PATH: line 2: key "workers" is already given at line 1`},
		{"not yaml", "listen: [\n", defaults(), "PATH: line 1: did not find expected node content"},
		{"two documents", "workers: 2\n---\nworkers: 3\n", defaults(), "PATH: holds more than one document"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "PATH")
			if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Chdir(filepath.Dir(path))
			got := defaults()
			err := config.File("PATH", &got)
			if text(err) != tc.err || (err == nil && got != tc.want) {
				t.Errorf("File of %q\n got %+v, %q\nwant %+v, %q", tc.text, got, text(err), tc.want, tc.err)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	want := settings{Listen: ":80", MaxManifest: 1 << 20, Workers: 2}
	want.Log.Level, want.Name = "debug", "x"
	for _, tc := range []struct {
		name string
		env  map[string]string
		want settings
		err  string
	}{
		{"none", nil, defaults(), ""},
		{"some", map[string]string{"BERTH_LISTEN": ":80", "BERTH_MAX_MANIFEST": "1m", "BERTH_LOG_LEVEL": "debug", "BERTH_INNER": "7", "BERTH_NAME": "x"}, want, ""},
		{"wrong, all at once", map[string]string{"BERTH_WORKERS": "many", "BERTH_GRACE": "soon"}, defaults(), "BERTH_GRACE: `soon` is not a duration such as 90s or 1h30m\nBERTH_WORKERS: `many` is not a whole number"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := defaults()
			err := config.Environment(func(name string) (string, bool) { v, ok := tc.env[name]; return v, ok }, &got)
			if text(err) != tc.err || (err == nil && got != tc.want) {
				t.Errorf("Environment of %v\n got %+v, %q\nwant %+v, %q", tc.env, got, text(err), tc.want, tc.err)
			}
		})
	}
}

func TestMissingFile(t *testing.T) {
	const want = "read configuration: open /nonexistent: no such file or directory"
	if err := config.File("/nonexistent", &settings{}); text(err) != want {
		t.Errorf("File of a missing file = %q, want %q", text(err), want)
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
