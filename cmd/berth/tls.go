package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"berth.internal/auth"
	"berth.internal/internal/durable"
)

// How long certificates are good for. Some clients refuse those of servers that
// are good for longer than 398 days.
const (
	caLife     = 10 * 365 * 24 * time.Hour
	serverLife = 397 * 24 * time.Hour
	clockSkew  = time.Hour // that a client's clock may be behind
)

// The files that berth tls makes.
const (
	caCert     = "ca.crt"
	caKey      = "ca.key"
	serverCert = "server.crt"
	serverKey  = "server.key"
)

func newTLS(std stdio) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tls",
		Short: "Make certificates for who has none",
		Long: `Make certificates for who has none: a certificate authority (CA) of your own, which
clients are told to trust once, and by it a certificate for the registry.`,
		Example: `  berth tls init --host registry.example.com --dir /etc/berth/tls
  berth tls renew --dir /etc/berth/tls
  berth tls issue --client robot+ci --dir /etc/berth/tls`,
		GroupID: groupRun,
	}
	cmd.AddCommand(newTLSInit(std), newTLSRenew(std), newTLSIssue(std))
	return cmd
}

func newTLSInit(std stdio) *cobra.Command {
	var hosts []string
	var dir string
	cmd := &cobra.Command{
		Use:   "init [flags]",
		Short: "Make a CA and a certificate for the registry",
		Long: `Make a CA, good for ten years, and by it a certificate for the registry, good for
397 days, and print how clients are told to trust them. It overwrites nothing.
Keep ca.key away from the registry's machine if you can: who has it can pretend
to be any server to who trusts ca.crt.`,
		Example: "  berth tls init --host registry.example.com --host 10.0.0.5 --dir /etc/berth/tls",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().StringArrayVar(&hosts, "host", nil, "`name` or address by which clients reach the registry; may be repeated; default this machine's name")
	cmd.Flags().StringVar(&dir, "dir", "tls", "`directory` for the files")
	cmd.RunE = func(*cobra.Command, []string) error {
		if len(hosts) == 0 {
			name, err := os.Hostname()
			if err != nil {
				return misuse(fmt.Errorf("name the registry with --host: %w", err))
			}
			hosts = []string{name}
		}
		if err := checkHosts(hosts); err != nil {
			return misuse(err)
		}
		if err := initTLS(dir, hosts, time.Now()); err != nil {
			return err
		}
		return printTrust(std, dir, hosts[0])
	}
	return cmd
}

func newTLSRenew(std stdio) *cobra.Command {
	var hosts []string
	var dir string
	cmd := &cobra.Command{
		Use:   "renew [flags]",
		Short: "Make a new certificate for the registry, by the same CA",
		Long: `Make a new certificate and key for the registry in place of those that are there, by
the same CA. A registry that runs takes them within seconds; clients notice nothing.`,
		Example: "  berth tls renew --dir /etc/berth/tls",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().StringArrayVar(&hosts, "host", nil, "`name` or address; may be repeated; default those of the certificate that is there")
	cmd.Flags().StringVar(&dir, "dir", "tls", "`directory` of the files")
	cmd.RunE = func(*cobra.Command, []string) error {
		if err := checkHosts(hosts); err != nil {
			return misuse(err)
		}
		end, err := renewTLS(dir, hosts, time.Now())
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(std.out, "%s is good until %s.\n", filepath.Join(dir, serverCert), end.Format(time.DateOnly))
		return err
	}
	return cmd
}

func newTLSIssue(std stdio) *cobra.Command {
	var client, expires, dir string
	cmd := &cobra.Command{
		Use:   "issue --client NAME [flags]",
		Short: "Make a certificate by which a client logs in",
		Long: `Make a certificate and its key, by the CA of berth tls init, by which a client logs in
as the user NAME or the robot robot+NAME instead of with a password, to a registry
with --tls-client-ca DIR/ca.crt. It counts as long as it is good and the account may
log in. It overwrites nothing.`,
		Example: `  berth tls issue --client robot+ci --dir /etc/berth/tls
  berth tls issue --client ann --expires 30d`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&client, "client", "", "`name` that the client logs in with: NAME, or robot+NAME")
	cmd.Flags().StringVar(&expires, "expires", "397d", "let it end after this `time`, such as 12h or 90d, or on this date, such as 2030-01-31")
	cmd.Flags().StringVar(&dir, "dir", "tls", "`directory` of the CA, and for the files")
	cmd.RunE = func(*cobra.Command, []string) error {
		now := time.Now()
		end, err := parseExpiry(expires, now)
		switch {
		case !auth.IsLoginName(client):
			return misuse(fmt.Errorf("--client %q is no name to log in with: it is that of a user, or robot+ and that of a robot", client))
		case err != nil:
			return misuse(err)
		case end.IsZero():
			return misuse(errors.New("--expires: a certificate ends: say when, such as 90d"))
		case !end.After(now):
			return misuse(fmt.Errorf("--expires: the certificate would have ended already, at %s", end.Format(time.DateTime)))
		}
		by, err := readCA(dir)
		if err != nil {
			return err
		}
		cert, key := filepath.Join(dir, client+".crt"), filepath.Join(dir, client+".key")
		if end, err = writeClient(cert, key, by, client, end, now); err != nil {
			return err
		}
		_, err = fmt.Fprintf(std.out, `Made %[1]s and %[2]s, good until %[3]s. The key is a secret.

The registry takes them with --tls-client-ca %[4]s. Copy both to the client, there for the registry at HOST:PORT:
  docker            as client.cert and client.key in /etc/docker/certs.d/HOST:PORT/
  podman, skopeo    as client.cert and client.key in /etc/containers/certs.d/HOST:PORT/
  containerd        in its hosts.toml:  client = [["%[5]s.crt", "%[5]s.key"]]
  curl              curl --cert %[5]s.crt --key %[5]s.key https://HOST:PORT/v2/
`, cert, key, end.Format(time.DateOnly), filepath.Join(dir, caCert), client)
		return err
	}
	return cmd
}

// writeClient makes a certificate and a key for a client, and says until when they
// are good.
func writeClient(certPath, keyPath string, by authority, name string, end, now time.Time) (time.Time, error) {
	for _, path := range []string{certPath, keyPath} {
		if _, err := os.Lstat(path); err == nil {
			return end, fmt.Errorf("%s is there and is not overwritten: remove it first", path)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return end, err
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return end, fmt.Errorf("make the client's key: %w", err)
	}
	if by.cert.NotAfter.Before(end) {
		end = by.cert.NotAfter
	}
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: name},
		NotBefore: now.Add(-clockSkew), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
	_, der, err := sign(template, &by, key)
	if err != nil {
		return end, fmt.Errorf("make the client's certificate: %w", err)
	}
	if err := writeKey(keyPath, key); err != nil {
		return end, err
	}
	return end, durable.WriteFile(certPath, pemOf("CERTIFICATE", der), 0o644)
}

func checkHosts(hosts []string) error {
	for _, h := range hosts {
		if net.ParseIP(h) == nil && (h == "" || len(h) > 253 || strings.ContainsAny(h, ":/ ") || strings.Contains(strings.TrimPrefix(h, "*."), "*")) {
			return fmt.Errorf("--host %q is neither a name nor an address; leave scheme and port away", h)
		}
	}
	return nil
}

// authority is a CA with its key.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// initTLS makes all four files in dir.
func initTLS(dir string, hosts []string, now time.Time) error {
	for _, name := range []string{caCert, caKey, serverCert, serverKey} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return fmt.Errorf("%s is there and is not overwritten: name another directory with --dir; berth tls renew makes a new certificate by the CA that is there",
				filepath.Join(dir, name))
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := durable.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make the CA's key: %w", err)
	}
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: "berth CA for " + hosts[0]},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, // it signs servers and clients, no other CA
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	cert, der, err := sign(template, &authority{template, key}, key)
	if err != nil {
		return fmt.Errorf("make the CA: %w", err)
	}
	if err := writeKey(filepath.Join(dir, caKey), key); err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(dir, caCert), pemOf("CERTIFICATE", der), 0o644); err != nil {
		return err
	}
	_, err = writeServer(dir, authority{cert, key}, hosts, now)
	return err
}

// renewTLS replaces the server's certificate and key in dir, and says until when
// it is good.
func renewTLS(dir string, hosts []string, now time.Time) (time.Time, error) {
	by, err := readCA(dir)
	if err != nil {
		return time.Time{}, err
	}
	if len(hosts) == 0 {
		text, err := os.ReadFile(filepath.Join(dir, serverCert))
		if err != nil {
			return time.Time{}, fmt.Errorf("read the names of the certificate that is there: %w; name them with --host", err)
		}
		block, _ := pem.Decode(text)
		if block == nil {
			return time.Time{}, fmt.Errorf("%s holds no certificate: name the hosts with --host", filepath.Join(dir, serverCert))
		}
		old, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return time.Time{}, fmt.Errorf("read the names of %s: %w; name them with --host", filepath.Join(dir, serverCert), err)
		}
		hosts = slices.Clone(old.DNSNames)
		for _, ip := range old.IPAddresses {
			hosts = append(hosts, ip.String())
		}
	}
	return writeServer(dir, by, hosts, now)
}

// readCA reads what initTLS has made.
func readCA(dir string) (authority, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, caCert), filepath.Join(dir, caKey))
	if err != nil {
		return authority{}, fmt.Errorf("read the CA: %w; berth tls init makes one", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return authority{}, fmt.Errorf("%s is no CA that berth tls init has made", filepath.Join(dir, caCert))
	}
	return authority{pair.Leaf, key}, nil
}

// writeServer makes a certificate for hosts, and for this machine's own use.
func writeServer(dir string, by authority, hosts []string, now time.Time) (time.Time, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return time.Time{}, fmt.Errorf("make the server's key: %w", err)
	}
	end := now.Add(serverLife)
	if by.cert.NotAfter.Before(end) {
		end = by.cert.NotAfter
	}
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: hosts[0]},
		NotBefore: now.Add(-clockSkew), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	for _, h := range append(slices.Clone(hosts), "localhost", "127.0.0.1", "::1") {
		switch ip := net.ParseIP(h); {
		case ip != nil && !slices.ContainsFunc(template.IPAddresses, ip.Equal):
			template.IPAddresses = append(template.IPAddresses, ip)
		case ip == nil && !slices.Contains(template.DNSNames, h):
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	_, der, err := sign(template, &by, key)
	if err != nil {
		return time.Time{}, fmt.Errorf("make the server's certificate: %w", err)
	}
	if err := writeKey(filepath.Join(dir, serverKey), key); err != nil {
		return time.Time{}, err
	}
	return end, durable.WriteFile(filepath.Join(dir, serverCert), pemOf("CERTIFICATE", der), 0o644)
}

// sign makes a certificate for key by template.
func sign(template *x509.Certificate, by *authority, key *ecdsa.PrivateKey) (*x509.Certificate, []byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, err
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, key.Public(), by.key)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, der, err
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return durable.WriteFile(path, pemOf("PRIVATE KEY", der), 0o600)
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// printTrust says what to do with the files.
func printTrust(std stdio, dir, host string) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	at := net.JoinHostPort(host, "5000")
	_, err = fmt.Fprintf(std.out, `Made in %[1]s: %[3]s and %[4]s, the CA, and %[5]s and %[6]s, the registry's.

Serve with them, as a user who can read %[6]s:
  berth serve --listen :5000 --tls-cert %[1]s/%[5]s --tls-key %[1]s/%[6]s

Copy %[3]s, no other file, to the machines of clients, and there, for the registry at %[2]s:
  all programs (Debian)  cp %[3]s /usr/local/share/ca-certificates/berth.crt && update-ca-certificates
  all programs (Fedora)  cp %[3]s /etc/pki/ca-trust/source/anchors/berth.crt && update-ca-trust
  docker                 mkdir -p /etc/docker/certs.d/%[2]s && cp %[3]s /etc/docker/certs.d/%[2]s/
  podman, skopeo         mkdir -p /etc/containers/certs.d/%[2]s && cp %[3]s /etc/containers/certs.d/%[2]s/
  containerd             mkdir -p /etc/containerd/certs.d/%[2]s && cp %[3]s /etc/containerd/certs.d/%[2]s/ &&
                         printf '[host."https://%[2]s"]\n  ca = "/etc/containerd/certs.d/%[2]s/%[3]s"\n' >/etc/containerd/certs.d/%[2]s/hosts.toml
  one program, crane and berth too   SSL_CERT_FILE=%[3]s PROGRAM
Before a year is over: berth tls renew --dir %[1]s
`, abs, at, caCert, caKey, serverCert, serverKey)
	return err
}
