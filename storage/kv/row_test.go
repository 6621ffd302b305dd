package kv

import (
	"errors"
	"testing"
	"time"

	"berth.internal/storage"
	"github.com/google/go-cmp/cmp"
)

func TestManifestRow(t *testing.T) {
	for _, m := range []storage.Manifest{
		{Pushed: fromNanos(0)},
		{
			Content:     storage.Content{Size: 1 << 40},
			MediaType:   "a/b",
			Annotations: map[string]string{"k": "v", "": ""},
			Subject:     "sha256:x",
			References:  []storage.Reference{{Digest: "d"}, {Digest: "e", Manifest: true, Optional: true}, {}},
			Pushed:      fromNanos(time.Now().UnixNano()),
		},
	} {
		got, err := readManifest(manifestRow(m))
		if diff := cmp.Diff(m, got); diff != "" || err != nil {
			t.Errorf("row of %+v reads as another, %v (-want +got):\n%s", m, err, diff)
		}
		row := manifestRow(m)
		for n := range row {
			if _, err := readManifest(row[:n]); err == nil {
				t.Errorf("the first %d of %d bytes read as a manifest", n, len(row))
			}
		}
	}
	newer := manifestRow(storage.Manifest{})
	newer[0]++
	if _, err := readManifest(newer); err == nil {
		t.Error("a row of the next version reads as a manifest")
	}
}

// Rows of a damaged file give errors, and what reads writes itself again.
func FuzzRows(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte(manifestRow(storage.Manifest{MediaType: "x", References: []storage.Reference{{Digest: "d"}}})))
	f.Add([]byte(trashedRow(storage.Trashed{Manifest: storage.Manifest{MediaType: "x"}, Tags: []string{"latest"}, Until: time.Unix(1, 0)})))
	f.Add([]byte(place{size: 5, key: "k", inline: 7}.row()))
	f.Add([]byte("\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, v []byte) {
		if m, err := readManifest(v); err == nil {
			again, err := readManifest(manifestRow(m))
			if diff := cmp.Diff(m, again); diff != "" || err != nil {
				t.Errorf("%q reads as %+v, and that as another: %v\n%s", v, m, err, diff)
			}
		}
		if m, err := readTrashed(v); err == nil {
			again, err := readTrashed(trashedRow(m))
			if diff := cmp.Diff(m, again); diff != "" || err != nil {
				t.Errorf("%q reads as %+v, and that as another: %v\n%s", v, m, err, diff)
			}
		}
		if p, err := readPlace(v); err == nil {
			if again, err := readPlace(p.row()); again != p || err != nil {
				t.Errorf("%q reads as %+v, and that as %+v, %v", v, p, again, err)
			}
		}
	})
}

// Any cursor is refused, or is one that is written again as it was.
func FuzzCursor(f *testing.F) {
	f.Add("")
	f.Add("reviews.7")
	f.Add(writeCursor("\x00\x00\x00\x00\x00\x00\x00\x07b"))
	f.Fuzz(func(t *testing.T, from string) {
		row, err := readCursor(from)
		if err == nil && writeCursor(row) != from || err != nil && !errors.Is(err, storage.ErrCursor) {
			t.Errorf("%q reads as %q, %v, which is written %q", from, row, err, writeCursor(row))
		}
	})
}
