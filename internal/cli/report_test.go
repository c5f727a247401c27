package cli

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// aCredential is Active, rotates, ends in half a year and was used today.
func aCredential(change func(*v1alpha1.ServiceToken)) *v1alpha1.ServiceToken {
	o := &v1alpha1.ServiceToken{}
	o.Name, o.Namespace, o.UID, o.CreationTimestamp = "ci", "payments", "u", metav1.NewTime(noonOf(1).AddDate(0, -3, 0))
	o.Spec = v1alpha1.CredentialSpec{CredentialClassName: "default", Owner: "amy", Permissions: []v1alpha1.Permission{"api:read"}}
	o.Status = v1alpha1.CredentialStatus{
		CurrentVersion: 2, Expires: "2026-06-01T12:00:00Z", NextRotation: "2026-03-01T12:00:00Z", LastUsed: "2026-01-31",
		Versions:   []v1alpha1.CredentialVersion{{Version: 2, State: v1alpha1.VersionActive, Prefix: "sk_81ac"}},
		Conditions: []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Ready"}},
	}
	if change != nil {
		change(o)
	}
	return o
}

func TestFindings(t *testing.T) {
	now, superseded, used := noonOf(31), metav1.NewTime(noonOf(10)), metav1.NewTime(noonOf(11))
	for name, c := range map[string]struct {
		change func(*v1alpha1.ServiceToken)
		roles  map[string][]string
		want   string
	}{
		"nothing is amiss": {},
		"it ends soon": {func(o *v1alpha1.ServiceToken) {
			o.Status.Expires, o.Status.NextRotation = "2026-02-10T12:00:00Z", ""
		}, nil, "expires-soon: ends in 10 days, and nothing will renew it; no-rotation: no rotation is planned"},
		"it ends soon, and is renewed before": {func(o *v1alpha1.ServiceToken) {
			o.Status.Expires, o.Status.NextRotation = "2026-02-10T12:00:00Z", "2026-02-01T12:00:00Z"
		}, nil, ""},
		"it ends soon, and the controller says that nothing renews it": {func(o *v1alpha1.ServiceToken) {
			o.Status.Expires, o.Status.NextRotation = "2026-02-10T12:00:00Z", "2026-02-01T12:00:00Z"
			o.Status.Conditions = append(o.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionExpiring, Status: metav1.ConditionTrue})
		}, nil, "expires-soon: ends in 10 days, and nothing will renew it"},
		"it never ends": {func(o *v1alpha1.ServiceToken) {
			o.Status.Expires, o.Status.NextRotation = "Never", ""
		}, nil, "no-end: neither ends nor is rotated; no-rotation: no rotation is planned"},
		"it was never used": {func(o *v1alpha1.ServiceToken) { o.Status.LastUsed = "" }, nil, "never-used: not used in the 122 days since it was made"},
		"it was never used, and is new": {func(o *v1alpha1.ServiceToken) {
			o.Status.LastUsed, o.CreationTimestamp = "", metav1.NewTime(noonOf(20))
		}, nil, ""},
		"it is not used any more":                 {func(o *v1alpha1.ServiceToken) { o.Status.LastUsed = "2025-12-01" }, nil, "unused: not used for 60 days"},
		"it may have been used late on a day":     {func(o *v1alpha1.ServiceToken) { o.Status.LastUsed = "2026-01-01" }, nil, ""},
		"it is an administrator's":                {func(o *v1alpha1.ServiceToken) { o.Spec.Admin, o.Spec.Permissions = true, nil }, nil, "admin: holds every permission"},
		"it may do much":                          {func(o *v1alpha1.ServiceToken) { o.Spec.Permissions = append(o.Spec.Permissions, "deploy:*", "*") }, nil, "wide-permissions: deploy:*, *"},
		"it may do much by a role":                {func(o *v1alpha1.ServiceToken) { o.Spec.Roles = []string{"ops"} }, map[string][]string{"ops": {"ops:*"}}, "wide-permissions: ops:* (role ops)"},
		"nobody is named":                         {func(o *v1alpha1.ServiceToken) { o.Spec.Owner = "" }, nil, "no-owner: spec.owner names nobody to ask"},
		"rotations are suspended":                 {func(o *v1alpha1.ServiceToken) { o.Spec.Rotation = &v1alpha1.Rotation{Suspend: true} }, nil, "no-rotation: rotations are suspended"},
		"its holder rotates it":                   {func(o *v1alpha1.ServiceToken) { o.Spec.External, o.Status.NextRotation = &v1alpha1.External{}, "" }, nil, ""},
		"a superseded version that is not in use": {withSuperseded(superseded, nil), nil, ""},
		"a superseded version in use":             {withSuperseded(superseded, &used), nil, "superseded-in-use: version 1 was last used at 2026-01-11T12:00:00Z, after version 2 had taken its place"},
		"a superseded version used before it was": {withSuperseded(used, &superseded), nil, ""},
		"it is not Ready": {func(o *v1alpha1.ServiceToken) {
			o.Status.Conditions[0] = metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: "SecretConflict", Message: "not\nours"}
		}, nil, "not-ready: SecretConflict: not ours"},
		"of what is revoked nothing is amiss": {func(o *v1alpha1.ServiceToken) {
			o.Spec.Admin, o.Spec.Owner, o.Spec.Revoked = true, "", &v1alpha1.Revoked{Reason: "x"}
		}, nil, ""},
		"it has expired": {func(o *v1alpha1.ServiceToken) {
			end := metav1.NewTime(noonOf(2))
			o.Spec.ExpiresAt, o.Spec.Owner = &end, ""
		}, nil, "expired: nothing of it is accepted any more"},
	} {
		t.Run(name, func(t *testing.T) {
			o := aCredential(c.change)
			l := lineOf(o, now)
			l.find(o, c.roles, now, reportThresholds{30 * 24 * time.Hour, 30 * 24 * time.Hour})
			if got := detailsInWords(l); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			for _, code := range codes(l) {
				if !slices.Contains(findings, code) {
					t.Errorf("%s is no finding that is told of", code)
				}
			}
		})
	}
}

func withSuperseded(at metav1.Time, used *metav1.Time) func(*v1alpha1.ServiceToken) {
	return func(o *v1alpha1.ServiceToken) {
		o.Status.Versions = append(o.Status.Versions, v1alpha1.CredentialVersion{Version: 1, State: v1alpha1.VersionSuperseded, Superseded: &at, LastUsed: used})
	}
}

func TestStates(t *testing.T) {
	now, past, future := noonOf(31), metav1.NewTime(noonOf(1)), metav1.NewTime(noonOf(31).Add(time.Hour))
	for want, versions := range map[string][][]v1alpha1.CredentialVersion{
		stateActive: {
			{{Version: 1, State: v1alpha1.VersionActive}}, {{Version: 2, State: v1alpha1.VersionActive, Expires: &future}},
			{{Version: 2, State: v1alpha1.VersionRevoked}, {Version: 1, State: v1alpha1.VersionSuperseded}},
		},
		statePending: {nil, {{Version: 1, State: v1alpha1.VersionPending}}},
		stateExpired: {{{Version: 1, State: v1alpha1.VersionExpired}}, {{Version: 1, State: v1alpha1.VersionActive, Expires: &past}}},
		stateRevoked: {{{Version: 2, State: v1alpha1.VersionRevoked}, {Version: 1, State: v1alpha1.VersionExpired}}},
		stateEnded:   {{{Version: 1, State: v1alpha1.VersionRetired}}},
	} {
		for i, v := range versions {
			o := aCredential(func(o *v1alpha1.ServiceToken) { o.Status.Versions = v })
			if got := stateOf(o, now); got != want {
				t.Errorf("%s %d: got %s", want, i, got)
			}
		}
	}
}

// hostile is what people may write into a description or an owner.
var hostile = []string{
	"=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1+1", "\r=1", "\n=1", " =1", "|x", "%0A=1", "＝1+1", "'quoted", `"=1"`,
	"\u202e=1", "\x1b[2J=1", "a\nb", "a,b;c", "\u200b=1", "",
}

func TestNoCellOfAReportIsAFormula(t *testing.T) {
	for _, text := range hostile {
		r := &report{Lines: []*reportLine{{Namespace: "payments", Name: "ci", Owner: text, Description: text, Findings: []reportFinding{{findingNotReady, text}}}}}
		var out bytes.Buffer
		if err := r.write(&out, "csv"); err != nil {
			t.Fatal(err)
		}
		records, err := csv.NewReader(&out).ReadAll()
		if err != nil || len(records) != 2 {
			t.Fatalf("%q: %d records, %v", text, len(records), err)
		}
		for i, cell := range records[1] {
			if cell != "" && (strings.ContainsRune("=+-@\t\r\n|%＝＋－＠ ", []rune(cell)[0]) || strings.ContainsFunc(cell, func(r rune) bool { return !unicode.IsPrint(r) })) {
				t.Errorf("%q: column %s is %q", text, records[0][i], cell)
			}
		}
	}
}

func TestNothingInAReportIsMarkdown(t *testing.T) {
	for _, text := range append(hostile, "a | b", "<script>alert(1)</script>", "[x](javascript:1)", "`x`", "**x**", "![x](http://x)", `\|`, "# x", "&lt;") {
		r := &report{
			Counts: reportCounts{Findings: map[string]int{findingNotReady: 1}},
			Lines:  []*reportLine{{Namespace: "payments", Name: "ci", Owner: text, Findings: []reportFinding{{findingNotReady, text}}}},
		}
		var out bytes.Buffer
		if err := r.write(&out, "markdown"); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out.String()) {
			bare := strings.NewReplacer(`\\`, "", `\|`, "", `\<`, "", `\[`, "", "\\`", "", `\*`, "", `\!`, "", `\&`, "", `\#`, "").Replace(line)
			if strings.HasPrefix(bare, "| payments") && strings.Count(bare, "|") != 13 || strings.HasPrefix(bare, "| not-ready") && strings.Count(bare, "|") != 4 ||
				strings.HasPrefix(bare, "| ") && strings.ContainsAny(bare, "<[`*!&") {
				t.Errorf("%q makes %q", text, line)
			}
		}
	}
	r := &report{Lines: []*reportLine{{Owner: "\u009b31m\u202e"}}}
	var out bytes.Buffer
	if err := r.write(&out, "json"); err != nil || strings.ContainsFunc(out.String(), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) || !json.Valid(out.Bytes()) {
		t.Errorf("%v: %q", err, out.String())
	}
}
