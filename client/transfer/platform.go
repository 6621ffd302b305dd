package transfer

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"berth.internal/client"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// ParsePlatform reads OS/ARCH[/VARIANT], with the names that Go gives them or
// that uname does.
func ParsePlatform(s string) (v1.Platform, error) {
	parts := strings.Split(strings.ToLower(s), "/")
	if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
		return v1.Platform{}, fmt.Errorf("%q is not a platform such as linux/amd64 or linux/arm64/v8", s)
	}
	p := v1.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "aarch64":
		p.Architecture = "arm64"
	}
	return p, nil
}

// HostPlatform is the platform of images for this machine.
func HostPlatform() v1.Platform {
	return v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
}

// FormatPlatform writes what ParsePlatform reads.
func FormatPlatform(p v1.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// suits says whether an image for p is one for want: a variant that is not
// wanted does not matter.
func suits(p, want v1.Platform) bool {
	return p.OS == want.OS && p.Architecture == want.Architecture && (want.Variant == "" || p.Variant == want.Variant)
}

// pick returns the image for the platform: one of the index, or the image
// itself if it is for that platform.
func pick(ctx context.Context, src Source, root v1.Descriptor, want v1.Platform) (v1.Descriptor, error) {
	body, err := src.Manifest(ctx, root)
	if err != nil {
		return v1.Descriptor{}, err
	}
	c, err := read(root, body)
	if err != nil {
		return v1.Descriptor{}, err
	}
	var has []string
	for _, child := range c.Manifests {
		if child.Platform == nil || !isManifest(child.MediaType) || client.IsIndex(child.MediaType) {
			continue
		}
		if suits(*child.Platform, want) {
			return child, nil
		}
		if s := FormatPlatform(*child.Platform); child.Platform.OS != "unknown" && !slices.Contains(has, s) {
			has = append(has, s)
		}
	}
	if c.Config != nil {
		raw, err := Small(ctx, src, *c.Config)
		if err != nil {
			return v1.Descriptor{}, err
		}
		var is v1.Platform
		if err := json.Unmarshal(raw, &is); err != nil {
			return v1.Descriptor{}, fmt.Errorf("config %s: %w", c.Config.Digest, err)
		}
		if suits(is, want) {
			return root, nil
		}
		has = []string{FormatPlatform(is)}
	}
	if len(has) == 0 {
		has = []string{"none"}
	}
	return v1.Descriptor{}, fmt.Errorf("there is no image for %s; platforms here: %s", FormatPlatform(want), strings.Join(has, ", "))
}
