package oci_test

import (
	"errors"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"berth.internal/internal/oci"
)

// The grammars are copied from distribution-spec, "Pulling manifests".
var (
	nameGrammar = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagGrammar  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

func FuzzParseName(f *testing.F) {
	for _, s := range []string{"a", "team/app", "a__b", "a___b", "a--b/c.d", "", "/a", "a/", "A", "a..b", strings.Repeat("a", 256)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		_, err := oci.ParseName(s)
		if legal := len(s) <= oci.MaxName && nameGrammar.MatchString(s) && !strings.HasSuffix(s, "\n"); legal != (err == nil) {
			t.Errorf("ParseName(%q) = %v, but the spec's grammar says legal=%v", s, err, legal)
		}
	})
}

func FuzzParseTag(f *testing.F) {
	for _, s := range []string{"latest", "_x", "-x", "", "a:b", strings.Repeat("a", 129), "x\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		_, err := oci.ParseTag(s)
		if legal := tagGrammar.MatchString(s) && !strings.HasSuffix(s, "\n"); legal != (err == nil) {
			t.Errorf("ParseTag(%q) = %v, but the spec's grammar says legal=%v", s, err, legal)
		}
	})
}

func FuzzParseDigest(f *testing.F) {
	hex := strings.Repeat("0a", 32)
	for _, s := range []string{"sha256:" + hex, "sha512:" + hex + hex, "sha384:" + hex + hex[:32], "sha256:" + strings.ToUpper(hex), "sha512:" + hex, "sha256:" + hex + "\n", "md5:00", ":", ""} {
		f.Add(s)
	}
	// image-spec, "Digests", for the algorithms that berth knows.
	grammar := regexp.MustCompile(`^(sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128})$`)
	f.Fuzz(func(t *testing.T, s string) {
		d, err := oci.ParseDigest(s)
		if legal := grammar.MatchString(s); legal != (err == nil) || legal && d.String() != s {
			t.Errorf("ParseDigest(%q) = %q, %v, but the grammar says legal=%v", s, d, err, legal)
		}
	})
}

func TestParseDigest(t *testing.T) {
	hex := strings.Repeat("0a", 32)
	for _, tc := range []struct {
		in    string
		legal bool
	}{
		{"sha256:" + hex, true},
		{"sha512:" + hex + hex, true},
		{"sha256:" + strings.ToUpper(hex), false},
		{"sha256:" + hex[1:], false},
		{"sha384:" + hex + hex[:32], false},
		{"sha256", false},
		{"", false},
		{"../../etc/passwd", false},
	} {
		if _, err := oci.ParseDigest(tc.in); (err == nil) != tc.legal {
			t.Errorf("ParseDigest(%q) = %v, want legal=%v", tc.in, err, tc.legal)
		} else if err != nil && !errors.Is(err, oci.DigestInvalid) {
			t.Errorf("ParseDigest(%q) = %v, want DIGEST_INVALID", tc.in, err)
		}
	}
}

func TestErrors(t *testing.T) {
	cause := errors.New("cause")
	e := oci.BlobUnknown.Because(cause)
	if !errors.Is(e, cause) || !errors.Is(e, oci.BlobUnknown) || errors.Is(e, oci.NameUnknown) {
		t.Errorf("%v does not know its code and cause", e)
	}
	if oci.BlobUnknown.Err != nil {
		t.Error("Because changed the original")
	}
	for _, tc := range []struct {
		err  *oci.Error
		want int
	}{
		{oci.BlobUnknown, 404},
		{oci.DigestInvalid, 400},
		{oci.Denied, 403},
		{oci.Unauthorized, 401},
		{oci.Unsupported, 405},
		{oci.TooManyRequests, 429},
		{oci.Unknown, 500},
		{oci.BlobUploadInvalid.At(http.StatusRequestedRangeNotSatisfiable), 416},
	} {
		if got := tc.err.HTTPStatus(); got != tc.want {
			t.Errorf("%s has status %d, want %d", tc.err.Code, got, tc.want)
		}
	}
}
