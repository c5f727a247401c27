package server

import (
	"net/http"
	"net/netip"
	"strings"
)

// proxies are the peers whose word on who is behind them is taken. None by default.
type proxies []netip.Prefix

func (ps proxies) trust(ip netip.Addr) bool {
	for _, p := range ps {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// peerAddr is the address at the other end of the connection; invalid where there is
// none, which no network limit allows.
func peerAddr(r *http.Request) netip.Addr {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return peer.Addr().Unmap()
}

// clientAddr is the address the request came from: the peer's, or, where the peer is
// trusted, that of the nearest hop which is not. What was forwarded and cannot be read, or
// is told in two ways that differ, makes it invalid: better no address than a chosen one.
func (ps proxies) clientAddr(r *http.Request, peer netip.Addr) netip.Addr {
	if len(ps) == 0 || !ps.trust(peer) {
		return peer
	}
	xff, rfc := r.Header["X-Forwarded-For"], r.Header["Forwarded"]
	switch {
	case len(xff) > 0 && len(rfc) > 0:
		a, b := ps.nearest(hopsOfXForwardedFor(xff), peer), ps.nearest(hopsOfForwarded(rfc), peer)
		if a != b {
			return netip.Addr{}
		}
		return a
	case len(xff) == 1 && strings.IndexByte(xff[0], ',') < 0:
		return ps.nearest([]string{strings.TrimSpace(xff[0])}, peer) // as nearly always; this takes no memory
	case len(xff) > 0:
		return ps.nearest(hopsOfXForwardedFor(xff), peer)
	case len(rfc) > 0:
		return ps.nearest(hopsOfForwarded(rfc), peer)
	}
	return peer
}

// nearest walks from our side to the other and stops at the first hop that is not
// trusted. Where all are, it is the furthest.
func (ps proxies) nearest(hops []string, peer netip.Addr) netip.Addr {
	at := peer
	for i := len(hops) - 1; i >= 0; i-- {
		ip, ok := hopAddr(hops[i])
		if !ok {
			return netip.Addr{}
		}
		if at = ip; !ps.trust(ip) {
			break
		}
	}
	return at
}

func hopsOfXForwardedFor(lines []string) []string {
	var hops []string
	for _, line := range lines {
		for hop := range strings.SplitSeq(line, ",") {
			hops = append(hops, strings.TrimSpace(hop))
		}
	}
	return hops
}

// hopsOfForwarded takes the for= parameters out of Forwarded (RFC 7239, section 4).
// An element without one stands for a hop that hides itself.
func hopsOfForwarded(lines []string) []string {
	var hops []string
	for _, line := range lines {
		for element := range strings.SplitSeq(line, ",") {
			hop := "unknown"
			for pair := range strings.SplitSeq(element, ";") {
				name, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
				if strings.EqualFold(strings.TrimSpace(name), "for") {
					hop = strings.Trim(strings.TrimSpace(value), `"`)
				}
			}
			hops = append(hops, hop)
		}
	}
	return hops
}

// hopAddr reads an address with or without a port, IPv6 with or without brackets.
func hopAddr(hop string) (netip.Addr, bool) {
	if ip, err := netip.ParseAddr(hop); err == nil {
		return ip.Unmap().WithZone(""), true
	}
	if p, err := netip.ParseAddrPort(hop); err == nil {
		return p.Addr().Unmap().WithZone(""), true
	}
	inner, ok := strings.CutPrefix(hop, "[")
	if inner, closed := strings.CutSuffix(inner, "]"); ok && closed {
		if ip, err := netip.ParseAddr(inner); err == nil {
			return ip.Unmap().WithZone(""), true
		}
	}
	return netip.Addr{}, false
}
