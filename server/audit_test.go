package server

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	wire "berth.internal/internal/control"
)

// recorded is people with an audit log.
func recorded(t *testing.T, change func(*Config)) (*Server, string) {
	t.Helper()
	return people(t, func(c *Config) {
		c.Audit.Dir = filepath.Join(t.TempDir(), "audit")
		if change != nil {
			change(c)
		}
	})
}

// news returns what the audit log has behind *after, and moves that on.
func news(t *testing.T, s *Server, after *string) []wire.AuditRecord {
	t.Helper()
	page, err := s.audit.Read(t.Context(), wire.AuditQuery{After: *after, Limit: 1000})
	if err != nil || page.More || page.Damaged > 0 {
		t.Fatalf("audit log: %+v, %v", page, err)
	}
	*after = page.Next
	return page.Records
}

// facts are those of a record that the tests below foresee.
func facts(r wire.AuditRecord) string {
	words := []string{r.Who, r.Credential, r.Action, r.Repo}
	for _, more := range []string{r.Tag, r.Object, r.Detail, r.Rule} {
		if more != "" {
			words = append(words, more)
		}
	}
	if r.Digest != "" {
		words = append(words, "DIGEST")
	}
	if r.Was != "" {
		words = append(words, "WAS")
	}
	words = append(words, r.Decision)
	if r.Status != 0 {
		words = append(words, fmt.Sprint(r.Status))
	}
	return strings.Join(words, "|")
}

// TestAudit holds each thing that is recorded to its record.
func TestAudit(t *testing.T) {
	s, secret := recorded(t, func(c *Config) {
		c.TrustedProxies, c.ImmutableTags = []string{"192.0.2.1"}, []TagPattern{{Repositories: "team/fixed", Tags: "v*"}}
	})
	robot := "robot+ci:" + secret
	blob := digest.FromString("a blob").String()
	manifest := func(text string) string {
		return digest.FromString(fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"annotations":{"text":%q}}`, text)).String()
	}
	upload := func(who, repo, wish string) *httptest.ResponseRecorder {
		at := as(t, s, who, "POST", "/v2/"+repo+"/blobs/uploads/", "").Header().Get("Location")
		return as(t, s, who, "PUT", at+"?digest="+wish, "a blob")
	}
	const grant = "robot ci"
	const admins = "group:admins allow pull,push,overwrite,delete,admin on **"
	after := ""
	for _, step := range []struct {
		name string
		do   func() *httptest.ResponseRecorder
		code int
		want []string
	}{
		{"nobody is asked to log in", func() *httptest.ResponseRecorder { return as(t, s, "", "GET", "/v2/", "") }, 401, nil},
		{"nobody pushes", func() *httptest.ResponseRecorder { return tagged(t, s, "", "team/app", "1", "a") }, 401, nil},
		{
			"a robot logs in, and uploads a blob", func() *httptest.ResponseRecorder { return upload(robot, "team/app", blob) },
			201,
			[]string{"robot:ci|basic|login||allowed", "robot:ci|basic|blob.push|team/app|" + grant + "|DIGEST|allowed|201"},
		},
		{
			"a wrong digest", func() *httptest.ResponseRecorder { return upload(robot, "team/app", manifest("x")) },
			400,
			[]string{"robot:ci|basic|blob.push|team/app|" + grant + "|DIGEST|failed|400"},
		},
		{
			"a blob at once", func() *httptest.ResponseRecorder {
				return as(t, s, robot, "POST", "/v2/team/other/blobs/uploads/?digest="+blob, "a blob")
			},
			201,
			[]string{"robot:ci|basic|blob.push|team/other|" + grant + "|DIGEST|allowed|201"},
		},
		{
			"a mount", func() *httptest.ResponseRecorder {
				return as(t, s, robot, "POST", "/v2/team/third/blobs/uploads/?mount="+blob+"&from=team/app", "")
			},
			201,
			[]string{"robot:ci|basic|blob.mount|team/third|team/app|" + grant + "|DIGEST|allowed|201"},
		},
		{
			"a mount of what it may not see becomes an upload", func() *httptest.ResponseRecorder {
				return as(t, s, robot, "POST", "/v2/team/third/blobs/uploads/?mount="+blob+"&from=secret/app", "")
			},
			202, nil,
		},
		{
			"a new tag", func() *httptest.ResponseRecorder { return tagged(t, s, robot, "team/app", "1", "a") },
			201,
			[]string{"robot:ci|basic|manifest.push|team/app|1|" + grant + "|DIGEST|allowed|201"},
		},
		{
			"a tag that it may not move", func() *httptest.ResponseRecorder { return tagged(t, s, robot, "team/app", "1", "b") },
			403,
			[]string{"robot:ci|basic|manifest.push|team/app|1|DIGEST|WAS|denied|403"},
		},
		{
			"an administrator moves it", func() *httptest.ResponseRecorder { return tagged(t, s, ann, "team/app", "1", "b") },
			201,
			[]string{"user:ann|basic|login||allowed", "user:ann|basic|manifest.push|team/app|1|" + admins + "|DIGEST|WAS|allowed|201"},
		},
		{
			"two tags", func() *httptest.ResponseRecorder { return tagged(t, s, ann, "team/app", "2?tag=3", "c") },
			201,
			[]string{
				"user:ann|basic|manifest.push|team/app|2|" + admins + "|DIGEST|allowed|201",
				"user:ann|basic|manifest.push|team/app|3|" + admins + "|DIGEST|allowed|201",
			},
		},
		{
			"no manifest", func() *httptest.ResponseRecorder {
				return as(t, s, ann, "PUT", "/v2/team/app/manifests/4", "{", "Content-Type", "application/vnd.oci.image.index.v1+json")
			},
			400,
			[]string{"user:ann|basic|manifest.push|team/app|4|" + admins + "|failed|400"},
		},
		{"an immutable tag", func() *httptest.ResponseRecorder {
			tagged(t, s, ann, "team/fixed", "v1", "a")
			return tagged(t, s, ann, "team/fixed", "v1", "b")
		}, 409, []string{
			"user:ann|basic|manifest.push|team/fixed|v1|" + admins + "|DIGEST|allowed|201",
			"user:ann|basic|manifest.push|team/fixed|v1|immutable_tags|DIGEST|WAS|denied|409",
		}},
		{
			"a tag is deleted", func() *httptest.ResponseRecorder {
				return as(t, s, ann, "DELETE", "/v2/team/app/manifests/3", "")
			},
			202,
			[]string{"user:ann|basic|tag.delete|team/app|3|" + admins + "|WAS|allowed|202"},
		},
		{
			"a manifest is deleted", func() *httptest.ResponseRecorder {
				return as(t, s, ann, "DELETE", "/v2/team/app/manifests/"+manifest("b"), "")
			},
			202,
			[]string{"user:ann|basic|manifest.delete|team/app|" + admins + "|DIGEST|allowed|202"},
		},
		{
			"and comes back", func() *httptest.ResponseRecorder {
				return as(t, s, ann, "POST", "/berth/v1/restore", fmt.Sprintf(`{"repo":"team/app","digest":%q}`, manifest("b")), "Content-Type", "application/json")
			},
			200,
			[]string{"user:ann|basic|manifest.restore|team/app|1|" + admins + "|DIGEST|allowed|200"},
		},
		{"for good", func() *httptest.ResponseRecorder {
			as(t, s, ann, "DELETE", "/v2/team/app/manifests/"+manifest("b"), "")
			return as(t, s, ann, "DELETE", "/berth/v1/trash?repo=team/app&digest="+manifest("b"), "")
		}, 200, []string{
			"user:ann|basic|manifest.delete|team/app|" + admins + "|DIGEST|allowed|202",
			"user:ann|basic|manifest.purge|team/app|" + admins + "|DIGEST|allowed|200",
		}},
		{
			"a blob is deleted", func() *httptest.ResponseRecorder {
				return as(t, s, ann, "DELETE", "/v2/team/third/blobs/"+blob, "")
			},
			202,
			[]string{"user:ann|basic|blob.delete|team/third|" + admins + "|DIGEST|allowed|202"},
		},
		{"pulls are not recorded", func() *httptest.ResponseRecorder {
			return as(t, s, ann, "GET", "/v2/team/app/manifests/2", "")
		}, 200, nil},
		{
			"a pull is denied", func() *httptest.ResponseRecorder { return as(t, s, bob, "GET", "/v2/team/app/manifests/2", "") },
			403,
			[]string{"user:bob|basic|login||allowed", "user:bob|basic|pull|team/app|denied|403"},
		},
		{"the same again is counted", func() *httptest.ResponseRecorder {
			return as(t, s, bob, "GET", "/v2/team/app/manifests/2", "")
		}, 403, nil},
		{
			"a wrong password", func() *httptest.ResponseRecorder { return as(t, s, "ann:wrong", "GET", "/v2/", "") },
			401,
			[]string{"user:ann|basic|login||denied"},
		},
		{
			"nobody's name", func() *httptest.ResponseRecorder { return as(t, s, "password of ann:ann", "GET", "/v2/", "") },
			401,
			[]string{"unknown|basic|login||denied"},
		},
		{
			"a token that is none", func() *httptest.ResponseRecorder { return as(t, s, "e30.e30.e30", "GET", "/v2/", "") },
			401,
			[]string{"unknown|token|login||denied"},
		},
		{
			"a header that is none", func() *httptest.ResponseRecorder {
				return as(t, s, "", "GET", "/v2/", "", "Authorization", "password of ann")
			},
			401,
			[]string{"unknown|none|login||denied"},
		},
		{
			"a token is given out", func() *httptest.ResponseRecorder {
				return as(t, s, robot, "GET", tokenPath+"?service=berth&scope=repository:team/app:pull,push,delete&scope=repository:secret/app:pull", "")
			},
			200,
			[]string{"robot:ci|basic|token||team/app:pull,push|allowed|200"},
		},
		{"an anonymous token is not recorded, its denial is", func() *httptest.ResponseRecorder {
			anon := token2(t, s, "", "repository:team/app:pull")
			return as(t, s, anon, "GET", "/v2/team/app/manifests/2", "")
		}, 401, []string{"anonymous|token|pull|team/app|denied|401"}},
		{
			"a user is made", func() *httptest.ResponseRecorder {
				return as(t, s, ann, "POST", "/berth/v1/users", `{"name":"eve","groups":["dev"],"password":"password of eve"}`, "Content-Type", "application/json")
			},
			200,
			[]string{"user:ann|basic|user.add||eve|groups password|" + admins + "|allowed|200"},
		},
		{
			"and changed", func() *httptest.ResponseRecorder {
				return as(t, s, ann, "PUT", "/berth/v1/users/eve", `{"disabled":true}`, "Content-Type", "application/json")
			},
			200,
			[]string{"user:ann|basic|user.change||eve|disabled|" + admins + "|allowed|200"},
		},
		{
			"the policy is changed", func() *httptest.ResponseRecorder {
				rules := `{"subject":"group:admins","repositories":"**","allow":["pull","push","overwrite","delete","admin"]},{"subject":"user:bob","repositories":"team/**","allow":["pull"]}`
				return as(t, s, ann, "PUT", "/berth/v1/policy", `{"rules":[`+rules+`]}`, "Content-Type", "application/json", "If-Match", "0")
			},
			200,
			[]string{"user:ann|basic|policy.change||+ user:bob allow pull on team/**|" + admins + "|allowed|200"},
		},
		{
			"who is no administrator", func() *httptest.ResponseRecorder { return as(t, s, bob, "GET", "/berth/v1/users", "") },
			403,
			[]string{"user:bob|basic|admin||GET /users|denied|403"},
		},
		{
			"who has not said who he is", func() *httptest.ResponseRecorder { return as(t, s, "", "DELETE", "/berth/v1/users/ann", "") },
			401,
			[]string{"anonymous|none|user.delete||DELETE /users/{user}|denied|401"},
		},
		{"who only looks", func() *httptest.ResponseRecorder { return as(t, s, bob, "GET", "/berth/v1/server", "") }, 200, nil},
		{
			"a job", func() *httptest.ResponseRecorder { return as(t, s, ann, "POST", "/berth/v1/gc", "") },
			202,
			[]string{"user:ann|basic|gc.start||" + admins + "|allowed|202"},
		},
	} {
		w := step.do()
		var got []string
		for _, r := range news(t, s, &after) {
			got = append(got, facts(r))
			if r.From != "192.0.2.1" || r.RequestID == "" || r.Time.IsZero() || r.Decision == wire.AuditDenied && r.Reason == "" {
				t.Errorf("%s: %+v", step.name, r)
			}
		}
		if w.Code != step.code || strings.Join(got, "\n") != strings.Join(step.want, "\n") {
			t.Errorf("%s = %d %s\n got %q\nwant %q with %d", step.name, w.Code, w.Body, got, step.want, step.code)
		}
	}
	s.control.Close()

	w := as(t, s, "eve:no", "GET", "/v2/", "", "X-Forwarded-For", "198.51.100.7")
	if got := news(t, s, &after); w.Code != 401 || len(got) != 1 || got[0].From != "198.51.100.7" {
		t.Errorf("behind a proxy: %d, %+v", w.Code, got)
	}
	w = as(t, s, ann, "GET", "/berth/v1/audit?action=policy.*", "")
	var page wire.AuditPage
	if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil || w.Code != 200 || len(page.Records) != 1 {
		t.Errorf("GET /audit = %d %s", w.Code, w.Body)
	}
	if w = as(t, s, ann, "GET", "/berth/v1/audit?repo=a[", ""); w.Code != 400 || !strings.Contains(w.Body.String(), `"field":"repo"`) {
		t.Errorf("GET /audit with half a pattern = %d %s", w.Code, w.Body)
	}
	files, err := filepath.Glob(filepath.Join(s.cfg.Audit.Dir, "*"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{secret, "password of", base64.StdEncoding.EncodeToString([]byte(ann))} {
		if strings.Contains(string(text), secret) {
			t.Errorf("the audit log holds %q", secret)
		}
	}
}

func token2(t *testing.T, s *Server, who, scope string) string {
	t.Helper()
	w := as(t, s, who, "GET", tokenPath+"?"+url.Values{"scope": {scope}}.Encode(), "")
	var answer tokenAnswer
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		t.Fatal(w.Body, err)
	}
	return answer.Token
}

// TestAuditPulls records pulls where that is wanted, and a server without users.
func TestAuditPulls(t *testing.T) {
	s, _ := newServer(t, func(c *Config) {
		c.Audit.Dir, c.Audit.Pulls, c.Anonymous = filepath.Join(t.TempDir(), "audit"), true, AnonymousPull
	})
	after := ""
	for _, tc := range []struct {
		method, path, want string
	}{
		{"GET", "/v2/team/app/manifests/1", "anonymous|none|pull|team/app|1|failed|404"},
		{"GET", "/v2/team/app/blobs/" + digest.FromString("x").String(), "anonymous|none|pull|team/app|DIGEST|failed|404"},
		{"HEAD", "/v2/team/app/blobs/" + digest.FromString("x").String(), ""},
		{"GET", "/v2/team/app/tags/list", ""},
		{"PUT", "/v2/team/app/manifests/1", "anonymous|none|manifest.push|team/app|1|denied|403"},
		{"POST", "/v2/team/app/blobs/uploads/", "anonymous|none|push|team/app|denied|403"},
		{"GET", "/berth/v1/users", "anonymous|none|admin||GET /users|denied|403"},
	} {
		as(t, s, "", tc.method, tc.path, "")
		var got []string
		for _, r := range news(t, s, &after) {
			got = append(got, facts(r))
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%s %s: %q, want %q", tc.method, tc.path, got, tc.want)
		}
	}
}
