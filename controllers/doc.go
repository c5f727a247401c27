// Package controllers carries out what package lifecycle decides. It is the only
// writer of target Secrets and of status.
//
// One reconcile of a credential observes once, and then repeats: plan, make one
// write, take what the API server answered for the new observation, until there
// is nothing left to write. The three writes of a mint, and what follows each
// crash between them:
//
//	commit   status: the digest, as Pending, under the resourceVersion read
//	           crash: the value is lost; a later version is minted
//	deliver  Secret: create, or update under the resourceVersion read at commit
//	           crash: the Secret carries the Pending value; it is promoted
//	promote  status: Active, the one before it Superseded
//
// Between commit and deliver the Propagation asks every server that holds a
// Lease whether it accepts the new version.
package controllers
