package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"berth.internal/node/host"
)

// failure is an error with the status that Docker's clients expect for it.
type failure struct {
	status  int
	message string
}

func (f *failure) Error() string { return f.message }

func invalid(format string, args ...any) error {
	return &failure{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// unsupported refuses something by its name: 501 would be the honest status,
// but Docker's clients show a 400 as the user's to mend, which it is.
func unsupported(format string, args ...any) error {
	return &failure{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// status returns the HTTP status for an error.
func status(err error) int {
	var f *failure
	switch {
	case errors.As(err, &f):
		return f.status
	case errors.Is(err, host.ErrInvalid), errors.Is(err, host.ErrUnsupported):
		return http.StatusBadRequest
	case errors.Is(err, host.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, host.ErrConflict):
		return http.StatusConflict
	case errors.Is(err, host.ErrNotModified):
		return http.StatusNotModified
	case errors.Is(err, host.ErrClosed):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// writeError answers with {"message": …}, as all of the API does.
func writeError(w http.ResponseWriter, code int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if code != http.StatusNotModified {
		_ = json.NewEncoder(w).Encode(map[string]string{"message": message}) // the client is gone, if it fails
	}
}

// writeJSON answers with v. An error means that nothing was written yet.
func writeJSON(w http.ResponseWriter, code int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n')) // the client is gone, if it fails
	return nil
}
