package cli

import (
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz"
)

// fill makes the lines and counts them.
func (r *report) fill(all []v1alpha1.Credential, roles map[string][]string, known *analytics, days int) {
	r.Counts = reportCounts{Total: len(all), Kinds: map[string]int{}, States: map[string]int{}, Findings: map[string]int{}}
	r.Lines = []*reportLine{}
	for _, o := range all {
		l := lineOf(o, r.Generated)
		l.learn(known)
		l.find(o, roles, r.Generated, r.thresholds)
		r.Lines = append(r.Lines, l)
		r.Counts.Kinds[string(l.Kind)]++
		r.Counts.States[l.State]++
		for _, f := range l.Findings {
			r.Counts.Findings[f.Code]++
		}
	}
	if known != nil {
		r.Requests = &reportRequests{days, known.Requests.Allowed, known.Requests.Denied, known.Requests.SuccessRate}
	}
}

func lineOf(o v1alpha1.Credential, now time.Time) *reportLine {
	spec, status := o.CredentialSpec(), o.CredentialStatus()
	l := &reportLine{
		Namespace: o.GetNamespace(), Name: o.GetName(), Kind: o.CredentialKind(), ID: string(o.GetUID()), State: stateOf(o, now),
		Class: spec.CredentialClassName, Owner: spec.Owner, Description: spec.Description, Admin: spec.Admin,
		Permissions: authz.Strings(spec.Permissions), Roles: spec.Roles, External: spec.External != nil, Created: o.GetCreationTimestamp().UTC(),
		Expires: status.Expires, NextRotation: status.NextRotation, LastUsed: status.LastUsed,
	}
	if ready := readyCondition(o); ready != nil && ready.Status != metav1.ConditionTrue {
		l.Reason = ready.Reason
	}
	for _, v := range status.Versions {
		l.Versions = append(l.Versions, reportVersion{v.Version, v.State, v.Prefix})
	}
	return l
}

// stateOf is where a credential stands, as servers see it: they wait for no status.
func stateOf(o v1alpha1.Credential, now time.Time) string {
	spec, status := o.CredentialSpec(), o.CredentialStatus()
	switch {
	case o.GetDeletionTimestamp() != nil:
		return stateDeleting
	case isRevoked(o):
		return stateRevoked
	case spec.ExpiresAt != nil && !now.Before(spec.ExpiresAt.Time):
		return stateExpired
	}
	var last v1alpha1.CredentialVersion
	for _, v := range status.Versions {
		if v.Version > last.Version {
			last = v
		}
		if (v.State == v1alpha1.VersionActive || v.State == v1alpha1.VersionSuperseded) && (v.Expires == nil || now.Before(v.Expires.Time)) {
			return stateActive
		}
	}
	switch last.State {
	case "", v1alpha1.VersionPending:
		return statePending
	case v1alpha1.VersionRevoked:
		return stateRevoked
	case v1alpha1.VersionRetired:
		return stateEnded
	}
	return stateExpired
}

// learn takes over what the server knows of the use of a credential.
func (l *reportLine) learn(known *analytics) {
	if known == nil {
		return
	}
	for _, t := range known.Top {
		if t.UID == l.ID {
			l.Allowed, l.Denied = &t.Allowed, &t.Denied
		}
	}
	for _, i := range known.Idle {
		if i.UID == l.ID && i.LastUsed != nil && i.LastUsed.UTC().Format(time.DateOnly) >= l.LastUsed {
			l.LastUsed = i.LastUsed.UTC().Format(time.RFC3339)
		}
	}
}

func (l *reportLine) found(code, format string, args ...any) {
	l.Findings = append(l.Findings, reportFinding{code, fmt.Sprintf(format, args...)})
}

// find looks for what is amiss. Of what is over, that is nothing but an expiry: it may
// have been meant to live on.
func (l *reportLine) find(o v1alpha1.Credential, roles map[string][]string, now time.Time, limits reportThresholds) {
	spec := o.CredentialSpec()
	switch l.State {
	case stateExpired:
		l.found(findingExpired, "nothing of it is accepted any more")
		fallthrough
	case stateRevoked, stateDeleting, stateEnded:
		return
	}
	l.findSuperseded(o)
	l.findEnd(o, now, limits.expiring)
	if l.Reason != "" {
		l.found(findingNotReady, "%s: %s", l.Reason, oneLine(readyCondition(o).Message))
	}
	if spec.Admin {
		l.found(findingAdmin, "holds every permission")
	}
	if wide := widePermissions(spec, roles); len(wide) > 0 {
		l.found(findingWide, "%s", strings.Join(wide, ", "))
	}
	switch {
	case spec.External != nil: // its holder rotates it
	case spec.Rotation != nil && spec.Rotation.Suspend:
		l.found(findingNoRotation, "rotations are suspended")
	case l.State == stateActive && l.NextRotation == "":
		l.found(findingNoRotation, "no rotation is planned")
	}
	l.findUse(now, limits.unused)
	if spec.Owner == "" {
		l.found(findingNoOwner, "spec.owner names nobody to ask")
	}
}

func (l *reportLine) findSuperseded(o v1alpha1.Credential) {
	for _, v := range o.CredentialStatus().Versions {
		if v.State == v1alpha1.VersionSuperseded && v.LastUsed != nil && v.Superseded != nil && v.LastUsed.After(v.Superseded.Time) {
			l.found(findingSuperseded, "version %d was last used at %s, after version %d had taken its place",
				v.Version, v.LastUsed.UTC().Format(time.RFC3339), o.CredentialStatus().CurrentVersion)
		}
	}
}

func (l *reportLine) findEnd(o v1alpha1.Credential, now time.Time, soon time.Duration) {
	if l.Expires == string(v1alpha1.Never) && l.NextRotation == "" {
		l.found(findingNoEnd, "neither ends nor is rotated")
		return
	}
	end, err := time.Parse(time.RFC3339, l.Expires)
	if err != nil || end.Sub(now) > soon {
		return
	}
	next, err := time.Parse(time.RFC3339, l.NextRotation)
	renewed := err == nil && next.Before(end) && !meta.IsStatusConditionTrue(o.CredentialStatus().Conditions, v1alpha1.ConditionExpiring)
	if !renewed {
		l.found(findingExpiresSoon, "ends in %s, and nothing will renew it", inDays(end.Sub(now)))
	}
}

func (l *reportLine) findUse(now time.Time, limit time.Duration) {
	if l.LastUsed == "" {
		if now.Sub(l.Created) > limit {
			l.found(findingNeverUsed, "not used in the %s since it was made", inDays(now.Sub(l.Created)))
		}
		return
	}
	used, err := time.Parse(time.RFC3339, l.LastUsed)
	if err != nil {
		if used, err = time.Parse(time.DateOnly, l.LastUsed); err != nil {
			return
		}
		used = used.Add(24*time.Hour - time.Second) // it may have been at the end of that day
	}
	if idle := now.Sub(used); idle > limit {
		l.found(findingUnused, "not used for %s", inDays(idle))
	}
}

func inDays(d time.Duration) string {
	switch days := int(d / (24 * time.Hour)); days {
	case 0:
		return "less than a day"
	case 1:
		return "1 day"
	default:
		return fmt.Sprintf("%d days", days)
	}
}

// widePermissions are wildcards over everything, or over a whole resource, with the
// role they come from.
func widePermissions(spec *v1alpha1.CredentialSpec, roles map[string][]string) []string {
	isWide := func(p string) bool { return p == authz.Everything || strings.HasSuffix(p, ":*") }
	var wide []string
	for _, p := range spec.Permissions {
		if isWide(string(p)) {
			wide = append(wide, string(p))
		}
	}
	for _, role := range spec.Roles {
		for _, p := range roles[role] {
			if isWide(p) {
				wide = append(wide, p+" (role "+role+")")
			}
		}
	}
	return wide
}
