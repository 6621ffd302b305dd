package server

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/gorilla/mux"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"berth.internal/auth"
	"berth.internal/auth/policy"
	wire "berth.internal/internal/control"
	"berth.internal/internal/socket"
	"berth.internal/server/control"
	"berth.internal/server/registry"
	"berth.internal/storage/kv"
)

// matrix is testdata/matrix.txt.
type matrix struct {
	callers []string
	rights  map[string]map[string]string // of "action kind" and a caller: + or a status
	rows    map[string][]matrixRow       // of a section
}

// matrixRow is something that callers ask for.
type matrixRow struct {
	method, path, of string
	needs            []string
	there, absent    int // statuses; 0: nothing can be absent
	body             string
}

func readMatrix(t *testing.T) matrix {
	t.Helper()
	text, err := os.ReadFile("testdata/matrix.txt")
	if err != nil {
		t.Fatal(err)
	}
	m := matrix{rights: map[string]map[string]string{}, rows: map[string][]matrixRow{}}
	section, header := "", false
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0 || f[0] == "#" || strings.HasPrefix(line, "#"):
		case len(f) == 1 && strings.HasPrefix(f[0], "["):
			section, header = strings.Trim(f[0], "[]"), true
		case header:
			header = false
			if section == "rights" {
				m.callers = f
			}
		case section == "rights":
			if len(f) != 2+len(m.callers) {
				t.Fatalf("matrix.txt: %q has %d answers for %d callers", line, len(f)-2, len(m.callers))
			}
			right := map[string]string{}
			for i, c := range m.callers {
				right[c] = f[2+i]
			}
			m.rights[f[0]+" "+f[1]] = right
		default:
			r := matrixRow{method: f[0], path: f[1]}
			f = f[2:]
			if section == "registry" {
				r.of, f = f[0], f[1:]
			}
			r.needs = strings.Split(f[0], ",")
			status := func(i int) int {
				if len(f) <= i || f[i] == "-" {
					return 0
				}
				n, err := strconv.Atoi(f[i])
				if err != nil {
					t.Fatalf("matrix.txt: %q: %v", line, err)
				}
				return n
			}
			r.there, r.absent = status(1), status(2)
			if len(f) > 3 {
				r.body = f[3]
			}
			m.rows[section] = append(m.rows[section], r)
		}
	}
	return m
}

// want is what the caller is answered in a kind of repository, and which of the
// rights that it takes is missing.
func (m matrix) want(t *testing.T, r matrixRow, caller, kind string, there bool) (status int, missing string) {
	t.Helper()
	for _, need := range r.needs {
		if need == "anyone" || need == "overwrite" && !there { // nothing is there that would be moved
			continue
		}
		where := kind
		switch need {
		case "login", "token", "metrics", "admin":
			where = "-"
		}
		right, ok := m.rights[need+" "+where]
		if !ok {
			t.Fatalf("matrix.txt says nothing of the right %q on %s", need, where)
		}
		if answer := right[caller]; answer != "+" {
			status, err := strconv.Atoi(answer)
			if err != nil {
				t.Fatalf("matrix.txt: %q is neither + nor a status", answer)
			}
			return status, need
		}
	}
	if there {
		return r.there, ""
	}
	return r.absent, ""
}

// matrixKinds are the kinds of repositories.
var matrixKinds = []string{"own", "shared", "foreign"}

// TestMatrixIsWhole compares what the matrix has with what there is.
func TestMatrixIsWhole(t *testing.T) {
	m := readMatrix(t)
	known := map[string]string{} // what there is → the right that it takes
	compare := func(what string, there map[string]string, rows map[string][]string) {
		t.Helper()
		for key, needs := range there {
			switch listed, ok := rows[key]; {
			case !ok:
				t.Errorf("matrix.txt does not say who may %s %s: add it", what, key)
			case needs != "" && !slices.Contains(listed, needs):
				t.Errorf("%s %s takes the right %s, but matrix.txt says %v", what, key, needs, listed)
			}
		}
		for key := range rows {
			if _, ok := there[key]; !ok {
				t.Errorf("matrix.txt says who may %s %s, which there is not", what, key)
			}
		}
	}
	rights := map[string][]string{}
	for key := range m.rights {
		rights[key] = nil
	}
	for _, one := range []string{"login -", "token -", "metrics -", "admin -", "self own", "self foreign"} {
		known[one] = ""
	}
	for _, a := range auth.Actions() {
		if a != auth.Admin {
			for _, kind := range matrixKinds {
				known[string(a)+" "+kind] = ""
			}
		}
	}
	compare("do", known, rights)

	rows := func(section string) map[string][]string {
		all := map[string][]string{}
		for _, r := range m.rows[section] {
			path, _, _ := strings.Cut(r.path, "?")
			key := r.method + " " + path
			if had, ok := all[key]; ok && had[0] != r.needs[0] {
				t.Errorf("matrix.txt: %s takes %s in one row and %s in another", key, had[0], r.needs[0])
			}
			all[key] = slices.Concat(all[key], r.needs[:1])
		}
		return all
	}
	known = map[string]string{}
	for _, op := range registry.Operations() {
		known[op.Method+" "+op.Path] = string(op.Needs)
		if !strings.Contains(op.Path, "<name>") {
			known[op.Method+" "+op.Path] = "login"
		}
	}
	compare("ask the registry for", known, rows("registry"))
	known = map[string]string{}
	for _, op := range control.Table() {
		known[op.Method+" "+op.Path] = string(op.Needs)
		if op.Needs == control.Everyone {
			known[op.Method+" "+op.Path] = "anyone"
		}
	}
	compare("ask the control API for", known, rows("control"))

	s, _ := newServer(t, nil)
	known, front := map[string]string{}, rows("front")
	err := s.routes(prometheus.NewRegistry()).Walk(func(route *mux.Route, _ *mux.Router, _ []*mux.Route) error {
		path, err := route.GetPathTemplate()
		methods, none := route.GetMethods()
		for key := range front {
			method, of, _ := strings.Cut(key, " ")
			if none != nil && of == path { // it looks at the method itself
				methods = append(methods, method)
			}
		}
		if len(methods) == 0 {
			methods = []string{"any"}
		}
		for _, method := range methods {
			known[method+" "+path] = ""
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	compare("ask for", known, front)
}

// cast is a server with the policy and the callers of the matrix.
type cast struct {
	*Server
	t      *testing.T
	index  *kv.Index
	shows  map[string][]map[string]string // of a caller: headers; of refused several
	serial int                            // of what is absent
	asked  int

	certificates map[string]*x509.Certificate

	blob, manifest, trash digest.Digest // which each repository has
}

// showsCertificate is what a caller shows beside headers: the name of a certificate.
const showsCertificate = "certificate"

const indexType = "application/vnd.oci.image.index.v1+json"

func indexManifest(text string) string {
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[],"annotations":{"text":%q}}`, indexType, text)
}

func newCast(t *testing.T) *cast {
	t.Helper()
	loop, dir, issuer, ca, otherCA := socket.NewLoop(), t.TempDir(), newIssuer(t), newCA(t), newCA(t)
	files := pairIn(dir)
	pair(t, files, 1, time.Hour)
	files.ClientCA = filepath.Join(dir, "clients.crt")
	writePEM(t, files.ClientCA, "CERTIFICATE", ca.cert.Raw)
	s, index := newServer(t, func(c *Config) { c.LocalNode, c.OIDC, c.TLS = loop, issuer.config(), files })
	t.Cleanup(s.control.Close)
	t.Cleanup(s.issuers.Close)
	if err := s.clients.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := &cast{
		Server: s, t: t, index: index, shows: map[string][]map[string]string{}, certificates: map[string]*x509.Certificate{},
		blob: digest.FromString("blob"), manifest: digest.FromString(indexManifest("now")), trash: digest.FromString(indexManifest("trash")),
	}
	ctx := t.Context()
	header := func(caller, value string) {
		c.shows[caller] = append(c.shows[caller], map[string]string{"Authorization": value})
	}
	basic := func(name, password string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+password))
	}
	for _, a := range []auth.Account{
		{Name: "norights"},
		{Name: "puller"},
		{Name: "pusher"},
		{Name: "member", Groups: []string{"team", "other"}},
		{Name: "admin", Groups: []string{auth.GroupAdmins}},
		{Name: "off", Groups: []string{auth.GroupAdmins}},
		{Name: "gone", Groups: []string{auth.GroupAdmins}},
	} {
		if _, err := s.identities.AddUser(ctx, a, "password of "+a.Name); err != nil {
			t.Fatal(err)
		}
		header(a.Name, basic(a.Name, "password of "+a.Name))
	}
	for name, pattern := range map[string]string{"robot": "own/**", "stray": "other/**", "old": "**"} {
		_, secret, err := s.identities.AddRobot(ctx, auth.Account{Name: name, Grants: []auth.Grant{{Repositories: pattern, Actions: []auth.Action{auth.Pull, auth.Push}}}})
		if err != nil {
			t.Fatal(err)
		}
		header(name, basic("robot+"+name, secret))
	}
	p, err := policy.Parse("policy", []byte(`rules:
- {subject: "group:admins", repositories: "**", allow: [pull, push, overwrite, delete, admin]}
- {subject: "user:puller", repositories: "own/**", allow: [pull]}
- {subject: "user:pusher", repositories: "own/**", allow: [pull, push]}
- {subject: "claim:gitlab+project_path=team/app", repositories: "own/**", allow: [pull, push]}
- {subject: "group:team", repositories: "own/**", allow: [pull, push, overwrite, delete]}
- {subject: everyone, repositories: "shared/**", allow: [pull]}
- {subject: anonymous, repositories: "shared/**", allow: [pull]}
`))
	if err == nil {
		_, err = s.policy.Put(ctx, p, 0)
	}
	if err != nil {
		t.Fatal(err)
	}

	all := []string{"registry:catalog:*"}
	for _, kind := range matrixKinds {
		for _, name := range []string{"app", "none"} {
			all = append(all, "repository:"+kind+"/"+name+":pull,push,delete")
		}
	}
	password := func(name string) string { return name + ":password of " + name }
	header("narrow", "Bearer "+token(t, s, password("member"), "repository:own/app:pull", "repository:own/none:pull").Token)
	header("full", "Bearer "+token(t, s, password("member"), all...).Token)
	header("bare", "Bearer "+token(t, s, password("admin")).Token)
	header("tanon", "Bearer "+token(t, s, "", all...).Token)
	c.shows["anon"], c.shows["socket"] = []map[string]string{{}}, []map[string]string{{}}
	header("job", basic("oidc+gitlab", issuer.token(t, "team/app", time.Hour)))
	for _, shown := range []struct {
		caller string
		by     *testCA
		name   string
	}{{"cert", ca, "pusher"}, {"refused", otherCA, "admin"}, {"refused", ca, "off"}, {"refused", ca, "nobody"}} {
		name := fmt.Sprint("certificate ", len(c.certificates))
		c.certificates[name] = shown.by.client(t, shown.name).cert
		c.shows[shown.caller] = append(c.shows[shown.caller], map[string]string{showsCertificate: name})
	}
	c.shows["node"] = []map[string]string{{wire.NodeHeader: "local"}}
	limits := []auth.Grant{{Repositories: "own/**", Actions: []auth.Action{auth.Pull, auth.Push}}}
	made, text, err := s.identities.AddKey(ctx, auth.Caller{Kind: auth.Socket}, auth.Key{User: "member", Grants: limits})
	if err != nil {
		t.Fatal(err)
	}
	header("key", basic("member", text))
	spent, spentText, err := s.identities.AddKey(ctx, auth.Caller{Kind: auth.Socket}, auth.Key{User: "admin"})
	if err != nil {
		t.Fatal(err)
	}
	ofKey := token(t, s, "admin:"+spentText, all...)
	if err := s.identities.RemoveKey(ctx, "admin", spent.ID); err != nil {
		t.Fatal(err)
	}

	gone := token(t, s, password("gone"), all...)
	yes, past := true, time.Now().Add(-time.Second)
	if _, err := s.identities.Change(ctx, auth.User, "off", auth.Edit{Disabled: &yes}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.identities.Change(ctx, auth.Robot, "old", auth.Edit{Expires: &past}); err != nil {
		t.Fatal(err)
	}
	if err := s.identities.Remove(ctx, auth.User, "gone"); err != nil {
		t.Fatal(err)
	}
	refused := slices.Concat(c.shows["refused"], c.shows["off"], c.shows["old"], c.shows["gone"])
	delete(c.shows, "off")
	delete(c.shows, "old")
	delete(c.shows, "gone")
	c.shows["refused"] = refused
	for _, value := range []string{
		basic("admin", "password of pusher"), basic("nobody", "password of nobody"), basic("robot+robot", "berth_robot_AAAAAAAAAAAAAAAAAAAAAAAAAA"),
		basic("robot+nobody", "berth_robot_AAAAAAAAAAAAAAAAAAAAAAAAAA"), basic("", ""), "Basic x", "Digest username=admin",
		basic("admin", spentText), "Bearer " + ofKey.Token, basic("admin", text), basic("member", strings.Replace(text, made.ID, "AAAAAAAA", 1)),
		basic("oidc+gitlab", issuer.token(t, "evil/app", time.Hour)), basic("oidc+gitlab", issuer.token(t, "team/app", -time.Second)),
		basic("oidc+github", issuer.token(t, "team/app", time.Hour)), basic("admin", issuer.token(t, "team/app", time.Hour)),
		"Bearer " + issuer.token(t, "evil/app", time.Hour),
		"Bearer " + gone.Token, "Bearer " + gone.Refresh, "Bearer " + token(t, s, password("member")).Refresh, "Bearer e30.e30.e30",
	} {
		header("refused", value)
	}
	for _, forged := range c.forgeries() {
		header("refused", "Bearer "+forged)
	}
	return c
}

// forgeries are tokens for the administrator that are no good, each for another
// reason.
func (c *cast) forgeries() []string {
	c.t.Helper()
	recs, _, err := c.index.List(c.t.Context(), "auth/keys/", "", 10)
	if err != nil || len(recs) != 1 {
		c.t.Fatalf("keys: %v, %v", recs, err)
	}
	var record struct {
		Private []byte `json:"private"`
	}
	err = json.Unmarshal(recs[0].Value, &record)
	ours, errKey := x509.ParseECPrivateKey(record.Private)
	theirs, errMade := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	public, errPublic := x509.MarshalPKIXPublicKey(theirs.Public())
	if err := errors.Join(err, errKey, errMade, errPublic); err != nil {
		c.t.Fatal(err)
	}
	kid := strings.TrimPrefix(recs[0].Key, "auth/keys/")
	parts := strings.Split(strings.TrimPrefix(c.shows["bare"][0]["Authorization"], "Bearer "), ".")
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		c.t.Fatal(err)
	}
	sign := func(method jwt.SigningMethod, kid string, key any, change func(jwt.MapClaims)) string {
		claims := jwt.MapClaims{}
		if err := json.Unmarshal(payload, &claims); err != nil {
			c.t.Fatal(err)
		}
		var access []map[string]any
		for _, kind := range matrixKinds {
			access = append(access, map[string]any{"type": "repository", "name": kind + "/app", "actions": []string{"pull", "push", "overwrite", "delete"}})
		}
		claims["access"] = access
		change(claims)
		unsigned := jwt.NewWithClaims(method, claims)
		unsigned.Header["kid"] = kid
		signed, err := unsigned.SignedString(key)
		if err != nil {
			c.t.Fatal(err)
		}
		return signed
	}
	same := func(jwt.MapClaims) {}
	set := func(claim string, value any) func(jwt.MapClaims) { return func(m jwt.MapClaims) { m[claim] = value } }
	// It is the lies that are refused, and not how this test makes tokens.
	if w := c.ask(map[string]string{"Authorization": "Bearer " + sign(jwt.SigningMethodES256, kid, ours, same)}, "GET", "/v2/foreign/app/tags/list", ""); w.Code != 404 {
		c.t.Fatalf("a token made as the server makes them = %d %s", w.Code, w.Body)
	}
	now := time.Now().Unix()
	all := []string{
		sign(jwt.SigningMethodNone, kid, jwt.UnsafeAllowNoneSignatureType, same),
		sign(jwt.SigningMethodES256, kid, theirs, same),
		sign(jwt.SigningMethodES256, "AAAAAAAAAAAAAAAAAAAAAAAAAA", theirs, same),
		sign(jwt.SigningMethodES256, "", ours, same),
		sign(jwt.SigningMethodHS256, kid, public, same),
		sign(jwt.SigningMethodES256, kid, ours, set("exp", now-60)),
		sign(jwt.SigningMethodES256, kid, ours, set("nbf", now+60)),
		sign(jwt.SigningMethodES256, kid, ours, set("iss", "other")),
		sign(jwt.SigningMethodES256, kid, ours, set("aud", "other")),
		sign(jwt.SigningMethodES256, kid, ours, set("sub", "user:nobody")),
		sign(jwt.SigningMethodES256, kid, ours, set("sub", "socket:")),
		sign(jwt.SigningMethodES256, kid, ours, set("epoch", "")),
		sign(jwt.SigningMethodES256, kid, ours, func(m jwt.MapClaims) { delete(m, "exp") }),
	}
	// The body of one with the signature of another.
	one, other := strings.Split(all[5], "."), strings.Split(sign(jwt.SigningMethodES256, kid, ours, set("sub", "user:puller")), ".")
	return append(all, one[0]+"."+one[1]+"."+other[2])
}

func (c *cast) ask(show map[string]string, method, path, body string) *httptest.ResponseRecorder {
	c.t.Helper()
	ctx := c.t.Context()
	if show == nil {
		ctx = asAdmin(ctx)
	} else if show[wire.NodeHeader] != "" {
		ctx = asNode(ctx)
	}
	r := httptest.NewRequestWithContext(ctx, method, path, strings.NewReader(body))
	c.asked++
	r.RemoteAddr = fmt.Sprintf("198.18.%d.%d:1", c.asked/256%256, c.asked%256) // wrong keys are counted by address
	for key, value := range show {
		if key == showsCertificate {
			r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{c.certificates[value]}}
			r = r.WithContext(c.clients.remember(r.Context()))
		} else {
			r.Header.Set(key, value)
		}
	}
	switch {
	case strings.Contains(path, "/manifests/"):
		r.Header.Set("Content-Type", indexType)
	case body != "":
		r.Header.Set("Content-Type", "application/json")
	}
	w := httptest.NewRecorder()
	c.Handler().ServeHTTP(w, r)
	return w
}

// by asks as a caller that has one credential.
func (c *cast) by(caller, method, path, body string) *httptest.ResponseRecorder {
	c.t.Helper()
	if caller == "socket" {
		return c.ask(nil, method, path, body)
	}
	return c.ask(c.shows[caller][0], method, path, body)
}

func (c *cast) must(status int, method, path, body string) *httptest.ResponseRecorder {
	c.t.Helper()
	w := c.ask(nil, method, path, body)
	if w.Code != status {
		c.t.Fatalf("%s %s by the socket = %d %s, want %d", method, path, w.Code, w.Body, status)
	}
	return w
}

// fill gives a repository what the rows of the matrix ask for.
func (c *cast) fill(repo string) {
	c.t.Helper()
	base := "/v2/" + repo
	c.must(201, "POST", base+"/blobs/uploads/?digest="+string(c.blob), "blob")
	c.must(201, "PUT", base+"/manifests/1", indexManifest("before"))
	c.must(201, "PUT", base+"/manifests/1", indexManifest("now"))
	c.must(201, "PUT", base+"/manifests/"+string(c.trash), indexManifest("trash"))
	c.must(202, "DELETE", base+"/manifests/"+string(c.trash), "")
	if w := c.ask(nil, "DELETE", base+"/manifests/new", ""); w.Code != 202 && w.Code != 404 {
		c.t.Fatalf("DELETE new = %d", w.Code)
	}
}

// upload begins an upload for the caller, if they may, else for somebody else.
func (c *cast) upload(show map[string]string, repo string) string {
	c.t.Helper()
	w := c.ask(show, "POST", "/v2/"+repo+"/blobs/uploads/", "")
	if w.Code != 202 {
		w = c.must(202, "POST", "/v2/"+repo+"/blobs/uploads/", "")
	}
	return w.Header().Get("Docker-Upload-UUID")
}

// request is what a row asks of a repository, or without one if that is empty.
func (c *cast) request(r matrixRow, show map[string]string, caller, repo string, there bool) (method, path, body string) {
	c.t.Helper()
	path, body = strings.ReplaceAll(r.path, "<name>", repo), r.body
	name, id, tag := "nobody", "AAAAAAAAAAAAAAAAAAAAAAAAAA", "never"
	if there {
		name, tag = "known", "1"
	} else if r.method == "POST" {
		c.serial++
		name = fmt.Sprint("new", c.serial)
	}
	if r.needs[0] == "self" {
		if caller == "cert" {
			caller = "pusher"
		}
		if _, err := c.identities.Account(auth.User, caller); err == nil && strings.HasPrefix(repo, "own/") {
			name = caller
		}
	}
	switch {
	case r.of == "upload" && there:
		id = c.upload(show, repo)
	case strings.Contains(path, "/keys/{id}") && there:
		c.account()
		id = c.keyOf(name)
	case strings.Contains(path, "/jobs/{id}") && there:
		id = c.job()
	}
	for old, with := range map[string]string{
		"{repo}": repo, "{trash}": string(c.trash), "{user}": name, "{robot}": name, "{id}": id, "<id>": id, "{tag}": tag,
	} {
		path, body = strings.ReplaceAll(path, old, with), strings.ReplaceAll(body, old, with)
	}
	switch r.of {
	case "blob":
		path = strings.ReplaceAll(path, "<digest>", string(c.blob))
	case "tag", "moved":
		path = strings.ReplaceAll(path, "<reference>", "1")
	case "new":
		path = strings.ReplaceAll(path, "<reference>", "new")
	case "manifest":
		path = strings.NewReplacer("<reference>", string(c.manifest), "<digest>", string(c.manifest)).Replace(path)
	case "whole":
		path, body = path+"?digest="+string(c.blob), "blob"
	case "upload":
		if r.method == "PUT" {
			path, body = path+"?digest="+string(c.blob), "blob"
		}
	}
	if r.method == "PUT" && strings.Contains(path, "/manifests/") {
		body = indexManifest("now")
		if r.of == "moved" {
			body = indexManifest("moved")
		}
	}
	return r.method, path, body
}

// account makes the user and the robot known, if they are not there.
func (c *cast) account() {
	c.t.Helper()
	const name = "known"
	if _, err := c.identities.Account(auth.User, name); err != nil {
		if _, err := c.identities.AddUser(c.t.Context(), auth.Account{Name: name}, "password of known"); err != nil {
			c.t.Fatal(err)
		}
	}
	if _, err := c.identities.Account(auth.Robot, name); err != nil {
		grants := []auth.Grant{{Repositories: "a", Actions: []auth.Action{auth.Pull}}}
		if _, _, err := c.identities.AddRobot(c.t.Context(), auth.Account{Name: name, Grants: grants}); err != nil {
			c.t.Fatal(err)
		}
	}
}

// keyOf returns the id of a key of the user that nobody uses.
func (c *cast) keyOf(user string) string {
	c.t.Helper()
	const spare = "spare"
	for _, k := range c.identities.APIKeys(user) {
		if k.Description == spare {
			return k.ID
		}
	}
	k, _, err := c.identities.AddKey(c.t.Context(), auth.Caller{Kind: auth.Socket}, auth.Key{User: user, Description: spare})
	if err != nil {
		c.t.Fatal(err)
	}
	return k.ID
}

// job starts a job that ends soon and returns its id.
func (c *cast) job() string {
	c.t.Helper()
	w := c.must(202, "POST", wire.Base+"/fsck", "")
	c.end(w.Body.Bytes())
	var j wire.Job
	if err := json.Unmarshal(w.Body.Bytes(), &j); err != nil {
		c.t.Fatal(err)
	}
	return j.ID
}

// end cancels a job and waits for its end: one of a kind runs at a time.
func (c *cast) end(answer []byte) {
	c.t.Helper()
	var j wire.Job
	if err := json.Unmarshal(answer, &j); err != nil || j.Path == "" {
		c.t.Fatalf("%s is no job: %v", answer, err)
	}
	c.must(200, "DELETE", j.Path, "")
	for j.State == wire.JobRunning {
		w := c.must(200, "GET", fmt.Sprintf("%s?watch=%d", j.Path, j.Revision), "")
		if err := json.Unmarshal(w.Body.Bytes(), &j); err != nil {
			c.t.Fatal(err)
		}
	}
}

// whatChanges are the parts of an answer that are other ones for other requests: its
// id, and what the credential is good for, which may name the repository.
var whatChanges = regexp.MustCompile(`"request_id":"[^"]*"|which is good for .* only`)

// answer is what a caller learns, but for what is another with every request.
func answer(w *httptest.ResponseRecorder, repo string) string {
	h := w.Header().Clone()
	h.Del("X-Request-Id")
	h.Del("Content-Length") // of names that are not equally long
	var b bytes.Buffer
	for _, key := range slices.Sorted(maps.Keys(h)) {
		fmt.Fprintf(&b, "%s: %q\n", key, h[key])
	}
	text := fmt.Sprintf("%d\n%s\n%s", w.Code, b.String(), w.Body)
	text = whatChanges.ReplaceAllString(text, "")
	if repo == "" {
		return text
	}
	return strings.ReplaceAll(text, repo, "REPO")
}

// says is how a denial names the right that is missing.
func says(right, repo string) string {
	switch right {
	case "pull":
		return "may not pull " + repo
	case "push":
		return "may not push to " + repo
	case "overwrite":
		return "may not move the tags of " + repo
	case "delete":
		return "may not delete in " + repo
	case "admin":
		return "may not administer this server"
	}
	return ""
}

// TestMatrix asks for everything, as everybody.
func TestMatrix(t *testing.T) {
	m := readMatrix(t)
	c := newCast(t)
	if callers := slices.Sorted(maps.Keys(c.shows)); !slices.Equal(callers, slices.Sorted(slices.Values(m.callers))) {
		t.Fatalf("matrix.txt has the callers %v, this test %v", m.callers, callers)
	}
	for _, kind := range matrixKinds {
		c.fill(kind + "/app")
	}
	asked := 0
	for _, section := range []string{"registry", "control", "front"} {
		for _, r := range m.rows[section] {
			if section == "control" {
				r.path = wire.Base + r.path
			}
			kinds := matrixKinds
			if !strings.Contains(r.path+r.body, "<name>") && !strings.Contains(r.path+r.body, "{repo}") {
				kinds = []string{""}
			}
			if r.needs[0] == "self" {
				kinds = []string{"own", "foreign"}
			}
			for _, caller := range m.callers {
				for i, show := range c.shows[caller] {
					if caller == "socket" {
						show = nil
					}
					for _, kind := range kinds {
						c.cell(m, r, fmt.Sprint(caller, i), caller, show, kind)
						asked++
					}
				}
			}
		}
	}
	if asked < 3000 { // 27 ways in, 27 endpoints of three repositories, 30 operations
		t.Errorf("only %d cells were asked", asked)
	}
}

// cell asks for what a row says, where that is and where it is not.
func (c *cast) cell(m matrix, r matrixRow, who, caller string, show map[string]string, kind string) {
	c.t.Helper()
	var denials []string
	for _, there := range []bool{true, false} {
		if !there && r.absent == 0 {
			continue
		}
		want, missing := m.want(c.t, r, caller, kind, there)
		repo := ""
		if kind != "" {
			repo = kind + "/none"
			if there {
				repo = kind + "/app"
			}
		}
		if there && missing == "" && strings.Contains(r.path+r.body, "{") {
			c.account()
		}
		method, path, body := c.request(r, show, caller, repo, there)
		w := c.ask(show, method, path, body)
		if w.Code != want {
			c.t.Errorf("%s: %s %s %s = %d %s, want %d", who, method, path, body, w.Code, strings.TrimSpace(w.Body.String()), want)
		}
		if missing == "" {
			if w.Code == http.StatusAccepted && r.there == http.StatusAccepted && strings.HasPrefix(path, wire.Base) {
				c.end(w.Body.Bytes())
			}
			onRepo := strings.Contains(r.path, "<name>") || strings.Contains(r.path+r.body, "{repo}")
			if onRepo && method != http.MethodGet && method != http.MethodHead {
				c.restore(repo, there)
			}
			continue
		}
		if got := w.Body.String(); caller != "refused" && caller != "anon" && caller != "tanon" && !strings.Contains(got, says(missing, repo)) {
			c.t.Errorf("%s: %s %s = %d %s, which does not say %q", who, method, path, w.Code, got, says(missing, repo))
		}
		if shown := w.Header().Get("WWW-Authenticate") != ""; shown != (w.Code == 401) {
			c.t.Errorf("%s: %s %s = %d, with a challenge: %v", who, method, path, w.Code, shown)
		}
		if !there || r.absent != 0 && missing != "overwrite" {
			denials = append(denials, answer(w, repo))
		}
	}
	if len(denials) == 2 && denials[0] != denials[1] {
		c.t.Errorf("%s: %s %s %s: the denial tells what is there:\n%s\nand what is not:\n%s", who, r.method, r.path, kind, denials[0], denials[1])
	}
}

// restore undoes what an allowed request has done.
func (c *cast) restore(repo string, there bool) {
	c.t.Helper()
	if there {
		c.fill(repo)
		return
	}
	// What is absent must be so for the next one, too.
	for _, d := range []digest.Digest{c.manifest, digest.FromString(indexManifest("moved"))} {
		c.ask(nil, "DELETE", "/v2/"+repo+"/manifests/"+string(d), "")
		c.ask(nil, "DELETE", wire.Base+"/trash?repo="+repo+"&digest="+string(d), "")
	}
	c.ask(nil, "DELETE", "/v2/"+repo+"/blobs/"+string(c.blob), "")
}

// TestRefusedAlike logs in with names and passwords that are good for nothing, each
// for another reason: the answer must not say which.
func TestRefusedAlike(t *testing.T) {
	c := newCast(t)
	first, n := "", 0
	for i, show := range c.shows["refused"] {
		r := http.Request{Header: http.Header{"Authorization": {show["Authorization"]}}}
		name, _, ok := r.BasicAuth()
		if !ok || strings.HasPrefix(name, auth.OIDCPrefix) { // who shows a token is told what is wrong with it
			continue
		}
		for _, path := range []string{"/v2/", tokenPath, wire.Base + "/users"} {
			got := name
			if w := c.ask(show, "GET", path, ""); w.Code != 401 || !strings.Contains(w.Body.String(), "the name or the password is wrong") {
				t.Errorf("refused%d, %q: GET %s = %d %s", i, name, path, w.Code, w.Body)
			} else if got = answer(w, ""); path == "/v2/" && n == 0 {
				first = got
			}
			if path == "/v2/" && got != first {
				t.Errorf("refused%d, %q is answered\n%s\nand another one\n%s", i, name, got, first)
			}
		}
		n++
	}
	if n < 8 {
		t.Errorf("only %d credentials were shown", n)
	}
}

// TestMatrixMounts mounts a blob of each repository into each other, as everybody.
func TestMatrixMounts(t *testing.T) {
	m := readMatrix(t)
	c := newCast(t)
	for _, kind := range matrixKinds {
		c.fill(kind + "/app")
	}
	only := map[string]digest.Digest{} // of one repository each
	for _, kind := range matrixKinds {
		only[kind] = digest.FromString("only in " + kind)
		c.must(201, "POST", "/v2/"+kind+"/app/blobs/uploads/?digest="+string(only[kind]), "only in "+kind)
	}
	location := regexp.MustCompile(`[0-9A-Za-z]{26}`)
	for _, caller := range m.callers {
		if m.rights["push own"][caller] != "+" {
			continue // TestMatrix sees that they cannot begin an upload
		}
		for _, source := range matrixKinds {
			for _, from := range []string{source + "/app", ""} {
				want := 201
				if m.rights["pull "+source][caller] != "+" && source != "own" {
					want = 202
				}
				mount := func(from, digest string) *httptest.ResponseRecorder {
					q := url.Values{"mount": {digest}}
					if from != "" {
						q.Set("from", from)
					}
					return c.by(caller, "POST", "/v2/own/none/blobs/uploads/?"+q.Encode(), "")
				}
				w := mount(from, string(only[source]))
				if w.Code != want {
					t.Errorf("%s mounts what is in %s from %q = %d %s, want %d", caller, source, from, w.Code, w.Body, want)
				}
				c.ask(nil, "DELETE", "/v2/own/none/blobs/"+string(only[source]), "")
				if want != 202 {
					continue
				}
				got := location.ReplaceAllString(answer(w, source+"/app"), "ID")
				nowhere := mount(strings.Replace(from, "/app", "/none", 1), string(only[source]))
				nothing := mount(from, string(digest.FromString("nothing")))
				for _, other := range []*httptest.ResponseRecorder{nowhere, nothing} {
					if absent := location.ReplaceAllString(answer(other, source+"/none"), "ID"); absent != got {
						t.Errorf("%s: the mount from %q tells what is there:\n%s\nand what is not:\n%s", caller, from, got, absent)
					}
				}
			}
		}
	}
}

// TestMatrixLists reads the catalog, page by page too, and what the control API
// tells of the server, as everybody.
func TestMatrixLists(t *testing.T) {
	m := readMatrix(t)
	c := newCast(t)
	for _, kind := range matrixKinds {
		c.fill(kind + "/app")
	}
	for _, caller := range m.callers {
		if m.rights["login -"][caller] != "+" {
			continue
		}
		want := []string{}
		for _, kind := range []string{"foreign", "own", "shared"} {
			if m.rights["pull "+kind][caller] == "+" {
				want = append(want, kind+"/app")
			}
		}
		for _, page := range []string{"", "?n=1", "?n=2", "?last=foreign/app", "?last=foreign/a", "?n=0"} {
			w := c.by(caller, "GET", "/v2/_catalog"+page, "")
			var got struct {
				Repositories []string `json:"repositories"`
			}
			expect := want
			if last, ok := strings.CutPrefix(page, "?last="); ok {
				expect = slices.DeleteFunc(slices.Clone(want), func(s string) bool { return s <= last })
			} else if n, ok := strings.CutPrefix(page, "?n="); ok {
				most, _ := strconv.Atoi(n)
				expect = want[:min(most, len(want))]
			}
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || !slices.Equal(got.Repositories, expect) {
				t.Errorf("%s: catalog%s = %d %s, want %v", caller, page, w.Code, w.Body, expect)
			}
			link := w.Header().Get("Link")
			if more := len(expect) < len(want) && strings.HasPrefix(page, "?n=") && page != "?n=0"; (link != "") != more {
				t.Errorf("%s: catalog%s has the link %q to more, want one: %v", caller, page, link, more)
			}
			for _, kind := range matrixKinds {
				if name := kind + "/app"; !slices.Contains(want, name) && strings.Contains(answer(w, "-"), name) {
					t.Errorf("%s: catalog%s tells of %s", caller, page, name)
				}
			}
		}
	}
	for _, caller := range m.callers {
		for i, show := range c.shows[caller] {
			if caller == "socket" {
				show = nil
			}
			w := c.ask(show, "GET", wire.Base+"/server", "")
			known := m.rights["login -"][caller] == "+" && caller != "tanon" // who may log in anew without a name
			if told := strings.Contains(w.Body.String(), `"features"`); told != known {
				t.Errorf("%s%d: GET /server = %s", caller, i, w.Body)
			}
		}
	}
}

// TestNothingOfOthers asks in a repository of one's own for what only another one
// holds: it must look like what is nowhere.
func TestNothingOfOthers(t *testing.T) {
	c := newCast(t)
	for _, kind := range matrixKinds {
		c.fill(kind + "/app")
	}
	const member = "member"
	secret := digest.FromString("secret")
	c.must(201, "POST", "/v2/foreign/app/blobs/uploads/?digest="+string(secret), "secret")
	hidden := indexManifest("hidden")
	c.must(201, "PUT", "/v2/foreign/app/manifests/hidden", hidden)
	referrer := func(text string) string {
		return strings.Replace(indexManifest(text), `"manifests"`, fmt.Sprintf(`"subject":{"mediaType":%q,"digest":%q,"size":1},"manifests"`, indexType, c.manifest), 1)
	}
	c.must(201, "PUT", "/v2/foreign/app/manifests/referrer", referrer("foreign"))
	image := func(layer digest.Digest) string {
		return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"size":6}]}`, indexType, layer)
	}
	nothing := digest.FromString("nothing")
	for _, tc := range []struct{ name, method, path, body string }{
		{"blob", "GET", "/v2/own/app/blobs/DIGEST", ""},
		{"blob", "HEAD", "/v2/own/app/blobs/DIGEST", ""},
		{"blob", "DELETE", "/v2/own/app/blobs/DIGEST", ""},
		{"manifest", "GET", "/v2/own/app/manifests/DIGEST", ""},
		{"manifest", "HEAD", "/v2/own/app/manifests/DIGEST", ""},
		{"manifest", "DELETE", "/v2/own/app/manifests/DIGEST", ""},
		{"referrers", "GET", "/v2/own/app/referrers/DIGEST", ""},
		{"manifest that names it", "PUT", "/v2/own/app/manifests/x", "DIGEST"},
		{"restore", "POST", wire.Base + "/restore", `{"repo":"own/app","tag":"1","digest":"DIGEST"}`},
		{"trash", "DELETE", wire.Base + "/trash?repo=own/app&digest=DIGEST", ""},
		{"history", "GET", wire.Base + "/history?repo=own/app&tag=hidden", ""},
	} {
		for _, d := range []digest.Digest{secret, digest.FromString(hidden)} {
			ask := func(d digest.Digest) string {
				body := strings.ReplaceAll(tc.body, "DIGEST", string(d))
				if tc.body == "DIGEST" {
					body = image(d)
				}
				return answer(c.by(member, tc.method, strings.ReplaceAll(tc.path, "DIGEST", string(d)), body), string(d))
			}
			if there, absent := ask(d), ask(nothing); there != absent {
				t.Errorf("%s: %s %s tells what others have:\n%s\nand what nobody has:\n%s", tc.name, tc.method, tc.path, there, absent)
			}
		}
	}
	if w := c.by(member, "GET", "/v2/own/app/referrers/"+string(c.manifest), ""); w.Code != 200 || !strings.Contains(w.Body.String(), `"manifests":[]`) {
		t.Errorf("the referrers of one repository in another: %d %s", w.Code, w.Body)
	}
	if w := c.by(member, "PUT", "/v2/own/app/manifests/referrer", referrer("own")); w.Code != 201 {
		t.Fatalf("PUT = %d %s", w.Code, w.Body)
	}
	w := c.by(member, "GET", "/v2/own/app/referrers/"+string(c.manifest), "")
	if strings.Count(w.Body.String(), `"digest"`) != 1 || !strings.Contains(w.Body.String(), string(digest.FromString(referrer("own")))) {
		t.Errorf("the referrers in one repository: %s", w.Body)
	}
	// An upload of somebody else is one that is not there, also to an administrator.
	id := c.upload(c.shows[member][0], "own/app")
	for _, method := range []string{"GET", "PATCH", "PUT", "DELETE"} {
		ask := func(id string) string {
			return answer(c.by("admin", method, "/v2/own/app/blobs/uploads/"+id+"?digest="+string(c.blob), ""), id)
		}
		if there, absent := ask(id), ask("AAAAAAAAAAAAAAAAAAAAAAAAAA"); there != absent {
			t.Errorf("%s of somebody else's upload:\n%s\nand of none:\n%s", method, there, absent)
		}
	}
}
