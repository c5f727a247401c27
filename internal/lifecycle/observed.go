package lifecycle

import (
	"time"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// Observed is everything Plan decides by.
type Observed struct {
	Kind        v1alpha1.Kind
	Namespace   string
	Name        string
	UID         string
	Generation  int64
	Created     time.Time
	Labels      map[string]string
	Annotations map[string]string
	Deleting    bool

	Spec *v1alpha1.CredentialSpec
	// Status is the status as Trusted returned it, never as it was read.
	Status *v1alpha1.CredentialStatus
	// Record is the sealed record found in status; nil where there is none yet.
	Record *credential.Record

	// Class is nil where the class does not exist; ClassProblem then says what
	// to do. Ceiling is the class's rule for the namespace.
	Class        *v1alpha1.CredentialClassSpec
	ClassProblem string
	Rule         *v1alpha1.ClassRule
	Ceiling      authz.Ceiling

	Secret Secret
	// Held is the number of the Pending version whose plaintext this process
	// holds; 0 is none.
	Held int64
	// Propagation tells what the servers said about the record in status.
	Propagation Propagation
	// Revocations that select this credential, oldest first.
	Revocations []Revocation
	// Restarts is what was found of the workloads to be restarted.
	Restarts Restarts
	// Usage is what every server reported, without a gap; nil where one did not.
	Usage *Usage
	// Declared are the digests of spec.external.sha256, in order, by pepper id.
	Declared []map[string]string
	// Pepper is the id of the pepper new digests are made with.
	Pepper string
	// Conflict names the older credential that has one of our digests, and
	// Contested tells of each of Declared whether it is such a one.
	Conflict  string
	Contested []bool
	// ClockSkewed: this process cannot trust its clock, and takes no step
	// because of the time alone.
	ClockSkewed bool
}

// Secret is what was found of the target Secret.
type Secret struct {
	Exists bool
	// Ours: it carries our mark and this credential's UID.
	Ours bool
	// Adoptable: it is not ours, and nobody else controls it.
	Adoptable bool
	// Current and Previous are the versions whose digests its values match; 0 is
	// none.
	Current, Previous int64
	// HasCurrent and HasPrevious tell whether there is any value.
	HasCurrent, HasPrevious bool
	// Problem is what kept the last write from being made, for people.
	Problem string
}

// Propagation is what the servers said about a credential's latest record.
type Propagation struct {
	// Accepted: every server with a live Lease holds it.
	Accepted bool
	// Lagging names the servers that are late, after a while.
	Lagging []string
	// Problem says why none of them can be asked, for people.
	Problem string
}

// Revocation is a Revocation object that selects the credential.
type Revocation struct {
	UID, Name, Reason, Actor string
	Created                  time.Time
	Replace                  bool
}

// Usage is evidence about the use of versions.
type Usage struct {
	// LastUsed by version; a version that is missing was not used while every
	// server counted without a gap, since Since.
	LastUsed map[int64]time.Time
	// Uses by version: what each process counted that this one knows of, those that
	// have ended among them.
	Uses  map[int64][]Count
	Since time.Time
	// Through is when they were last asked: what has been used since, nobody
	// knows.
	Through time.Time
}

// Count is how often one process of a server saw a version used since it began.
type Count struct {
	Since time.Time
	Uses  int64
}

// Decision is what Plan decided.
type Decision struct {
	// Status as it should be. A version to be minted stands in it as Pending,
	// with no digest yet.
	Status *v1alpha1.CredentialStatus
	// Mint is the version to be minted, nil where there is none.
	Mint *Mint
	// Secret is what the target Secret should carry.
	Secret SecretWant
	// Refused: the spec is invalid or over its ceiling, so that the record goes
	// on granting what it granted before.
	Refused bool
	// AwaitPropagation: nothing goes on until the servers have the record.
	AwaitPropagation bool
	// Next is when to look again; zero where only an event changes anything.
	Next time.Time
	// Events to report once the status is written.
	Events []Event
	// Mark asks to be run again once the version has been used so often.
	Mark UsageMark
	// AskUsage: somebody waits for what the servers say of the use of versions.
	AskUsage bool
	// SettledBefore goes into the record: see credential.Record.
	SettledBefore int64
	// Restarts are what the credential waits for: none where no restart is owed.
	Restarts []RestartWish
	// Delete: the class has expired credentials deleted, and this one is.
	Delete bool
}

// UsageMark is a number of uses at which a decision changes: so many more of a
// version. Zero is none.
type UsageMark struct {
	Version, Left int64
}

// Mint orders a new version.
type Mint struct {
	Version int64
	// Adopt takes the value from the Secret that is there, if its format is
	// right.
	Adopt bool
}

// SecretAction says what to do with the target Secret.
type SecretAction int

const (
	// SecretKeep leaves the Secret as it is.
	SecretKeep SecretAction = iota
	// SecretWrite makes it carry Current and Previous.
	SecretWrite
	// SecretDelete deletes it, if it is ours.
	SecretDelete
)

// SecretWant is what the target Secret should carry.
type SecretWant struct {
	Action SecretAction
	// Current and Previous are versions; Previous is 0 for none.
	Current, Previous int64
}

// Event is a completed change, told to people.
type Event struct {
	Reason  string
	Message string
	Warning bool
}
