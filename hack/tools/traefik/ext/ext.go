// Package ext is where builds of Traefik can add fields to its dynamic configuration.
// Traefik replaces it by a folder that its module on the proxy does not hold; nothing is
// added here either.
package ext

// HTTP is inlined in the section http.
type HTTP struct{}

// Router is inlined in each router of HTTP.
type Router struct{}
