package v1alpha1

import (
	"fmt"
	"time"

	"github.com/prometheus/common/model"
)

// Never is the duration that does not end: a TTL that never expires, an age at
// which no rotation falls due.
const Never Duration = "Never"

// Duration is a length of time as people write it: "90d", "12h", "1d12h", with
// the units y, w, d, h, m, s and ms, largest first; a day has 24 hours and a
// year 365 days. Where the field says so it may also be "Never".
//
// +kubebuilder:validation:Type=string
// +kubebuilder:validation:MaxLength=32
// +kubebuilder:validation:XValidation:rule="self.matches('^(Never|([0-9]+y)?([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?)$')",message="not a duration: write it like 90d, 12h or 1d12h"
type Duration string

// Parse gives the length. ok is false for the empty string and for Never, which
// have none; what neither word nor number explains is an error.
func (d Duration) Parse() (length time.Duration, ok bool, err error) {
	if d == "" || d == Never {
		return 0, false, nil
	}
	parsed, err := model.ParseDuration(string(d))
	if err != nil {
		return 0, false, fmt.Errorf("%q is not a duration: write it like 90d, 12h or 1d12h", string(d))
	}
	return time.Duration(parsed), true, nil
}

// Or is the length, or the fallback where there is none or it cannot be read.
func (d Duration) Or(fallback time.Duration) time.Duration {
	length, ok, err := d.Parse()
	if err != nil || !ok {
		return fallback
	}
	return length
}
