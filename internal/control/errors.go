package control

import "cmp"

// Code says what kind of failure an Error is.
type Code string

// Error is a failure as the client sees it. Err is the cause, for the server's
// log only.
type Error struct {
	Code      Code   `json:"code"`
	Message   string `json:"message"`              // what to do, in one sentence, without paths of the server
	Field     string `json:"field,omitempty"`      // of the request, such as "rules[2].action"
	RequestID string `json:"request_id,omitempty"` // under which the server's log has more
	Status    int    `json:"-"`                    // HTTP status; zero means the code's usual one
	Err       error  `json:"-"`
}

// Failure is the body of an answer that tells of an error.
type Failure struct {
	Error *Error `json:"error"`
}

// The failures that there are.
var (
	Invalid         = &Error{Code: "invalid", Message: "the request is invalid", Status: 400}
	Unauthenticated = &Error{Code: "unauthenticated", Message: "log in first", Status: 401}
	Denied          = &Error{Code: "denied", Message: "access is denied", Status: 403}
	NotFound        = &Error{Code: "not_found", Message: "there is no such thing", Status: 404}
	Conflict        = &Error{Code: "conflict", Message: "somebody else was faster", Status: 409}
	TooMany         = &Error{Code: "too_many", Message: "too many requests; come again later", Status: 429}
	Unsupported     = &Error{Code: "unsupported", Message: "this server cannot do that", Status: 400}
	Unavailable     = &Error{Code: "unavailable", Message: "the server cannot do that now; try again later", Status: 503}
	Internal        = &Error{Code: "internal", Message: "the server failed; its log says why", Status: 500}
)

func (e *Error) Error() string {
	s := e.Message
	if e.Field != "" {
		s = e.Field + ": " + s
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target has the same code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// With returns e with another message.
func (e *Error) With(message string) *Error {
	c := *e
	c.Message = cmp.Or(message, e.Message)
	return &c
}

// In returns e, blamed on a field of the request.
func (e *Error) In(field string) *Error {
	c := *e
	c.Field = field
	return &c
}

// At returns e with another HTTP status.
func (e *Error) At(status int) *Error {
	c := *e
	c.Status = status
	return &c
}

// Because returns e with a cause for the log.
func (e *Error) Because(err error) *Error {
	c := *e
	c.Err = err
	return &c
}
