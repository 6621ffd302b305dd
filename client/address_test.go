package client

import (
	"strings"
	"testing"
)

func TestParseAddress(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"127.0.0.1:5000", "http://127.0.0.1:5000/"},
		{"127.3.2.1", "http://127.3.2.1/"},
		{"localhost:5000", "http://localhost:5000/"},
		{"[::1]:5000", "http://[::1]:5000/"},
		{"registry.example.com", "https://registry.example.com/"},
		{"10.0.0.1:5000", "https://10.0.0.1:5000/"},
		{"http://registry.example.com:80/", "http://registry.example.com:80/"},
		{"https://127.0.0.1:5000", "https://127.0.0.1:5000/"},
		{"", "error"},
		{"https://", "error"},
		{"ftp://a", "error"},
		{"https://a/v2", "error"},
		{"https://a?b=c", "error"},
		{"user:secret@a", "error"},
		{"https://user:secret@a:badport", "error"},
		{"a b", "error"},
	} {
		u, err := parseAddress(tc.in)
		got := "error"
		if err == nil {
			got = u.String()
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("parseAddress(%q) repeats the password: %v", tc.in, err)
		}
		if got != tc.want {
			t.Errorf("parseAddress(%q) = %s (%v), want %s", tc.in, got, err, tc.want)
		}
	}
}
