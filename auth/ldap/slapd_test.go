package ldap

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"
)

const (
	suffix = "dc=example,dc=com"
	people = "ou=people," + suffix
	groups = "ou=groups," + suffix
	root   = "cn=root," + suffix
	reader = "cn=reader," + suffix
)

// slapd is an LDAP server with a folder of its own.
type slapd struct {
	dir         string
	plain, over int // ports
	cmd         *exec.Cmd
	ca          string // file
}

// startSlapd starts Debian's slapd, empty but for ann, bob and their groups.
func startSlapd(t *testing.T) *slapd {
	t.Helper()
	if _, err := exec.LookPath("/usr/sbin/slapd"); err != nil {
		t.Fatalf("slapd is missing: install it with make deps: %v", err)
	}
	s := &slapd{dir: t.TempDir(), plain: freePort(t), over: freePort(t)}
	s.ca = certificates(t, s.dir)
	config := fmt.Sprintf(`include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/nis.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload memberof
pidfile %[1]s/pid
TLSCACertificateFile %[1]s/ca.crt
TLSCertificateFile %[1]s/server.crt
TLSCertificateKeyFile %[1]s/server.key
database mdb
suffix %[2]s
directory %[1]s/db
rootdn %[3]s
rootpw secret-of-root
overlay memberof
access to attrs=userPassword by anonymous auth by * none
access to * by dn.exact=%[4]s read by * none
`, s.dir, suffix, root, reader)
	write(t, filepath.Join(s.dir, "slapd.conf"), config)
	write(t, filepath.Join(s.dir, "password"), "secret-of-reader\n")
	if err := os.Mkdir(filepath.Join(s.dir, "db"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.start(t)
	s.do(t, func(c *ldap.Conn) error {
		return errors.Join(
			add(c, suffix, "objectClass", "dcObject", "objectClass", "organization", "o", "example", "dc", "example"),
			add(c, people, "objectClass", "organizationalUnit", "ou", "people"),
			add(c, groups, "objectClass", "organizationalUnit", "ou", "groups"),
			add(c, reader, "objectClass", "person", "cn", "reader", "sn", "reader", "userPassword", "secret-of-reader"),
			addUser(c, "ann"), addUser(c, "bob"),
			add(c, "cn=dev,"+groups, "objectClass", "groupOfNames", "cn", "dev", "member", "uid=ann,"+people),
			add(c, "cn=ops,"+groups, "objectClass", "groupOfNames", "cn", "ops", "member", "uid=ann,"+people, "member", root),
			add(c, "cn=two words,"+groups, "objectClass", "groupOfNames", "cn", "two words", "member", "uid=ann,"+people),
		)
	})
	return s
}

func addUser(c *ldap.Conn, name string) error {
	return add(c, "uid="+name+","+people, "objectClass", "inetOrgPerson", "uid", name, "cn", name, "sn", name, "userPassword", "password of "+name)
}

func add(c *ldap.Conn, dn string, pairs ...string) error {
	q := ldap.NewAddRequest(dn, nil)
	values := map[string][]string{}
	for i := 0; i < len(pairs); i += 2 {
		values[pairs[i]] = append(values[pairs[i]], pairs[i+1])
	}
	for attribute, v := range values {
		q.Attribute(attribute, v)
	}
	return c.Add(q)
}

// start starts the program and waits until it listens.
func (s *slapd) start(t *testing.T) {
	t.Helper()
	s.cmd = exec.Command("/usr/sbin/slapd", "-d", "none", "-f", filepath.Join(s.dir, "slapd.conf"),
		"-h", fmt.Sprintf("ldap://127.0.0.1:%d/ ldaps://127.0.0.1:%d/", s.plain, s.over))
	out, err := s.cmd.StderrPipe()
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := s.cmd
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // stopped already, or it is stopped now
		_ = cmd.Wait()
	})
	var said strings.Builder
	for scan := bufio.NewScanner(out); scan.Scan(); {
		fmt.Fprintln(&said, scan.Text())
		if strings.Contains(scan.Text(), "slapd starting") {
			go io.Copy(io.Discard, out)
			s.wait(t)
			return
		}
	}
	t.Fatalf("slapd does not start:\n%s", said.String())
}

// wait waits until the program listens, which it does a little after it says so.
func (s *slapd) wait(t *testing.T) {
	t.Helper()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	patience := time.After(10 * time.Second)
	for _, port := range []int{s.plain, s.over} {
		for {
			c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err == nil {
				_ = c.Close() // it was only to see
				break
			}
			select {
			case <-again.C:
			case <-patience:
				t.Fatalf("slapd does not listen: %v", err)
			}
		}
	}
}

func (s *slapd) stop(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = s.cmd.Wait() // how it ends is its own affair
}

// do lets change speak as root.
func (s *slapd) do(t *testing.T, change func(*ldap.Conn) error) {
	t.Helper()
	c, err := ldap.DialURL(fmt.Sprintf("ldap://127.0.0.1:%d", s.plain))
	if err == nil {
		err = errors.Join(c.Bind(root, "secret-of-root"), change(c), c.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// config is that of a directory on the server.
func (s *slapd) config() Config {
	c := DefaultConfig()
	c.URL = fmt.Sprintf("ldaps://127.0.0.1:%d", s.over)
	c.CA = s.ca
	c.BindDN, c.BindPasswordFile = reader, filepath.Join(s.dir, "password")
	c.UserBase, c.GroupBase = people, groups
	return c
}

func (s *slapd) open(t *testing.T, change func(*Config)) *Directory {
	t.Helper()
	cfg := s.config()
	if change != nil {
		change(&cfg)
	}
	d, err := Open(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// certificates makes a CA and a certificate for 127.0.0.1 in dir, and returns the file
// of the CA.
func certificates(t *testing.T, dir string) string {
	t.Helper()
	var keys [2]*ecdsa.PrivateKey
	for i := range keys {
		var err error
		if keys[i], err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "127.0.0.1"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for i, cert := range []*x509.Certificate{ca, server} {
		der, err := x509.CreateCertificate(rand.Reader, cert, ca, keys[i].Public(), keys[0])
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, []string{"ca.crt", "server.crt"}[i]), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	}
	der, err := x509.MarshalPKCS8PrivateKey(keys[1])
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "server.key"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	return filepath.Join(dir, "ca.crt")
}
