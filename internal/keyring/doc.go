// Package keyring is what an installation keeps in its own Secrets: the peppers
// that digests and seals are keyed with, the keys that sign JWTs, and the
// serving certificates of the webhook and the servers. It says how each Secret
// is encoded, and when a key is made, used and dropped.
//
// The package is pure: the time and the source of randomness are handed to it,
// and Secrets come and go as their data, map[string][]byte. Reading and writing
// them is for the controllers, which alone make keys, and for the servers, which
// only read.
//
// The data of each Secret may also be filled by other hands: Vault Agent, the
// External Secrets Operator, cert-manager, or a person. The decoders therefore
// accept the forms these write, and their errors say which entry is wrong, and
// never what it holds.
package keyring
