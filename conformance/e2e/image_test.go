package e2e_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/testscript"
)

func cmdTar(ts *testscript.TestScript, neg bool, args []string) {
	positive(ts, neg, args, 1, "tar FILE ENTRY...")
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range args[1:] {
		h, data, err := entry(e)
		ts.Check(err)
		ts.Check(w.WriteHeader(h))
		_, err = w.Write(data)
		ts.Check(err)
	}
	ts.Check(w.Close())
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), buf.Bytes(), 0o600))
}

// entry reads an entry of a tar. It takes names as they are, also those that no
// tar should have:
//
//	file:NAME=TEXT   copy:NAME=PATH   dir:NAME   symlink:NAME=TARGET   link:NAME=TARGET
func entry(s string) (*tar.Header, []byte, error) {
	kind, rest, ok := strings.Cut(s, ":")
	name, value, _ := strings.Cut(rest, "=")
	if !ok {
		return nil, nil, fmt.Errorf("%q is no entry", s)
	}
	h := &tar.Header{Name: name, Mode: 0o755}
	switch kind {
	case "file":
		h.Size = int64(len(value))
		return h, []byte(value), nil
	case "copy":
		data, err := os.ReadFile(value)
		h.Size = int64(len(data))
		return h, data, err
	case "dir":
		h.Typeflag = tar.TypeDir
	case "symlink":
		h.Typeflag, h.Linkname = tar.TypeSymlink, value
	case "link":
		h.Typeflag, h.Linkname = tar.TypeLink, value
	default:
		return nil, nil, fmt.Errorf("%q is no kind of entry", kind)
	}
	return h, nil, nil
}

// cmdImage makes an image for this machine whose command is sh. A layer that is
// called =FILE has FILE's content and the content hash of nothing at all. One called
// config:FILE is no layer: it is JSON that the image's config has beside the command.
func cmdImage(ts *testscript.TestScript, neg bool, args []string) {
	positive(ts, neg, args, 3, "image LAYOUT TAG TAR...")
	layout, tag := ts.MkAbs(args[0]), args[1]
	cfg := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "amd64"}}
	cfg.Config = v1.ImageConfig{Cmd: []string{"sh"}, Env: []string{"PATH=/bin:/usr/bin:/sbin:/usr/sbin"}}
	cfg.RootFS.Type = "layers"
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	more := map[string]any{}
	for _, file := range args[2:] {
		if file, ok := strings.CutPrefix(file, "config:"); ok {
			text, err := os.ReadFile(ts.MkAbs(file))
			ts.Check(err)
			ts.Check(json.Unmarshal(text, &more))
			continue
		}
		file, lies := strings.CutPrefix(file, "=")
		layer, err := os.ReadFile(ts.MkAbs(file))
		ts.Check(err)
		diffID := digest.FromBytes(layer)
		if lies {
			diffID = digest.FromString("")
		}
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, diffID)
		var packed bytes.Buffer
		z, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
		ts.Check(err)
		_, err = z.Write(layer)
		ts.Check(errors.Join(err, z.Close()))
		m.Layers = append(m.Layers, put(ts, layout, v1.MediaTypeImageLayerGzip, packed.Bytes()))
	}
	m.Config = put(ts, layout, v1.MediaTypeImageConfig, withConfig(ts, cfg, more))
	d := put(ts, layout, v1.MediaTypeImageManifest, encode(ts, m))
	d.Annotations = map[string]string{v1.AnnotationRefName: tag}

	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}
	path := filepath.Join(layout, "index.json")
	if old, err := os.ReadFile(path); err == nil {
		ts.Check(json.Unmarshal(old, &index))
	}
	index.Manifests = append(index.Manifests, d)
	ts.Check(os.WriteFile(path, encode(ts, index), 0o600))
	ts.Check(os.WriteFile(filepath.Join(layout, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o600))
}

// withConfig encodes an image with more in its config than the OCI knows of.
func withConfig(ts *testscript.TestScript, img v1.Image, more map[string]any) []byte {
	var all map[string]any
	ts.Check(json.Unmarshal(encode(ts, img), &all))
	config, ok := all["config"].(map[string]any)
	if !ok {
		ts.Fatalf("the image has no config")
	}
	maps.Copy(config, more)
	return encode(ts, all)
}

func encode(ts *testscript.TestScript, v any) []byte {
	text, err := json.Marshal(v)
	ts.Check(err)
	return text
}

// put adds a blob to an OCI layout.
func put(ts *testscript.TestScript, layout, mediaType string, data []byte) v1.Descriptor {
	d := digest.FromBytes(data)
	path := filepath.Join(layout, "blobs", d.Algorithm().String(), d.Encoded())
	ts.Check(os.MkdirAll(filepath.Dir(path), 0o700))
	ts.Check(os.WriteFile(path, data, 0o600))
	return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

// cmdDamage does to the largest file what a bad disk does: it flips a bit in
// its middle, or cuts off its second half.
func cmdDamage(ts *testscript.TestScript, neg bool, args []string) {
	positive(ts, neg, args, 2, "damage DIR flip|cut")
	var largest string
	var size int64
	ts.Check(filepath.WalkDir(ts.MkAbs(args[0]), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Size() > size {
			largest, size = path, info.Size()
		}
		return err
	}))
	f, err := os.OpenFile(largest, os.O_RDWR, 0)
	ts.Check(err)
	defer f.Close()
	switch args[1] {
	case "cut":
		ts.Check(f.Truncate(size / 2))
	case "flip":
		b := make([]byte, 1)
		_, err := f.ReadAt(b, size/2)
		ts.Check(err)
		b[0] ^= 1
		_, err = f.WriteAt(b, size/2)
		ts.Check(err)
	default:
		ts.Fatalf("damage how? %s", args[1])
	}
	_, err = io.WriteString(ts.Stdout(), largest+"\n")
	ts.Check(err)
}

// cmdMounted mounts an image of a file system until the story ends.
func cmdMounted(ts *testscript.TestScript, neg bool, args []string) {
	positive(ts, neg, args, 2, "mounted IMAGE DIR")
	dir := ts.MkAbs(args[1])
	ts.Check(ts.Exec("mount", "-o", "loop", ts.MkAbs(args[0]), dir))
	ts.Defer(func() {
		if err := exec.Command("umount", dir).Run(); err != nil {
			ts.Logf("umount %s: %v", dir, err)
		}
	})
}
