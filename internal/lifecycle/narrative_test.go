package lifecycle

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

var update = flag.Bool("update", false, "write the golden narratives anew")

// TestNarratives plays the scripts in testdata against Plan over simulated time
// and compares what happens with what they say happens. A script is YAML (the
// spec), a line of dashes, and lines: commands begin with "> ", and what follows
// them is the narrative. Run with -update to write the narratives anew, and
// read the difference.
func TestNarratives(t *testing.T) {
	files, err := filepath.Glob("testdata/*.narrative")
	if err != nil || len(files) == 0 {
		t.Fatalf("no narratives: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".narrative"), func(t *testing.T) {
			script, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, script)
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(string(script), string(got)); diff != "" && !*update {
				t.Errorf("the story has changed (-told +happened):\n%s", diff)
			}
		})
	}
}

// world is a cluster with one credential, a controller that carries decisions
// out, and servers that accept at once unless told otherwise.
type world struct {
	t        *testing.T
	out      bytes.Buffer
	now      time.Time
	o        Observed
	pepper   *credential.Pepper
	pepper2  *credential.Pepper
	class    *v1alpha1.CredentialClassSpec // while it is gone
	held     map[int64]bool
	lagging  bool
	crashing string
	refused  string
	next     time.Time
	minted   int64
	began    time.Time // the servers
}

func play(t *testing.T, script []byte) []byte {
	head, body, ok := bytes.Cut(script, []byte("\n---\n"))
	if !ok {
		t.Fatal("a narrative has a spec, a line of dashes, and commands")
	}
	var spec v1alpha1.CredentialSpec
	if err := yaml.UnmarshalStrict(head, &spec); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, &spec)
	w.out.Write(head)
	w.out.WriteString("\n---\n")
	lines := bufio.NewScanner(bytes.NewReader(body))
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "> "):
			fmt.Fprintln(&w.out, line)
			w.command(strings.Fields(line[2:]))
		case strings.HasPrefix(line, "#"), line == "":
			fmt.Fprintln(&w.out, line)
		}
	}
	return w.out.Bytes()
}

func newWorld(t *testing.T, spec *v1alpha1.CredentialSpec) *world {
	pepper, err := credential.NewPepper("p1", make([]byte, credential.PepperLen))
	if err != nil {
		t.Fatal(err)
	}
	pepper2, err := credential.NewPepper("p2", bytes.Repeat([]byte{1}, credential.PepperLen))
	if err != nil {
		t.Fatal(err)
	}
	rule := v1alpha1.ClassRule{Permissions: []v1alpha1.Permission{"*"}, Except: []v1alpha1.Permission{"mintmark:*"}, Adoption: true, External: true}
	class := &v1alpha1.CredentialClassSpec{
		MinOverlap: "1h", Rules: []v1alpha1.ClassRule{rule},
		Defaults: v1alpha1.ClassDefaults{TTL: "180d", Rotation: v1alpha1.RotationDefaults{
			Every: "90d", Overlap: "24h", Retire: v1alpha1.RetireWhenUnused, MaxOverlap: "7d",
		}},
	}
	start := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	spec.CredentialClassName = "default"
	return &world{t: t, now: start, began: start, pepper: pepper, pepper2: pepper2, held: map[int64]bool{}, o: Observed{
		Kind: v1alpha1.KindServiceToken, Namespace: "payments", Name: "ci", UID: "uid-1", Generation: 1, Created: start,
		Annotations: map[string]string{}, Spec: spec, Status: &v1alpha1.CredentialStatus{}, Class: class, Rule: &class.Rules[0],
		Ceiling: authz.NewCeiling(&class.Rules[0]), Pepper: "p1",
	}}
}

func (w *world) command(args []string) {
	switch args[0] {
	case "run":
		w.run()
	case "wait": // wait 3d: run whenever Plan asked to, until the time is over
		end := w.now.Add(v1alpha1.Duration(args[1]).Or(0))
		w.run()
		for range 5000 {
			if w.next.IsZero() || w.next.After(end) {
				break
			}
			w.now = w.next
			w.run()
		}
		w.now = end
		w.run()
	case "skip": // skip 3d: wait, and tell nothing of it
		told := w.out.Len()
		w.command([]string{"wait", args[1]})
		w.out.Truncate(told)
	case "rotate":
		w.o.Annotations[v1alpha1.AnnotationRotateRequestedAt] = w.now.Format(time.RFC3339)
		w.o.Annotations[v1alpha1.AnnotationReason] = strings.Join(args[1:], " ")
		w.o.Annotations[v1alpha1.AnnotationRequestedBy] = "alice"
		w.run()
	case "annotate": // annotate rotate: the request arrives together with what follows
		w.o.Annotations[v1alpha1.AnnotationRotateRequestedAt] = w.now.Format(time.RFC3339)
	case "rollback", "discard":
		key := map[string]string{"rollback": v1alpha1.AnnotationRollbackRequestedAt, "discard": v1alpha1.AnnotationDiscardRequestedAt}[args[0]]
		w.o.Annotations[key] = w.now.Format(time.RFC3339)
		w.run()
	case "revoke": // revoke reason..., or revoke 2 reason...
		w.o.Spec.Revoked = &v1alpha1.Revoked{Reason: strings.Join(args[1:], " ")}
		if n, err := strconv.ParseInt(args[1], 10, 64); err == nil {
			w.o.Spec.Revoked.Versions, w.o.Spec.Revoked.Reason = []int64{n}, strings.Join(args[2:], " ")
		}
		w.o.Generation++
		w.run()
	case "revocation": // revocation NAME [replace]
		w.o.Revocations = append(w.o.Revocations, Revocation{
			UID: "uid-" + args[1], Name: args[1], Reason: args[1], Created: w.now, Replace: len(args) > 2,
		})
		w.run()
	case "spec": // spec KEY JSON: change a field of the spec
		field := fmt.Sprintf("%s: %s", args[1], strings.Join(args[2:], " "))
		if err := yaml.Unmarshal([]byte(field), w.o.Spec); err != nil {
			w.t.Fatal(err)
		}
		w.o.Generation++
		w.run()
	case "servers": // servers lag | accept
		w.lagging = args[1] == "lag"
		w.o.Propagation = Propagation{}
		if w.lagging {
			w.o.Propagation.Lagging = []string{"server-2"}
		}
		w.run()
	case "crash": // crash after commit | deliver | promote: at the next such write
		w.crashing = args[2]
	case "restart":
		w.held, w.o.Held = map[int64]bool{}, 0
		w.run()
	case "secret":
		w.secret(args[1])
	case "clock":
		w.o.ClockSkewed = args[1] == "wrong"
		w.run()
	case "used": // used VERSION...: every server saw these used just now, and nothing else since long ago
		w.o.Usage = &Usage{LastUsed: map[int64]time.Time{}, Since: w.now.Add(-24 * time.Hour), Through: w.now}
		for _, a := range args[1:] {
			n, _ := strconv.ParseInt(a, 10, 64)
			w.o.Usage.LastUsed[n] = w.now
		}
		w.run()
	case "count": // count VERSION USES: what the servers, of which none has restarted, counted since the beginning
		n, _ := strconv.ParseInt(args[1], 10, 64)
		uses, _ := strconv.ParseInt(args[2], 10, 64)
		w.o.Usage = &Usage{
			LastUsed: map[int64]time.Time{n: w.now}, Uses: map[int64][]Count{n: {{Since: w.began, Uses: uses}}}, Since: w.began, Through: w.now,
		}
		w.run()
	case "usage": // usage: somebody asks how much it is used
		w.o.Annotations[v1alpha1.AnnotationUsageRequestedAt] = w.now.Format(time.RFC3339)
		w.run()
	case "restarted": // restarted: the servers have, and count anew
		w.began = w.now
		w.o.Usage = &Usage{Since: w.now, Through: w.now}
		w.run()
	case "lag": // lag NAME...: these servers hold a Lease and do not accept
		w.lagging, w.o.Propagation = true, Propagation{Lagging: args[1:]}
		w.run()
	case "write": // write refused | allowed: what the API server says to Secrets
		w.refused = ""
		if args[1] == "refused" {
			w.refused = "exceeded quota"
		}
		w.o.Secret.Problem = ""
		w.run()
	case "declare": // declare A B: the holder declares these values
		w.o.Spec.External = &v1alpha1.External{}
		for _, a := range args[1:] {
			w.o.Spec.External.SHA256 = append(w.o.Spec.External.SHA256, strings.Repeat(a, 64))
		}
		w.o.Generation++
		w.run()
	case "conflict": // conflict NAME first | second | none: an older credential has that declared value
		w.o.Conflict, w.o.Contested = args[1], []bool{slices.Contains(args, "first"), slices.Contains(args, "second")}
		if args[1] == "none" {
			w.o.Conflict = ""
		}
		w.run()
	case "pepper":
		w.o.Pepper = strings.Join(args[1:], "")
		w.run()
	case "class":
		if args[1] == "gone" {
			w.o.ClassProblem = "CredentialClass default does not exist: create it"
			w.class, w.o.Class, w.o.Rule = w.o.Class, nil, nil
		}
		if args[1] == "back" {
			w.o.ClassProblem, w.o.Class, w.o.Rule = "", w.class, &w.class.Rules[0]
		}
		if args[1] == "deletes" {
			w.o.Class.Expired = v1alpha1.ExpiredPolicy{Action: "Delete", After: v1alpha1.Duration(args[2])}
		}
		w.run()
	default:
		if !w.workloadCommand(args) {
			w.t.Fatalf("unknown command %q", args)
		}
	}
}

func (w *world) secret(what string) {
	switch what {
	case "deleted":
		w.o.Secret = Secret{}
	case "edited":
		w.o.Secret.Current = 0
	case "foreign":
		w.o.Secret = Secret{Exists: true, HasCurrent: true, Adoptable: true}
	}
	w.run()
}

// run is the controller: plan and make one write, until there is none.
func (w *world) run() {
	w.o.Restarts.Known = AwaitsAdoption(w.o.Spec, w.o.Status)
	w.o.Declared = nil
	if w.o.Spec.External != nil {
		for _, text := range w.o.Spec.External.SHA256 {
			inner, err := credential.ParseInner(text)
			if err != nil {
				w.t.Fatal(err)
			}
			w.o.Declared = append(w.o.Declared, map[string]string{"p1": w.pepper.Digest(inner).String(), "p2": w.pepper2.Digest(inner).String()})
		}
	}
	for range 12 {
		w.o.Status = Trusted(w.o.Status, w.o.Record)
		before := w.o.Status.DeepCopy()
		d := Plan(&w.o, w.now)
		w.next = d.Next
		wrote := w.commit(before, &d)
		if !wrote {
			wrote = w.deliver(&d)
		}
		if !wrote {
			wrote = w.restart(&d)
		}
		if d.Delete {
			w.say("deletes the credential, as its class says")
			w.o.Deleting = true
			return
		}
		if !wrote && d.AwaitPropagation && !w.lagging && !w.o.Propagation.Accepted {
			w.o.Propagation.Accepted = true
			continue
		}
		if !wrote {
			return
		}
	}
	w.t.Fatal("the controller does not come to rest")
}

func (w *world) commit(before *v1alpha1.CredentialStatus, d *Decision) bool {
	if d.Mint != nil {
		w.minted++
		for i := range d.Status.Versions {
			if v := &d.Status.Versions[i]; v.Version == d.Mint.Version {
				inner := credential.Inner{byte(w.minted), byte(w.minted >> 8)}
				v.Digest, v.Pepper = w.pepper.Digest(inner).String(), "p1"
			}
		}
	}
	rec, err := BuildRecord(&w.o, d)
	if err != nil {
		w.t.Fatal(err)
	}
	if reflect.DeepEqual(before, d.Status) {
		return false
	}
	if rec != nil {
		rec.Epoch++
		d.Status.Epoch = rec.Epoch
		record, seal, err := rec.Seal(w.pepper)
		if err != nil {
			w.t.Fatal(err)
		}
		if rec, err = credential.OpenRecord(credential.Peppers{w.pepper}, record, seal); err != nil {
			w.t.Fatal(err)
		}
	}
	w.o.Status, w.o.Record = d.Status, rec
	what := "status"
	if d.Mint != nil {
		what = "commit"
		w.held[d.Mint.Version] = true
	} else if before.CurrentVersion != d.Status.CurrentVersion && d.Status.CurrentVersion != 0 {
		what = "promote"
	}
	ready := meta.FindStatusCondition(d.Status.Conditions, v1alpha1.ConditionReady)
	expiring := ""
	if c := meta.FindStatusCondition(d.Status.Conditions, v1alpha1.ConditionExpiring); c != nil {
		expiring = "  Expiring " + c.Reason
	}
	w.say("%-7s %s  Ready=%s %s%s", what, w.versions(), ready.Status, ready.Reason, expiring)
	if c := meta.FindStatusCondition(d.Status.Conditions, v1alpha1.ConditionPropagated); c.Reason == v1alpha1.ReasonServerLagging {
		w.say("        %s: %s", c.Reason, c.Message)
	}
	for _, v := range d.Status.Versions {
		if !reflect.DeepEqual(before.Usage, d.Status.Usage) && v.Uses > 0 {
			w.say("        uses of version %d: %d, next rotation %s", v.Version, v.Uses, d.Status.NextRotation)
		}
	}
	w.sayAdopted(before)
	for _, e := range d.Events {
		w.say("        event %s: %s", e.Reason, e.Message)
	}
	w.o.Propagation.Accepted = w.o.Propagation.Accepted && d.Mint == nil
	w.crashed(what)
	w.o.Held = w.heldVersion()
	return true
}

func (w *world) heldVersion() int64 {
	for _, v := range w.o.Status.Versions {
		if v.State == v1alpha1.VersionPending && w.held[v.Version] {
			return v.Version
		}
	}
	return 0
}

func (w *world) deliver(d *Decision) bool {
	s := &w.o.Secret
	switch {
	case d.Secret.Action == SecretWrite && (s.Current != d.Secret.Current || s.Previous != d.Secret.Previous || !s.Ours):
		if w.refused != "" {
			changed := s.Problem == ""
			s.Problem = "Secret could not be written: " + w.refused
			return changed
		}
		*s = Secret{Exists: true, Ours: true, Current: d.Secret.Current, Previous: d.Secret.Previous, HasCurrent: true, HasPrevious: d.Secret.Previous != 0}
		delete(w.held, s.Current)
		w.say("deliver Secret: current %d, previous %d", s.Current, s.Previous)
		w.crashed("deliver")
		return true
	case d.Secret.Action == SecretDelete && s.Exists && s.Ours:
		*s = Secret{}
		w.say("deliver Secret deleted")
		return true
	}
	return false
}

func (w *world) crashed(after string) {
	if w.crashing == after {
		w.crashing = ""
		w.held = map[int64]bool{}
		w.o.Held = 0
		w.say("the controller dies, and another one takes over")
	}
	w.o.Held = w.heldVersion()
}

func (w *world) versions() string {
	var b strings.Builder
	for i := len(w.o.Status.Versions) - 1; i >= 0; {
		first, last := w.o.Status.Versions[i], w.o.Status.Versions[i]
		for i--; i >= 0 && w.o.Status.Versions[i].State == first.State; i-- {
			last = w.o.Status.Versions[i]
		}
		if last.Version-first.Version > 6 {
			fmt.Fprintf(&b, "[%d to %d %s]", first.Version, last.Version, first.State)
			continue
		}
		for n := first.Version; n <= last.Version; n++ {
			fmt.Fprintf(&b, "[%d %s]", n, first.State)
		}
	}
	return b.String()
}

func (w *world) say(format string, args ...any) {
	fmt.Fprintf(&w.out, "%s  %s\n", w.now.Format("2006-01-02 15:04:05"), fmt.Sprintf(format, args...))
}

func readyOf(w *world) *metav1.Condition {
	return meta.FindStatusCondition(w.o.Status.Conditions, v1alpha1.ConditionReady)
}
