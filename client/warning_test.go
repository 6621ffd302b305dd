package client

import (
	"net/http"
	"slices"
	"strings"
	"testing"
)

func TestParseWarnings(t *testing.T) {
	for name, tc := range map[string]struct {
		headers, want []string
	}{
		"none":       {nil, nil},
		"one":        {[]string{`299 - "old"`}, []string{"old"}},
		"two":        {[]string{`299 - "a"`, `299 - "b, c"`}, []string{"a", "b, c"}},
		"escapes":    {[]string{`299 - "say \"no\" to \\"`}, []string{`say "no" to \`}},
		"other code": {[]string{`110 - "stale"`}, nil},
		"open":       {[]string{`299 - "old`}, nil},
		"too much":   {[]string{`299 - "a"`, `299 - "` + strings.Repeat("x", maxWarnings) + `"`}, []string{"a"}},
		"control":    {[]string{"299 - \"a\x1b[2Jb\""}, []string{printable("a\x1b[2Jb")}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := parseWarnings(http.Header{"Warning": tc.headers}); !slices.Equal(got, tc.want) {
				t.Errorf("parseWarnings(%q) = %q, want %q", tc.headers, got, tc.want)
			}
		})
	}
}

func FuzzParseWarnings(f *testing.F) {
	f.Add(`299 - "say \"no\""`)
	f.Fuzz(func(t *testing.T, v string) {
		for _, text := range parseWarnings(http.Header{"Warning": {v, v}}) {
			if printable(text) != text || len(text) > maxWarnings {
				t.Errorf("%q is shown as %q", v, text)
			}
		}
	})
}
