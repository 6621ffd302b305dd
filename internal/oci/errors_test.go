package oci

import (
	"errors"
	"testing"
)

// TestErrorOnce says what happened once, also if the cause says the same.
func TestErrorOnce(t *testing.T) {
	for _, tc := range []struct {
		cause error
		want  string
	}{
		{nil, "UNAUTHORIZED: the name is wrong"},
		{errors.New("the name is wrong"), "UNAUTHORIZED: the name is wrong"},
		{errors.New("no such user"), "UNAUTHORIZED: the name is wrong: no such user"},
	} {
		if got := Unauthorized.With("the name is wrong", nil).Because(tc.cause).Error(); got != tc.want {
			t.Errorf("Because(%v).Error() = %q, want %q", tc.cause, got, tc.want)
		}
	}
}
