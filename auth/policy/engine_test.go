package policy_test

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"

	"berth.internal/auth"
	"berth.internal/auth/policy"
)

// parse reads rules of the form "SUBJECT allow|deny ACTION,ACTION PATTERN".
func parse(t testing.TB, lines ...string) policy.Policy {
	t.Helper()
	var p policy.Policy
	for _, line := range lines {
		w := strings.Fields(line)
		r := policy.Rule{Subject: w[0], Repositories: w[3]}
		list := &r.Allow
		if w[1] == "deny" {
			list = &r.Deny
		}
		for a := range strings.SplitSeq(w[2], ",") {
			*list = append(*list, auth.Action(a))
		}
		p.Rules = append(p.Rules, r)
	}
	return p
}

func compile(t testing.TB, lines ...string) *policy.Engine {
	t.Helper()
	e, err := policy.Compile(parse(t, lines...))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

var (
	nobody = auth.Caller{Kind: auth.Anonymous}
	ann    = auth.Caller{Kind: auth.User, Name: "ann", Groups: []string{"dev", "ops"}}
	bob    = auth.Caller{Kind: auth.User, Name: "bob"}
	job    = auth.Caller{Kind: auth.Job, Name: "ci+job", Claims: map[string]string{"ci+project_path": "team/app", "ci+ref": "main"}}
	edge   = auth.Caller{Kind: auth.Node, Name: "edge"}
	socket = auth.Caller{Kind: auth.Socket}
)

func TestDecide(t *testing.T) {
	limited := func(c auth.Caller, grants ...auth.Grant) auth.Caller { c.Limits = grants; return c }
	pullTeam := auth.Grant{Repositories: "team/**", Actions: []auth.Action{auth.Pull}}
	for _, tc := range []struct {
		name  string
		rules string // separated by "; "
		who   auth.Caller
		what  auth.Action
		repo  string
		want  string // "+" or "-", then the rule's number counted from one, or "0"
	}{
		{"nothing is allowed that no rule allows", "", ann, auth.Pull, "team/app", "-0"},
		{"allowed", "user:ann allow pull team/app", ann, auth.Pull, "team/app", "+1"},
		{"another action", "user:ann allow pull team/app", ann, auth.Push, "team/app", "-0"},
		{"another repository", "user:ann allow pull team/app", ann, auth.Pull, "team/apps", "-0"},
		{"another user", "user:ann allow pull team/app", bob, auth.Pull, "team/app", "-0"},
		{"a robot of a user's name", "user:job allow pull **", job, auth.Pull, "a", "-0"},
		{"a group", "group:ops allow pull **", ann, auth.Pull, "a", "+1"},
		{"not in the group", "group:ops allow pull **", bob, auth.Pull, "a", "-0"},
		{"a node", "node:edge allow pull **", edge, auth.Pull, "a/b/c", "+1"},
		{"a claim", "claim:ci+project_path=team/* allow push team/**", job, auth.Push, "team/app", "+1"},
		{"another value", "claim:ci+project_path=other/* allow push team/**", job, auth.Push, "team/app", "-0"},
		{"a value with braces", "claim:ci+ref={dev,ma*} allow push team/**", job, auth.Push, "team/app", "+1"},
		{"a value with an address", "claim:ci+iss=https://*/** allow push team/**", auth.Caller{Kind: auth.Job, Claims: map[string]string{"ci+iss": "https://ci.example.com/a/B"}}, auth.Push, "team/app", "+1"},
		{"a claim it lacks", "claim:ci+sub=* allow push team/**", job, auth.Push, "team/app", "-0"},
		{"anonymous", "anonymous allow pull public/**", nobody, auth.Pull, "public/a", "+1"},
		{"anonymous is not for users", "anonymous allow pull public/**", ann, auth.Pull, "public/a", "-0"},
		{"everyone", "everyone allow pull public/**", bob, auth.Pull, "public/a", "+1"},
		{"everyone is not anonymous", "everyone allow pull public/**", nobody, auth.Pull, "public/a", "-0"},
		{"the socket", "", socket, auth.Admin, "", "+0"},
		{"an unknown kind of caller", "everyone allow pull **", auth.Caller{Kind: "ghost"}, auth.Pull, "a", "-0"},
		{"an unknown action", "everyone allow pull **", ann, "sign", "a", "-0"},

		{"** stands for the folder itself, too", "everyone allow pull team/**", ann, auth.Pull, "team", "+1"},
		{"but not for names that begin like it", "everyone allow pull team/**", ann, auth.Pull, "teams/a", "-0"},
		{"* is one word", "everyone allow pull team/*", ann, auth.Pull, "team/a/b", "-0"},
		{"** in front", "everyone allow pull **/app", ann, auth.Pull, "app", "+1"},
		{"** in the middle", "everyone allow pull team/**/app", ann, auth.Pull, "team/x/y/app", "+1"},
		{"braces", "everyone allow pull {team,lab}/{a,b}*", ann, auth.Pull, "lab/bc", "+1"},
		{"an empty alternative", "everyone allow pull app{,-debug}", ann, auth.Pull, "app", "+1"},
		{"a class", "everyone allow pull app[0-9a]", ann, auth.Pull, "app7", "+1"},
		{"a mark", "everyone allow pull app?", ann, auth.Pull, "app", "-0"},

		{"the longer match allows", "everyone deny push **; user:ann allow push team/**", ann, auth.Push, "team/app", "+2"},
		{"the longer match denies", "everyone allow push team/**; everyone deny push team/prod/**", ann, auth.Push, "team/prod/app", "-2"},
		{"the order does not count", "everyone deny push team/prod/**; everyone allow push team/**", ann, auth.Push, "team/prod/app", "-1"},
		{"nor does the subject", "user:ann allow push team/**; everyone deny push team/prod/**", ann, auth.Push, "team/prod/app", "-2"},
		{"a rule for another action does not count", "everyone allow push team/**; everyone deny delete team/prod/**", ann, auth.Push, "team/prod/app", "+1"},
		{"a name is longer than patterns", "everyone deny pull team/ap[p]; everyone allow pull team/app", ann, auth.Pull, "team/app", "+2"},
		{"also if * stands for nothing", "everyone deny pull team/app*; everyone allow pull team/app", ann, auth.Pull, "team/app", "+2"},
		{"also if **/ stands for nothing", "everyone deny pull **/app; everyone allow pull app", ann, auth.Pull, "app", "+2"},
		{"* is longer than **", "everyone allow pull team/*; everyone deny pull team/**", ann, auth.Pull, "team/app", "+1"},
		{"more words are longer", "everyone allow pull */**; everyone deny pull **", ann, auth.Pull, "team/app", "+1"},
		{"a mark is longer than *", "everyone allow pull app?; everyone deny pull app*", ann, auth.Pull, "app1", "+1"},
		{"a class is longer than a mark", "everyone allow pull app[0-9]; everyone deny pull app?", ann, auth.Pull, "app1", "+1"},
		{"braces are as long as what matches", "everyone deny pull team/{a,app}; everyone allow pull team/ap*", ann, auth.Pull, "team/app", "-1"},
		{"letters count wherever they are", "everyone allow pull team/**; everyone deny pull **/secret", ann, auth.Pull, "team/secret", "-2"},
		{"equally long: deny", "user:ann allow push team/**; everyone deny push team/**", ann, auth.Push, "team/app", "-2"},
		{"equally long and both allow: the closest subject", "everyone allow push team/**; group:dev allow push team/**; user:ann allow push team/**", ann, auth.Push, "team/app", "+3"},
		{"a claim is closer than everyone", "everyone allow push team/**; claim:ci+ref=main allow push team/**", job, auth.Push, "team/app", "+2"},
		{"all the same: the first", "group:ops allow push **; group:dev allow push **", ann, auth.Push, "a", "+1"},

		{"admin", "group:ops allow admin **", ann, auth.Admin, "", "+1"},
		{"admin does not follow from the rest", "user:ann allow pull,push,overwrite,delete **", ann, auth.Admin, "", "-0"},
		{"the catalog, who may pull something", "user:ann allow pull team/app", ann, auth.Pull, "", "+1"},
		{"the catalog, who may pull nothing", "user:ann allow push team/app; user:ann deny pull **", ann, auth.Pull, "", "-0"},

		{"within the limits", "user:ann allow pull,push **", limited(ann, pullTeam), auth.Pull, "team/app", "+1"},
		{"limits, another action", "user:ann allow pull,push **", limited(ann, pullTeam), auth.Push, "team/app", "-0"},
		{"limits, another repository", "user:ann allow pull,push **", limited(ann, pullTeam), auth.Pull, "other", "-0"},
		{"limits give nothing by themselves", "", limited(ann, pullTeam), auth.Pull, "team/app", "-0"},
		{"no limits are not empty limits", "user:ann allow pull **", limited(ann), auth.Pull, "a", "+1"},
		{"empty limits", "user:ann allow pull **", auth.Caller{Kind: auth.User, Name: "ann", Limits: []auth.Grant{}}, auth.Pull, "a", "-0"},
		{"limits with a broken pattern", "user:ann allow pull **", limited(ann, auth.Grant{Repositories: "[", Actions: auth.Actions()}), auth.Pull, "a", "-0"},
		{"limits of some repositories do not hold admin", "user:ann allow admin **", limited(ann, auth.Grant{Repositories: "team/**", Actions: auth.Actions()}), auth.Admin, "", "-0"},
		{"unlimited limits do", "user:ann allow admin **", limited(ann, auth.Grant{Repositories: "**", Actions: auth.Actions()}), auth.Admin, "", "+1"},
		{"limits and the catalog", "user:ann allow pull **", limited(ann, pullTeam), auth.Pull, "", "+1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var lines []string
			if tc.rules != "" {
				lines = strings.Split(tc.rules, "; ")
			}
			e := compile(t, lines...)
			d := e.Decide(tc.who, tc.repo, tc.what)
			sign := map[bool]string{true: "+", false: "-"}[d.Allowed]
			number := 1 + slices.IndexFunc(e.Policy().Rules, func(r policy.Rule) bool { return r.String() == d.Rule })
			if got := fmt.Sprint(sign, number); got != tc.want {
				t.Errorf("%s %s %q by %q = %s (%s), want %s", tc.who, tc.what, tc.repo, tc.rules, got, d.Why, tc.want)
			}
			if d.Why == "" {
				t.Error("the decision has no reason")
			}
		})
	}
}

func TestWhy(t *testing.T) {
	e := compile(t, "group:dev deny push team/prod/**", "user:ann allow pull,push team/**")
	limited := ann
	limited.Limits = []auth.Grant{{Repositories: "team/a", Actions: []auth.Action{auth.Pull}}}
	for _, tc := range []struct {
		who  auth.Caller
		repo string
		a    auth.Action
		want string
	}{
		{ann, "team/app", auth.Push, `the rule "user:ann allow pull,push on team/**" allows it`},
		{ann, "team/prod/app", auth.Push, `user ann may not push to team/prod/app: the rule "group:dev deny push on team/prod/**" denies it`},
		{bob, "team/app", auth.Push, `user bob may not push to team/app: no rule allows it; an administrator can grant it with berth policy allow user:bob push team/app`},
		{bob, "", auth.Admin, `user bob may not administer this server: no rule allows it; an administrator can grant it with berth policy allow user:bob admin **`},
		{nobody, "team/app", auth.Delete, `who has not logged in may not delete in team/app: log in; an administrator can also allow it to everybody with berth policy allow anonymous delete team/app`},
		{limited, "team/a", auth.Push, `user ann may not push to team/a with this credential, which is good for pull on team/a only: use another one`},
		{socket, "", auth.Admin, "the admin socket may do everything"},
	} {
		if got := e.Decide(tc.who, tc.repo, tc.a).Why; got != tc.want {
			t.Errorf("%s %s %s\n got %s\nwant %s", tc.who, tc.a, tc.repo, got, tc.want)
		}
	}
}

func TestDefault(t *testing.T) {
	e, err := policy.Compile(policy.Default())
	if err != nil {
		t.Fatal(err)
	}
	root := auth.Caller{Kind: auth.User, Name: "root", Groups: []string{policy.AdminGroup}}
	for _, a := range auth.Actions() {
		repo := "any/thing"
		if a == auth.Admin {
			repo = ""
		}
		for _, c := range []auth.Caller{ann, job, edge, nobody} {
			if d := e.Decide(c, repo, a); d.Allowed {
				t.Errorf("%s may %s: %s", c, a, d.Why)
			}
		}
		if d := e.Decide(root, repo, a); !d.Allowed || d.Rule == "" {
			t.Errorf("an administrator may not %s: %s", a, d.Why)
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	for _, tc := range []struct{ rule, want string }{
		{"ann allow pull **", `rules[0].subject: "ann" is none of user:NAME, group:NAME, robot:NAME, node:NAME, claim:ISSUER+KEY=PATTERN, everyone and anonymous`},
		{"socket allow pull **", `rules[0].subject: "socket" is none of`},
		{"user: allow pull **", "rules[0].subject: user: needs a name"},
		{"anonymous:x allow pull **", "rules[0].subject: anonymous has no name"},
		{"claim:ci+sub allow pull **", "rules[0].subject: \"claim:ci+sub\" is not a claim with a pattern"},
		{"claim:ci+sub=[ allow pull **", "rules[0].subject: \"[\": [ is not one of several characters"},
		{"claim:sub=x allow pull **", "rules[0].subject: \"claim:sub=x\" does not say which issuer makes the claim: write claim:ISSUER+sub=x"},
		{"claim:+sub=x allow pull **", "rules[0].subject: \"claim:+sub=x\" does not say which issuer"},
		{"user:a\x7fb allow pull **", "rules[0].subject: a name has neither spaces nor control characters"},
		{"user:" + strings.Repeat("a", 256) + " allow pull **", "rules[0].subject: a subject has at most 255 bytes"},
		{"everyone allow pull Team/**", `rules[0].repositories: "Team/**": no repository has the character 'T' in its name`},
		{"everyone allow pull team\\*", `rules[0].repositories: "team\\*": no repository has the character '\\'`},
		{"everyone allow pull /team", "rules[0].repositories: \"/team\": no repository has an empty word"},
		{"everyone allow pull team/", "rules[0].repositories: \"team/\": no repository has an empty word"},
		{"everyone allow pull team/{a,/b}", `rules[0].repositories: "team//b", of "team/{a,/b}": no repository has an empty word`},
		{"everyone allow pull team/**a", "rules[0].repositories: \"team/**a\": ** stands alone"},
		{"everyone allow pull team/[", "rules[0].repositories: \"team/[\": [ is not one of several characters"},
		{"everyone allow pull [z-a]", "rules[0].repositories: \"[z-a]\": [z-a] is not one of"},
		{"everyone allow pull [^a]", "rules[0].repositories: \"[^a]\": [^a] is not one of"},
		{"everyone allow pull a{b", "rules[0].repositories: \"a{b\": braces that do not match"},
		{"everyone allow pull a}b", "rules[0].repositories: \"a}b\": a } without its {"},
		{"everyone allow pull {a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}", "rules[0].repositories: braces that stand for more than 64 patterns"},
		{"everyone allow pull " + strings.Repeat("a", 256), "rules[0].repositories: a pattern has at most 255 bytes"},
		{"everyone allow admin team/**", "rules[0].allow: admin is a right on the server as a whole"},
		{"everyone allow read **", `rules[0].allow: "read" is none of the actions pull, push, overwrite, delete, admin`},
		{"everyone deny pull,pull **", "rules[0].deny: pull is there twice"},
	} {
		_, err := policy.Compile(parse(t, tc.rule))
		if err == nil || !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("Compile(%.80q)\n got %v\nwant %s", tc.rule, err, tc.want)
		}
	}
	p := policy.Policy{Rules: []policy.Rule{
		{Subject: "everyone", Repositories: "**"},
		{Subject: "ghost", Repositories: ""},
		{Subject: "everyone", Repositories: "**", Allow: []auth.Action{auth.Pull}, Deny: []auth.Action{auth.Push}},
	}}
	if _, err := policy.Compile(p); err == nil || strings.Count(err.Error(), "\n") != 4 {
		t.Errorf("Compile of five mistakes: %v", err)
	}
}

// oracle decides as Engine says it does, the slow way: the longest match is
// found by comparing all rules with all others, and patterns by path.Match.
func oracle(rules []policy.Rule, c auth.Caller, repo string, a auth.Action) (allowed bool, rule int) {
	type candidate struct {
		rule, distance int
		length         []int // greater is longer, first difference counts
		deny           bool
	}
	var found []candidate
	for i, r := range rules {
		kind, name, _ := strings.Cut(r.Subject, ":")
		distance, applies := 0, false
		switch kind {
		case "anonymous":
			applies = c.Kind == auth.Anonymous
		case "everyone":
			applies, distance = c.Kind != auth.Anonymous, 3
		case "group":
			applies, distance = c.In(name), 2
		case "claim":
			key, glob, _ := strings.Cut(name, "=")
			value, has := c.Claims[key]
			matches, _ := path.Match(glob, value)
			applies, distance = has && matches, 1
		default:
			applies = string(c.Kind) == kind && c.Name == name
		}
		if !applies || !slices.Contains(slices.Concat(r.Allow, r.Deny), a) {
			continue
		}
		for _, glob := range braces(r.Repositories) {
			if segments(strings.Split(glob, "/"), strings.Split(repo, "/")) {
				found = append(found, candidate{i, distance, length(glob), r.Deny != nil})
			}
		}
	}
	for _, x := range found {
		best := true
		for _, y := range found {
			order := slices.Compare(x.length, y.length)
			if order == 0 && x.deny != y.deny {
				order = map[bool]int{true: 1, false: -1}[x.deny]
			}
			if order == 0 {
				order = y.distance - x.distance
			}
			if order == 0 {
				order = y.rule - x.rule
			}
			best = best && order >= 0
		}
		if best {
			return !x.deny, x.rule
		}
	}
	return false, -1
}

// braces writes out the last braces first.
func braces(glob string) []string {
	open := strings.LastIndex(glob, "{")
	if open < 0 {
		return []string{glob}
	}
	inside, rest, _ := strings.Cut(glob[open+1:], "}")
	var all []string
	for option := range strings.SplitSeq(inside, ",") {
		all = append(all, braces(glob[:open]+option+rest)...)
	}
	return all
}

func segments(glob, name []string) bool {
	switch {
	case len(glob) == 0:
		return len(name) == 0
	case glob[0] == "**":
		return segments(glob[1:], name) || len(name) > 0 && segments(glob, name[1:])
	case len(name) == 0:
		return false
	}
	ok, err := path.Match(glob[0], name[0])
	return ok && err == nil && segments(glob[1:], name[1:])
}

func length(glob string) []int {
	letters, classes := 0, strings.Count(glob, "[")
	in := false
	for _, r := range glob {
		switch {
		case r == '[':
			in = true
		case r == ']':
			in = false
		case !in && !strings.ContainsRune("*?/", r):
			letters++
		}
	}
	doubles := strings.Count(glob, "**")
	return []int{letters, -doubles, strings.Count(glob, "/"), -(strings.Count(glob, "*") - 2*doubles), -strings.Count(glob, "?"), -classes}
}

// FuzzDecide holds the engine to the oracle, with rules and questions made of
// few words, so that many match.
func FuzzDecide(f *testing.F) {
	f.Add([]byte("0123456789"), "team/app")
	f.Add([]byte{1, 0, 9, 3, 2, 4, 7, 7, 3, 1, 0, 5, 5, 8, 13, 2, 1, 1, 4, 9, 200, 3, 77, 31}, "a/b/a")
	f.Add([]byte{3, 3, 3, 3, 3, 17, 17, 17, 17, 17, 5, 4, 3, 2, 1, 0, 9, 8, 7, 6, 5}, "a")
	subjects := []string{"anonymous", "everyone", "user:ann", "group:dev", "group:ops", "robot:ci", "claim:ci+ref=ma*", "claim:ci+project_path=team/*", "node:edge"}
	pieces := []string{"a", "b", "ab", "team", "app", "**", "*", "?", "a*", "*b", "[ab]", "a[a-c]", "{a,b}", "{a,ab}*", "{team,**}", "a{,b}"}
	f.Fuzz(func(t *testing.T, choices []byte, repo string) {
		next := func(n int) int {
			if len(choices) == 0 {
				return 0
			}
			c := int(choices[0])
			choices = choices[1:]
			return c % n
		}
		if len(repo) > 30 || strings.Trim(repo, "abtemp/") != "" || path.Clean("/"+repo) != "/"+repo || repo == "" {
			repo = []string{"a", "b", "ab", "a/b", "team/app", "team/a/b", "a/a/a"}[next(7)]
		}
		var p policy.Policy
		for len(choices) > 4 && len(p.Rules) < 12 {
			r := policy.Rule{Subject: subjects[next(len(subjects))]}
			var words []string
			for range 1 + next(3) {
				words = append(words, pieces[next(len(pieces))])
			}
			r.Repositories = strings.Join(words, "/")
			list := auth.Actions()[next(2) : 2+next(2)]
			if next(3) == 0 {
				r.Deny = list
			} else {
				r.Allow = list
			}
			p.Rules = append(p.Rules, r)
		}
		e, err := policy.Compile(p)
		if err != nil {
			t.Fatalf("Compile(%v): %v", p, err)
		}
		for _, c := range []auth.Caller{nobody, ann, bob, job, edge} {
			for _, a := range []auth.Action{auth.Pull, auth.Push} {
				d := e.Decide(c, repo, a)
				allowed, rule := oracle(p.Rules, c, repo, a)
				want := ""
				if rule >= 0 {
					want = p.Rules[rule].String()
				}
				if d.Allowed != allowed || d.Rule != want {
					t.Errorf("%v\n%s %s %s = %v by %q, want %v by %q", p.Rules, c, a, repo, d.Allowed, d.Rule, allowed, want)
				}
			}
		}
	})
}

// FuzzPattern compiles any pattern and asks for any repository: nothing panics,
// and what is accepted matches as the oracle says.
func FuzzPattern(f *testing.F) {
	for _, s := range []string{"team/**", "**", "{a,{b,c}}/[a-z]*", "a}{", "[", "***", "**/a/**/b", "[]a]", "[a-", "{,}"} {
		f.Add(s, "team/a")
	}
	f.Fuzz(func(t *testing.T, glob, repo string) {
		e, err := policy.Compile(policy.Policy{Rules: []policy.Rule{{Subject: "everyone", Repositories: glob, Allow: []auth.Action{auth.Pull}}}})
		if err != nil || strings.Count(glob, "*") > 6 || len(repo) > 60 || repo == "" || strings.Contains("/"+repo+"/", "//") ||
			strings.Trim(repo, "abcdefghijklmnopqrstuvwxyz0123456789._-/") != "" {
			return
		}
		want := slices.ContainsFunc(braces(glob), func(one string) bool { return segments(strings.Split(one, "/"), strings.Split(repo, "/")) })
		if got := e.Decide(bob, repo, auth.Pull).Allowed; got != want || policy.Match(glob, repo) != want {
			t.Errorf("%q matches %q: %v, want %v", glob, repo, got, want)
		}
	})
}

func BenchmarkDecide(b *testing.B) {
	var lines []string
	for i := range 1000 {
		lines = append(lines, fmt.Sprintf("group:g%d allow pull,push team%d/**", i%100, i), fmt.Sprintf("user:u%d allow pull lab%d/*/x", i, i))
	}
	lines = append(lines, "everyone allow pull public/**", "group:dev allow pull,push team/**", "group:ops deny push team/*/frozen", "user:ann allow push team/app", "claim:ci+project_path=team/* allow push team/**")
	e := compile(b, lines...)
	many := ann
	for i := range 10 {
		many.Groups = append(many.Groups, fmt.Sprint("g", i))
	}
	limited := ann
	limited.Limits = []auth.Grant{{Repositories: "team/**", Actions: []auth.Action{auth.Pull, auth.Push}}}
	for _, bc := range []struct {
		name string
		who  auth.Caller
		repo string
		a    auth.Action
	}{
		{"user", ann, "team/app", auth.Push},
		{"group", ann, "team/other/thing", auth.Pull},
		{"of 12 groups", many, "team/other/thing", auth.Pull},
		{"limited", limited, "team/app", auth.Push},
		{"claim", job, "team/app", auth.Push},
		{"denied", bob, "team/app", auth.Push},
	} {
		b.Run(bc.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				e.Decide(bc.who, bc.repo, bc.a)
			}
		})
	}
}

// TestAllocations keeps the way of what is allowed free of garbage.
func TestAllocations(t *testing.T) {
	e := compile(t, "group:dev allow pull team/**", "claim:ci+ref=* allow push team/[a-z]*")
	limited := ann
	limited.Limits = []auth.Grant{{Repositories: "team/*", Actions: []auth.Action{auth.Pull}}}
	if n := testing.AllocsPerRun(100, func() {
		if !e.Decide(limited, "team/app", auth.Pull).Allowed || !e.Decide(job, "team/app", auth.Push).Allowed {
			t.Error("denied")
		}
	}); n > 0 {
		t.Errorf("two decisions make %v allocations, want none", n)
	}
}
