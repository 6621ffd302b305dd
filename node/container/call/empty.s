// The functions of fork.go without a body live in Go's runtime.
