// Package lifecycle decides. Given what was observed of a credential, of its
// class, its Secret and the servers, and the time, it says what the status
// should be, whether a new version is to be minted, what the Secret should
// carry, and when to look again.
//
// It is pure: no client, no clock, no randomness. Package controllers carries
// out what it decides, one write at a time, and observes again after each, so
// that a crash between any two writes leaves a state that the next Plan goes on
// from. What a step finds decides, never what a process remembers.
//
// The life of a version, and what moves it on:
//
//	             rotate            deliver, then promote       rotate, ...
//	(nothing) ----------> Pending ----------------------> Active ---------> Superseded ---> Retired
//	                         every server accepts it          the new one is delivered    overlap over
//
// and from each of the accepted states Revoked or Expired.
//
// The golden files under testdata tell how this plays out over time; they are
// meant to be read.
package lifecycle
