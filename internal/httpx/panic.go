package httpx

import (
	"fmt"
	"runtime/debug"
)

// Panic is a bug that a handler ran into.
type Panic struct {
	Value any
}

func (p *Panic) Error() string { return fmt.Sprintf("panic: %v\n%s", p.Value, debug.Stack()) }
