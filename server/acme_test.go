package server

import (
	"strings"
	"testing"
	"unicode"
)

func TestRefusal(t *testing.T) {
	for _, tc := range []struct{ name, body, want string }{
		{"another answer", `{"status":"valid"}`, ""},
		{"no JSON", `-----BEGIN`, ""},
		{"refused", `{"status":"invalid","challenges":[{"type":"http-01"},{"error":{"detail":"connection\nrefused"}}]}`, "connection refused"},
		{"a proof that is still checked", `{"status":"pending","challenges":[{"error":{"detail":"x"}}]}`, ""},
		{"a long story", `{"status":"invalid","challenges":[{"error":{"detail":"` + strings.Repeat("é", 1000) + `"}}]}`, strings.Repeat("é", 300)},
	} {
		if got := refusal([]byte(tc.body)); got != tc.want {
			t.Errorf("%s: refusal() = %q, want %q", tc.name, got, tc.want)
		}
	}
}

// FuzzRefusal holds that what a CA says is short and harmless.
func FuzzRefusal(f *testing.F) {
	f.Add([]byte(`{"status":"invalid","challenges":[{"error":{"detail":"\u001b[31mred"}}]}`))
	f.Add([]byte(`{"status":"invalid","challenges":null}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		said := refusal(body)
		if len([]rune(said)) > 300 || strings.ContainsFunc(said, func(c rune) bool { return !unicode.IsPrint(c) }) {
			t.Errorf("refusal(%q) = %q", body, said)
		}
	})
}
