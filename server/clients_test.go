package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.internal/auth"
)

// testCA is a CA of one test.
type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// issue makes a certificate, by itself if by is nil.
func (by *testCA) issue(t *testing.T, template x509.Certificate) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if by == nil {
		by = &testCA{&template, key}
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<60)); err != nil {
		t.Fatal(err)
	}
	if template.NotBefore.IsZero() {
		template.NotBefore = time.Now().Add(-time.Hour)
	}
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, by.cert, key.Public(), by.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &testCA{cert, key}
}

func newCA(t *testing.T) *testCA {
	return (*testCA)(nil).issue(t, x509.Certificate{
		Subject: pkix.Name{CommonName: "a CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
}

var forClients = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}

// client makes a certificate for a client.
func (by *testCA) client(t *testing.T, name string) *testCA {
	return by.issue(t, x509.Certificate{Subject: pkix.Name{CommonName: name}, ExtKeyUsage: forClients})
}

// http returns a client that shows the certificate, with those between it and its
// CA.
func (by *testCA) http(t *testing.T, between ...*testCA) *http.Client {
	t.Helper()
	cfg := &tls.Config{InsecureSkipVerify: true}
	if by != nil {
		shown := tls.Certificate{Certificate: [][]byte{by.cert.Raw}, PrivateKey: by.key}
		for _, b := range between {
			shown.Certificate = append(shown.Certificate, b.cert.Raw)
		}
		// Also if the server's list of CAs does not have its own.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &shown, nil }
	}
	tr := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// TestClientCertificates comes with good and bad certificates, with and without a
// password beside.
func TestClientCertificates(t *testing.T) {
	dir := t.TempDir()
	files := pairIn(dir)
	pair(t, files, 1, time.Hour)
	files.ClientCA = filepath.Join(dir, "clients.crt")
	ca, other := newCA(t), newCA(t)
	writePEM(t, files.ClientCA, "CERTIFICATE", ca.cert.Raw)
	s, _ := people(t, func(c *Config) { c.TLS = files })
	disabled := true
	if _, err := s.identities.AddUser(t.Context(), auth.Account{Name: "eve", Disabled: disabled}, "password of eve"); err != nil {
		t.Fatal(err)
	}
	addr := onTLS(t, s)
	ask := func(c *http.Client, path, user string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if user != "" {
			name, password, _ := strings.Cut(user, ":")
			r.SetBasicAuth(name, password)
		}
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.ProtoMajor != 2 {
			t.Fatal(resp.Proto, err)
		}
		return resp.StatusCode, string(b)
	}
	subCA := ca.issue(t, x509.Certificate{Subject: pkix.Name{CommonName: "a CA below"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	const secret, team = "/v2/secret/app/tags/list", "/v2/team/app/tags/list"
	none := (*testCA)(nil).http(t)
	eventually(t, func() bool { _, err := none.Get("https://" + addr + "/healthz"); return err == nil })
	for _, tc := range []struct {
		name       string
		client     *http.Client
		path, user string
		want       int // 404: let in
		says       string
	}{
		{"none", none, secret, "", 401, "log in"},
		{"an administrator", ca.client(t, "ann").http(t), secret, "", 404, ""},
		{"an administrator's control API", ca.client(t, "ann").http(t), "/berth/v1/users", "", 200, "eve"},
		{"by a CA between", subCA.client(t, "ann").http(t, subCA), secret, "", 404, ""},
		{"by a CA between that is not shown", subCA.client(t, "ann").http(t), secret, "", 401, "by no CA that this registry accepts"},
		{"a user without rights", ca.client(t, "bob").http(t), secret, "", 403, "user bob may not pull"},
		{"a robot", ca.client(t, "robot+ci").http(t), team, "", 404, ""},
		{"a robot elsewhere", ca.client(t, "robot+ci").http(t), secret, "", 403, "robot ci may not pull"},
		{"nobody", ca.client(t, "carl").http(t), secret, "", 401, `there is no account \"carl\"`},
		{"somebody disabled", ca.client(t, "eve").http(t), secret, "", 401, `there is no account \"eve\", or it may not log in`},
		{"by another CA", other.client(t, "ann").http(t), secret, "", 401, "by no CA that this registry accepts"},
		{"by itself", (*testCA)(nil).issue(t, x509.Certificate{Subject: pkix.Name{CommonName: "ann"}, ExtKeyUsage: forClients}).http(t), secret, "", 401, "by no CA"},
		{"by a user", ca.client(t, "bob").client(t, "ann").http(t, ca.client(t, "bob")), secret, "", 401, "by no CA"},
		{"ended", ca.issue(t, x509.Certificate{
			Subject: pkix.Name{CommonName: "ann"}, ExtKeyUsage: forClients, NotAfter: time.Now().Add(-time.Minute),
		}).http(t), secret, "", 401, "expired"},
		{"not begun", ca.issue(t, x509.Certificate{
			Subject: pkix.Name{CommonName: "ann"}, ExtKeyUsage: forClients, NotBefore: time.Now().Add(time.Minute),
		}).http(t), secret, "", 401, "not yet valid"},
		{"a server's", ca.issue(t, x509.Certificate{
			Subject: pkix.Name{CommonName: "ann"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		}).http(t), secret, "", 401, "incompatible key usage"},
		{"for any use", ca.issue(t, x509.Certificate{Subject: pkix.Name{CommonName: "ann"}}).http(t), secret, "", 401, "must be clientAuth"},
		{"without a name", ca.client(t, "").http(t), secret, "", 401, "one common name"},
		{"two names", ca.issue(t, x509.Certificate{
			Subject: pkix.Name{CommonName: "ann", ExtraNames: []pkix.AttributeTypeAndValue{
				{Type: commonName, Value: "bob"}, {Type: commonName, Value: "ann"},
			}}, ExtKeyUsage: forClients,
		}).http(t), secret, "", 401, "one common name"},
		{"a password counts first", ca.client(t, "ann").http(t), secret, "bob:password of bob", 403, "user bob may not"},
		{"a wrong password counts first", ca.client(t, "ann").http(t), secret, "ann:wrong", 401, "the name or the password is wrong"},
		{"a password beside a bad one", other.client(t, "bob").http(t), secret, "ann:password of ann", 404, ""},
		{"a token", ca.client(t, "robot+ci").http(t), "/auth/token?scope=repository:team/app:pull", "", 200, `"token":`},
		{"no token", other.client(t, "robot+ci").http(t), "/auth/token", "", 401, "by no CA"},
	} {
		for range 2 { // the second one over the same connection
			if code, body := ask(tc.client, tc.path, tc.user); code != tc.want || !strings.Contains(body, tc.says) {
				t.Errorf("%s: GET %s = %d %s, want %d %q", tc.name, tc.path, code, body, tc.want, tc.says)
			}
		}
	}

	// Another CA in the file: from then on the old one counts no more, on connections
	// that are open, too.
	mine, theirs := ca.client(t, "ann").http(t), other.client(t, "ann").http(t)
	if code, _ := ask(mine, secret, ""); code != 404 {
		t.Fatalf("before the change = %d", code)
	}
	writePEM(t, files.ClientCA, "CERTIFICATE", other.cert.Raw)
	_, _ = s.Reload(t.Context())
	eventually(t, func() bool {
		code, _ := ask(theirs, secret, "")
		return code == 404 || code == 401 && s.clients.now.Load() == nil
	})
	eventually(t, func() bool { code, _ := ask(mine, secret, ""); return code == 401 })
	// A file that is none changes nothing, and is told.
	for says, text := range map[string]string{
		"holds no certificate in PEM": "nothing", "holds a PRIVATE KEY": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
	} {
		if err := os.WriteFile(files.ClientCA, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = s.Reload(t.Context())
		eventually(t, func() bool { return s.clients.amiss() != nil && strings.Contains(s.clients.amiss().Error(), says) })
	}
	writePEM(t, files.ClientCA, "CERTIFICATE", ca.client(t, "ann").cert.Raw)
	_, _ = s.Reload(t.Context())
	eventually(t, func() bool { return strings.Contains(s.clients.amiss().Error(), "CN=ann, is not of a CA") })
	if code, _ := ask(theirs, secret, ""); code != 404 {
		t.Errorf("after a broken file = %d, want what was in force before", code)
	}
}

// TestClientCertificateEnds uses a connection for longer than its certificate is
// good.
func TestClientCertificateEnds(t *testing.T) {
	ca := newCA(t)
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	c := ca.client(t, "ann")
	now := time.Now()
	name, until, err := verify([]*x509.Certificate{c.cert}, pool, now)
	if err != nil || name != "ann" || !until.Equal(c.cert.NotAfter) {
		t.Errorf("verify() = %q until %s, %v, want ann until %s", name, until, err, c.cert.NotAfter)
	}
	if _, _, err := verify([]*x509.Certificate{c.cert}, pool, until.Add(time.Second)); err == nil {
		t.Error("a certificate that has ended is good")
	}
}
