package layout

import (
	"fmt"
	"io"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// copyVerified copies blob d from open to w and compares size and digest.
func copyVerified(w io.Writer, d v1.Descriptor, open func(int64) (io.ReadCloser, error), progress func(int64)) error {
	rc, err := open(0)
	if err != nil {
		return err
	}
	defer rc.Close()
	v := &verifying{r: rc, desc: d, verifier: d.Digest.Verifier(), progress: progress}
	_, err = io.Copy(w, v)
	return err
}

// verifying is a blob that ends with an error instead of io.EOF if it is not
// what its descriptor says.
type verifying struct {
	r        io.Reader
	desc     v1.Descriptor
	verifier interface {
		io.Writer
		Verified() bool
	}
	through  int64
	progress func(int64)
}

func (v *verifying) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.through += int64(n)
	if v.through > v.desc.Size {
		return 0, fmt.Errorf("wrong content: %s has more than its %d bytes", v.desc.Digest, v.desc.Size)
	}
	_, _ = v.verifier.Write(p[:n]) // a hash takes everything
	if n > 0 {
		v.progress(v.through)
	}
	if err == io.EOF {
		switch {
		case v.through < v.desc.Size:
			return n, fmt.Errorf("%s ended after %d of %d bytes: %w", v.desc.Digest, v.through, v.desc.Size, io.ErrUnexpectedEOF)
		case !v.verifier.Verified():
			return n, fmt.Errorf("wrong content: the bytes do not hash to %s", v.desc.Digest)
		}
	}
	return n, err
}
