package disk_test

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"berth.internal/storage/disk"
	"github.com/opencontainers/go-digest"
)

// BenchmarkUpload writes one blob to the end, synced, in MB/s.
func BenchmarkUpload(b *testing.B) {
	for _, mib := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("%dMiB", mib), func(b *testing.B) {
			s, err := disk.Open(b.TempDir(), disk.Options{})
			if err != nil {
				b.Fatal(err)
			}
			data := bytes.Repeat([]byte("0123456789abcdef"), mib<<16)
			want := digest.FromBytes(data)
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				up, err := s.Create(b.Context(), digest.SHA256)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(up, onlyReader{bytes.NewReader(data)}); err != nil {
					b.Fatal(err)
				}
				key, err := up.Seal(b.Context(), want)
				if err != nil {
					b.Fatal(err)
				}
				if err := up.Commit(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := s.Delete(b.Context(), key); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

type onlyReader struct{ io.Reader }
