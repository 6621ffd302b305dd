package oci

import (
	"cmp"
	"net/http"
)

// Code is an error code of distribution-spec, "Error Codes".
type Code string

// Error is a failure as the client sees it. Err is the cause, for the log only.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message,omitempty"` // one sentence, no server paths
	Detail  any    `json:"detail,omitempty"`
	Status  int    `json:"-"` // HTTP status; zero means the code's usual one
	Err     error  `json:"-"`
}

// The failures of the spec, and after them those that it has no code for.
var (
	BlobUnknown         = &Error{Code: "BLOB_UNKNOWN", Message: "the repository does not hold this blob"}
	BlobUploadInvalid   = &Error{Code: "BLOB_UPLOAD_INVALID", Message: "this cannot be done with the upload"}
	BlobUploadUnknown   = &Error{Code: "BLOB_UPLOAD_UNKNOWN", Message: "there is no such upload: it has ended or expired; begin a new one"}
	DigestInvalid       = &Error{Code: "DIGEST_INVALID", Message: "the content does not match its digest"}
	ManifestBlobUnknown = &Error{Code: "MANIFEST_BLOB_UNKNOWN", Message: "the manifest refers to content that the repository does not hold; push that first"}
	ManifestInvalid     = &Error{Code: "MANIFEST_INVALID", Message: "the manifest is invalid"}
	ManifestUnknown     = &Error{Code: "MANIFEST_UNKNOWN", Message: "the repository does not hold this manifest"}
	NameInvalid         = &Error{Code: "NAME_INVALID", Message: "the name of the repository is invalid"}
	NameUnknown         = &Error{Code: "NAME_UNKNOWN", Message: "there is no such repository"}
	SizeInvalid         = &Error{Code: "SIZE_INVALID", Message: "the size does not match the content"}
	Unauthorized        = &Error{Code: "UNAUTHORIZED", Message: "authentication is required"}
	Denied              = &Error{Code: "DENIED", Message: "access is denied"}
	Unsupported         = &Error{Code: "UNSUPPORTED", Message: "the operation is not supported"}
	TooManyRequests     = &Error{Code: "TOOMANYREQUESTS", Message: "too many requests"}

	TagInvalid = &Error{Code: "MANIFEST_INVALID", Message: "the tag is invalid"}
	Unknown    = &Error{Code: "UNKNOWN", Message: "the registry failed; its log says why"}
)

// HTTPStatus returns the status to answer with, 500 for an unlisted code.
func (e *Error) HTTPStatus() int { return cmp.Or(e.Status, usual(e.Code)) }

// usual is the status that Docker's clients expect with a code.
func usual(c Code) int {
	switch c {
	case BlobUnknown.Code, BlobUploadUnknown.Code, BlobUploadInvalid.Code, ManifestUnknown.Code, NameUnknown.Code:
		return http.StatusNotFound
	case DigestInvalid.Code, SizeInvalid.Code, NameInvalid.Code, ManifestInvalid.Code, ManifestBlobUnknown.Code:
		return http.StatusBadRequest
	case Unauthorized.Code:
		return http.StatusUnauthorized
	case Denied.Code:
		return http.StatusForbidden
	case Unsupported.Code:
		return http.StatusMethodNotAllowed
	case TooManyRequests.Code:
		return http.StatusTooManyRequests
	}
	return http.StatusInternalServerError
}

func (e *Error) Error() string {
	s := string(e.Code) + ": " + e.Message
	if e.Err != nil && e.Err.Error() != e.Message {
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

// Because returns e with a cause for the log.
func (e *Error) Because(err error) *Error {
	c := *e
	c.Err = err
	return &c
}

// With returns e with another message, if it is not empty, and a detail.
func (e *Error) With(message string, detail any) *Error {
	c := *e
	c.Message, c.Detail = cmp.Or(message, e.Message), detail
	return &c
}

// At returns e with another HTTP status.
func (e *Error) At(status int) *Error {
	c := *e
	c.Status = status
	return &c
}
