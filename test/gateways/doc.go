// Package gateways runs nginx and Caddy as docs/gateways configures them, in front of
// a backend, with a real server beside a real API server as the authority, and
// checks what reaches the backend. Traefik is tested too where the environment
// variable MINTMARK_TEST_TRAEFIK names its binary.
//
// The configurations are the files of docs/gateways themselves, with addresses,
// paths and nothing else replaced. The tests have the build tag e2e.
package gateways
