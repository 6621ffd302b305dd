package host

import (
	"path/filepath"
	"slices"
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

func TestMountsAreChecked(t *testing.T) {
	tmpfs := func(options string) []Mount {
		return []Mount{{Type: MountTmpfs, Target: "/t", Options: strings.Split(options, ",")}}
	}
	for _, tc := range []struct {
		name   string
		mounts []Mount
		says   string // "": fine
	}{
		{"options", tmpfs("size=64k,nr_inodes=1000,mode=1777,uid=5,gid=5,exec,nosuid,noatime,rw,size=50%,mpol=local"), ""},
		{"an option that is none", tmpfs("nosuid,bogus"), `invalid tmpfs option "bogus" of /t`},
		{"a flag with a value", tmpfs("ro=1"), "ro=1"},
		{"no size", tmpfs("size="), "size="},
		{"a size in words", tmpfs("size=much"), "size=much"},
		{"a size below zero", tmpfs("size=-5"), "size=-5"},
		{"two units", tmpfs("size=5kk"), "size=5kk"},
		{"a mode that is not octal", tmpfs("mode=999"), "mode=999"},
		{"a user by name", tmpfs("uid=root"), "uid=root"},
		{"the same place by two names", []Mount{{Type: MountTmpfs, Target: "/t"}, {Type: MountTmpfs, Target: "/t/"}}, "Duplicate mount point"},
	} {
		err := checkMounts(tc.mounts)
		if (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.says)
		}
	}
}

// TestFilesOfTheNetwork: a user's own /etc/hosts counts, however it is written, and with
// a read-only root file system none can be written to, as with Docker.
func TestFilesOfTheNetwork(t *testing.T) {
	c := &ctr{rec: record{Spec: Spec{ReadOnly: true, Mounts: []Mount{{Type: MountBind, Source: "/mine", Target: "/etc//hosts"}}}}}
	var got []string
	for _, m := range c.mounts(nil) {
		got = append(got, filepath.Base(m.Source)+" "+m.Destination+" "+m.Options[2])
	}
	if want := []string{"mine /etc//hosts rw", "hostname /etc/hostname ro", "resolv.conf /etc/resolv.conf ro"}; !slices.Equal(got, want) {
		t.Errorf("mounts are %q, want %q", got, want)
	}
}
