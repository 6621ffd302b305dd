package client

import (
	"net/http"
	"strings"
)

// maxWarnings is how many bytes of warnings a client shows of one answer (spec,
// "Warnings").
const maxWarnings = 4096

// parseWarnings returns the texts of the headers Warning: 299 - "text". What
// has another form is left out.
func parseWarnings(header http.Header) []string {
	var texts []string
	size := 0
	for _, v := range header.Values("Warning") {
		v, ok := strings.CutPrefix(v, `299 - "`)
		v, closed := strings.CutSuffix(v, `"`)
		if !ok || !closed {
			continue
		}
		if size += len(v); size > maxWarnings {
			break
		}
		texts = append(texts, printable(unquote(v)))
	}
	return texts
}

// unquote resolves the escapes of a quoted string (RFC 9110, section 5.6.4).
func unquote(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// warn tells of the warnings in an answer, of each text once.
func (r *Registry) warn(header http.Header) {
	if r.warned == nil || header["Warning"] == nil {
		return
	}
	for _, text := range parseWarnings(header) {
		if _, before := r.told.LoadOrStore(text, true); !before {
			r.warned(text)
		}
	}
}
