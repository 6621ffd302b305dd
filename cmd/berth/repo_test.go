package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth.internal/client/registrytest"
)

// site is a registry that commands speak with, and a directory with files to
// make images of.
func site(t *testing.T) (host, dir string) {
	t.Helper()
	host, dir = registrytest.Docker(t), t.TempDir()
	t.Setenv("BERTH_REGISTRY", host)
	t.Setenv("REGISTRY_AUTH_FILE", filepath.Join(dir, "nobody.json"))
	t.Setenv("SOURCE_DATE_EPOCH", "")
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "app"), []byte("app"), 0o700); err != nil {
		t.Fatal(err)
	}
	return host, dir
}

// ok runs a command that must not fail, and returns what it printed.
func ok(t *testing.T, args ...string) string {
	t.Helper()
	stdout, stderr, code := berth(t, args...)
	if code != 0 {
		t.Fatalf("berth %q = %d\n%s", args, code, stderr)
	}
	return strings.TrimSuffix(stdout, "\n")
}

func TestRepo(t *testing.T) {
	host, dir := site(t)
	// The digest is fixed: it must not depend on the machine, the day or the
	// version of berth.
	const d = "@sha256:3f05864417f84a813422c41d9452bcc328f90a6a9cf39afd2879f8c37b539a6f"
	got := ok(t, "repo", "push", "-q", "dir:"+dir+"/root", "--platform", "linux/amd64", "--entrypoint", "/app", "-e", "A=b", "-l", "k=v", "-w", "/srv", "-u", "7", "team/app:1")
	if want := host + "/team/app:1" + d; got != want {
		t.Errorf("repo push printed %s, want %s", got, want)
	}
	for _, tc := range []struct{ args, want string }{
		{"repo copy -q team/app:1 other:2", host + "/other:2" + d},
		{"repo push -q dir:" + dir + "/root/app --platform linux/amd64 --cmd [\"a\",\"b\"] one:1", ""},
		{"repo ls", "one\nother\nteam/app"},
		{"repo ls --registry http://" + host, "one\nother\nteam/app"},
		{"repo tags team/app", "1"},
		{"repo tags --json docker.io/other", `{"repository":"` + host + `/other","tags":["2"]}`},
		{"repo pull -q team/app:1 oci:" + dir + "/oci", host + "/team/app:1" + d},
		{"repo pull -q other:2 oci:" + dir + "/oci", host + "/other:2" + d},
		{"repo pull -q team/app" + d + " oci-archive:" + dir + "/oci.tar:x", host + "/team/app" + d},
		{"repo pull -q team/app:1 docker-archive:" + dir + "/docker.tar", host + "/team/app:1" + d},
		{"repo push -q oci:" + dir + "/oci:2 again:1", host + "/again:1" + d},
		{"repo push -q oci-archive:" + dir + "/oci.tar again:2", host + "/again:2" + d},
		{"repo push -q docker-archive:" + dir + "/docker.tar:" + host + "/team/app:1 again:3", host + "/again:3" + d},
		{"repo rm again" + d, host + "/again" + d},
	} {
		got := ok(t, strings.Fields(tc.args)...)
		if strings.HasPrefix(got, "{") {
			got = strings.NewReplacer("\n", "", " ", "").Replace(got)
		}
		if tc.want != "" && got != tc.want {
			t.Errorf("berth %s printed\n%s\nwant\n%s", tc.args, got, tc.want)
		}
	}
}

func TestRepoInspect(t *testing.T) {
	host, dir := site(t)
	t.Setenv("SOURCE_DATE_EPOCH", "86400")
	ok(t, "repo", "push", "-q", "dir:"+dir+"/root", "--platform", "linux/arm64/v8", "--entrypoint", "/app serve", "--cmd", `["a b"]`, "-l", "k=\x1b[31m", "app:1")
	text := ok(t, "repo", "inspect", "app:1")
	for _, want := range []string{host + "/app:1\n", "linux/arm64/v8\n", "1970-01-02T00:00:00Z\n", "/app serve\n", "a b\n", "k= [31m\n", "LAYER"} {
		if !strings.Contains(text, want) {
			t.Errorf("repo inspect lacks %q:\n%s", want, text)
		}
	}
	var seen struct {
		Reference, Digest, Platform string
		Config                      struct{ Entrypoint, Cmd []string }
		Layers                      []struct {
			Size int64 `json:"size_bytes"`
		}
	}
	if err := json.Unmarshal([]byte(ok(t, "repo", "inspect", "--json", "app:1")), &seen); err != nil {
		t.Fatal(err)
	}
	if seen.Reference != host+"/app:1" || len(seen.Config.Entrypoint) != 2 || len(seen.Config.Cmd) != 1 || len(seen.Layers) != 1 || seen.Layers[0].Size == 0 {
		t.Errorf("repo inspect --json = %+v", seen)
	}
	raw := ok(t, "repo", "inspect", "--raw", "app@"+seen.Digest)
	if !strings.HasPrefix(raw, `{"schemaVersion":2,`) {
		t.Errorf("repo inspect --raw = %s", raw)
	}
}

func TestRepoJSON(t *testing.T) {
	host, dir := site(t)
	var got transferred
	if err := json.Unmarshal([]byte(ok(t, "repo", "push", "--json", "dir:"+dir+"/root", "app:1")), &got); err != nil {
		t.Fatal(err)
	}
	if got.Reference != host+"/app:1" || got.Uploaded != 2 || got.Bytes == 0 || got.Digest == "" || got.MediaType == "" {
		t.Errorf("repo push --json = %+v", got)
	}
}

func TestRepoErrors(t *testing.T) {
	host, dir := site(t)
	ok(t, "repo", "push", "-q", "dir:"+dir+"/root", "app:1")
	text := filepath.Join(dir, "root/app")
	for _, tc := range []struct {
		args string
		code int
		want string
	}{
		{"repo pull app:2 oci:" + dir + "/x", 1, "repository app has no tag 2 in " + host + "; list its tags with: berth repo tags " + host + "/app"},
		{"repo tags nothing", 1, "has no repository nothing"},
		{"repo ls --registry 127.0.0.1:1", 1, "cannot reach the registry at http://127.0.0.1:1: is it running? start one with: berth serve"},
		{"repo ls --registry ftp://x", 2, "must be http or https"},
		{"repo push oci:" + dir + "/none app:1", 1, "no such file"},
		{"repo push oci:" + text + " app:1", 1, "is not a directory"},
		{"repo push oci-archive:" + text + " app:1", 1, text + ": this is not a tar archive"},
		{"repo push docker-archive:" + text + " app:1", 1, text + ": this is not a tar archive"},
		{"repo push app.tar app:1", 2, "is not a place on this machine"},
		{"repo push docker://x/y app:1", 2, "berth repo copy"},
		{"repo push dir:" + dir + "/root App:1", 2, `"App:1" is not an image reference`},
		{"repo push oci:x --env A=b app:1", 2, "--env says how to make an image of plain files"},
		{"repo push dir:x --env A app:1", 2, "write NAME=VALUE"},
		{"repo push dir:x --entrypoint [x app:1", 2, "begins like a JSON array"},
		{"repo push dir:x --platform linux app:1", 2, "is not a platform"},
		{"repo push dir:x --parallel 0 app:1", 2, "--parallel must be 1 or more"},
		{"repo pull app:1 dir:" + dir + "/x", 2, "cannot be pulled to a plain directory"},
		{"repo pull app:1 docker-archive:" + dir + "/x:A:b", 2, "is not an image reference"},
		{"repo tags app:1", 2, "here only its repository is wanted"},
		{"repo rm app", 2, "add :TAG or @DIGEST"},
		{"repo rm app:9", 1, host},
		{"repo inspect --json --raw app:1", 2, "--json and --raw"},
		{"repo psuh", 2, "did you mean push?"},
	} {
		stdout, stderr, code := berth(t, strings.Fields(tc.args)...)
		if code != tc.code || stdout != "" || !strings.Contains(stderr, tc.want) {
			t.Errorf("berth %s = %d\nstdout %q\nstderr %q\nwant %d and %q", tc.args, code, stdout, stderr, tc.code, tc.want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "x")); err == nil {
		t.Error("a failed pull left its target")
	}
}

func TestLogins(t *testing.T) {
	const file = `{"auths":{
		"reg:5000":{"auth":"YW5uOnM6M2NyZXQ="},
		"https://other/v1/":{"auth":"Ym9iOng="},
		"token":{"auth":"YW5uOg==","identitytoken":"tok"},
		"helper":{},
		"damaged":{"auth":"c2VjcmV0"}}}`
	for _, tc := range []struct{ host, user, password, err string }{
		{"reg:5000", "ann", "s:3cret", ""},
		{"other", "bob", "x", ""},
		{"token", "<token>", "tok", ""},
		{"helper", "", "", ""},
		{"nobody", "", "", ""},
		{"damaged", "", "", "its entry for damaged is damaged"},
	} {
		user, password, _, err := loginIn([]byte(file), tc.host)
		if user != tc.user || password != tc.password || (err != nil) != (tc.err != "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("login at %s = %q, %q, %v, want %q, %q, %s", tc.host, user, password, err, tc.user, tc.password, tc.err)
		}
	}
	if _, _, _, err := loginIn([]byte("secret"), "x"); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("a file that is no JSON = %v", err)
	}
}
