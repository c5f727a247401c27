// Package store says what a server keeps outside Kubernetes, and in which terms: the
// audit log, usage worked out from it, an inventory of the credentials to search,
// tombstones of what was revoked, and JWTs that are refused before they expire.
//
// Two packages keep it, postgres and sqlite, with the same results: storetest is what
// both of them have to pass. Who uses a store declares what it needs of one; nothing here
// is on the way of a request.
//
// Every query is made for a [Tenant], and sees what is of that tenant.
package store
