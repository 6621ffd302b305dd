package host

import (
	"errors"
	"testing"
)

// TestSeccompOfUsers reads profiles that are none.
func TestSeccompOfUsers(t *testing.T) {
	for _, tc := range []struct {
		name, profile string
		is            error
	}{
		{"docker", `{"defaultAction":"SCMP_ACT_ALLOW"}`, nil},
		{"unconfined", "unconfined", nil},
		{"null entry", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[null]}`, ErrInvalid},
		{"not JSON", "profile.json", ErrInvalid},
		{"empty", "{}", ErrInvalid},
		{"notify", `{"defaultAction":"SCMP_ACT_NOTIFY"}`, ErrUnsupported},
	} {
		if err := (Security{Seccomp: tc.profile}).check(); !errors.Is(err, tc.is) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.is)
		}
	}
}
