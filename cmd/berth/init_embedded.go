//go:build embedded

package main

import _ "embed"

// initProgram is cmd/berth-init, the shim of every container, as .ci/build
// made it.
//
//go:embed embedded/berth-init
var initProgram []byte
