package units_test

import (
	"math"
	"testing"

	"berth.internal/internal/units"
)

func TestParseBytes(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want units.Bytes
		ok   bool
	}{
		{"0", 0, true},
		{"512", 512, true},
		{"64k", 64 << 10, true},
		{"4MiB", 4 << 20, true},
		{" 4mb ", 4 << 20, true},
		{"1.5g", 3 << 29, true},
		{"1TiB", 1 << 40, true},
		{"", 0, false},
		{"-1", 0, false},
		{"4 apples", 0, false},
		{"NaN", 0, false},
		{"Inf", 0, false},
		{"1e300", 0, false},
		{"99999999999999999999", 0, false},
		{"8388608TiB", 0, false},
	} {
		got, err := units.ParseBytes(tc.in)
		if got != tc.want || (err == nil) != tc.ok {
			t.Errorf("ParseBytes(%q) = %d, %v; want %d, ok=%v", tc.in, got, err, tc.want, tc.ok)
		}
	}
}

func FuzzBytesReadBack(f *testing.F) {
	for _, n := range []int64{0, 1, 1023, 1024, 4 << 20, 3 << 29, math.MaxInt64 &^ (1<<20 - 1)} {
		f.Add(n)
	}
	f.Fuzz(func(t *testing.T, n int64) {
		// RAMInBytes goes by way of float64, which is exact up to 2^53.
		n &= 1<<53 - 1
		s := units.Bytes(n).String()
		if got, err := units.ParseBytes(s); err != nil || got != units.Bytes(n) {
			t.Errorf("ParseBytes(%q) = %d, %v; want %d", s, got, err, n)
		}
	})
}
