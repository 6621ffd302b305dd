package e2e_test

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// TestSecretsStaySecret uses every kind of secret that there is, rightly and
// wrongly, and then looks for each of them, plain and encoded, in all that comes out:
// the log at level debug, the audit log with pulls, metrics, answers, process lists,
// what commands print, and what the registry keeps.
func TestSecretsStaySecret(t *testing.T) {
	berth := binary(t)
	s := &secrets{t: t, known: map[string]string{}, out: map[string][]byte{}}
	data := filepath.Join(t.TempDir(), "data")
	adminFile, keyFile := filepath.Join(t.TempDir(), "admin"), filepath.Join(t.TempDir(), "key")
	admin, seal := s.make("of the first administrator"), s.make("that encrypts keys")+s.make("the rest of that")
	config, issuer := filepath.Join(t.TempDir(), "berth.yaml"), newIssuer(t)
	for path, text := range map[string]string{
		adminFile: admin + "\n", keyFile: seal + "\n",
		config: fmt.Sprintf("admin_password_file: %s\nsecret_key_file: %s\naudit: {pulls: true}\n", adminFile, keyFile) + issuer.config(),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	server := serveAt(t, berth, data, "--log-level", "debug", "--config", config)
	s.url = server.url
	const form, jsonBody = "application/x-www-form-urlencoded", "application/json"

	// Accounts, over the API and by commands.
	ann, bob, newBob := s.make("of ann"), s.make("of bob"), s.make("of bob, the new one")
	s.want(200, s.do("admin:"+admin, "POST", "/berth/v1/users", jsonBody, fmt.Sprintf(`{"name":"ann","groups":["admins"],"password":%q}`, ann)))
	s.berth(berth, data, bob+"\n", "user", "add", "--password-stdin", "bob")
	s.berth(berth, data, newBob+"\n", "user", "passwd", "--password-stdin", "bob")
	var made struct{ Password, Secret string }
	s.shown(s.do("ann:"+ann, "POST", "/berth/v1/users", jsonBody, `{"name":"carl"}`), &made)
	carl := s.know("of carl, made by the server", made.Password)
	s.shown(s.do("ann:"+ann, "POST", "/berth/v1/robots", jsonBody, `{"name":"ci","grants":[{"repositories":"team/**","actions":["pull","push"]}]}`), &made)
	robot := s.know("of the robot", made.Secret)
	s.shown(s.do("ann:"+ann, "POST", "/berth/v1/users/~/keys", jsonBody, `{"description":"for the test"}`), &made)
	key := s.know("API key", made.Secret)

	// Logins and tokens.
	var granted struct {
		Token   string `json:"token"`
		Refresh string `json:"refresh_token"`
	}
	for who, what := range map[string]string{"ann:" + ann: "of ann", "ann:" + key: "of the key", "robot+ci:" + robot: "of the robot", "": "of nobody"} {
		granted.Refresh = ""
		s.shown(s.do(who, "GET", "/auth/token?service=berth&offline_token=true&scope=repository:team/app:pull,push", "", ""), &granted)
		token := s.know("token "+what, granted.Token)
		s.know("signature of the token "+what, token[strings.LastIndexByte(token, '.')+1:])
		if granted.Refresh != "" {
			s.know("refresh token "+what, granted.Refresh)
			s.shown(s.do("", "POST", "/auth/token", form, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {granted.Refresh}}.Encode()), &granted)
			s.know("second token "+what, granted.Token)
		}
		s.do("Bearer "+granted.Token, "GET", "/v2/team/app/manifests/1", "", "")
		s.do("Bearer "+granted.Token, "DELETE", "/v2/team/app/manifests/1", "", "")
		s.do("Bearer "+granted.Token[:len(granted.Token)-4]+"AAAA", "GET", "/v2/team/app/manifests/1", "", "")
		s.do("Bearer "+granted.Token, "GET", "/auth/token", "", "")
	}
	s.shown(s.do("", "POST", "/auth/token", form, url.Values{"grant_type": {"password"}, "username": {"ann"}, "password": {ann}, "access_type": {"offline"}}.Encode()), &granted)
	s.know("last token", granted.Token)
	s.know("last refresh token", granted.Refresh)
	const empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	s.want(201, s.do("robot+ci:"+robot, "POST", "/v2/team/app/blobs/uploads/?digest="+empty, "", ""))
	s.want(200, s.do("ann:"+key, "GET", "/v2/team/app/blobs/"+empty, "", ""))

	s.byIssuer(issuer)

	// What goes wrong: guesses, and secrets where they do not belong.
	wrong := s.make("that is wrong")
	for _, who := range []string{
		"ann:" + wrong, "nobody:" + wrong, "robot+ci:" + wrong, wrong + ":ann", ann + ":ann", "ann:" + ann + "x", "bob:" + bob,
		"oidc+gitlab:" + wrong, "ann:berth_key_AAAAAAAA_" + wrong,
		"Bearer " + wrong, "Basic " + wrong, "Token " + wrong, ann, "Basic ann:" + ann, "Digest username=\"ann\", response=\"" + wrong + "\"",
		"Bearer " + base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","kid":"`+wrong+`"}`)) + ".e30.",
	} {
		for _, path := range []string{"/v2/", "/v2/team/app/manifests/1", "/berth/v1/users", "/auth/token?scope=repository:team/app:pull", "/berth/v1/server"} {
			s.do(who, "GET", path, "", "")
		}
		s.do(who, "POST", "/v2/team/app/blobs/uploads/", "", "")
	}
	for _, path := range []string{
		"/v2/?password=", "/v2/team/app/manifests/1?access_token=", "/auth/token?account=ann&password=", "/berth/v1/users?password=", "/berth/v1/server?token=",
		"/metrics?key=", "/nowhere?password=",
	} {
		s.do("", "GET", path+ann, "", "")
		s.do("ann:"+ann, "POST", path+ann, jsonBody, "{}")
	}
	for name, value := range map[string]string{
		"X-Registry-Auth":     base64.StdEncoding.EncodeToString([]byte(`{"username":"ann","password":"` + ann + `"}`)),
		"Proxy-Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte("ann:"+ann)),
		"Cookie":              "session=" + ann, "X-Api-Key": key, "X-Forwarded-For": ann,
	} {
		s.do("ann:"+ann, "PUT", "/v2/team/app/manifests/1", jsonBody, "{}", name, value)
		s.do("ann:"+ann, "PUT", "/berth/v1/users/bob", jsonBody, "{}", name, value)
	}
	for _, body := range []string{
		url.Values{"grant_type": {"password"}, "username": {ann}, "password": {"ann"}}.Encode(),
		url.Values{"grant_type": {"password"}, "username": {"ann"}, "password": {wrong}}.Encode(),
		url.Values{"grant_type": {"refresh_token"}, "refresh_token": {wrong}}.Encode(),
		"grant_type=password&username=ann&password=" + ann + "&%zz",
	} {
		s.do("", "POST", "/auth/token", form, body)
		s.do("", "POST", "/auth/token", jsonBody, body)
	}
	for _, body := range []string{
		`{"name":"dora","password":"` + wrong, `{"name":"dora","passwort":"` + wrong + `"}`, `{"name":"dora","password":{"text":"` + wrong + `"}}`,
		`{"name":"ann","password":"` + wrong + `"}`, `{"name":"-","password":"` + wrong + `"}`, `"` + wrong + `"`,
	} {
		s.do("ann:"+ann, "POST", "/berth/v1/users", jsonBody, body)
		s.do("bob:"+newBob, "POST", "/berth/v1/users", jsonBody, body)
		s.do("carl:"+carl, "PUT", "/berth/v1/users/ann", jsonBody, body)
	}

	s.do("", "POST", "/berth/v1/login", jsonBody, `{"issuer":"sso","id_token":"`+wrong+`"}`)

	// The policy, and all that can be read.
	s.want(200, s.do("ann:"+ann, "PUT", "/berth/v1/policy", jsonBody, `{"rules":[{"subject":"group:admins","repositories":"**","allow":["pull","push","overwrite","delete","admin"]},{"subject":"user:bob","repositories":"team/**","allow":["pull"]}]}`, "If-Match", "0"))
	for _, path := range []string{
		"/users", "/users/ann", "/users/ann/keys", "/users/~/keys", "/robots", "/robots/ci", "/policy", "/server", "/jobs", "/audit?limit=10000", "/trash?repo=team/app",
	} {
		s.want(200, s.do("ann:"+ann, "GET", "/berth/v1"+path, "", ""))
	}
	s.want(200, s.do("ann:"+ann, "GET", "/metrics", "", ""))
	s.want(200, s.do("", "GET", "/readyz", "", ""))
	s.want(200, s.do("", "GET", "/auth/jwks", "", ""))
	for _, args := range [][]string{{"user", "ls"}, {"robot", "ls", "--json"}, {"user", "key", "ls", "ann"}, {"policy", "show"}, {"admin", "audit", "--tail", "0"}, {"admin", "server"}} {
		s.berth(berth, data, "", args...)
	}
	s.processes()
	if err := server.stop(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.out["the server's log"] = []byte(server.output())
	for _, path := range files(t, data) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		s.out["the file "+strings.TrimPrefix(path, data)] = text
	}
	if n, debug := strings.Count(server.output(), " msg=request "), strings.Count(server.output(), " level=DEBUG msg=request "); n < 150 || debug < 20 {
		t.Errorf("the log tells of %d requests, %d of them at level debug: this test looks at too little", n, debug)
	}
	for _, where := range []string{"the file /registry/audit/00000001.jsonl", "the file /registry/index.db", "GET /metrics", "the process list"} {
		if len(s.out[where]) == 0 {
			t.Errorf("nothing came out at %s: this test looks at too little", where)
		}
	}

	for _, leak := range s.find() {
		t.Error(leak)
	}
	// The search finds what is there: each secret in each form, in each output.
	if len(s.known) < 15 {
		t.Errorf("only %d secrets were used", len(s.known))
	}
	for what, secret := range s.known {
		for form, text := range forms(secret) {
			s.out = map[string][]byte{"a log": []byte("before " + text + " behind")}
			if found := strings.Join(s.find(), "\n"); !strings.Contains(found, what+", "+form+", is in a log") {
				t.Errorf("%s, %s, was planted, and this was found: %s", what, form, found)
			}
		}
	}
}

// secrets are what must not come out, and what came out.
type secrets struct {
	t     *testing.T
	url   string
	known map[string]string // by what they are
	out   map[string][]byte // by where
}

// make makes a password.
func (s *secrets) make(what string) string {
	s.t.Helper()
	return s.know("password "+what, "secret/"+rand.Text()+"?") // in Base64 and URLs it looks different
}

func (s *secrets) know(what, secret string) string {
	s.t.Helper()
	if len(secret) < 10 {
		s.t.Fatalf("%s is %q", what, secret)
	}
	s.known[what] = secret
	return secret
}

// answer is what a request came to.
type answer struct {
	what   string
	status int
	body   []byte
}

// do sends a request as who, name:password or the header Authorization itself, and
// keeps the answer with its header.
func (s *secrets) do(who, method, path, contentType, body string, header ...string) answer {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	name, password, pair := strings.Cut(who, ":")
	switch {
	case pair && !strings.Contains(name, " "):
		req.SetBasicAuth(name, password)
	case who != "":
		req.Header.Set("Authorization", who)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	clean, _, _ := strings.Cut(path, "?")
	a := answer{method + " " + clean, resp.StatusCode, got}
	s.out[a.what] = append(s.out[a.what], fmt.Appendf(nil, "%d %v\n%s\n", resp.StatusCode, resp.Header, got)...)
	return a
}

func (s *secrets) want(status int, a answer) {
	s.t.Helper()
	if a.status != status {
		s.t.Fatalf("%s = %d %s, want %d", a.what, a.status, a.body, status)
	}
}

// shown reads an answer that is to show a secret: it is not searched.
func (s *secrets) shown(a answer, into any) {
	s.t.Helper()
	s.want(200, a)
	s.out[a.what] = bytes.Replace(s.out[a.what], a.body, nil, 1)
	if err := json.Unmarshal(a.body, into); err != nil {
		s.t.Fatal(err)
	}
}

// berth runs a command, and looks at the process list while it waits for its input.
func (s *secrets) berth(berth, data, input string, args ...string) {
	s.t.Helper()
	cmd := exec.CommandContext(s.t.Context(), berth, append(args, "--data", data)...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.processes()
	if _, err := io.WriteString(stdin, input); err != nil && input != "" {
		s.t.Fatal(err)
	}
	s.processes()
	if err := stdin.Close(); err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		s.t.Fatalf("berth %s: %v: %s", args, err, &out)
	}
	what := "berth " + strings.Join(args, " ")
	s.out[what] = append(s.out[what], out.Bytes()...)
}

// processes keeps the command lines and environments of what runs here.
func (s *secrets) processes() {
	s.t.Helper()
	for _, pattern := range []string{"/proc/[0-9]*/cmdline", "/proc/[0-9]*/environ"} {
		list, err := filepath.Glob(pattern)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, path := range list {
			if text, err := os.ReadFile(path); err == nil { // else it has ended
				s.out["the process list"] = append(s.out["the process list"], text...)
			}
		}
	}
}

// forms are how a secret may be written.
func forms(secret string) map[string]string {
	all := map[string]string{
		"plain": secret, "in a URL": url.QueryEscape(secret), "in a path": url.PathEscape(secret),
		"in hexadecimal": fmt.Sprintf("%x", secret), "in a Go string": strings.Trim(fmt.Sprintf("%q", secret), `"`),
		"with a newline in Base64": base64.StdEncoding.EncodeToString([]byte(secret + "\n")),
	}
	// Within something longer, Base64 of a text depends on where that begins, modulo
	// three; letters at its ends hold bits of what is around it.
	for shift := range 3 {
		for name, enc := range map[string]*base64.Encoding{"Base64": base64.RawStdEncoding, "Base64 of URLs": base64.RawURLEncoding} {
			text := enc.EncodeToString([]byte(strings.Repeat("\x00", shift) + secret))
			all[fmt.Sprintf("in %s, shifted by %d", name, shift)] = text[shift+cmp.Compare(shift, 0) : len(text)-1]
		}
	}
	return all
}

// find returns where there is a secret, without it.
func (s *secrets) find() []string {
	var leaks []string
	for _, what := range slices.Sorted(maps.Keys(s.known)) {
		for form, text := range forms(s.known[what]) {
			for where, out := range s.out {
				if at := bytes.Index(out, []byte(text)); at >= 0 {
					around := out[max(0, at-120):at]
					leaks = append(leaks, fmt.Sprintf("%s, %s, is in %s behind %q", what, form, where, around))
				}
			}
		}
	}
	return leaks
}
