package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"
	"unicode"

	"berth.internal/internal/oci"
)

// Failures that a caller may tell apart, by errors.Is.
var (
	ErrNotFound     = errors.New("not found")
	ErrUnauthorized = errors.New("unauthorized") // not logged in, or wrongly
	ErrDenied       = errors.New("denied")
)

// errStalled ends a transfer that stands still.
var errStalled = errors.New("the connection stands still")

// Error is a registry's answer that it could not or would not.
type Error struct {
	Code    oci.Code // empty if the registry gave none
	Message string   // the registry's own words, if any
	Status  int      // HTTP status
	Text    string   // what happened and what to do about it, for people

	retryAfter time.Duration
}

func (e *Error) Error() string { return e.Text }

// Is compares e with the sentinels of this package.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrNotFound:
		return e.Status == http.StatusNotFound
	case ErrUnauthorized:
		return e.Status == http.StatusUnauthorized
	case ErrDenied:
		return e.Status == http.StatusForbidden
	}
	return false
}

// maxErrorBody is how much of an error's body is read, in bytes.
const maxErrorBody = 64 << 10

// answered makes an Error of a response that tells of a failure, and closes its
// body.
func (r *Registry) answered(c call, resp *http.Response) *Error {
	defer resp.Body.Close()
	e := &Error{Status: resp.StatusCode, retryAfter: retryAfter(resp.Header)}
	var body struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err == nil && json.Unmarshal(raw, &body) == nil && len(body.Errors) > 0 {
		e.Code, e.Message = oci.Code(printable(body.Errors[0].Code)), printable(body.Errors[0].Message)
	}
	e.Text = r.explain(c, e)
	if wantsTLS(resp, raw) {
		e.Text = fmt.Sprintf("%s speaks HTTPS: name it https://%s", r.Host(), r.Host())
	}
	return e
}

// wantsTLS tells whether the answer is what a server says, Go's and nginx', whose
// port speaks TLS.
func wantsTLS(resp *http.Response, body []byte) bool {
	return resp.StatusCode == http.StatusBadRequest && (bytes.Contains(body, []byte("HTTP request to an HTTPS server")) ||
		bytes.Contains(body, []byte("plain HTTP request was sent to HTTPS port")))
}

// explain words e for people: what was asked, of which registry, and what to do.
func (r *Registry) explain(c call, e *Error) string {
	host, name := r.Host(), r.Host()+"/"+c.repo
	said := ""
	if e.Message != "" {
		said = ": " + e.Message
	}
	switch {
	case e.Status == http.StatusUnauthorized && r.auth.username == "":
		return fmt.Sprintf("%s wants a login to %s; log in with: berth login %s, or docker login", host, c.doing, host)
	case e.Status == http.StatusUnauthorized:
		return fmt.Sprintf("%s does not accept the password of %s to %s%s", host, r.auth.who(), c.doing, said)
	case e.Status == http.StatusForbidden:
		return fmt.Sprintf("%s does not allow %s to %s%s", host, r.auth.who(), c.doing, said)
	case e.Status == http.StatusNotFound && strings.Contains(e.Message, "quarantined"): // berth's word: it had it, and it is damaged
		return fmt.Sprintf("%s cannot %s%s", host, c.doing, said)
	case e.Status == http.StatusNotFound && e.Code == oci.NameUnknown.Code:
		return fmt.Sprintf("%s has no repository %s; list its repositories with: berth repo ls --registry %s", host, c.repo, host)
	case e.Status == http.StatusNotFound && c.manifest != "":
		what := "tag"
		if strings.Contains(c.manifest, ":") {
			what = "manifest"
		}
		return fmt.Sprintf("repository %s has no %s %s in %s; list its tags with: berth repo tags %s", c.repo, what, c.manifest, host, name)
	case e.Status == http.StatusNotFound && c.blob != "":
		return fmt.Sprintf("repository %s has no blob %s in %s", c.repo, c.blob, host)
	case e.Status == http.StatusNotFound && e.Code == "" && c.repo == "":
		return fmt.Sprintf("%s answers, but not as a registry: it has no /v2/; is the address right?", host)
	}
	if e.Code != "" {
		said += " (" + string(e.Code) + ")"
	}
	return fmt.Sprintf("%s in %s: the registry answered %d %s%s", c.doing, host, e.Status, http.StatusText(e.Status), said)
}

// failed words an error that came instead of an answer. The request's URL is
// left out: it can hold a signature.
func (r *Registry) failed(ctx context.Context, c call, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	var wrapped *url.Error
	for errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	var (
		unknown *net.DNSError
		record  tls.RecordHeaderError
		issuer  x509.UnknownAuthorityError
	)
	switch at := r.base.Scheme + "://" + r.base.Host; {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("cannot reach the registry at %s: is it running? start one with: berth serve: %w", at, err)
	case errors.As(err, &unknown):
		return fmt.Errorf("cannot reach the registry at %s: its name is not known here: %w", at, err)
	case errors.As(err, &record), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return fmt.Errorf("the registry at %s does not speak TLS; if it may go without, name it http://%s: %w", at, r.base.Host, err)
	case errors.As(err, &issuer):
		return fmt.Errorf("the certificate of the registry at %s is not one this machine trusts; name its CA's file (berth repo --ca, berth node --registry-ca): %w", at, err)
	}
	return fmt.Errorf("%s in %s: %w", c.doing, r.Host(), err)
}

// final says of an error that came instead of an answer that the next attempt
// would end no better: the source cannot be read, or the registry is not who it
// should be.
func final(err error) bool {
	var (
		source  *sourceError
		unknown *net.DNSError
		record  tls.RecordHeaderError
		cert    *tls.CertificateVerificationError
	)
	return errors.Is(err, ErrUnauthorized) || errors.Is(err, errPassword) || errors.As(err, &source) ||
		errors.As(err, &record) || errors.As(err, &cert) || errors.As(err, &unknown) && unknown.IsNotFound
}

// printable makes a registry's words fit for a terminal: one line, no control
// characters, not long.
func printable(s string) string {
	s = strings.Map(func(c rune) rune {
		if unicode.IsSpace(c) {
			return ' '
		}
		if !unicode.IsPrint(c) {
			return -1
		}
		return c
	}, strings.ToValidUTF8(s, ""))
	if short := []rune(s); len(short) > 500 {
		return string(short[:500]) + "…"
	}
	return s
}
