module berth.internal/conformance

go 1.26
