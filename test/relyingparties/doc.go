// Package relyingparties has JWTs of a real server accepted by those who are to accept
// them: a kube-apiserver that trusts our issuer by structured authentication
// configuration, asked by kubectl, and github.com/coreos/go-oidc by discovery. The
// server runs beside a real API server; the tests have the build tag e2e.
//
// The vectors of Wycheproof come from the module in testdata, which the Go command
// fetches and checks against its go.sum.
package relyingparties
