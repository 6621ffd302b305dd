// Package lazyregexp keeps regular expressions that are compiled when they are first
// used: every command of berth begins with all variables of all packages.
package lazyregexp

import (
	"regexp"
	"sync"
)

// New returns what compiles pattern (regexp/syntax) at its first call, and returns the
// same at each. It panics then if pattern is none: it is a constant, with a test.
func New(pattern string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(pattern) })
}
