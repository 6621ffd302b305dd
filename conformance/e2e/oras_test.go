package e2e_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/testscript"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// cmdOras does what programs do that are built on oras-go. LOGIN is NAME:PASSWORD,
// refresh:TOKEN, or - for nobody, or @FILE for what is in a file; CA is the file of the registry's CA. mount brings the
// layers of FROM, in the same registry, into TO without moving their bytes, and fails if
// it had to.
//
//	oras LOGIN CA push LAYOUT TAG TO
//	oras LOGIN CA pull FROM LAYOUT
//	oras LOGIN CA mount FROM TO
//	oras LOGIN CA tags FROM
func cmdOras(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 4 {
		ts.Fatalf("usage: oras LOGIN CA push|pull|mount|tags …")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	o := orasUser{ts: ts, login: args[0]}
	if file, ok := strings.CutPrefix(o.login, "@"); ok {
		o.login = strings.TrimSpace(ts.ReadFile(file))
	}
	text, err := os.ReadFile(ts.MkAbs(args[1]))
	ts.Check(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true, IdleConnTimeout: time.Second}
	defer transport.CloseIdleConnections()
	o.http = &http.Client{Transport: transport}
	switch rest := args[3:]; {
	case args[2] == "push" && len(rest) == 3:
		err = o.copy(ctx, ts.MkAbs(rest[0]), rest[1], rest[2])
	case args[2] == "pull" && len(rest) == 2:
		err = o.pull(ctx, rest[0], ts.MkAbs(rest[1]))
	case args[2] == "mount" && len(rest) == 2:
		err = o.mount(ctx, rest[0], rest[1])
	case args[2] == "tags" && len(rest) == 1:
		err = o.tags(ctx, rest[0])
	default:
		ts.Fatalf("oras does not know %q", args[2:])
	}
	switch {
	case err != nil:
		ts.Logf("[oras] %v", err)
		if !neg {
			ts.Fatalf("oras %s failed", args[2])
		}
	case neg:
		ts.Fatalf("oras %s succeeded", args[2])
	}
}

// orasUser is somebody who uses oras-go.
type orasUser struct {
	ts    *testscript.TestScript
	login string
	http  *http.Client
}

func (o *orasUser) repository(name string) (*remote.Repository, error) {
	r, err := remote.NewRepository(name)
	if err != nil {
		return nil, err
	}
	var c auth.Credential
	if name, password, ok := strings.Cut(o.login, ":"); ok && name == "refresh" {
		c.RefreshToken = password
	} else if ok {
		c.Username, c.Password = name, password
	}
	r.Client = &auth.Client{Client: o.http, Cache: auth.NewCache(), Credential: auth.StaticCredential(r.Reference.Registry, c)}
	return r, nil
}

func (o *orasUser) copy(ctx context.Context, layout, tag, to string) error {
	from, err := oci.NewFromFS(ctx, os.DirFS(layout))
	if err != nil {
		return err
	}
	r, err := o.repository(to)
	if err != nil {
		return err
	}
	_, err = oras.Copy(ctx, from, tag, r, r.Reference.Reference, oras.DefaultCopyOptions)
	return err
}

func (o *orasUser) pull(ctx context.Context, from, layout string) error {
	to, err := oci.New(layout)
	if err != nil {
		return err
	}
	r, err := o.repository(from)
	if err != nil {
		return err
	}
	_, err = oras.Copy(ctx, r, r.Reference.Reference, to, "1", oras.DefaultCopyOptions)
	return err
}

func (o *orasUser) mount(ctx context.Context, from, to string) error {
	source, err := o.repository(from)
	if err != nil {
		return err
	}
	target, err := o.repository(to)
	if err != nil {
		return err
	}
	opts := oras.DefaultCopyOptions
	mounted, moved := 0, 0
	opts.MountFrom = func(context.Context, v1.Descriptor) ([]string, error) {
		return []string{source.Reference.Repository}, nil
	}
	opts.OnMounted = func(context.Context, v1.Descriptor) error { mounted++; return nil }
	opts.PreCopy = func(_ context.Context, d v1.Descriptor) error {
		if !strings.Contains(d.MediaType, "manifest") {
			moved++
		}
		return nil
	}
	if _, err := oras.Copy(ctx, source, source.Reference.Reference, target, target.Reference.Reference, opts); err != nil {
		return err
	}
	if mounted == 0 || moved > 0 {
		return errors.New("its layers were not mounted, but copied")
	}
	return nil
}

func (o *orasUser) tags(ctx context.Context, from string) error {
	r, err := o.repository(from)
	if err != nil {
		return err
	}
	return r.Tags(ctx, "", func(tags []string) error {
		_, err := io.WriteString(o.ts.Stdout(), strings.Join(tags, "\n")+"\n")
		return err
	})
}
