package lifecycle

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// TransitionChanged is what it is called that a credential grants something else than before.
const TransitionChanged = "Changed"

// GrantMark names what a spec grants, in whatever order it is written: class, permissions,
// roles, attributes, whether it is an administrator's, and from where, how often and for
// whom it is good.
func GrantMark(spec *v1alpha1.CredentialSpec) string {
	var audiences []string
	if spec.JWT != nil {
		audiences = slices.Sorted(slices.Values(spec.JWT.Audiences))
	}
	text, err := json.Marshal([]any{
		spec.CredentialClassName, texts(spec.Permissions), slices.Sorted(slices.Values(spec.Roles)), spec.Admin, spec.Attributes, texts(spec.AllowedCIDRs),
		spec.RateLimit, audiences,
	})
	if err != nil {
		return "" // strings and a bool
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}

// change notes that the record is about to grant something else than the one before. What is
// refused changes nothing.
func (p *plan) change() {
	before := p.Record
	if before == nil {
		return
	}
	now := new(credential.Record)
	grant(now, p.Observed, p.refused)
	text := difference(before, now)
	if text == "" {
		return
	}
	p.transition(TransitionChanged, &v1alpha1.CredentialVersion{Version: p.status.CurrentVersion, Reason: text}, p.changedBy())
}

// changedBy is who changed it, where admission wrote that down of the change that stands.
func (p *plan) changedBy() string {
	mark, user, ok := strings.Cut(p.Annotations[v1alpha1.AnnotationChangedBy], " ")
	if !ok || mark != GrantMark(p.Spec) {
		return ""
	}
	return user
}

// difference tells what is granted now and was not, and the other way round; empty where
// it is the same.
func difference(before, now *credential.Record) string {
	var parts []string
	if before.Class != now.Class {
		parts = append(parts, "class "+before.Class+" -> "+now.Class)
	}
	switch {
	case now.Admin && !before.Admin:
		parts = append(parts, "admin")
	case before.Admin && !now.Admin:
		parts = append(parts, "no admin")
	}
	for _, of := range []struct {
		name        string
		before, now []string
	}{
		{"permissions", before.Permissions, now.Permissions}, {"roles", before.Roles, now.Roles},
		{"attributes", inWords(before.Attributes), inWords(now.Attributes)}, {"networks", before.CIDRs, now.CIDRs},
		{"audiences", before.JWT.Audiences, now.JWT.Audiences},
	} {
		var marks []string
		for _, s := range of.now {
			if !slices.Contains(of.before, s) {
				marks = append(marks, "+"+s)
			}
		}
		for _, s := range of.before {
			if !slices.Contains(of.now, s) {
				marks = append(marks, "-"+s)
			}
		}
		if len(marks) > 0 {
			parts = append(parts, of.name+" "+strings.Join(marks, " "))
		}
	}
	if was, is := rateInWords(before.Rate), rateInWords(now.Rate); was != is {
		parts = append(parts, "rate "+was+" -> "+is)
	}
	return strings.Join(parts, "; ")
}

// inWords are attributes as "name=value", by name.
func inWords(attributes map[string]string) (words []string) {
	for _, name := range slices.Sorted(maps.Keys(attributes)) {
		words = append(words, name+"="+attributes[name])
	}
	return words
}

func rateInWords(r *credential.RecordRate) string {
	if r == nil {
		return "without limit"
	}
	return fmt.Sprintf("%d in %s, %d at once", r.Requests, time.Duration(r.PerMillis)*time.Millisecond, r.Burst)
}
