// Package scale runs Mintmark with ten thousand credentials and measures it: how
// fast they are made, rotated and revoked, against a bare client that makes the
// same writes in the same cluster, before and after; how much memory the processes
// take, and whether it grows; how many writes the API server sees.
//
// Everything runs as processes: etcd and kube-apiserver, the controller, three
// servers. Its test carries the build tag scale: `make scale` runs it, in about
// a quarter of an hour on two cores, and prints a table. Rates are the machine's: read the
// ratios.
package scale
