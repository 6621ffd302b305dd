package image

import (
	"fmt"
	"runtime"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// hostPlatform returns the platform that this program runs on. An arm machine
// is taken for v7, what Debian's and Docker's 32-bit images are built for.
func hostPlatform() v1.Platform {
	p := v1.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}
	if p.Architecture == "arm" {
		p.Variant = "v7"
	}
	return p
}

// choose returns the manifest of an index that suits want best: the first of
// those with the highest variant that want can run, or else the first that does
// not say what it is for; its configuration will.
func choose(manifests []v1.Descriptor, want v1.Platform) (v1.Descriptor, error) {
	var best v1.Descriptor
	rank := -1
	var have []string
	for _, m := range manifests {
		if m.Platform == nil {
			if rank < 0 {
				best, rank = m, 0
			}
			continue
		}
		if m.Platform.OS == "unknown" {
			continue // attestations and the like
		}
		if r := suits(*m.Platform, want); r > rank {
			best, rank = m, r
		}
		have = append(have, platformString(*m.Platform))
	}
	if rank < 0 {
		return best, fmt.Errorf("%w: %s is wanted, there is %s", ErrPlatform, platformString(want), strings.Join(have, ", "))
	}
	return best, nil
}

// suits says how well have runs on want: negative is not at all, more is
// better.
func suits(have, want v1.Platform) int {
	if have.OS != want.OS || have.Architecture != want.Architecture {
		return -1
	}
	h, w := variant(have), variant(want)
	if h > w {
		return -1
	}
	return h
}

// variant returns the number of the platform's variant, "v7" is 7, where a
// missing one means the architecture's usual. An unknown variant runs nowhere.
func variant(p v1.Platform) int {
	v := p.Variant
	if v == "" {
		switch p.Architecture {
		case "arm64":
			return 8
		case "arm":
			return 7
		}
		return 1
	}
	if len(v) == 2 && v[0] == 'v' && '1' <= v[1] && v[1] <= '9' {
		return int(v[1] - '0')
	}
	return 100
}

func platformString(p v1.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}
