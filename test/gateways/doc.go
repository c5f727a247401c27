// Package gateways runs nginx, Caddy, HAProxy and Traefik as docs/gateways configures
// them, in front of a backend, with a real server beside a real API server as the
// authority, and checks what reaches the backend. Caddy and Traefik are built from modules
// of their own in hack/tools, which takes minutes the first time.
//
// The configurations are the files of docs/gateways themselves, with addresses,
// paths and nothing else replaced. The tests have the build tag e2e.
package gateways
