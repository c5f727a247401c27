package keyring_test

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mintmark-dev/mintmark/internal/keyring"
)

var names = []string{"mintmark-server.ns.svc", "127.0.0.1", "::1"}

func mustServing(t testing.TB, now time.Time) *keyring.Serving {
	t.Helper()
	serving, err := keyring.NewServing(counting(1), names, now)
	if err != nil {
		t.Fatal(err)
	}
	return serving
}

// trusts tells whether a client that has this bundle accepts what is presented.
func trusts(bundle []byte, presented *tls.Certificate, name string, now time.Time) error {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	_, err := presented.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: now})
	return err
}

func authorities(bundle []byte) int { return bytes.Count(bundle, []byte("BEGIN CERTIFICATE")) }

func TestClientsTrustAServingCertificateForItsNamesAndItsLife(t *testing.T) {
	serving := mustServing(t, start)
	for name, test := range map[string]struct {
		name string
		at   time.Duration
		ok   bool
	}{
		"a DNS name":                    {name: "mintmark-server.ns.svc", ok: true},
		"an IPv4 address":               {name: "127.0.0.1", ok: true},
		"an IPv6 address":               {name: "::1", ok: true},
		"another name":                  {name: "mintmark-server.other.svc"},
		"a client's clock that is slow": {name: "127.0.0.1", at: -59 * time.Minute, ok: true},
		"the last hour":                 {name: "127.0.0.1", at: keyring.CertificateLife - time.Hour, ok: true},
		"after its life":                {name: "127.0.0.1", at: keyring.CertificateLife + time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			if err := trusts(serving.Authorities, &serving.Current, test.name, start.Add(test.at)); (err == nil) != test.ok {
				t.Errorf("trusted: %v, want %v", err, test.ok)
			}
		})
	}
	if serving.Current.Leaf.IsCA {
		t.Error("the certificate could sign others")
	}
	again := mustServing(t, start)
	if !again.Current.Leaf.Equal(serving.Current.Leaf) {
		t.Error("the same randomness makes another certificate")
	}
}

func TestServingComesBackAsItWas(t *testing.T) {
	serving := mustServing(t, start)
	data := mustEncodeServing(t, serving)
	if diff := cmp.Diff([]string{"ca.crt", "tls.crt", "tls.key"}, slices.Sorted(maps.Keys(data))); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	if err := serving.Stage(counting(9), names, start); err != nil {
		t.Fatal(err)
	}
	data = mustEncodeServing(t, serving)
	again, err := keyring.DecodeServing(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(data, mustEncodeServing(t, again)); diff != "" {
		t.Errorf("changed on the way:\n%s", diff)
	}
	if again.Next == nil || !again.Next.Leaf.Equal(serving.Next.Leaf) {
		t.Error("the successor is lost")
	}
}

func mustEncodeServing(t testing.TB, s *keyring.Serving) map[string][]byte {
	t.Helper()
	data, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestDecodeServing(t *testing.T) {
	staged := mustServing(t, start)
	if err := staged.Stage(counting(9), names, start); err != nil {
		t.Fatal(err)
	}
	good := mustEncodeServing(t, staged)
	for name, test := range map[string]struct {
		change map[string][]byte
		err    string
	}{
		"what Mintmark writes":                {},
		"a certificate without its authority": {change: map[string][]byte{"ca.crt": nil}},
		"no certificate":                      {change: map[string][]byte{"tls.crt": nil}, err: "the entry tls.crt is missing or empty"},
		"no key":                              {change: map[string][]byte{"tls.key": nil}, err: "the entry tls.key is missing or empty"},
		"a key of another certificate":        {change: map[string][]byte{"tls.key": good["next.key"]}, err: "tls.crt and tls.key are no pair"},
		"an authority that is no PEM":         {change: map[string][]byte{"ca.crt": []byte("hello")}, err: "ca.crt holds no certificate"},
		"a successor without its key":         {change: map[string][]byte{"next.key": nil}, err: "the entry next.key is missing or empty"},
	} {
		t.Run(name, func(t *testing.T) {
			data := maps.Clone(good)
			maps.Copy(data, test.change)
			_, err := keyring.DecodeServing(data)
			if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
				t.Errorf("error %v, want %q", err, test.err)
			}
		})
	}
}

func TestMissingNames(t *testing.T) {
	serving := mustServing(t, start)
	for name, test := range map[string]struct{ want, missing []string }{
		"those it is for":                {want: names, missing: []string{}},
		"fewer":                          {want: names[:1], missing: []string{}},
		"an address written differently": {want: []string{"0:0:0:0:0:0:0:1"}, missing: []string{}},
		"one more":                       {want: append(slices.Clone(names), "localhost"), missing: []string{"localhost"}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.missing, serving.Missing(test.want)); diff != "" {
				t.Errorf("missing (-want +got):\n%s", diff)
			}
		})
	}
}

// Two processes of different configuration, as during an upgrade, must not
// replace each other's certificate for ever.
func TestReplacingKeepsTheNamesItHad(t *testing.T) {
	serving := mustServing(t, start)
	old := serving.Current
	if err := serving.Stage(counting(5), names, start); err != nil {
		t.Fatal(err)
	}
	if err := serving.Replace(counting(9), []string{"localhost", "127.0.0.1"}, start); err != nil {
		t.Fatal(err)
	}
	if missing := serving.Missing(append([]string{"localhost"}, names...)); len(missing) > 0 {
		t.Errorf("it lacks %v", missing)
	}
	if serving.Next != nil {
		t.Error("a successor for the old names is left")
	}
	for _, presented := range []*tls.Certificate{&old, &serving.Current} {
		if err := trusts(serving.Authorities, presented, "127.0.0.1", start); err != nil {
			t.Errorf("a replica that presents the old or the new one is not trusted: %v", err)
		}
	}
}

// The life of serving certificates under simulated time. At every change, a
// client that still has the bundle of before it must trust what is presented.
func TestTheLifeOfServingCertificates(t *testing.T) {
	serving := mustServing(t, start)
	bundle := serving.Authorities
	var b strings.Builder
	for now, seed := start, byte(50); now.Before(start.Add(2 * keyring.CertificateLife)); now = serving.NextChange() {
		day := int(now.Sub(start) / (24 * time.Hour))
		if serving.ShouldStage(now.Add(-time.Second)) || serving.ShouldActivate(now.Add(-time.Second)) {
			t.Fatalf("day %d: something was due before NextChange", day)
		}
		before := bundle
		if serving.ShouldStage(now) {
			if err := serving.Stage(counting(seed), names, now); err != nil {
				t.Fatal(err)
			}
			seed += 50
			fmt.Fprintf(&b, "day %d: publish a successor, %d authorities\n", day, authorities(serving.Authorities))
		} else if serving.ShouldActivate(now) {
			serving.Activate()
			fmt.Fprintf(&b, "day %d: use it, %d authorities\n", day, authorities(serving.Authorities))
		}
		bundle = serving.Authorities
		if err := trusts(before, &serving.Current, names[0], now); err != nil {
			t.Errorf("day %d: clients that have not read the bundle again are cut off: %v", day, err)
		}
	}
	want := `
day 182: publish a successor, 2 authorities
day 243: use it, 2 authorities
day 364: publish a successor, 3 authorities
day 425: use it, 3 authorities
day 547: publish a successor, 3 authorities
day 608: use it, 3 authorities
day 729: publish a successor, 3 authorities
`
	if diff := cmp.Diff(want, "\n"+b.String()); diff != "" {
		t.Errorf("narrative (-want +got):\n%s", diff)
	}
}

func TestACertificateFoundLate(t *testing.T) {
	for name, test := range map[string]struct {
		after    time.Duration
		activate time.Duration // after the successor was made
	}{
		"past two thirds, its successor is published for a day":     {after: 300 * 24 * time.Hour, activate: 24 * time.Hour},
		"with hours to live, its successor is used in time":         {after: keyring.CertificateLife - 5*time.Hour, activate: 4 * time.Hour},
		"expired, its successor is used at once":                    {after: 400 * 24 * time.Hour, activate: -35*24*time.Hour - time.Hour},
		"at half of its life, its successor waits until two thirds": {after: keyring.CertificateLife / 2, activate: 61 * 24 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			serving := mustServing(t, start)
			now := start.Add(test.after)
			if !serving.ShouldStage(now) {
				t.Fatal("no successor is due")
			}
			if err := serving.Stage(counting(9), names, now); err != nil {
				t.Fatal(err)
			}
			at := serving.NextChange()
			if got := at.Sub(now); (got - test.activate).Abs() > 8*time.Hour {
				t.Errorf("used after %v, want %v", got, test.activate)
			}
			if serving.ShouldActivate(at.Add(-time.Second)) || !serving.ShouldActivate(at) {
				t.Errorf("ShouldActivate and NextChange disagree at %v", at)
			}
		})
	}
}

func TestACertificateThatCannotBeMadeIsAnError(t *testing.T) {
	for name, test := range map[string]struct {
		random io.Reader
		names  []string
		now    time.Time
		err    string
	}{
		"without names":                            {names: []string{}, err: "needs a name"},
		"without randomness":                       {random: iotest.ErrReader(errNoRandomness), err: "no randomness"},
		"with randomness for a key alone":          {random: limited(32), err: "no randomness"},
		"with randomness for the authority alone":  {random: limited(48), err: "no randomness"},
		"with a name that is not ASCII":            {names: []string{"schlüssel.example"}, err: "signing a certificate for [schlüssel.example]"},
		"at a time that certificates cannot write": {now: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), err: "signing a certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			if test.random == nil {
				test.random = counting(1)
			}
			if test.names == nil {
				test.names = names
			}
			if test.now.IsZero() {
				test.now = start
			}
			made, err := keyring.NewServing(test.random, test.names, test.now)
			if err == nil || !strings.Contains(err.Error(), test.err) || made != nil {
				t.Errorf("error %v, want one with %q", err, test.err)
			}
			serving := mustServing(t, start)
			bundle := serving.Authorities
			if err := serving.Stage(test.random, test.names, test.now); err == nil || serving.Next != nil || !bytes.Equal(serving.Authorities, bundle) {
				t.Errorf("staging: error %v, or something changed beside it", err)
			}
		})
	}
	serving := mustServing(t, start)
	if err := serving.Replace(iotest.ErrReader(errNoRandomness), names, start); !errors.Is(err, errNoRandomness) {
		t.Errorf("replacing: error %v, want the source's", err)
	}
	serving.Current.PrivateKey = struct{ crypto.Signer }{}
	if _, err := serving.Encode(); err == nil {
		t.Error("encoded a key of an unknown type")
	}
}

func limited(n int64) io.Reader {
	return io.MultiReader(io.LimitReader(counting(1), n), iotest.ErrReader(errNoRandomness))
}

func FuzzDecodeServing(f *testing.F) {
	serving := mustServing(f, start)
	data := mustEncodeServing(f, serving)
	f.Add(data["tls.crt"], data["tls.key"], data["ca.crt"])
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), []byte{}, []byte{})
	f.Fuzz(func(t *testing.T, certificate, key, authority []byte) {
		serving, err := keyring.DecodeServing(map[string][]byte{"tls.crt": certificate, "tls.key": key, "ca.crt": authority})
		if err == nil && serving.Current.Leaf == nil {
			t.Error("no leaf, and no error")
		}
	})
}
