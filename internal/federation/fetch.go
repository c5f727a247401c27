package federation

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Limits of fetching.
const (
	fetchTimeout    = 10 * time.Second // of discovery and keys together
	dialTimeout     = 5 * time.Second
	maxDiscoveryLen = 256 << 10
	maxRedirects    = 3
	maxHeaderLen    = 64 << 10
	maxAddresses    = 8 // of a host that are tried
)

// DiscoveryPath is that of OpenID Connect Discovery, after the issuer.
const DiscoveryPath = "/.well-known/openid-configuration"

// special are the networks that look public and are not (RFC 6890 and its updates), and
// those from which clouds tell a machine its secrets.
var special = func() (prefixes []netip.Prefix) {
	for _, text := range []string{
		"0.0.0.0/8", "100.64.0.0/10", "168.63.129.16/32", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15",
		"198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
	} {
		prefixes = append(prefixes, netip.MustParsePrefix(text))
	}
	return prefixes
}()

var (
	unicast6 = netip.MustParsePrefix("2000::/3")
	nat64    = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052
)

// public tells whether an address is one of the public internet.
func public(ip netip.Addr) bool {
	ip = ip.Unmap()
	if ip.Is6() && nat64.Contains(ip) {
		b := ip.As16()
		ip = netip.AddrFrom4([4]byte(b[12:]))
	}
	if !ip.IsGlobalUnicast() || ip.IsPrivate() || ip.Is6() && !unicast6.Contains(ip) {
		return false
	}
	return !slices.ContainsFunc(special, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// dialer connects to where issuers may be. It looks at the very address that it connects
// to, so that a name which resolves otherwise the next time gains nothing.
type dialer struct {
	networks []netip.Prefix // allowed although not public
	shielded []string       // hosts not to be dialled although public
	resolve  func(ctx context.Context, host string) ([]netip.Addr, error)
}

// errForbidden is the cause of a refusal to dial.
var errForbidden = errors.New("not on the public internet, or the API server's: allow its network with --allow-issuer-networks, or give spec.jwks")

func (d *dialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	candidates, err := d.addresses(ctx, host)
	if err != nil {
		return nil, err
	}
	shielded := d.shieldedAddresses(ctx)
	var errs []error
	for _, ip := range candidates[:min(len(candidates), maxAddresses)] {
		ip = ip.Unmap().WithZone("")
		if !d.allowed(ip, shielded) {
			errs = append(errs, fmt.Errorf("%s is %s: %w", host, ip, errForbidden))
			continue
		}
		conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, net.JoinHostPort(ip.String(), port))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, fmt.Errorf("%s has no address", host)
	}
	return nil, errors.Join(errs...)
}

func (d *dialer) addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip}, nil
	}
	ips, err := d.resolve(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("looking up %s: %w", host, err)
	}
	return ips, nil
}

// shieldedAddresses are looked up each time, for they may change. What cannot be looked
// up is not reached either.
func (d *dialer) shieldedAddresses(ctx context.Context) (shielded []netip.Addr) {
	for _, host := range d.shielded {
		ips, err := d.addresses(ctx, host)
		if err != nil {
			continue
		}
		for _, ip := range ips {
			shielded = append(shielded, ip.Unmap().WithZone(""))
		}
	}
	return shielded
}

func (d *dialer) allowed(ip netip.Addr, shielded []netip.Addr) bool {
	if slices.ContainsFunc(d.networks, func(p netip.Prefix) bool { return p.Contains(ip) }) {
		return true
	}
	return public(ip) && !slices.Contains(shielded, ip)
}

// lookup is the system's resolver.
func lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}

// fetcher gets documents of one issuer.
type fetcher struct{ http *http.Client }

// newFetcher makes a client that keeps no connection, so that each fetch is dialled and
// its address looked at, and that uses no proxy: one would connect to whatever address
// it finds.
func newFetcher(c *Compiled, d *dialer) *fetcher {
	transport := &http.Transport{
		DialContext: d.dial, TLSClientConfig: &tls.Config{RootCAs: c.roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: dialTimeout, ResponseHeaderTimeout: fetchTimeout, MaxResponseHeaderBytes: maxHeaderLen,
		DisableKeepAlives: true, DisableCompression: true,
	}
	return &fetcher{http: &http.Client{Transport: transport, CheckRedirect: sameOrigin}}
}

// sameOrigin follows a redirect only to the same host, port and scheme.
func sameOrigin(to *http.Request, via []*http.Request) error {
	switch from := via[0].URL; {
	case len(via) > maxRedirects:
		return fmt.Errorf("more than %d redirects", maxRedirects)
	case to.URL.Scheme != from.Scheme || to.URL.Host != from.Host:
		return errors.New("it redirects to another origin, which is not followed: write the URL it redirects to")
	}
	return nil
}

// get fetches one document of at most limit bytes.
func (f *fetcher) get(ctx context.Context, address string, limit int64) (body []byte, header http.Header, err error) {
	if problem := checkURL(address); problem != "" {
		return nil, nil, errors.New(problem)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "mintmark")
	resp, err := f.http.Do(req)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err // the URL is said by the caller
		}
		return nil, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("the answer has status %d", resp.StatusCode)
	}
	body, err = io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return nil, nil, err
	case int64(len(body)) > limit:
		return nil, nil, fmt.Errorf("the answer is longer than %d KiB", limit>>10)
	}
	return body, resp.Header, nil
}

// discover asks the issuer where its keys are. What answers must say that it is that
// issuer (OpenID Connect Discovery 1.0, section 4.3).
func (f *fetcher) discover(ctx context.Context, issuer string) (jwksURL string, err error) {
	address := strings.TrimSuffix(issuer, "/") + DiscoveryPath
	body, _, err := f.get(ctx, address, maxDiscoveryLen)
	if err != nil {
		return "", fmt.Errorf("%s: %w", address, err)
	}
	var document struct {
		Issuer  string `json:"issuer"`
		JWKSURI string `json:"jwks_uri"`
	}
	switch err := json.Unmarshal(body, &document); {
	case err != nil:
		return "", fmt.Errorf("%s: not a discovery document in JSON", address)
	case document.Issuer != issuer:
		return "", fmt.Errorf("%s: the document is of another issuer than spec.issuer, which must be the same to the letter", address)
	case document.JWKSURI == "":
		return "", fmt.Errorf("%s: the document has no jwks_uri: give spec.jwksURL", address)
	}
	return document.JWKSURI, nil
}

// keys fetches the issuer's keys, and for how long they may be kept, 0 where the issuer
// does not say.
func (f *fetcher) keys(ctx context.Context, c *Compiled) (*keySet, time.Duration, error) {
	address := c.jwksURL
	if address == "" {
		var err error
		if address, err = f.discover(ctx, c.issuer); err != nil {
			return nil, 0, err
		}
	}
	body, header, err := f.get(ctx, address, maxKeySetLen)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", address, err)
	}
	set, err := parseKeySet(body, false)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", address, err)
	}
	return set, maxAge(header), nil
}

// maxAge reads Cache-Control (RFC 9111, section 5.2.2). What may not be kept at all is
// kept for the least time there is.
func maxAge(h http.Header) time.Duration {
	for directive := range strings.SplitSeq(strings.Join(h.Values("Cache-Control"), ","), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		switch strings.ToLower(name) {
		case "no-store", "no-cache":
			return time.Nanosecond
		case "max-age":
			if seconds, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 31); err == nil {
				return max(time.Duration(seconds)*time.Second, time.Nanosecond)
			}
		}
	}
	return 0
}
