// Package postgres runs a real PostgreSQL for tests: the server of the machine, on a
// folder of its own that goes when the test ends.
package postgres
