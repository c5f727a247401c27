// Package server answers at run time whether a credential is good and what it may
// do. It follows the credentials in the API server, exchanges keys for JWTs, and checks
// requests for gateways.
//
// The data's way:
//
//	listwatch -> feed -> credential.OpenRecord -> authn.Index   (what the controller sealed)
//	request -> chain -> authn.Verify / oauth.Verify -> handler   (what a caller presents)
//
// Three listeners, each with a mux of its own: public.go (HTTPS, callers), internal.go
// (HTTPS, the controllers) and operations.go (plain HTTP, probes and metrics).
//
// A server is Ready while four things hold at once (readiness.go): it holds its Lease
// (presence.go); every list was begun under that Lease and applied whole (feed.go); it has
// its keys (keys.go); and what it knows is fresh (freshness.go). Without them it
// answers 503 or is taken out of service. No error path allows.
package server
