package keyring

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"slices"
	"time"
)

// Names of the Secrets with serving certificates. The entries are those of a
// kubernetes.io/tls Secret and what cert-manager adds: tls.crt, tls.key, ca.crt.
// While a successor is published, next.crt and next.key hold it.
const (
	WebhookTLSSecret = "mintmark-webhook-tls"
	ServerTLSSecret  = "mintmark-server-tls"
)

const (
	certificateEntry     = "tls.crt"
	certificateKeyEntry  = "tls.key"
	authorityEntry       = "ca.crt"
	nextCertificateEntry = "next.crt"
	nextKeyEntry         = "next.key"
)

const (
	// CertificateLife is how long a certificate made here is valid.
	CertificateLife = 365 * 24 * time.Hour
	// backdate lets clients use a certificate whose clocks are behind.
	backdate = time.Hour
	// publishCertificate is the least time for which a successor's authority is
	// in the bundle before the successor is used.
	publishCertificate = 24 * time.Hour
)

// Serving is a serving certificate with its key, and the authorities by which
// clients trust it.
//
// Every certificate made here has an authority of its own, whose key is thrown
// away once it has signed: there is nothing to steal by which another
// certificate could be made. The price is that clients must learn of each new
// authority. So it is with signing keys: at half of its life a certificate gets
// a successor, whose authority joins the bundle at once; at two thirds the
// successor is put to use. The old authority stays in the bundle while it is
// valid.
type Serving struct {
	// Current is what a server presents; its Leaf is parsed.
	Current tls.Certificate
	// Next is its successor, whose authority is published; nil where there is none.
	Next *tls.Certificate
	// Authorities is the bundle of authorities clients trust, in PEM. It may be
	// empty where somebody else supplies the certificate.
	Authorities []byte
}

// NewServing makes a certificate for DNS names and IP addresses, valid from now
// on (and an hour before) for CertificateLife. random is a cryptographically
// secure source.
func NewServing(random io.Reader, names []string, now time.Time) (*Serving, error) {
	certificate, authority, err := issue(random, names, now)
	if err != nil {
		return nil, err
	}
	return &Serving{Current: *certificate, Authorities: authority}, nil
}

// DecodeServing reads the data of a Secret, ours or somebody else's.
func DecodeServing(data map[string][]byte) (*Serving, error) {
	current, err := decodePair(data, certificateEntry, certificateKeyEntry)
	if err != nil {
		return nil, err
	}
	s := &Serving{Current: *current, Authorities: data[authorityEntry]}
	if len(data[nextCertificateEntry]) > 0 {
		if s.Next, err = decodePair(data, nextCertificateEntry, nextKeyEntry); err != nil {
			return nil, err
		}
	}
	if len(s.Authorities) > 0 && !x509.NewCertPool().AppendCertsFromPEM(s.Authorities) {
		return nil, fmt.Errorf("the entry %s holds no certificate in PEM", authorityEntry)
	}
	return s, nil
}

func decodePair(data map[string][]byte, certificate, key string) (*tls.Certificate, error) {
	for _, entry := range []string{certificate, key} {
		if len(data[entry]) == 0 {
			return nil, fmt.Errorf("the entry %s is missing or empty: it holds PEM", entry)
		}
	}
	pair, err := tls.X509KeyPair(data[certificate], data[key])
	if err != nil {
		return nil, fmt.Errorf("the entries %s and %s are no pair of certificate and key: %w", certificate, key, err)
	}
	return &pair, nil
}

// Encode gives the Secret's data. The only errors are keys that cannot be
// written in PKCS #8.
func (s *Serving) Encode() (map[string][]byte, error) {
	data := map[string][]byte{authorityEntry: s.Authorities}
	if err := encodePair(data, &s.Current, certificateEntry, certificateKeyEntry); err != nil {
		return nil, err
	}
	if s.Next == nil {
		return data, nil
	}
	return data, encodePair(data, s.Next, nextCertificateEntry, nextKeyEntry)
}

func encodePair(data map[string][]byte, pair *tls.Certificate, certificate, key string) error {
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", key, err)
	}
	var chain []byte
	for _, der := range pair.Certificate {
		chain = append(chain, encodeCertificate(der)...)
	}
	data[certificate] = chain
	data[key] = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return nil
}

func encodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// Missing are those of the names that the certificate is not for.
func (s *Serving) Missing(names []string) []string {
	have := namesOf(s.Current.Leaf)
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return slices.Contains(have, canonicalName(name)) })
}

// namesOf are a certificate's DNS names and IP addresses, in text.
func namesOf(leaf *x509.Certificate) []string {
	names := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

func canonicalName(name string) string {
	if ip := net.ParseIP(name); ip != nil {
		return ip.String()
	}
	return name
}

// Replace makes another certificate, for the names wanted and those it had, and
// puts it to use at once: for names that no client could use so far. The names it
// had are kept, so that two processes that want different ones both come to rest.
func (s *Serving) Replace(random io.Reader, names []string, now time.Time) error {
	for _, name := range namesOf(s.Current.Leaf) {
		if !slices.Contains(names, name) {
			names = append(names[:len(names):len(names)], name)
		}
	}
	certificate, authority, err := issue(random, names, now)
	if err != nil {
		return err
	}
	s.Current, s.Next = *certificate, nil
	s.publish(authority, now)
	return nil
}

// ShouldStage tells whether a successor is to be made: half of the
// certificate's life is over.
func (s *Serving) ShouldStage(now time.Time) bool { return s.Next == nil && !now.Before(s.stageAt()) }

func (s *Serving) stageAt() time.Time { return lifePoint(s.Current.Leaf, 1, 2) }

// Stage makes a successor for these names and publishes its authority.
func (s *Serving) Stage(random io.Reader, names []string, now time.Time) error {
	next, authority, err := issue(random, names, now)
	if err != nil {
		return err
	}
	s.Next = next
	s.publish(authority, now)
	return nil
}

// ShouldActivate tells whether the successor is to be used: two thirds of the
// certificate's life are over and the successor's authority has been published
// for a day, or the certificate is about to expire.
func (s *Serving) ShouldActivate(now time.Time) bool {
	return s.Next != nil && !now.Before(s.activateAt())
}

func (s *Serving) activateAt() time.Time {
	at := lifePoint(s.Current.Leaf, 2, 3)
	if published := s.Next.Leaf.NotBefore.Add(backdate + publishCertificate); published.After(at) {
		at = published
	}
	if last := s.Current.Leaf.NotAfter.Add(-backdate); last.Before(at) {
		at = last
	}
	return at
}

// Activate puts the successor to use.
func (s *Serving) Activate() { s.Current, s.Next = *s.Next, nil }

// NextChange is when ShouldStage or ShouldActivate will hold, which may be past.
func (s *Serving) NextChange() time.Time {
	if s.Next != nil {
		return s.activateAt()
	}
	return s.stageAt()
}

// lifePoint is the instant at which a fraction of the certificate's life is over.
func lifePoint(leaf *x509.Certificate, part, of time.Duration) time.Time {
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) * part / of)
}

// publish puts an authority at the head of the bundle and takes the expired ones
// out of it.
func (s *Serving) publish(authority []byte, now time.Time) {
	bundle := slices.Clone(authority)
	for rest := s.Authorities; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err == nil && now.Before(certificate.NotAfter) {
			bundle = append(bundle, encodeCertificate(certificate.Raw)...)
		}
	}
	s.Authorities = bundle
}

// issue makes an authority and, with it, a certificate. The authority's key ends
// with this call.
func issue(random io.Reader, names []string, now time.Time) (pair *tls.Certificate, authority []byte, err error) {
	if len(names) == 0 {
		return nil, nil, errors.New("a serving certificate needs a name")
	}
	authorityKey, authorityTemplate, err := keyAndTemplate(random, now)
	if err != nil {
		return nil, nil, err
	}
	// A subject of its own: by it clients find the one that signed among several.
	authorityTemplate.Subject = pkix.Name{CommonName: "Mintmark CA " + hex.EncodeToString(authorityTemplate.SerialNumber.Bytes()[:4])}
	authorityTemplate.IsCA, authorityTemplate.MaxPathLenZero, authorityTemplate.BasicConstraintsValid = true, true, true
	authorityTemplate.KeyUsage = x509.KeyUsageCertSign
	ca, err := sign(authorityTemplate, authorityTemplate, &authorityKey.PublicKey, authorityKey)
	if err != nil {
		return nil, nil, err
	}

	key, template, err := keyAndTemplate(random, now)
	if err != nil {
		return nil, nil, err
	}
	template.Subject = pkix.Name{CommonName: "Mintmark"}
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	leaf, err := sign(template, ca, &key.PublicKey, authorityKey)
	if err != nil {
		return nil, nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}, encodeCertificate(ca.Raw), nil
}

func keyAndTemplate(random io.Reader, now time.Time) (*ecdsa.PrivateKey, *x509.Certificate, error) {
	key, err := newP256Key(random)
	if err != nil {
		return nil, nil, err
	}
	// 126 random bits behind a one, so that the length is always the same
	// (RFC 5280, section 4.1.2.2: positive, at most 20 octets).
	serial := make([]byte, 16)
	if _, err := io.ReadFull(random, serial); err != nil {
		return nil, nil, fmt.Errorf("reading randomness for a serial number: %w", err)
	}
	serial[0] = serial[0]&0x3f | 0x40
	return key, &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial),
		NotBefore:    now.UTC().Add(-backdate),
		NotAfter:     now.UTC().Add(CertificateLife),
	}, nil
}

// sign signs without randomness (RFC 6979), so that the same input makes the
// same certificate.
func sign(template, parent *x509.Certificate, public *ecdsa.PublicKey, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(nil, template, parent, public, key)
	if err != nil {
		return nil, fmt.Errorf("signing a certificate for %v %v: %w", template.DNSNames, template.IPAddresses, err)
	}
	return x509.ParseCertificate(der)
}
