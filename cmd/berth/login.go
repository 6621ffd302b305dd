package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"berth.internal/auth"
	"berth.internal/client"
	"berth.internal/client/contexts"
	wire "berth.internal/internal/control"
)

// loginLife is how long a login lasts, unless it is told otherwise.
const loginLife = "90d"

// loginOptions are what berth login was told.
type loginOptions struct {
	context   string
	user      string
	fromStdin bool
	caFile    string
	expires   string
	oidc      string
	device    bool
}

func newLogin(std stdio) *cobra.Command {
	var o loginOptions
	cmd := &cobra.Command{
		Use:   "login [flags] [HOST:PORT|URL]",
		Short: "Log in to a server, and keep the login as a context",
		Long: `Log in to a server of berth's, and keep the login as a context, which becomes the
current one: then berth repo, admin, policy, user and robot speak with that server.
Without an address it logs in again at the server of --context, or of the current one.

The password is not kept: the server makes an API key in its place, good for 90 days,
which berth logout deletes. Robots and API keys can be used to log in, too, and are
kept as they are.

With --oidc a browser logs in at an OpenID provider that the server knows; with
--device that may be a browser on another machine.`,
		Example: `  berth login registry.example.com:5000
  berth login --context prod --ca ca.crt --user ann registry.example.com:5000
  berth login --oidc corp registry.example.com
  berth login --user robot+ci --password-stdin registry.example.com < secret`,
		Args:    cobra.MaximumNArgs(1),
		GroupID: groupRun,
	}
	f := cmd.Flags()
	f.StringVar(&o.context, "context", "", "`name` of the context; default the server's host and port")
	f.StringVarP(&o.user, "user", "u", "", "`name` to log in with; default: ask for it")
	f.BoolVar(&o.fromStdin, "password-stdin", false, "read the password from the input")
	f.StringVar(&o.caFile, "ca", "", "PEM `file` of the CA to trust there beside the system's; it is kept in the context")
	f.StringVar(&o.expires, "expires", loginLife, "let the login end after this `time`, such as 12h, on this date, or never")
	f.StringVar(&o.oidc, "oidc", "", "log in at the OpenID provider that the server calls by this `name`")
	f.BoolVar(&o.device, "device", false, "with --oidc: show a page and a code for a browser on any machine")
	_ = cmd.RegisterFlagCompletionFunc("context", completeContexts) // the flag is there
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case o.device && o.oidc == "":
			return misuse(errors.New("--device is a way of --oidc: say which provider, with --oidc NAME"))
		case o.oidc != "" && (o.user != "" || o.fromStdin):
			return misuse(errors.New("with --oidc the provider asks who you are: leave out --user and --password-stdin"))
		}
		return logIn(cmd.Context(), std, o, only(args))
	}
	return cmd
}

// logIn logs in and keeps the context.
func logIn(ctx context.Context, std stdio, o loginOptions, address string) error {
	name, c, err := o.target(address)
	if err != nil {
		return err
	}
	anonymous, err := registryOf(c)
	if err != nil {
		return misuse(err)
	}
	if u, err := url.Parse(c.Server); err == nil && u.Scheme == "http" && !isLoopback(u.Hostname()) {
		fmt.Fprintf(std.err, "The password goes to %s in the clear: everybody on the way can read it.\n", anonymous.Host())
	}
	by := byPassword
	if o.oidc != "" {
		by = byOIDC
	}
	got, err := by(ctx, std, o, c)
	if err != nil {
		return explainTLS(err, c.Server)
	}
	old := contexts.Context{}
	err = changeContexts(func(f *contexts.File) error {
		old = f.Contexts[name]
		f.Contexts[name] = got
		f.Current = name
		return nil
	})
	if err != nil { // nobody knows the key: it must not stay
		if got.Key != "" {
			err = errors.Join(err, deleteKey(ctx, got, got.Key))
		}
		return err
	}
	if old.Key != "" && old.Server == got.Server && old.User == got.User {
		if err := deleteKey(ctx, got, old.Key); err != nil {
			fmt.Fprintf(std.err, "The key of the login before, %s, is still good: %v\n", old.Key, err)
		}
	}
	until := ""
	if got.Key != "" {
		until = ", until: " + expiryText(got.Expires)
	}
	_, err = fmt.Fprintf(std.out, "Logged in at %s as %s%s. The context %s is the current one.\n", got.Server, got.User, until, name)
	return err
}

// target returns the context that is to be logged in to, with a name, without a
// login.
func (o loginOptions) target(address string) (string, contexts.Context, error) {
	file, err := loadContexts()
	if err != nil {
		return "", contexts.Context{}, err
	}
	name := o.context
	if address == "" {
		found, _, err := file.Find(cmp.Or(name, os.Getenv(contextVar)))
		if err != nil {
			return "", contexts.Context{}, misuse(fmt.Errorf("name a server, such as berth login registry.example.com:5000: %w", err))
		}
		name = found
	}
	c := file.Contexts[name]
	if address != "" {
		reg, err := client.New(client.Options{Registry: address, CAFile: o.caFile})
		if err != nil {
			return "", c, misuse(err)
		}
		name = cmp.Or(name, reg.Host())
		if c = file.Contexts[name]; c.Server != reg.URL() {
			c = contexts.Context{Server: reg.URL()} // its CA says nothing of another server
		}
	}
	if err := contexts.CheckName(name); err != nil {
		return "", c, misuse(err)
	}
	c.LogOut()
	if o.caFile != "" {
		pem, err := os.ReadFile(o.caFile)
		if err != nil {
			return "", c, misuse(fmt.Errorf("--ca: %w", err))
		}
		c.CA = string(pem)
		if !x509.NewCertPool().AppendCertsFromPEM(pem) {
			return "", c, misuse(fmt.Errorf("--ca: %s holds no PEM certificate", o.caFile))
		}
		if strings.Contains(c.CA, "PRIVATE KEY") {
			return "", c, misuse(fmt.Errorf("--ca: %s holds a private key: give the certificate alone", o.caFile))
		}
	}
	return name, c, nil
}

// byPassword logs in with a name and a password, and returns c with what is kept of
// that. Other ways to log in have the same form.
func byPassword(ctx context.Context, std stdio, o loginOptions, c contexts.Context) (contexts.Context, error) {
	end, err := parseExpiry(o.expires, time.Now())
	if err != nil {
		return c, misuse(err)
	}
	if c.User, c.Secret, err = askLogin(std, o, c.Server); err != nil {
		return c, err
	}
	reg, err := registryOf(c)
	if err != nil {
		return c, err
	}
	if auth.IsKey(c.Secret) || strings.HasPrefix(c.User, auth.RobotPrefix) {
		err := reg.Ping(ctx)
		if errors.Is(err, client.ErrUnauthorized) {
			return c, notAccepted(ctx, c)
		}
		return c, err
	}
	return makeKey(ctx, reg, c, end)
}

// notAccepted says what else can be tried.
func notAccepted(ctx context.Context, c contexts.Context) error {
	return fmt.Errorf("%s does not accept this name and password%s", c.Server, otherWays(ctx, c))
}

// makeKey makes an API key in place of the password that c has.
func makeKey(ctx context.Context, reg *client.Registry, c contexts.Context, end time.Time) (contexts.Context, error) {
	host, err := os.Hostname()
	if err != nil {
		host = "a machine without a name"
	}
	server, err := controlOf(reg)
	if err != nil {
		return c, err
	}
	defer server.Close()
	var made wire.Key
	err = server.Do(ctx, http.MethodPost, keysPath(""), struct {
		Description string    `json:"description"`
		Expires     time.Time `json:"expires,omitzero"`
	}{fmt.Sprintf("berth login on %.100s", host), end}, &made)
	switch {
	case errors.Is(err, wire.Unauthenticated):
		return c, notAccepted(ctx, c)
	case errors.Is(err, wire.Unsupported):
		return c, fmt.Errorf("%s is a berth too old for berth login; docker login works there", c.Server)
	case err != nil:
		return c, err
	}
	c.User, c.Secret, c.Key, c.Expires = made.User, made.Secret, made.ID, made.Expires
	return c, nil
}

// askLogin asks for what it was not told.
func askLogin(std stdio, o loginOptions, server string) (user, password string, err error) {
	tty, _ := std.in.(*os.File)
	terminal := tty != nil && term.IsTerminal(int(tty.Fd()))
	user = o.user
	if user == "" {
		if !terminal || o.fromStdin {
			return "", "", misuse(errors.New("say who logs in, with --user"))
		}
		fmt.Fprintf(std.err, "Name at %s: ", server)
		const most = 1024
		line, err := bufio.NewReader(io.LimitReader(tty, most)).ReadString('\n')
		if err != nil {
			return "", "", fmt.Errorf("read the name: %w", err)
		}
		user = strings.TrimSpace(line)
	}
	if user == "" || strings.ContainsAny(user, ":\x00\n") {
		return "", "", misuse(fmt.Errorf("%q is no name to log in with", user))
	}
	password, err = readSecret(std, o.fromStdin, "Password: ")
	return user, password, err
}

// explainTLS adds to err what to do, if it is that the server is not trusted or does
// not speak TLS.
func explainTLS(err error, server string) error {
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &unknown):
		return fmt.Errorf("%w; if it is your own CA: berth login --ca FILE %s", err, server)
	case err != nil && strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return fmt.Errorf("%w; it speaks no TLS: if that is right, write http:// before its address", err)
	}
	return err
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func newLogout() *cobra.Command {
	return &cobra.Command{
		Use:   "logout [CONTEXT]",
		Short: "Delete the API key of a login, and forget it",
		Long: `Delete the API key of a login on its server, and forget it. The context stays, with
the server's address and its CA; berth context rm forgets that, too.`,
		Example:           "  berth logout\n  berth logout prod",
		Args:              cobra.MaximumNArgs(1),
		GroupID:           groupRun,
		ValidArgsFunction: first(completeContexts),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := cmp.Or(only(args), os.Getenv(contextVar))
			if _, err := namedContext(name); err != nil {
				return err
			}
			return logOut(cmd.Context(), name, false)
		},
	}
}
