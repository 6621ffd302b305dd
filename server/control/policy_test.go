package control

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth.internal/auth"
	"berth.internal/auth/policy"
	"berth.internal/internal/control"
)

func TestPolicy(t *testing.T) {
	h := newHandler(Admin)
	for _, a := range []struct{ path, body string }{
		{"/users", `{"name":"eve","password":"correct horse battery","groups":["admins"]}`},
		{"/robots", `{"name":"ci","grants":[{"repositories":"team/**","actions":["pull"]}]}`},
	} {
		if w := ask(t, h, "POST", control.Base+a.path, a.body); w.Code >= 300 {
			t.Fatalf("POST %s = %d %s", a.path, w.Code, w.Body)
		}
	}
	const rule = `{"subject":"user:ann","repositories":"team/**","allow":["pull","push"]}`
	for _, step := range []struct {
		name, method, path, body, match string
		status                          int
		want                            string
	}{
		{"the default", "GET", "/policy", "", "", 200, `{"rules":[{"subject":"group:admins","repositories":"**","allow":["pull","push","overwrite","delete","admin"],"comment":"administrators may do everything"}],"source":"default","revision":0}`},
		{"a known user", "POST", "/policy/test", `{"subject":"user:eve","action":"admin"}`, "", 200, `{"allowed":true,"rule":"group:admins`},
		{"a known user, in other groups", "POST", "/policy/test", `{"subject":"user:eve","groups":[],"action":"admin"}`, "", 200, `{"allowed":false,`},
		{"a known robot", "POST", "/policy/test", `{"subject":"robot:ci","action":"push","repo":"team/app","rules":[{"subject":"robot:ci","repositories":"**","allow":["push"]}]}`, "", 200, `with this credential, which is good for pull on team/** only`},
		{"without a revision", "PUT", "/policy", `{"rules":[]}`, "", 428, `"code":"invalid","message":"say which revision`},
		{"not a revision", "PUT", "/policy", `{"rules":[]}`, "*", 400, `If-Match must be a revision`},
		{"without rules", "PUT", "/policy", `{}`, "0", 400, `"field":"rules"`},
		{"a mistake", "PUT", "/policy", `{"rules":[` + rule + `,{"subject":"ann","repositories":"a","allow":["pull"]}]}`, "0", 400, `user:NAME, group:NAME, robot:NAME, node:NAME, claim:ISSUER+KEY=PATTERN, everyone and anonymous","field":"rules[1].subject"`},
		{"many mistakes", "PUT", "/policy", `{"rules":[{"subject":"ann","repositories":"A","allow":["pull"]}]}`, "0", 400, `"message":"2 mistakes:\nrules[0].subject: `},
		{"an unknown member", "PUT", "/policy", `{"rules":[{"who":"ann"}]}`, "0", 400, `"code":"unsupported","message":"this operation knows no such option","field":"rules[0].who"`},
		{"the first", "PUT", "/policy", `{"rules":[` + rule + `]}`, `"0"`, 200, `{"rules":[` + rule + `],"source":"api","revision":`},
		{"an old revision", "PUT", "/policy", `{"rules":[]}`, "0", 412, `"code":"conflict","message":"somebody else has changed the policy since`},

		{"allowed", "POST", "/policy/test", `{"subject":"user:ann","action":"push","repo":"team/app"}`, "", 200, `{"allowed":true,"rule":"user:ann allow pull,push on team/**","why":`},
		{"denied", "POST", "/policy/test", `{"subject":"user:ann","groups":["admins"],"action":"delete","repo":"team/app"}`, "", 200, `{"allowed":false,"why":"user ann may not delete in team/app: no rule allows it`},
		{"by other rules", "POST", "/policy/test", `{"subject":"anonymous","action":"pull","repo":"a","rules":[{"subject":"anonymous","repositories":"*","allow":["pull"]}]}`, "", 200, `{"allowed":true,`},
		{"by wrong rules", "POST", "/policy/test", `{"subject":"anonymous","action":"pull","repo":"a","rules":[{"subject":"anonymous","repositories":"*"}]}`, "", 400, `"field":"rules[0].allow"`},
		{"of a job", "POST", "/policy/test", `{"subject":"robot:job","claims":{"ci+ref":"main"},"action":"push","repo":"a","rules":[{"subject":"claim:ci+ref=main","repositories":"*","allow":["push"]}]}`, "", 200, `{"allowed":true,`},
		{"nobody", "POST", "/policy/test", `{"subject":"ann","action":"push","repo":"a"}`, "", 400, `"field":"subject"`},
		{"a nameless user", "POST", "/policy/test", `{"subject":"user:","action":"push","repo":"a"}`, "", 400, `"field":"subject"`},
		{"the socket, as what everybody would be", "POST", "/policy/test", `{"subject":"socket","action":"push","repo":"a"}`, "", 400, `"field":"subject"`},
		{"an unknown action", "POST", "/policy/test", `{"subject":"user:ann","action":"read","repo":"a"}`, "", 400, `"field":"action"`},
		{"no repository", "POST", "/policy/test", `{"subject":"user:ann","action":"pull"}`, "", 400, `"field":"repo"`},
		{"admin", "POST", "/policy/test", `{"subject":"user:ann","action":"admin"}`, "", 200, `"why":"user ann may not administer this server`},
		{"admin of a repository", "POST", "/policy/test", `{"subject":"user:ann","action":"admin","repo":"a"}`, "", 400, `"field":"repo"`},
	} {
		var header []string
		if step.match != "" {
			header = []string{"If-Match", step.match}
		}
		w := ask(t, h, step.method, control.Base+step.path, step.body, header...)
		got := strings.TrimSpace(w.Body.String())
		if w.Code != step.status || !strings.Contains(got, step.want) {
			t.Errorf("%s: %s %s %s = %d %s, want %d %s", step.name, step.method, step.path, step.body, w.Code, got, step.status, step.want)
		}
	}
}

// TestPolicyFile asks a server whose policy is in a file.
func TestPolicyFile(t *testing.T) {
	h := newHandler(Admin)
	file := filepath.Join(t.TempDir(), "policy.yaml")
	write := func(text string) error {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return h.Policy.Load(t.Context())
	}
	h.Policy = policy.New(policy.LiveConfig{File: file, Log: slog.New(slog.DiscardHandler), Base: []policy.Rule{{Subject: "anonymous", Repositories: "**", Allow: []auth.Action{auth.Pull}, Comment: "anonymous: pull"}}})
	if err := write("rules: []\n"); err != nil {
		t.Fatal(err)
	}
	w := ask(t, h, "GET", control.Base+"/policy", "")
	if want := `{"rules":[],"added":[{"subject":"anonymous","repositories":"**","allow":["pull"],"comment":"anonymous: pull"}],"source":"file","revision":0}`; strings.TrimSpace(w.Body.String()) != want {
		t.Errorf("GET /policy = %d %s, want %s", w.Code, w.Body, want)
	}
	w = ask(t, h, "PUT", control.Base+"/policy", `{"rules":[]}`, "If-Match", "0")
	if w.Code != 409 || !strings.Contains(w.Body.String(), "from a file: change that") {
		t.Errorf("PUT /policy = %d %s, want 409", w.Code, w.Body)
	}
	if err := write("rules: [x]\n"); err == nil {
		t.Error("a wrong file was read")
	}
	w = ask(t, h, "GET", control.Base+"/policy", "")
	if want := fmt.Sprintf(`"problem":"%s: line 1: `, file); !strings.Contains(w.Body.String(), want) {
		t.Errorf("GET /policy = %d %s, want %s", w.Code, w.Body, want)
	}
}
