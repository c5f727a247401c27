package lifecycle

import (
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

func spec(t *testing.T, text string) *v1alpha1.CredentialSpec {
	t.Helper()
	s := new(v1alpha1.CredentialSpec)
	if err := yaml.UnmarshalStrict([]byte(text), s); err != nil {
		t.Fatal(err)
	}
	s.CredentialClassName = "prod"
	return s
}

func class(t *testing.T, text string) *v1alpha1.CredentialClassSpec {
	t.Helper()
	c := new(v1alpha1.CredentialClassSpec)
	if err := yaml.UnmarshalStrict([]byte(text), c); err != nil {
		t.Fatal(err)
	}
	return c
}

const ordinaryClass = `
minOverlap: 1h
defaults: {ttl: 180d, rotation: {every: 90d, overlap: 24h, retire: WhenUnused, maxOverlap: 7d}, jwt: {ttl: 15m, audiences: [default]}}
rules: [{permissions: ["*"], except: ["mintmark:*"]}]`

func TestValidateAccepts(t *testing.T) {
	c := class(t, ordinaryClass)
	for name, text := range map[string]string{
		"an empty spec":                 `{}`,
		"what the design shows":         `{permissions: ["api:read", "deploy:*"], ttl: 180d, rotation: {every: 90d, schedule: "0 3 * * SUN", timeZone: Europe/Berlin, windows: [{schedule: "0 2 * * *", duration: 4h}], overlap: 24h, maxOverlap: 7d}, allowedCIDRs: ["10.0.0.0/8", "2001:db8::/32"], rateLimit: {requests: 100, per: 1s}, jwt: {ttl: 15m}}`,
		"what never ends":               `{ttl: Never, rotation: {every: Never}}`,
		"no overlap where it is waived": `{rotation: {overlap: 0s, retire: Immediately}}`,
		"a template":                    `{secret: {template: {data: {x: "{{ .token }}"}}}}`,
		"a leap day":                    `{rotation: {schedule: "0 0 29 2 *"}}`,
		"attributes, where the class does not say which": `{attributes: {department: payments, clearance: "9"}}`,
		"a restart by label":                             `{restart: {selector: {matchLabels: {a: b}}}}`,
	} {
		t.Run(name, func(t *testing.T) {
			if errs := Validate(v1alpha1.KindServiceToken, "ci", spec(t, text), c, &c.Rules[0]); len(errs) > 0 {
				t.Error(errs.ToAggregate())
			}
		})
	}
}

func TestValidateRefuses(t *testing.T) {
	c := class(t, ordinaryClass)
	short := class(t, ordinaryClass)
	short.Rules[0].MaxTTL = "90d"
	listed := class(t, ordinaryClass)
	listed.Rules[0].Attributes = []v1alpha1.AttributeRule{{Key: "department", Values: []v1alpha1.MetadataValue{"payments"}}, {Key: "team"}}
	for name, test := range map[string]struct {
		spec  string
		class *v1alpha1.CredentialClassSpec
		field string
		says  string
	}{
		"a permission over the ceiling":        {`{permissions: ["mintmark:admin"]}`, c, "spec.permissions[0]", "does not allow"},
		"a wildcard that reaches over it":      {`{permissions: ["*"]}`, c, "spec.permissions[0]", "does not allow"},
		"admin where the class has none":       {`{admin: true}`, c, "spec.admin", "does not allow"},
		"a digest where the class takes none":  {`{external: {sha256: ["` + strings.Repeat("a", 64) + `"]}}`, c, "spec.external", "does not allow"},
		"adoption where the class has none":    {`{secret: {conflictPolicy: Adopt}}`, c, "spec.secret.conflictPolicy", "does not allow"},
		"an attribute the class does not list": {`{attributes: {team: x, clearance: "9"}}`, listed, "spec.attributes[clearance]", `does not allow the value "9"`},
		"a value the class does not list":      {`{attributes: {department: sales}}`, listed, "spec.attributes[department]", "choose a class that does"},
		"a ttl over the ceiling":               {`{ttl: 91d}`, short, "spec.ttl", "ask for less"},
		"the class's own default over it":      {`{}`, short, "spec.ttl", "ask for less"},
		"no end where the class wants one":     {`{ttl: Never}`, short, "spec.ttl", "ask for less"},
		"a ttl in words":                       {`{ttl: soon}`, c, "spec.ttl", "write it like"},
		"a ttl of seconds":                     {`{ttl: 10s}`, c, "spec.ttl", "at least"},
		"an age of nothing":                    {`{rotation: {every: 0s}}`, c, "spec.rotation.every", "at least"},
		"an overlap that never ends":           {`{rotation: {overlap: Never}}`, c, "spec.rotation.overlap", "must end"},
		"an overlap under the class's":         {`{rotation: {overlap: 30m}}`, c, "spec.rotation.overlap", "at least"},
		"a longest overlap under the shortest": {`{rotation: {overlap: 3d, maxOverlap: 2d}}`, c, "spec.rotation.maxOverlap", "shorter"},
		"one under the class's overlap":        {`{rotation: {maxOverlap: 2h}}`, c, "spec.rotation.maxOverlap", "shorter"},
		"a schedule that is none":              {`{rotation: {schedule: "every day"}}`, c, "spec.rotation.schedule", "five fields"},
		"a schedule by the second":             {`{rotation: {schedule: "@every 1s"}}`, c, "spec.rotation.schedule", "five fields"},
		"a schedule that never holds":          {`{rotation: {schedule: "0 0 30 2 *"}}`, c, "spec.rotation.schedule", "never holds"},
		"a time zone within the schedule":      {`{rotation: {schedule: "TZ=UTC 0 0 * * *"}}`, c, "spec.rotation.schedule", "timeZone"},
		"a time zone that does not exist":      {`{rotation: {schedule: "0 0 * * *", timeZone: Mars/Olympus}}`, c, "spec.rotation.timeZone", "IANA"},
		"the node's own time zone":             {`{rotation: {schedule: "0 0 * * *", timeZone: Local}}`, c, "spec.rotation.timeZone", "IANA"},
		"a time zone of nothing":               {`{rotation: {timeZone: Europe/Berlin}}`, c, "spec.rotation.timeZone", "schedule"},
		"a window that never opens":            {`{rotation: {windows: [{schedule: "0 0 31 4 *", duration: 1h}]}}`, c, "spec.rotation.windows[0].schedule", "never holds"},
		"a window that is never open":          {`{rotation: {windows: [{schedule: "0 0 * * *", duration: 1s}]}}`, c, "spec.rotation.windows[0].duration", "at least 1m"},
		"a pace of nothing for high usage":     {`{rotation: {highUsage: {every: 1s}}}`, c, "spec.rotation.highUsage.every", "at least"},
		"a network that is none":               {`{allowedCIDRs: ["10.0.0.0"]}`, c, "spec.allowedCIDRs[0]", "10.0.0.0/8"},
		"a rate by nothing":                    {`{rateLimit: {requests: 1, per: 0s}}`, c, "spec.rateLimit.per", "period"},
		"a JWT for a day":                      {`{jwt: {ttl: 1d}}`, c, "spec.jwt.ttl", "60m"},
		"a template that is none":              {`{secret: {template: {data: {x: "{{"}}}}`, c, "spec.secret.template.data[x]", "template"},
		"a restart of everything":              {`{restart: {selector: {}}}`, c, "spec.restart.selector", "name labels"},
		"a restart by what is no selector":     {`{restart: {selector: {matchLabels: {"a b": c}}}}`, c, "spec.restart.selector", "name part"},
	} {
		t.Run(name, func(t *testing.T) {
			errs := Validate(v1alpha1.KindServiceToken, "ci", spec(t, test.spec), test.class, &test.class.Rules[0])
			if len(errs) != 1 || errs[0].Field != test.field || !strings.Contains(errs[0].Error(), test.says) {
				t.Errorf("got %v, want one error at %s that says %q", errs, test.field, test.says)
			}
		})
	}
	if errs := Validate(v1alpha1.KindServiceToken, "ci", spec(t, `{}`), c, nil); len(errs) != 1 || errs[0].Field != "spec.credentialClassName" {
		t.Errorf("without a rule for the namespace: %v", errs)
	}
	if errs := Validate(v1alpha1.KindServiceToken, strings.Repeat("x", 254), spec(t, `{}`), c, &c.Rules[0]); len(errs) != 1 {
		t.Errorf("a name too long for a Secret: %v", errs)
	}
}

func TestValidateClassRefuses(t *testing.T) {
	for name, test := range map[string]struct{ class, field string }{
		"a ttl in words":                    {`{defaults: {ttl: soon}}`, "spec.defaults.ttl"},
		"a rotation every instant":          {`{defaults: {rotation: {every: 1s}}}`, "spec.defaults.rotation.every"},
		"a default under its own least":     {`{minOverlap: 2d, defaults: {rotation: {overlap: 1d}}}`, "spec.defaults.rotation.overlap"},
		"a longest overlap under the other": {`{defaults: {rotation: {overlap: 2d, maxOverlap: 1d}}}`, "spec.defaults.rotation.maxOverlap"},
		"a JWT for a day":                   {`{defaults: {jwt: {ttl: 1d}}}`, "spec.defaults.jwt.ttl"},
		"a limit in words":                  {`{rules: [{maxTTL: long}]}`, "spec.rules[0].maxTTL"},
		"a selector that is none":           {`{rules: [{namespaceSelector: {matchLabels: {"a b": c}}}]}`, "spec.rules[0].namespaceSelector"},
		"a pattern that is none":            {`{externalFormat: {pattern: "("}}`, "spec.externalFormat.pattern"},
		"an age of never":                   {`{expired: {after: Never}}`, "spec.expired.after"},
	} {
		t.Run(name, func(t *testing.T) {
			if errs := ValidateClass(class(t, test.class)); len(errs) != 1 || errs[0].Field != test.field {
				t.Errorf("got %v, want one error at %s", errs, test.field)
			}
		})
	}
	if errs := ValidateClass(class(t, ordinaryClass)); len(errs) > 0 {
		t.Error(errs.ToAggregate())
	}
}

func TestWarnings(t *testing.T) {
	c := class(t, ordinaryClass)
	for name, test := range map[string]struct {
		spec string
		want []string
	}{
		"nothing to say":               {`{permissions: ["api:read"]}`, nil},
		"no end":                       {`{ttl: Never}`, []string{"spec.ttl"}},
		"never rotated":                {`{rotation: {every: Never}}`, []string{"spec.rotation.every"}},
		"rotated by schedule":          {`{rotation: {every: Never, schedule: "0 0 1 * *"}}`, nil},
		"a wildcard":                   {`{permissions: ["deploy:*"]}`, []string{"spec.permissions"}},
		"an end that has passed":       {`{expiresAt: "2025-12-31T23:59:59Z"}`, []string{"spec.expiresAt"}},
		"an end that will come":        {`{expiresAt: "2026-01-01T00:00:01Z"}`, nil},
		"more than one address":        {`{allowedCIDRs: ["10.0.0.0/8", "10.0.0.1/8", "10.0.0.1/32", "2001:db8::1/32"]}`, []string{"spec.allowedCIDRs[1]", "spec.allowedCIDRs[3]"}},
		"admin":                        {`{admin: true}`, []string{"spec.admin"}},
		"no overlap":                   {`{rotation: {retire: Immediately}}`, []string{"spec.rotation.retire"}},
		"a declared one":               {`{external: {sha256: ["x"]}}`, []string{"spec.external"}},
		"a declared one without end":   {`{ttl: Never, external: {sha256: ["x"]}}`, []string{"spec.expiresAt", "spec.external"}},
		"a declared one that will end": {`{external: {sha256: ["x"]}, expiresAt: "2030-01-01T00:00:00Z"}`, []string{"spec.external"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, w := range Warnings(spec(t, test.spec), c, time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)) {
				at, _, _ := strings.Cut(w, ":")
				got = append(got, at)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestTheCalendarKeepsToTheClockOnTheWall(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	at := func(s string) time.Time {
		when, err := time.ParseInLocation("2006-01-02 15:04", s, berlin)
		if err != nil {
			t.Fatal(err)
		}
		return when
	}
	calendar, errs := parseCalendar(&v1alpha1.Rotation{
		Schedule: "30 2 * * *", TimeZone: "Europe/Berlin",
		Windows: []v1alpha1.Window{{Schedule: "0 2 * * *", Duration: "2h", TimeZone: "Europe/Berlin"}, {Schedule: "0 22 * * SAT", Duration: "4h", TimeZone: "Europe/Berlin"}},
	})
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	for name, test := range map[string]struct{ got, want time.Time }{
		"in winter":                            {calendar.Scheduled(at("2026-01-10 12:00")), at("2026-01-11 02:30")},
		"in summer, by the same clock":         {calendar.Scheduled(at("2026-07-10 12:00")), at("2026-07-11 02:30")},
		"the hour that does not exist is over": {calendar.Scheduled(at("2026-03-28 12:00")), at("2026-03-29 03:00")},
		"and comes again the day after":        {calendar.Scheduled(at("2026-03-29 03:00")), at("2026-03-30 02:30")},
		"before the window":                    {calendar.Opening(at("2026-01-12 01:00")), at("2026-01-12 02:00")},
		"within it":                            {calendar.Opening(at("2026-01-12 03:59")), at("2026-01-12 03:59")},
		"at its end it is closed":              {calendar.Opening(at("2026-01-12 04:00")), at("2026-01-13 02:00")},
		"the earlier of two":                   {calendar.Opening(at("2026-01-17 12:00")), at("2026-01-17 22:00")},
		"past midnight in the other":           {calendar.Opening(at("2026-01-18 01:59")), at("2026-01-18 01:59")},
	} {
		t.Run(name, func(t *testing.T) {
			if !test.got.Equal(test.want) {
				t.Errorf("got %s, want %s", test.got.In(berlin), test.want)
			}
		})
	}
}
