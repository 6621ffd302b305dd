package shim

import "time"

// Delays between two runs of a container.
const (
	firstDelay = 100 * time.Millisecond
	maxDelay   = time.Minute
	steadyRun  = 10 * time.Second // a run as long as this makes the next delay the first one again
)

// backoff is how long a container waited before its present run.
type backoff time.Duration

// next returns how long it waits after a run that took that long.
func (b *backoff) next(ran time.Duration) time.Duration {
	if ran >= steadyRun || *b == 0 {
		*b = backoff(firstDelay)
	} else {
		*b = min(2**b, backoff(maxDelay))
	}
	return time.Duration(*b)
}

// wants reports whether the container begins again after a run with that exit
// code, having done so that many times before.
func (r Restart) wants(exitCode, restarts int) bool {
	switch r.Policy {
	case RestartAlways, RestartUnlessStopped:
		return true
	case RestartOnFailure:
		return exitCode != 0 && (r.Max == 0 || restarts < r.Max)
	}
	return false
}
