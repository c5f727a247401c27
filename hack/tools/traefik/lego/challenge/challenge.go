// Package challenge is what answers the challenges of an ACME server.
package challenge

import "context"

// Provider puts an answer where the server looks for it, and takes it away.
type Provider interface {
	Present(ctx context.Context, domain, token, keyAuth string) error
	CleanUp(ctx context.Context, domain, token, keyAuth string) error
}

// Option of a challenge. Nothing reads it.
type Option struct{}
