//go:build !embedded

package main

// initProgram is absent from a plain go build: berth then executes itself as
// the shim of its containers.
var initProgram []byte
