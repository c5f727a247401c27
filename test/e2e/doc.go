// Package e2e does as a person would: it starts the whole system with the
// program behind `make run` and uses it with kubectl, curl and nginx.
//
// Its tests carry the build tag e2e: `make e2e` runs them.
package e2e
