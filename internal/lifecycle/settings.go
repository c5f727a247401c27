package lifecycle

import (
	"time"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// Settings is a spec with its class's defaults applied, parsed. Lengths of zero
// mean "never", save Overlap and MaxOverlap, which are plain lengths.
type Settings struct {
	TTL         time.Duration
	ExpiresAt   time.Time // zero: no fixed end
	RotateEvery time.Duration
	HighUsage   HighUsage
	Overlap     time.Duration
	MaxOverlap  time.Duration
	Retire      v1alpha1.RetirePolicy
	Suspend     bool
	Calendar    Calendar
	// RestartCalendar has the windows that restarts may begin in, and
	// RestartTimeout is how long a rollout may take.
	RestartCalendar Calendar
	RestartTimeout  time.Duration
	JWT             JWTSettings
	History         int
}

// JWTSettings shapes the tokens issued for a credential.
type JWTSettings struct {
	TTL       time.Duration
	Audiences []string
	Algorithm string
}

// Bounds of the lifetime of issued JWTs.
const (
	MinJWTTTL = time.Minute
	MaxJWTTTL = time.Hour
)

const (
	fallbackOverlap    = 24 * time.Hour
	fallbackMinOverlap = time.Hour
	fallbackMaxOverlap = 7 * 24 * time.Hour
	fallbackJWTTTL     = 15 * time.Minute
	fallbackHistory    = 5
)

// Effective applies the class's defaults to a spec. It expects a spec that
// Validate has nothing against; what cannot be read counts as left out.
func Effective(spec *v1alpha1.CredentialSpec, class *v1alpha1.CredentialClassSpec) Settings {
	defaults := class.Defaults
	s := Settings{
		TTL:         length(spec.TTL, defaults.TTL),
		RotateEvery: length("", defaults.Rotation.Every),
		Retire:      defaults.Rotation.Retire,
		History:     fallbackHistory,
	}
	overlap, maxOverlap := defaults.Rotation.Overlap, defaults.Rotation.MaxOverlap
	if r := spec.Rotation; r != nil {
		s.RotateEvery = length(r.Every, defaults.Rotation.Every)
		s.HighUsage = highUsage(r.HighUsage)
		s.Suspend = r.Suspend
		s.Calendar, _ = parseCalendar(r)
		if r.Overlap != "" {
			overlap = r.Overlap
		}
		if r.MaxOverlap != "" {
			maxOverlap = r.MaxOverlap
		}
		if r.Retire != "" {
			s.Retire = r.Retire
		}
	}
	if s.Retire == "" {
		s.Retire = v1alpha1.RetireWhenUnused
	}
	s.Overlap = max(overlap.Or(fallbackOverlap), class.MinOverlap.Or(fallbackMinOverlap))
	s.MaxOverlap = max(maxOverlap.Or(fallbackMaxOverlap), s.Overlap)
	if spec.ExpiresAt != nil {
		s.ExpiresAt = spec.ExpiresAt.Time
	}
	if class.HistoryLimit != nil {
		s.History = int(*class.HistoryLimit)
	}
	if r := spec.Restart; r != nil {
		s.RestartTimeout = r.Timeout.Or(fallbackRestartTimeout.Or(0))
		s.RestartCalendar.windows, _ = parseWindows(nil, r.Windows)
	}
	s.JWT = JWTSettings{TTL: defaults.JWT.TTL.Or(fallbackJWTTTL), Audiences: defaults.JWT.Audiences, Algorithm: class.JWTAlgorithm}
	if spec.JWT != nil {
		s.JWT.TTL = spec.JWT.TTL.Or(s.JWT.TTL)
		if len(spec.JWT.Audiences) > 0 {
			s.JWT.Audiences = spec.JWT.Audiences
		}
	}
	s.JWT.TTL = min(max(s.JWT.TTL, MinJWTTTL), MaxJWTTTL)
	return s
}

// length is the spec's duration, or the class's where the spec says nothing.
// Never, and nothing anywhere, is zero.
func length(own, fallback v1alpha1.Duration) time.Duration {
	if own != "" {
		return own.Or(0)
	}
	return fallback.Or(0)
}

// SecretName is the name of the Secret a credential is delivered in.
func SecretName(name string, spec *v1alpha1.CredentialSpec) string {
	if spec.Secret != nil && spec.Secret.Name != "" {
		return spec.Secret.Name
	}
	return name
}
