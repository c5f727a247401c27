// Package internalapi is the contract between the controllers and the internal
// listener of a server: paths, the audience of the caller's token, and the
// messages. It holds no behaviour.
//
// A server publishes the address of that listener in its Lease (annotation
// [v1alpha1.AnnotationInternalURL]). Callers send a projected service account
// token of audience [Audience] as a bearer token over TLS; every answer other
// than 200 is a problem document (RFC 9457) and means the question stays
// unanswered, never "no".
package internalapi

import "time"

// Audience is what a caller's token must have been made for. A token for the
// API server itself is refused, so that a compromised server learns nothing it
// could use elsewhere.
const Audience = "mintmark-internal"

// Paths of the internal listener.
const (
	// AcceptsPath answers POST with an [AcceptsResponse].
	AcceptsPath = "/internal/v1/accepts"
	// UsagePath answers GET with a [UsageResponse]; see [CursorParameter].
	UsagePath = "/internal/v1/usage"
	// TransitionsPath answers POST with a [TransitionsResponse].
	TransitionsPath = "/internal/v1/transitions"
	// CursorParameter of UsagePath is a cursor from an earlier answer of the same
	// process; 0 or absent asks for everything.
	CursorParameter = "cursor"
)

// Limits of the internal listener.
const (
	// MaxAcceptsItems is the most questions one AcceptsRequest may hold.
	MaxAcceptsItems = 10_000
	// MaxWait is the longest an AcceptsRequest can be held open.
	MaxWait = 2 * time.Second
	// MaxUsageItems is the most items of one UsageResponse. Where there are more, the
	// cursor of the answer stands behind the last one given: ask again with it.
	MaxUsageItems = 10_000
	// MaxTransitions is the most items of one TransitionsRequest.
	MaxTransitions = 1000
)

// AcceptsRequest asks whether a server accepts what has been committed.
type AcceptsRequest struct {
	// WaitMillis is how long the server may hold the request until every
	// item is accepted, in milliseconds; longer than MaxWait is MaxWait.
	WaitMillis int64 `json:"waitMillis,omitempty"`
	// Items to ask for, at most MaxAcceptsItems.
	Items []AcceptsItem `json:"items"`
}

// AcceptsItem asks for one credential: does the index hold a sealed record of
// this UID of at least this epoch?
type AcceptsItem struct {
	UID   string `json:"uid"`
	Epoch int64  `json:"epoch"`
}

// AcceptsResponse answers an AcceptsRequest, item for item.
type AcceptsResponse struct {
	// Server is the id of the answering server, as in the name of its Lease.
	Server string `json:"server"`
	// Accepted has the length and the order of the request's items.
	Accepted []bool `json:"accepted"`
}

// UsageResponse tells what has been used since the cursor asked with.
type UsageResponse struct {
	// Server is the id of the answering server, as in the name of its Lease.
	Server string `json:"server"`
	// Since is when this process began to count: what was used before it, no
	// answer of this process tells.
	Since time.Time `json:"since"`
	// Cursor for the next request.
	Cursor uint64 `json:"cursor"`
	// Items that changed after the cursor asked with.
	Items []UsageItem `json:"items"`
}

// UsageItem is the use of one version as this process has seen it.
type UsageItem struct {
	UID     string `json:"uid"`
	Version int64  `json:"version"`
	// Uses since UsageResponse.Since.
	Uses int64 `json:"uses"`
	// LastUsed is when it was last accepted.
	LastUsed time.Time `json:"lastUsed"`
}

// TransitionsRequest hands over changes in the life of credentials, for the audit log to
// hold each of them once.
type TransitionsRequest struct {
	// Items, at most MaxTransitions.
	Items []TransitionItem `json:"items"`
	// Export has a server without a store write them to where its events go. The
	// caller asks so of one server, once no server has a store.
	Export bool `json:"export,omitempty"`
}

// TransitionItem is a change in the life of one credential.
type TransitionItem struct {
	// ID is fixed when the change is committed: however often it is handed over, it is
	// one event.
	ID        string    `json:"id"`
	UID       string    `json:"uid"`
	Kind      string    `json:"kind"`
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	Class     string    `json:"class,omitempty"`
	Prefix    string    `json:"prefix,omitempty"`
	Type      string    `json:"type"`
	Version   int64     `json:"version"`
	At        time.Time `json:"at"`
	Reason    string    `json:"reason,omitempty"`
	Actor     string    `json:"actor,omitempty"`
}

// TransitionsResponse answers a TransitionsRequest. An answer of 200 with a store means
// that every item is stored.
type TransitionsResponse struct {
	// Server is the id of the answering server, as in the name of its Lease.
	Server string `json:"server"`
	// Stored: every item is in the store, now or since before.
	Stored bool `json:"stored"`
	// NoStore: the server has none, and will not have one as long as it runs.
	NoStore bool `json:"noStore,omitempty"`
}
