// Package faults breaks Mintmark at every API write it makes and checks that
// nobody whose credential is good is ever refused.
//
// Every process under test reaches the API server through a proxy that numbers
// its writes. A scenario, such as a rotation, is run once undisturbed to learn the
// writes; then it is run again for each write and each fault: the controller
// killed before the write reaches the API server, killed before it learns of the
// answer, the answer lost, another answer in its place, and more. Meanwhile a
// prober presents every value that was ever read from the Secret to every server,
// and keeps a history. A checker reads the history and the final state against the
// invariants of docs/architecture.md.
//
// Its tests carry the build tag faults: `make faults` runs them all, and
// `make faults-short` a handful of them.
package faults
