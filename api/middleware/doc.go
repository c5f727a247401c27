// Package middleware lets a service in Go demand permissions of its callers.
//
//	guard, err := middleware.New(middleware.Config{ServerURL: "https://mintmark-server.mintmark-system.svc", RootCAs: pool})
//	mux.Handle("GET /orders/{id}", guard.Require("orders:read")(orders))
//
// A caller presents a service token, an API key or a JWT, in X-API-Key or in
// Authorization: Bearer. JWTs are verified here, by the published keys (RFC 7517); what
// needs the server for an answer, opaque keys and JWTs of credentials with a key of their
// own, is asked of its check call, and the answer is used again for a few seconds.
//
// What that means for revocation: a revoked key is refused after [Config.CacheTTL] at
// the latest, a JWT verified here not before it expires. With [Config.CheckJWTs] the
// server is asked about JWTs too, and its AccessPolicies hold for them as well.
//
// Everything that is not an explicit yes is a no: without the server opaque keys are
// answered with 503, never let through.
//
// The package grpcmw does the same for gRPC.
package middleware
