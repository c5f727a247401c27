// Package faults breaks everything Mintmark stands on and checks that nobody whose
// credential is good is ever refused.
//
// Two API servers share one etcd. Every process under test, a controller, one more that
// takes over, and three servers split over the API servers, reaches one of them through a
// proxy that numbers its writes. A scenario, such as a rotation, is run once undisturbed
// to learn the writes; then it is run again for each write and each fault. The families
// of faults:
//
//   - writes: the controller killed before the write reaches the API server, or before it
//     learns of the answer; the answer lost, or another one in its place; watches cut,
//     answered with 410, or late; the credential revoked or deleted at each write of a
//     rotation;
//   - leaders: the controller paused with its write under way while another one acts, past
//     its Lease too; a write that arrives when its sender is dead and all is done;
//   - servers: killed, joining, joining behind the others, restarted in turn, paused past
//     their Lease and resumed;
//   - API servers: paused, killed, lagging, with the controller restarted onto one that
//     lags; events dropped, also those that tell of a revocation;
//   - objects: the Secret deleted, edited, immutable, over quota, somebody else's; the spec
//     changed, the namespace deleted;
//   - outages: no API server for longer than one of the servers may be stale, one that is
//     slow, one that answers 429 to everything, a server started without any.
//
// Meanwhile a prober presents every value that was ever read from the Secret to every
// server, and keeps a history. A checker reads the history and the final state against
// the invariants:
//
//	I1   a value is current only after every server accepts it
//	I2   a value read from the Secret is accepted until it has left it and its overlap is over
//	I3   one accepted value for each version, and no other
//	I4   when faults stop, Secret and status match the spec, and writes stop
//	I5   what is revoked or deleted is refused within a second, and while a server cannot
//	     hear of it, it shows that what it knows is older
//	I9   only our own Secrets are written, and none by a server
//	I13  no value stands in a log
//	I14  a warm server verifies on without the API server until it is too stale; a cold one
//	     never does; one that nothing befalls is Ready throughout
//	I18  a new leader or a restarted process rotates nothing, and writes nothing of what had
//	     settled
//
// What it cannot do is step the clock of a process: that time makes nothing pass after its
// end (I6) is tested where time is handed in, in packages lifecycle and authn.
//
// Its tests carry the build tag faults: `make faults` runs them all, and
// `make faults-short` some of each family. Both print a table, and fail where they tried
// less than they are there for. MINTMARK_FAULTS_CONTROLLER and MINTMARK_FAULTS_SERVER name
// other binaries to try; MINTMARK_FAULTS_LOGS is a folder for the logs of a run that failed.
package faults
