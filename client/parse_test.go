package client

import (
	"fmt"
	"maps"
	"strings"
	"testing"
)

func TestParseChallenges(t *testing.T) {
	for _, tc := range []struct {
		name    string
		headers []string
		want    string
	}{
		{"none", nil, ""},
		{"basic", []string{`Basic realm="x"`}, `[{basic map[realm:x]}]`},
		{
			"bearer",
			[]string{`Bearer realm="https://a/token",service="a",scope="repository:b:pull,push"`},
			`[{bearer map[realm:https://a/token scope:repository:b:pull,push service:a]}]`,
		},
		{"two headers", []string{`Bearer realm=a`, `Basic realm=b`}, `[{bearer map[realm:a]} {basic map[realm:b]}]`},
		{"one header", []string{`Bearer realm="a", error="b, c" , Basic realm="b\"c"`}, `[{bearer map[error:b, c realm:a]} {basic map[realm:b"c]}]`},
		{"blanks", []string{` Bearer realm = "a" ; Basic`}, `[{bearer map[realm:a]}]`},
		{"no parameters", []string{`Negotiate, Basic realm=x`}, `[{negotiate map[]} {basic map[realm:x]}]`},
		{"open quotes", []string{`Bearer realm="a`}, `[{bearer map[]}]`},
		{"garbage", []string{`=,"`}, ``},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := fmt.Sprint(parseChallenges(tc.headers))
			if got == "[]" {
				got = ""
			}
			if got != tc.want {
				t.Errorf("parseChallenges(%q) = %s, want %s", tc.headers, got, tc.want)
			}
		})
	}
}

// FuzzParseChallenges writes down what was read, and reads it again.
func FuzzParseChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://a/token",service="a",scope="repository:b:pull,push", Basic realm="x"`)
	f.Add(`Basic realm="a\"b"`)
	f.Fuzz(func(t *testing.T, header string) {
		for _, c := range parseChallenges([]string{header}) {
			var b strings.Builder
			b.WriteString(c.scheme)
			sep := " "
			for k, v := range c.params {
				fmt.Fprintf(&b, `%s%s="%s"`, sep, k, strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(v))
				sep = ", "
			}
			again := parseChallenges([]string{b.String()})
			if len(again) != 1 || again[0].scheme != c.scheme || !maps.Equal(again[0].params, c.params) {
				t.Errorf("%q has challenge %v, but written as %q it is read as %v", header, c, b.String(), again)
			}
		}
	})
}

func TestParseContentRange(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want string
	}{
		{"bytes 0-0/1", "0 0 1"},
		{"bytes 5-9/10", "5 9 10"},
		{"bytes 5-9/*", "5 9 -1"},
		{"bytes 5-10/10", "error"},
		{"bytes 9-5/10", "error"},
		{"bytes -5/10", "error"},
		{"bytes 5-/10", "error"},
		{"bytes */10", "error"},
		{"bytes +5-9/10", "error"},
		{"items 5-9/10", "error"},
		{"bytes 0-99999999999999999999/*", "error"},
		{"", "error"},
	} {
		first, last, size, err := parseContentRange(tc.in)
		got := fmt.Sprint(first, last, size)
		if err != nil {
			got = "error"
		}
		if got != tc.want {
			t.Errorf("parseContentRange(%q) = %s (%v), want %s", tc.in, got, err, tc.want)
		}
	}
}

func FuzzParseContentRange(f *testing.F) {
	f.Add("bytes 5-9/10")
	f.Add("bytes 5-9/*")
	f.Fuzz(func(t *testing.T, s string) {
		first, last, size, err := parseContentRange(s)
		if err != nil {
			return
		}
		if first < 0 || first > last || size >= 0 && last >= size {
			t.Errorf("parseContentRange(%q) = %d, %d, %d, which is no range", s, first, last, size)
		}
	})
}

func TestParseHeld(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want int64 // -1: refused
	}{
		{"0-0", 0},
		{"0-9", 10},
		{"bytes=0-9", 10},
		{"1-9", -1},
		{"0-", -1},
		{"0--5", -1},
		{"", -1},
	} {
		got, ok := parseHeld(tc.in)
		if !ok {
			got = -1
		}
		if got != tc.want {
			t.Errorf("parseHeld(%q) = %d, want %d", tc.in, got, tc.want)
		}
	}
}

func TestNextLink(t *testing.T) {
	for _, tc := range []struct {
		in   []string
		want string
	}{
		{nil, ""},
		{[]string{`</v2/a/tags/list?n=2&last=b>; rel="next"`}, "/v2/a/tags/list?n=2&last=b"},
		{[]string{`</x>;rel=next`}, "/x"},
		{[]string{`</x>; rel="prev"`, `</y>; rel="next"`}, "/y"},
		{[]string{`</x>; rel=prev, </y>; title="a, <b>"; rel="last next"`}, "/y"},
		{[]string{`</x>; rel="prev"`}, ""},
		{[]string{`</x; rel="next"`}, ""},
		{[]string{`rel="next"`}, ""},
	} {
		if got := nextLink(tc.in); got != tc.want {
			t.Errorf("nextLink(%q) = %q, want %q", tc.in, got, tc.want)
		}
	}
}

func FuzzNextLink(f *testing.F) {
	f.Add(`</v2/a/tags/list?n=2&last=b>; rel="next"`)
	f.Add(`</x>; rel=prev, </y>; title="a, <b>"; rel="last next"`)
	f.Fuzz(func(t *testing.T, s string) {
		if target := nextLink([]string{s}); target != "" && !strings.Contains(s, "<"+target+">") {
			t.Errorf("nextLink(%q) = %q, which is not one of its targets", s, target)
		}
	})
}

func TestPrintable(t *testing.T) {
	if got := printable("a\x1b[31m\nb\xff"); got != "a[31m b" {
		t.Errorf("printable kept what moves a terminal: %q", got)
	}
	if got := printable(strings.Repeat("x", 1000)); len(got) > 510 {
		t.Errorf("printable kept %d bytes", len(got))
	}
}
