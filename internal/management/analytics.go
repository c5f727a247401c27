package management

import (
	"context"
	"net/url"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/store"
)

// AnalyticsInput says what to work out.
type AnalyticsInput struct {
	Days     int    `query:"days" minimum:"1" maximum:"400" default:"30" doc:"How many days, in UTC, today included."`
	Top      int    `query:"top" minimum:"1" maximum:"100" default:"10" doc:"How many of the most used credentials to name."`
	IdleDays int    `query:"idle_days" minimum:"1" maximum:"400" default:"30" doc:"Credentials that were not used for so many days count as inactive."`
	UID      string `query:"uid" maxLength:"64" doc:"UID of one credential's object. Default: all that you may see."`
}

// CredentialAnalyticsInput asks for the analytics of one credential.
type CredentialAnalyticsInput struct {
	IDInput
	Days int `query:"days" minimum:"1" maximum:"400" default:"30" doc:"How many days, in UTC, today included."`
}

// AnalyticsOutput is what came of many requests.
type AnalyticsOutput struct{ Body Analytics }

// Analytics is what came of many requests.
type Analytics struct {
	Since    time.Time      `json:"since" doc:"Begin of the first day that counts, in UTC."`
	Until    time.Time      `json:"until" doc:"Now."`
	Totals   *Totals        `json:"totals,omitempty" doc:"Absent where one credential was asked for."`
	Requests RequestTotals  `json:"requests"`
	Daily    []Day          `json:"daily" nullable:"false" doc:"Days with requests, the earliest first."`
	Latency  *Percentiles   `json:"latency_us,omitempty" doc:"Time to an answer in microseconds: upper bounds of buckets that double. Absent where one credential was asked for, or no request was timed."`
	Top      []TopUse       `json:"top,omitempty" doc:"The most used."`
	Idle     []Idle         `json:"idle,omitempty" doc:"Active credentials not used for idle_days, those never used first; at most 1,000."`
	Versions []VersionUsage `json:"versions,omitempty" doc:"Of one credential: its versions, the latest first, since they were made."`
}

// Totals count credentials.
type Totals struct {
	All      int64 `json:"all"`
	Active   int64 `json:"active" doc:"Used within idle_days."`
	Inactive int64 `json:"inactive" doc:"Not used within idle_days."`
	Expired  int64 `json:"expired"`
	Revoked  int64 `json:"revoked"`
}

// RequestTotals count requests.
type RequestTotals struct {
	Allowed     int64    `json:"allowed"`
	Denied      int64    `json:"denied"`
	SuccessRate *float64 `json:"success_rate,omitempty" minimum:"0" maximum:"1" doc:"Allowed, of all. Absent where there were none."`
}

// Day is one day's share.
type Day struct {
	Day     string `json:"day" format:"date"`
	Allowed int64  `json:"allowed"`
	Denied  int64  `json:"denied"`
}

// Percentiles of a length of time, in microseconds.
type Percentiles struct {
	P50 int64 `json:"p50"`
	P90 int64 `json:"p90"`
	P99 int64 `json:"p99"`
}

// TopUse is one credential's share.
type TopUse struct {
	UID       string `json:"uid"`
	Subject   string `json:"subject"`
	Namespace string `json:"namespace"`
	Allowed   int64  `json:"allowed"`
	Denied    int64  `json:"denied"`
}

// Idle is a credential that nobody uses.
type Idle struct {
	UID       string     `json:"uid"`
	Subject   string     `json:"subject"`
	Namespace string     `json:"namespace"`
	LastUsed  *time.Time `json:"last_used,omitempty" doc:"Absent: never."`
}

// VersionUsage is how much a version was used.
type VersionUsage struct {
	Version    int64      `json:"version"`
	Prefix     string     `json:"prefix,omitempty" doc:"Public part of the value."`
	Uses       int64      `json:"uses"`
	Denied     int64      `json:"denied"`
	LastUsed   *time.Time `json:"last_used,omitempty" doc:"Absent: never."`
	LastClient string     `json:"last_client,omitempty" doc:"Network of the last use: an IPv4 /24 or an IPv6 /48."`
	LastSlot   string     `json:"last_slot,omitempty" enum:"current,previous"`
}

// showAnalytics tells what came of the requests of all that the caller may see.
func showAnalytics(a *API, o huma.Operation, _ Path) {
	handle(a, o, func(ctx context.Context, c *Caller, in *AnalyticsInput) (*AnalyticsOutput, error) {
		f := filterOf(a.config.Now(), in.Days)
		f.UID, f.Top = in.UID, in.Top
		if in.UID == "" {
			f.IdleBefore = f.Now.AddDate(0, 0, -in.IdleDays)
		}
		got, err := read(ctx, a, c, "working out analytics", func(ctx context.Context, s Store, t store.Tenant) (store.Analytics, error) {
			return s.Analytics(ctx, t, f)
		})
		if err != nil {
			return nil, err
		}
		q := url.Values{"days": {strconv.Itoa(in.Days)}}
		if in.UID != "" {
			q.Set("uid", in.UID)
		}
		a.searched(c, "analytics", q.Encode())
		return &AnalyticsOutput{Body: analyticsOf(&f, &got)}, nil
	})
}

// filterOf is about so many days, today included.
func filterOf(now time.Time, days int) store.AnalyticsFilter {
	now = now.UTC()
	today := time.Date(now.Year(), now.Month(), now.Day(), 0, 0, 0, 0, time.UTC)
	return store.AnalyticsFilter{Since: today.AddDate(0, 0, 1-days), Until: today, Now: now}
}

// analyticsOf is what callers are told. Of one credential the store knows no more than how
// often it was used.
func analyticsOf(f *store.AnalyticsFilter, got *store.Analytics) Analytics {
	out := Analytics{
		Since: f.Since, Until: f.Now, Requests: RequestTotals{Allowed: got.Allowed, Denied: got.Denied},
		Daily: make([]Day, len(got.Daily)),
	}
	if all := got.Allowed + got.Denied; all > 0 {
		rate := float64(got.Allowed) / float64(all)
		out.Requests.SuccessRate = &rate
	}
	for i, d := range got.Daily {
		out.Daily[i] = Day{Day: d.Day.UTC().Format(time.DateOnly), Allowed: d.Allowed, Denied: d.Denied}
	}
	if f.UID != "" {
		return out
	}
	t, l := got.Totals, got.Latency
	out.Totals = &Totals{All: t.All(), Active: t.Active, Inactive: t.Inactive, Expired: t.Expired, Revoked: t.Revoked}
	if l != (store.Percentiles{}) {
		out.Latency = &Percentiles{P50: l.P50.Microseconds(), P90: l.P90.Microseconds(), P99: l.P99.Microseconds()}
	}
	for _, u := range got.Top {
		out.Top = append(out.Top, TopUse(u))
	}
	for _, i := range got.Idle {
		out.Idle = append(out.Idle, Idle{UID: i.UID, Subject: i.Subject, Namespace: i.Namespace, LastUsed: known(i.LastUsed)})
	}
	return out
}

// known is nil for a time that is zero.
func known(at time.Time) *time.Time {
	if at.IsZero() {
		return nil
	}
	at = at.UTC()
	return &at
}

// showCredentialAnalytics tells how one credential was used. It need not be there any more.
func showCredentialAnalytics(a *API, o huma.Operation, _ Path) {
	handle(a, o, func(ctx context.Context, c *Caller, in *CredentialAnalyticsInput) (*AnalyticsOutput, error) {
		f := filterOf(a.config.Now(), in.Days)
		f.UID = in.ID
		var usage []store.VersionUsage
		got, err := read(ctx, a, c, "working out the analytics of a credential", func(ctx context.Context, s Store, t store.Tenant) (found store.Analytics, err error) {
			if usage, err = s.Usage(ctx, t, in.ID); err != nil {
				return found, err
			}
			return s.Analytics(ctx, t, f)
		})
		if err != nil {
			return nil, err
		}
		of, there := a.config.Index.Find(in.ID)
		if there = there && c.sees(of.Namespace); !there && len(usage) == 0 && len(got.Daily) == 0 {
			return nil, errNotFound
		}
		if there && c.Report != nil {
			c.Report.About = &authn.Identity{UID: of.UID, Kind: of.Kind, Namespace: of.Namespace, Name: of.Name, Subject: of.Subject}
		}
		a.searched(c, "analytics", url.Values{"days": {strconv.Itoa(in.Days)}, "uid": {in.ID}}.Encode())
		out := analyticsOf(&f, &got)
		for i := range usage {
			out.Versions = append(out.Versions, versionUsageOf(&usage[i]))
		}
		return &AnalyticsOutput{Body: out}, nil
	})
}

func versionUsageOf(u *store.VersionUsage) VersionUsage {
	v := VersionUsage{Version: u.Version, Prefix: u.Prefix, Uses: u.Uses, Denied: u.Denied, LastUsed: known(u.LastUsed), LastSlot: string(u.LastSlot)}
	if u.LastClient.IsValid() {
		v.LastClient = u.LastClient.String()
	}
	return v
}
