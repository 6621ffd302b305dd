package server

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"berth.internal/internal/lazyregexp"
)

// proxies are those whose word about where a request comes from is believed.
type proxies []netip.Prefix

// parseProxies reads addresses and networks.
func parseProxies(list []string) (proxies, error) {
	var all proxies
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		if a, errAddr := netip.ParseAddr(text); errAddr == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return nil, fmt.Errorf("%q is neither an address nor a network such as 10.0.0.0/8", text)
		}
		all = append(all, p.Masked())
	}
	return all, nil
}

func (p proxies) trust(address string) bool {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return false
	}
	for _, one := range p {
		if one.Contains(a.Unmap()) {
			return true
		}
	}
	return false
}

// peer is the address that a request came from, without port.
func peer(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// client is the address that a request comes from: of those that proxies name,
// the last one that is no proxy of ours.
func (p proxies) client(r *http.Request) string {
	address := peer(r)
	hops := strings.Split(strings.Join(r.Header["X-Forwarded-For"], ","), ",")
	for i := len(hops) - 1; i >= 0 && p.trust(address); i-- {
		hop := strings.TrimSpace(hops[i])
		if _, err := netip.ParseAddr(hop); err != nil {
			break
		}
		address = hop
	}
	return address
}

// authority is what a Host header may be.
var authority = lazyregexp.New(`^[a-zA-Z0-9.\-_]{1,255}(:[0-9]{1,5})?$|^\[[0-9a-fA-F:.]{2,45}\](:[0-9]{1,5})?$`)

// origin is the beginning of our URLs as the client sees it.
func (p proxies) origin(r *http.Request) string {
	scheme, host := "http", r.Host
	if r.TLS != nil {
		scheme = "https"
	}
	if p.trust(peer(r)) {
		if proto := first(r.Header.Get("X-Forwarded-Proto")); proto == "http" || proto == "https" {
			scheme = proto
		}
		if forwarded := first(r.Header.Get("X-Forwarded-Host")); authority().MatchString(forwarded) {
			host = forwarded
		}
	}
	if !authority().MatchString(host) {
		host = "localhost" // a client that sends such a thing gets nowhere
	}
	return scheme + "://" + host
}

func first(list string) string {
	word, _, _ := strings.Cut(list, ",")
	return strings.TrimSpace(word)
}
