package protocol_test

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// caller is a kind of caller of the matrix: how it asks.
type caller struct {
	client *http.Client
	base   string
	sign   func(*http.Request)
}

// TestMatrix asks the binary, over TLS and HTTP/2, for a sample of what is in
// server/testdata/matrix.txt: all reads, and the writes that are denied. The rest is
// asked by the tests of the server. It is set up as an administrator would, with
// commands and files.
func TestMatrix(t *testing.T) {
	text, err := os.ReadFile("../../server/testdata/matrix.txt")
	if err != nil {
		t.Fatal(err)
	}
	callers, repository := matrixCast(t)
	notHere := []string{"job", "node"} // these take an issuer of tokens, and berth up

	var names []string
	rights := map[string][]string{}
	section, header, asked := "", false, 0
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0 || strings.HasPrefix(f[0], "#"):
			continue
		case strings.HasPrefix(f[0], "[") && len(f) == 1:
			section, header = f[0], true
			continue
		case header:
			if header = false; section == "[rights]" {
				names = f
				for _, name := range names {
					if _, ok := callers[name]; !ok && !slices.Contains(notHere, name) {
						t.Fatalf("this test does not know how to ask as %s", name)
					}
				}
			}
			continue
		case section == "[rights]":
			rights[f[0]+" "+f[1]] = f[2:]
			continue
		}
		method, path, of := f[0], f[1], ""
		f = f[2:]
		switch section {
		case "[registry]":
			of, f = f[0], f[1:]
		case "[control]":
			path = "/berth/v1" + path
		}
		if f[0] == "self" || strings.Contains(path, "{id}") || strings.Contains(path, "{robot}") || strings.Contains(line, `"{repo}"`) {
			continue // the tests of the server ask for more than that
		}
		kinds := []string{""}
		if strings.Contains(path, "<name>") || strings.Contains(path, "{repo}") {
			kinds = []string{"own", "shared", "foreign"}
		}
		for i, name := range names {
			c, ok := callers[name]
			if !ok {
				continue
			}
			for _, kind := range kinds {
				for there, column := range map[bool]int{true: 1, false: 2} {
					if len(f) <= column || f[column] == "-" {
						continue
					}
					want, denied := f[column], false
					for need := range strings.SplitSeq(f[0], ",") {
						where := cmp.Or(kind, "-")
						if need == "anyone" || need == "overwrite" && !there || rights[need+" "+where][i] == "+" {
							continue
						}
						want, denied = rights[need+" "+where][i], true
						break
					}
					if !denied && method != "GET" && method != "HEAD" {
						continue // it would be another registry for who comes next
					}
					if of == "upload" {
						continue // of whom it is, is another question
					}
					asked++
					if got, answer := c.ask(t, method, repository.fill(path, of, kind, there)); strconv.Itoa(got) != want {
						t.Errorf("%s: %s %s (%s, %s, there: %v) = %d %s, want %s", name, method, path, of, kind, there, got, answer, want)
					}
				}
			}
		}
	}
	if asked < 1000 {
		t.Errorf("only %d requests were made", asked)
	}
}

// stock is what each repository of the matrix holds.
type stock struct{ blob, manifest string }

func (s stock) fill(path, of, kind string, there bool) string {
	name, tag, user := kind+"/none", "never", "nobody"
	if there {
		name, tag, user = kind+"/app", "1", "puller"
	}
	reference := tag
	if of == "manifest" {
		reference = s.manifest
	}
	digest := s.blob
	if of == "manifest" {
		digest = s.manifest
	}
	path = strings.NewReplacer("<name>", name, "{repo}", name, "{tag}", tag, "{user}", user, "<reference>", reference, "<digest>", digest, "{trash}", s.blob).Replace(path)
	if of == "whole" {
		path += "?digest=" + s.blob
	}
	return path
}

func (c caller) ask(t *testing.T, method, path string) (int, string) {
	t.Helper()
	var body io.Reader
	if method != "GET" && method != "HEAD" && method != "DELETE" {
		body = strings.NewReader(blobText)
		if repo, _, ok := strings.Cut(strings.TrimPrefix(path, "/v2/"), "/manifests/"); ok {
			body = strings.NewReader(indexText(repo + " by " + method))
		}
	}
	r, err := http.NewRequestWithContext(t.Context(), method, c.base+path, body)
	if err != nil {
		t.Fatal(err)
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if strings.Contains(path, "/manifests/") {
		r.Header.Set("Content-Type", indexType)
	}
	c.sign(r)
	resp, err := c.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasPrefix(c.base, "https") && resp.ProtoMajor != 2 {
		t.Errorf("%s %s was answered by %s", method, path, resp.Proto)
	}
	return resp.StatusCode, string(answer)
}

// blobText is what ask sends, but for manifests.
const blobText = "{}"

const indexType = "application/vnd.oci.image.index.v1+json"

func indexText(text string) string {
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[],"annotations":{"text":%q}}`, indexType, text)
}

// matrixCast starts a registry with the policy and the callers of the matrix.
func matrixCast(t *testing.T) (map[string]caller, stock) {
	t.Helper()
	dir := t.TempDir()
	data, certs := filepath.Join(dir, "data"), filepath.Join(dir, "tls")
	run := func(input string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), binary, args...)
		cmd.Stdin = strings.NewReader(input)
		var out, errs strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil {
			t.Fatalf("berth %s: %v\n%s", strings.Join(args, " "), err, errs.String())
		}
		return strings.TrimSpace(out.String())
	}
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	run("", "tls", "init", "--host", "127.0.0.1", "--dir", certs)
	run("", "tls", "issue", "--client", "pusher", "--dir", certs)
	t.Setenv("BERTH_POLICY", write("policy.yaml", `rules:
- {subject: "group:admins", repositories: "**", allow: [pull, push, overwrite, delete, admin]}
- {subject: "user:puller", repositories: "own/**", allow: [pull]}
- {subject: "user:pusher", repositories: "own/**", allow: [pull, push]}
- {subject: "group:team", repositories: "own/**", allow: [pull, push, overwrite, delete]}
- {subject: everyone, repositories: "shared/**", allow: [pull]}
- {subject: anonymous, repositories: "shared/**", allow: [pull]}
`))
	t.Setenv("BERTH_ADMIN_PASSWORD_FILE", write("password", "password of admin"))
	t.Setenv("BERTH_SECRET_KEY_FILE", write("secret", strings.Repeat("nobody knows this ", 4)))
	t.Setenv("BERTH_TLS_CLIENT_CA", filepath.Join(certs, "ca.crt"))
	r, err := serve(data, "--tls-cert", filepath.Join(certs, "server.crt"), "--tls-key", filepath.Join(certs, "server.key"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
	base := strings.Replace(r.url, "http:", "https:", 1)
	for _, user := range []string{"norights", "puller", "pusher", "member", "off"} {
		args := []string{"user", "add", "--data", data, "--password-stdin", user}
		if user == "member" {
			args = append(args, "--group", "team")
		}
		run("password of "+user+"\n", args...)
	}
	run("", "user", "disable", "--data", data, "off")

	ca, err := os.ReadFile(filepath.Join(certs, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	client := func(show ...tls.Certificate) *http.Client {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: show}, ForceAttemptHTTP2: true}
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr}
	}
	plain := client()
	callers := map[string]caller{}
	add := func(name string, sign func(*http.Request)) { callers[name] = caller{plain, base, sign} }
	basic := func(name, password string) func(*http.Request) {
		return func(r *http.Request) { r.SetBasicAuth(name, password) }
	}
	bearer := func(token string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
	}
	for _, user := range []string{"admin", "norights", "puller", "pusher", "member"} {
		add(user, basic(user, "password of "+user))
	}
	add("anon", func(*http.Request) {})
	add("refused", basic("off", "password of off"))
	add("robot", basic("robot+robot", run("", "robot", "add", "--data", data, "robot", "--allow", "own/**=pull,push")))
	add("stray", basic("robot+stray", run("", "robot", "add", "--data", data, "stray", "--allow", "other/**=pull,push")))
	add("key", basic("member", run("", "user", "key", "add", "--data", data, "--allow", "own/**=pull,push", "member")))

	token := func(as string, scopes ...string) string {
		t.Helper()
		status, answer := callers[as].ask(t, "GET", "/auth/token?"+url.Values{"scope": scopes}.Encode())
		var got struct {
			Token string `json:"token"`
		}
		if err := json.Unmarshal([]byte(answer), &got); err != nil || status != 200 {
			t.Fatalf("a token for %s: %d %s", as, status, answer)
		}
		return got.Token
	}
	var all []string
	for _, kind := range []string{"own", "shared", "foreign"} {
		all = append(all, "repository:"+kind+"/app:pull,push,delete", "repository:"+kind+"/none:pull,push,delete")
	}
	add("narrow", bearer(token("member", "repository:own/app:pull", "repository:own/none:pull")))
	add("full", bearer(token("member", all...)))
	add("bare", bearer(token("admin")))
	add("tanon", bearer(token("anon", all...)))

	shown, err := tls.LoadX509KeyPair(filepath.Join(certs, "pusher.crt"), filepath.Join(certs, "pusher.key"))
	if err != nil {
		t.Fatal(err)
	}
	callers["cert"] = caller{client(shown), base, func(*http.Request) {}}
	socket := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(data, "registry", "admin.sock"))
	}}
	t.Cleanup(socket.CloseIdleConnections)
	callers["socket"] = caller{&http.Client{Transport: socket}, "http://server", func(*http.Request) {}}

	s := stock{digestOf(blobText), digestOf(indexText("matrix"))}
	for _, kind := range []string{"own", "shared", "foreign"} {
		if status, answer := callers["socket"].ask(t, "POST", "/v2/"+kind+"/app/blobs/uploads/?digest="+s.blob); status != 201 {
			t.Fatalf("push to %s: %d %s", kind, status, answer)
		}
		req, err := http.NewRequestWithContext(t.Context(), "PUT", base+"/v2/"+kind+"/app/manifests/1", strings.NewReader(indexText("matrix")))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", indexType)
		req.SetBasicAuth("admin", "password of admin")
		resp, err := plain.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 201 {
			t.Fatalf("push to %s: %s", kind, resp.Status)
		}
	}
	return callers, s
}

func digestOf(text string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(text))) }
