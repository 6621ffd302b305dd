package tree

import (
	"fmt"
	"strings"
	"testing"
)

func TestBelow(t *testing.T) {
	for _, tc := range []struct {
		name, dir, want string
		table           []string // number, the one it is on, place, and what follows
	}{
		{"none", "/src", "", []string{"1 0 /", "2 1 /srcs", "3 1 /sr"}},
		{"of the root", "/", "2 /a, 3 /a/b", []string{"1 0 /", "3 2 /a/b", "2 1 /a"}},
		{"each on what it is on", "/src", "2 /src/a, 5 /src/a/b, 4 /src/a/b/c, 3 /src/b", []string{"1 0 /", "4 5 /src/a/b/c", "5 2 /src/a/b", "3 1 /src/b", "2 1 /src/a", "6 1 /other"}},
		{"covered", "/src", "3 /src/a, 4 /src/a/x", []string{"1 0 /", "2 1 /src/a/b", "3 1 /src/a", "4 3 /src/a/x", "5 2 /src/a/b/c"}},
		{"on each other", "/src", "4 /src/a", []string{"1 0 /", "2 1 /src/a", "3 2 /src/a", "4 3 /src/a", "5 2 /src/a/b"}},
		{"unbindable", "/src", "4 /src/b", []string{"1 0 /", "2 1 /src/a unbindable", "3 2 /src/a/b", "4 1 /src/b shared:1 master:2"}},
		{"with strange names", "/src dir", "3 /src dir/\n\u00a0, 2 /src dir/a\\b", []string{"1 0 /", `2 1 /src\040dir/a\134b`, `3 1 /src\040dir/\012` + "\u00a0"}},
		{"in a circle", "/", "1 /", []string{"1 3 /", "2 1 /", "3 2 /"}},
	} {
		var text strings.Builder
		for _, line := range tc.table {
			f := strings.SplitN(line, " ", 4)
			fmt.Fprintf(&text, "%s %s 0:1 / %s rw %s - tmpfs - tmpfs rw\n", f[0], f[1], f[2], strings.Join(f[3:], ""))
		}
		var got []string
		for _, m := range below(parse(text.String()), 1, tc.dir) {
			got = append(got, fmt.Sprintf("%d %s", m.id, m.point))
		}
		if got := strings.Join(got, ", "); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

// FuzzBelow: any table has an answer, in which no mount is there twice or elsewhere.
func FuzzBelow(f *testing.F) {
	f.Add("1 0 0:1 / / rw - tmpfs tmpfs rw\n2 1 0:2 / /a\\040b rw shared:1 unbindable - proc proc rw\n", 1, "/")
	f.Fuzz(func(t *testing.T, text string, top int, dir string) {
		seen := map[string]bool{}
		for _, m := range below(parse(text), top, dir) {
			if seen[m.point] || !within(m.point, dir) {
				t.Errorf("%q is there twice, or not below %q", m.point, dir)
			}
			seen[m.point] = true
		}
	})
}
