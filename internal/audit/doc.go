// Package audit keeps the record of who used which credential, from where, for what, and
// of what was done to credentials.
//
// The data's way:
//
//	request -> Event -> Recorder (queue -> Batch, chained) -> Store
//	                                     |                      ^
//	                                     +-> spool on disk -----+   while the store fails
//
// [Recorder.Record] never waits: what decides about a request does not depend on the
// store. An event can hold no credential: what comes from outside goes through [Clean],
// which takes out whatever has the shape of one, and nothing else fits its fields.
//
// Batches are chained ([Batch]): each carries the digest of the one before, so that what
// is taken out or changed later shows.
package audit
