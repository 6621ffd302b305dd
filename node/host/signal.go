package host

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// parseSignal reads a signal as Docker's users write it: 9, KILL, SIGKILL,
// RTMIN+3.
func parseSignal(s string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > rtMax {
			return 0, invalid("invalid signal: %s", s)
		}
		return syscall.Signal(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if sig := unix.SignalNum("SIG" + name); sig != 0 {
		return sig, nil
	}
	for _, rt := range []struct {
		prefix string
		first  int
	}{{"RTMIN", rtMin}, {"RTMAX", rtMax}} {
		if offset, ok := strings.CutPrefix(name, rt.prefix); ok {
			n, err := strconv.Atoi("0" + offset)
			if offset != "" {
				n, err = strconv.Atoi(offset)
			}
			if sig := rt.first + n; err == nil && sig >= rtMin && sig <= rtMax {
				return syscall.Signal(sig), nil
			}
		}
	}
	return 0, invalid("invalid signal: %s", s)
}

// The real-time signals that the C library leaves to programs.
const (
	rtMin = 34
	rtMax = 64
)
