package server

import (
	"os"
	"path/filepath"
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

func TestBinding(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	for text, want := range map[string]string{"c2VjcmV0\n": "secret", "c2VjcmV0MQ==": "secret1", "c2VjcmV0MQ": "secret1", "": "", "not the key": ""} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := ACME{EABKeyID: "k", EABKeyFile: file}.binding()
		switch {
		case want == "" && (err == nil || text != "" && strings.Contains(err.Error(), text)):
			t.Errorf("binding() of %q = %v, want an error without it", text, err)
		case want != "" && (err != nil || string(b.Key) != want || b.KID != "k"):
			t.Errorf("binding() of %q = %+v, %v, want %q", text, b, err, want)
		}
	}
}
