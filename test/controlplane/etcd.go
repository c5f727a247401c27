package controlplane

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
)

// Etcd says where etcd is reached, and how. It is for benchmarks that have to fill it
// faster than the API server takes writes; whatever is written there must be what the
// API server would have written.
func (c *ControlPlane) Etcd() (url string, config *tls.Config, err error) {
	certificate, err := tls.LoadX509KeyPair(c.pki.servingCert(), c.pki.servingKey())
	if err != nil {
		return "", nil, err
	}
	authority, err := os.ReadFile(c.pki.caCert())
	if err != nil {
		return "", nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) {
		return "", nil, errors.New("the certificate authority of etcd cannot be read")
	}
	return c.etcdURL, &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}, nil
}
