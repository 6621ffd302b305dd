package bolt_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"berth.internal/storage"
	"berth.internal/storage/bolt"
	"berth.internal/storage/kv"
	"github.com/opencontainers/go-digest"
)

// filled has 1000 manifests in one repository, each with a tag and two blobs.
func filled(b *testing.B) *bolt.Index {
	b.Helper()
	x, err := bolt.Open(filepath.Join(b.TempDir(), "index.db"), kv.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := x.Close(); err != nil {
			b.Error(err)
		}
	})
	for i := range 1000 {
		if err := push(b, x, i); err != nil {
			b.Fatal(err)
		}
	}
	return x
}

func content(i int, size int) storage.Content {
	data := bytes.Repeat(fmt.Append(nil, i, " "), size/len(fmt.Append(nil, i, " ")))
	return storage.Content{Digest: digest.FromBytes(data), Size: int64(len(data)), Inline: data}
}

func blob(b *testing.B, x *bolt.Index, i int) (digest.Digest, error) {
	c, err := x.PutBlob(b.Context(), storage.BlobPut{Repo: "team/app", Content: content(i, 4096), Grace: time.Hour})
	return c.Digest, err
}

func manifest(i int, layers ...digest.Digest) storage.ManifestPut {
	m := storage.Manifest{Content: content(-i, 1024), MediaType: "application/vnd.oci.image.manifest.v1+json"}
	for _, l := range layers {
		m.References = append(m.References, storage.Reference{Digest: l})
	}
	return storage.ManifestPut{Repo: "team/app", Manifest: m, Tags: []string{fmt.Sprint("tag-", i)}, Rules: storage.Rules{Grace: time.Hour, Untagged: time.Hour}}
}

func push(b *testing.B, x *bolt.Index, i int) error {
	one, err := blob(b, x, 2*i)
	if err != nil {
		return err
	}
	two, err := blob(b, x, 2*i+1)
	if err != nil {
		return err
	}
	return x.PutManifest(b.Context(), manifest(i+1, one, two))
}

// parallel runs fn with a new number each time, eight at a time.
func parallel(b *testing.B, fn func(i int) error) {
	var n atomic.Int64
	n.Store(10_000)
	b.SetParallelism(4) // times 2 cores
	b.ResetTimer()
	began := time.Now()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := fn(int(n.Add(1))); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "op/s")
}

func BenchmarkPutBlob(b *testing.B) {
	x := filled(b)
	parallel(b, func(i int) error {
		_, err := blob(b, x, i)
		return err
	})
}

func BenchmarkPutManifest(b *testing.B) {
	x := filled(b)
	l, err := blob(b, x, 0)
	if err != nil {
		b.Fatal(err)
	}
	parallel(b, func(i int) error { return x.PutManifest(b.Context(), manifest(i, l)) })
}

func BenchmarkBlob(b *testing.B) {
	x := filled(b)
	d := content(500, 4096).Digest
	b.ReportAllocs()
	parallel(b, func(int) error {
		_, err := x.Blob(b.Context(), "team/app", d)
		return err
	})
}

func BenchmarkTagged(b *testing.B) {
	x := filled(b)
	b.ReportAllocs()
	parallel(b, func(int) error {
		_, err := x.Tagged(b.Context(), "team/app", "tag-500")
		return err
	})
}

func BenchmarkTags500(b *testing.B) {
	x := filled(b)
	b.ReportAllocs()
	parallel(b, func(int) error {
		_, err := x.Tags(b.Context(), "team/app", "", 500)
		return err
	})
}
