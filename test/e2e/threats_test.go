//go:build e2e

package e2e

import (
	"testing"
	"time"
)

// condition is the reason of a condition of a credential.
func condition(t *testing.T, ns, object, kind string) string {
	t.Helper()
	return must(t, "kubectl -n "+ns+" get "+object+` -o jsonpath='{.status.conditions[?(@.type=="`+kind+`")].reason}'`)
}

// whole is an object without what the API server itself keeps about fields.
func whole(t *testing.T, ns, object string) string {
	t.Helper()
	return must(t, "kubectl -n "+ns+" get "+object+" -o json --show-managed-fields=false")
}

func TestASecretThatIsNotOursIsNotTouched(t *testing.T) {
	ns := namespace(t, "foreign")
	must(t, "kubectl -n "+ns+" create secret generic taken --from-literal=token=somebody-elses")
	before := whole(t, ns, "secret/taken")
	apply(t, serviceToken(ns, "taken", "api:read"))
	eventually(t, time.Minute, "the conflict is reported", func() bool {
		return condition(t, ns, "servicetoken/taken", "SecretDelivered") == "SecretConflict"
	})
	if after := whole(t, ns, "secret/taken"); after != before {
		t.Errorf("the Secret was changed:\nbefore %s\nafter %s", before, after)
	}

	// The way out that the condition names: the name is freed.
	must(t, "kubectl -n "+ns+" delete secret taken")
	ready(t, ns, "servicetoken/taken")
	accepted(t, value(t, ns, "taken", "token"), "the value delivered after the conflict")
}

func TestTwoCredentialsWithOneSecretHaveOneOwnerAndDoNotFight(t *testing.T) {
	ns := namespace(t, "shared-secret")
	apply(t, serviceToken(ns, "first", "api:read")+"\n  secret: {name: wanted-by-two}")
	ready(t, ns, "servicetoken/first")
	before := whole(t, ns, "secret/wanted-by-two")
	apply(t, serviceToken(ns, "second", "api:read")+"\n  secret: {name: wanted-by-two}")
	eventually(t, time.Minute, "the second reports the conflict", func() bool {
		return condition(t, ns, "servicetoken/second", "SecretDelivered") == "SecretConflict"
	})
	// A loop would write within this time: a conflict is tried again after seconds.
	quiet := time.After(5 * time.Second)
	for waiting := true; waiting; {
		select {
		case <-quiet:
			waiting = false
		case <-time.After(250 * time.Millisecond):
			if after := whole(t, ns, "secret/wanted-by-two"); after != before {
				t.Fatalf("the Secret of the first was changed:\nbefore %s\nafter %s", before, after)
			}
		}
	}
	accepted(t, value(t, ns, "wanted-by-two", "token"), "the value of the first")
}

func TestACredentialMadeAgainUnderItsNameIsAnotherOne(t *testing.T) {
	ns := namespace(t, "again")
	apply(t, serviceToken(ns, "phoenix", "api:read"))
	ready(t, ns, "servicetoken/phoenix")
	old := value(t, ns, "phoenix", "token")
	accepted(t, old, "the value before the deletion")

	must(t, "kubectl -n "+ns+" delete servicetoken phoenix")
	dies(t, old, bound)
	apply(t, serviceToken(ns, "phoenix", "api:read"))
	ready(t, ns, "servicetoken/phoenix")
	if value(t, ns, "phoenix", "token") == old {
		t.Error("the new credential has the value of the old one")
	}
	accepted(t, value(t, ns, "phoenix", "token"), "the new value")
	dies(t, old, bound)
}

func TestANamespaceMadeAgainUnderItsNameIsAnotherOne(t *testing.T) {
	ns := namespace(t, "tenant")
	apply(t, serviceToken(ns, "key", "api:read"))
	ready(t, ns, "servicetoken/key")
	old := value(t, ns, "key", "token")

	must(t, "kubectl delete namespace "+ns+" --timeout=90s")
	dies(t, old, bound)
	namespace(t, "tenant")
	apply(t, serviceToken(ns, "key", "api:read"))
	ready(t, ns, "servicetoken/key")
	dies(t, old, bound)
	accepted(t, value(t, ns, "key", "token"), "the new value")
}

func TestAForcedDeletionHoldsAtOnceWithTheControllerDown(t *testing.T) {
	ns := namespace(t, "forced")
	apply(t, serviceToken(ns, "stubborn", "api:read"))
	ready(t, ns, "servicetoken/stubborn")
	old := value(t, ns, "stubborn", "token")

	controller := pause(t, "mintmark-controller")
	defer controller.resume()
	// Whatever finalizers there are go first, as somebody would do who is in a hurry.
	must(t, "kubectl -n "+ns+` patch servicetoken stubborn --type=merge -p '{"metadata":{"finalizers":null}}' || true`)
	must(t, "kubectl -n "+ns+" delete servicetoken stubborn --force --grace-period=0 --wait=false")
	dies(t, old, bound)
}
