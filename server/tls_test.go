package server

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// pair writes a self-made certificate for 127.0.0.1, and returns it.
func pair(t *testing.T, cfg TLS, serial int64, life time.Duration) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(life), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, cfg.Cert, "CERTIFICATE", der)
	writePEM(t, cfg.Key, "PRIVATE KEY", keyDER)
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func pairIn(dir string) TLS {
	return TLS{Cert: filepath.Join(dir, "server.crt"), Key: filepath.Join(dir, "server.key")}
}

// onTLS runs s and returns its address.
func onTLS(t *testing.T, s *Server) string {
	t.Helper()
	l := listenOnce(t)
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l, nil) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Errorf("Serve() = %v", err)
		}
	})
	return l.Addr().String()
}

func TestTLS(t *testing.T) {
	cfg := pairIn(t.TempDir())
	pair(t, cfg, 1, 20*24*time.Hour)
	s, _ := newServer(t, func(c *Config) { c.TLS = cfg })
	addr := onTLS(t, s)
	dial := func(version uint16) (*tls.Conn, error) {
		d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, MaxVersion: version, MinVersion: tls.VersionTLS10, NextProtos: []string{"h2", "http/1.1"}}}
		c, err := d.DialContext(t.Context(), "tcp", addr)
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { _ = c.Close() })
		return c.(*tls.Conn), nil
	}
	serial := func() int64 {
		c, err := dial(tls.VersionTLS13)
		if err != nil {
			t.Fatal(err)
		}
		return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	eventually(t, func() bool { _, err := dial(tls.VersionTLS13); return err == nil })
	for version, want := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		if _, err := dial(version); (err == nil) != want {
			t.Errorf("%s: %v, want it to succeed: %v", tls.VersionName(version), err, want)
		}
	}
	if c, err := dial(tls.VersionTLS13); err != nil || c.ConnectionState().NegotiatedProtocol != "h2" {
		t.Errorf("HTTP/2 is not offered: %v", err)
	}

	// A new pair is taken; one that does not match is not.
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	readyz := func() string {
		req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+addr+"/readyz", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.ProtoMajor != 2 {
			t.Fatal(resp.Proto, err)
		}
		return resp.Status + " " + string(b)
	}
	const needs = "200 OK the certificate needs an administrator: berth admin server and the log say why\n"
	if got := readyz(); got != "200 OK " {
		t.Errorf("GET /readyz = %q", got)
	}
	before := serial()
	pair(t, TLS{Cert: cfg.Cert, Key: filepath.Join(t.TempDir(), "key")}, 2, time.Hour)
	_, _ = s.Reload(t.Context())
	eventually(t, func() bool { return readyz() == needs })
	if now := serial(); now != before {
		t.Errorf("a pair that does not match is in force, serial %d", now)
	}
	if p := s.ready(t.Context()); !strings.Contains(p[len(p)-1].Reason, "private key does not match public key") {
		t.Errorf("the parts are %+v", p)
	}
	pair(t, cfg, 3, 20*24*time.Hour)
	_, _ = s.Reload(t.Context())
	eventually(t, func() bool { return serial() == 3 && readyz() == "200 OK " })
	// One that ends soon is taken, too, but reported.
	pair(t, cfg, 4, 24*time.Hour)
	_, _ = s.Reload(t.Context())
	eventually(t, func() bool { return serial() == 4 && readyz() == needs })
	if err := os.Remove(cfg.Key); err != nil {
		t.Fatal(err)
	}
	_, _ = s.Reload(t.Context())
	eventually(t, func() bool {
		p := s.ready(t.Context())
		return strings.Contains(p[len(p)-1].Reason, "tls.key: open ")
	})
	if got := serial(); got != 4 {
		t.Errorf("without a key the serial is %d", got)
	}

	other, _ := newServer(t, func(c *Config) { c.TLS = cfg })
	if err := other.Serve(t.Context(), listenOnce(t), nil); err == nil || !strings.Contains(err.Error(), "tls.key: open ") {
		t.Errorf("Serve() without a key = %v", err)
	}
}

// TestSlowClients sends headers and bodies byte by byte, and not at all: who makes
// no progress is cut off, who makes some is not.
func TestSlowClients(t *testing.T) {
	cfg := pairIn(t.TempDir())
	pair(t, cfg, 1, time.Hour)
	for _, over := range []string{"TCP", "TLS"} {
		t.Run(over, func(t *testing.T) {
			s, _ := newServer(t, func(c *Config) {
				if over == "TLS" {
					c.TLS = cfg
				}
			})
			s.patience = patience{header: time.Second, body: time.Second, idle: time.Second}
			addr := onTLS(t, s)
			dial := func(t *testing.T) net.Conn {
				t.Helper()
				var c net.Conn
				var err error
				if over == "TLS" {
					d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}
					c, err = d.DialContext(t.Context(), "tcp", addr)
				} else {
					var d net.Dialer
					c, err = d.DialContext(t.Context(), "tcp", addr)
				}
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = c.Close() })
				if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
					t.Fatal(err)
				}
				return c
			}
			// patch is the beginning of a request that sends a body.
			patch := func(t *testing.T) string {
				t.Helper()
				c := dial(t)
				if _, err := io.WriteString(c, "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"); err != nil {
					t.Fatal(err)
				}
				answer, err := io.ReadAll(c)
				if err != nil {
					t.Fatal(err)
				}
				_, location, _ := strings.Cut(string(answer), "Location: ")
				location, _, _ = strings.Cut(location, "\r\n")
				return "PATCH " + location + " HTTP/1.1\r\nHost: a\r\nContent-Type: application/octet-stream\r\nConnection: close\r\n"
			}

			for _, tc := range []struct {
				name, send, drip string // at once, where PATCH begins a request, then byte by byte
				want             string // what the answer begins with
			}{
				{"no header", "", "", ""},
				{"a header that does not end", "GET /v2/ HTTP/1.1\r\nHost: a\r\n", "", ""},
				{"a header that drips", "GET /v2/ HTTP/1.1\r\nHost: a\r\n", "X-A: " + strings.Repeat("b", 1000), ""},
				{"a body that does not come", "PATCH\r\nContent-Length: 100\r\n\r\n", "", "HTTP/1.1 400"},
				{"a body that stops", "PATCH\r\nContent-Length: 100\r\n\r\nabc", "", "HTTP/1.1 400"},
				{"chunks that stop", "PATCH\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "", "HTTP/1.1 400"},
				{"a body that drips", "PATCH\r\nContent-Length: 12\r\n\r\n", "hello, berth", "HTTP/1.1 202"},
				{"a body that nobody reads", "GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n", "", "HTTP/1.1 200"},
				{"a header that is too large", "GET /v2/ HTTP/1.1\r\nHost: a\r\nX-A: " + strings.Repeat("b", 80<<10) + "\r\n\r\n", "", "HTTP/1.1 431"},
			} {
				t.Run(tc.name, func(t *testing.T) {
					t.Parallel()
					c := dial(t)
					send := tc.send
					if rest, ok := strings.CutPrefix(send, "PATCH\r\n"); ok {
						send = patch(t) + rest
					}
					if _, err := io.WriteString(c, send); err != nil && tc.want == "" {
						t.Fatal(err)
					}
					stop := make(chan struct{})
					dripped := make(chan struct{})
					go func() { defer close(dripped); drip(c, tc.drip, 150*time.Millisecond, stop) }() // longer than a second
					answer, err := io.ReadAll(c)
					close(stop)
					<-dripped
					if errors.Is(err, os.ErrDeadlineExceeded) {
						t.Fatalf("the connection is still there, with the answer %q", answer)
					}
					if !bytes.HasPrefix(answer, []byte(tc.want)) || tc.want == "" && len(answer) > 0 && !bytes.Contains(answer, []byte(" 408 ")) {
						t.Errorf("the answer is %q, want %s", answer, tc.want)
					}
				})
			}
		})
	}
}

// drip sends text byte by byte until it is gone, nobody listens, or stop is
// closed.
func drip(c net.Conn, text string, pause time.Duration, stop <-chan struct{}) {
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	for i := range text {
		select {
		case <-stop:
			return
		case <-ticker.C:
		}
		if _, err := c.Write([]byte{text[i]}); err != nil {
			return
		}
	}
}
