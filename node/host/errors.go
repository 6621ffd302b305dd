package host

import (
	"errors"
	"fmt"
)

// The failures a caller must tell apart, with errors.Is. An error of this
// package that is none of these is a failure of the node.
var (
	ErrInvalid     = errors.New("invalid request")
	ErrUnsupported = errors.New("not supported yet")
	ErrNotFound    = errors.New("not found")
	ErrConflict    = errors.New("conflict")
	ErrNotModified = errors.New("nothing to do") // started when running, stopped when not
	ErrClosed      = errors.New("the node is stopping")
	ErrDetached    = errors.New("the client has left") // of an Input, and of who reads it
)

// failure is one of the errors above in words for the user, whose tools expect
// those of Docker.
type failure struct {
	message string
	kind    error
}

func (f *failure) Error() string { return f.message }
func (f *failure) Unwrap() error { return f.kind }

func invalid(format string, args ...any) error {
	return &failure{fmt.Sprintf(format, args...), ErrInvalid}
}

func unsupported(format string, args ...any) error {
	return &failure{fmt.Sprintf(format, args...), ErrUnsupported}
}

func notFound(format string, args ...any) error {
	return &failure{fmt.Sprintf(format, args...), ErrNotFound}
}

func conflict(format string, args ...any) error {
	return &failure{fmt.Sprintf(format, args...), ErrConflict}
}
