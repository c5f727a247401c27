// Package cli is the command mintmark, which is also a kubectl plugin (kubectl
// mintmark): the people's tool over the Kubernetes API and the server's public
// port.
//
// It holds no power of its own. Everything it does, its user could do with
// kubectl and curl: it creates credentials, writes the annotations and the
// spec.revoked that Git would write, reads the Secret that carries the value,
// and asks the server who a credential is. What it adds is waiting, selecting,
// explaining, and the time of the API server in the place of the local clock.
//
// Standard output carries results alone, so that it can be piped: a value, a
// table, an object. Progress, questions and errors go to standard error. A
// plaintext is written to standard output and nowhere else.
package cli
