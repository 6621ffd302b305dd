package plan_test

import (
	"testing"

	"berth.internal/node/container/plan"
)

// BenchmarkFor makes the plan of a container, in the form that its shim reads.
func BenchmarkFor(b *testing.B) {
	in := plan.Input{Spec: spec(), Host: host(), Rootfs: plan.Rootfs{Lowers: []string{"/layers/base"}, Upper: "/rw/upper", Work: "/rw/work"}, Seccomp: make([]byte, 330*8)}
	b.ReportAllocs()
	for b.Loop() {
		p, err := plan.For(in)
		if err != nil {
			b.Fatal(err)
		}
		p.Child.Append(p.Prepare.Encode())
	}
}
