// Package limit bounds what callers can cause: how often a credential is used
// ([Buckets]), and how long an address that only guesses goes on being answered
// ([Blocker]).
//
// Both are tables of a fixed size, for who calls decides what is put into them. Both
// are handed the time, take a lock on one of many parts of the table only, and may be
// used by any number of goroutines.
package limit
