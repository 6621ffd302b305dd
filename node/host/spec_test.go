package host

import (
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestSpecFill(t *testing.T) {
	for _, tc := range []struct {
		name                  string
		entrypoint, command   []string // the user's
		imageEntry, imageArgs []string
		want                  string
	}{
		{"the image's", nil, nil, []string{"/e"}, []string{"a"}, "/e a"},
		{"another command", nil, []string{"b"}, []string{"/e"}, []string{"a"}, "/e b"},
		{"another entrypoint drops the image's command", []string{"/x"}, nil, []string{"/e"}, []string{"a"}, "/x"},
		{"both", []string{"/x"}, []string{"b"}, []string{"/e"}, []string{"a"}, "/x b"},
		{"entrypoint reset", []string{""}, []string{"b"}, []string{"/e"}, []string{"a"}, "b"},
	} {
		img := v1.ImageConfig{Entrypoint: tc.imageEntry, Cmd: tc.imageArgs}
		p := Process{Entrypoint: tc.entrypoint, Command: tc.command}.fill(img)
		if got := strings.Join(p.args(), " "); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
	env := environ("host", account{Home: "/h"}, []string{"A=1", "B=2", "A=3", "GONE"})
	if got := strings.Join(env, " "); got != defaultPath+" HOSTNAME=host B=2 A=3 HOME=/h" {
		t.Errorf("environ = %q", got)
	}
}

func TestCapabilities(t *testing.T) {
	defaults := []string{"CAP_CHOWN", "CAP_KILL"}
	for _, tc := range []struct{ add, drop, want string }{
		{"", "", "CAP_CHOWN CAP_KILL"},
		{"net_admin", "CAP_KILL", "CAP_CHOWN CAP_NET_ADMIN"},
		{"", "ALL", ""},
		{"kill", "all", "CAP_KILL"},
	} {
		got, err := capabilities(defaults, strings.Fields(tc.add), strings.Fields(tc.drop))
		if err != nil || strings.Join(got, " ") != tc.want {
			t.Errorf("add %q, drop %q: %q %v, want %q", tc.add, tc.drop, got, err, tc.want)
		}
	}
	if _, err := capabilities(defaults, []string{"NO_SUCH"}, nil); err == nil {
		t.Error("an unknown capability is accepted")
	}
	if all, err := capabilities(defaults, []string{"ALL"}, []string{"KILL"}); err != nil || len(all) < 35 || strings.Contains(strings.Join(all, " "), "CAP_KILL") {
		t.Errorf("all but one: %q %v", all, err)
	}
	if sets := capabilitiesOf(defaults, account{UID: 5}); sets.Effective != nil || sets.Permitted != nil || len(sets.Bounding) != 2 {
		t.Errorf("a user that is not root has %+v", sets)
	}
}
