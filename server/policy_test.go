package server

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.internal/auth/policy"
	wire "berth.internal/internal/control"
)

// TestPolicyInTheServer changes the policy of callers without a name, under each
// configuration for them.
func TestPolicyInTheServer(t *testing.T) {
	for _, tc := range []struct {
		anonymous       Anonymous
		rules           string
		pull, push, own int // of a repository team/app, and pull of other/app
	}{
		{AnonymousNone, `[]`, 404, 202, 404},
		{AnonymousNone, `[{"subject":"anonymous","repositories":"team/**","deny":["push"]}]`, 404, 403, 404},
		{AnonymousPull, `[]`, 404, 403, 404},
		{AnonymousPull, `[{"subject":"anonymous","repositories":"team/app","allow":["push"]},{"subject":"anonymous","repositories":"other/**","deny":["pull"]}]`, 404, 202, 403},
		{AnonymousPush, `[{"subject":"anonymous","repositories":"**","deny":["push"]}]`, 404, 403, 404},
	} {
		s, _ := newServer(t, func(c *Config) { c.Anonymous = tc.anonymous })
		rev, err := s.policy.Put(t.Context(), policyOf(t, tc.rules), 0)
		if err != nil || rev == 0 {
			t.Fatal(rev, err)
		}
		for _, ask := range []struct {
			method, path string
			want         int
		}{{"GET", "/v2/team/app/tags/list", tc.pull}, {"POST", "/v2/team/app/blobs/uploads/", tc.push}, {"GET", "/v2/other/app/tags/list", tc.own}} {
			if w := get(t, s.Handler(), ask.method, ask.path, ""); w.Code != ask.want {
				t.Errorf("anonymous: %s, %s: %s %s = %d %s, want %d", tc.anonymous, tc.rules, ask.method, ask.path, w.Code, w.Body, ask.want)
			}
		}
	}
}

// TestBrokenPolicyFile breaks the file of a server that runs, and begins one with
// it.
func TestBrokenPolicyFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "policy.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("rules: [{subject: anonymous, repositories: secret, deny: [pull]}]")
	s, _ := newServer(t, func(c *Config) { c.Policy = file })
	tcp, admin, _ := serving(t, s)
	if status, answer := tcp("GET", "/v2/secret/tags/list", ""); status != 403 || !strings.Contains(answer, "anonymous deny pull on secret") {
		t.Errorf("a pull that the policy denies = %d %s", status, answer)
	}
	write("rules: [x]")
	_, _ = s.Reload(t.Context())
	eventually(t, func() bool {
		status, answer := tcp("GET", "/readyz", "")
		return status == 200 && answer == "the policy needs an administrator: berth admin server and the log say why\n"
	})
	if _, answer := admin("GET", wire.Base+"/server", ""); !strings.Contains(answer, `{"name":"policy","ready":true,"reason":"`+file) {
		t.Errorf("GET /server by an administrator = %s", answer)
	}
	if _, answer := tcp("GET", wire.Base+"/server", ""); strings.Contains(answer, file) {
		t.Errorf("GET /server by anybody = %s", answer)
	}
	if status, _ := tcp("GET", "/v2/secret/tags/list", ""); status != 403 {
		t.Errorf("a pull that the policy denied = %d", status)
	}
	other, _ := newServer(t, func(c *Config) { c.Policy = file })
	if err := other.Serve(t.Context(), listenOnce(t), nil); err == nil || !strings.Contains(err.Error(), file+": line 1") {
		t.Errorf("Serve() with a broken policy = %v", err)
	}
}

func policyOf(t *testing.T, rules string) policy.Policy {
	t.Helper()
	p, err := policy.Parse("policy", []byte("rules: "+rules))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// eventually waits until ok holds.
func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("it does not come")
		}
	}
}

func listenOnce(t *testing.T) net.Listener {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}
