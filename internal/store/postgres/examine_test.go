package postgres_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mintmark-dev/mintmark/internal/store/postgres"
	testpostgres "github.com/mintmark-dev/mintmark/test/postgres"
)

// says gives the worst severity of what is found, and whether a text is in it.
func says(all []postgres.Finding, text string) (worst postgres.Severity, said bool) {
	for _, f := range all {
		worst = max(worst, f.Severity)
		said = said || strings.Contains(f.Message, text) && (f.Severity == postgres.Sound || f.Remedy != "")
	}
	return worst, said
}

func TestWhatIsWrongWithADatabaseIsSaid(t *testing.T) {
	i := install(t, testpostgres.Options{})
	examine := func(account string, now func() time.Time) []postgres.Finding {
		t.Helper()
		all, err := postgres.Examine(t.Context(), i.cluster.URL(account, "mintmark"), now)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	i.psql("postgres", "postgres", "ALTER SYSTEM SET synchronous_commit = on") // the throwaway's command line has it off all the same
	for _, step := range []struct {
		name, as, do, account, says string
	}{
		{name: "before anything ran", account: "mintmark_app", says: "no partition"},
		{name: "an account that owns the tables", account: "mintmark_migrate", says: "owns the tables"},
		{name: "a superuser", account: "postgres", says: "row-level security does not hold account postgres"},
		{name: "with partitions", as: "mintmark_migrate", do: "SELECT mintmark.ensure_events_partition((now() + make_interval(months => m))::date) FROM generate_series(0, 1) m", account: "mintmark_app", says: "cannot change or remove"},
		{name: "a privilege too few", as: "mintmark_migrate", do: "REVOKE INSERT ON mintmark.batches FROM mintmark_app", account: "mintmark_app", says: "lacks INSERT on batches"},
		{name: "a function too few", as: "mintmark_migrate", do: "GRANT INSERT ON mintmark.batches TO mintmark_app; REVOKE EXECUTE ON FUNCTION mintmark.ensure_events_partition(date) FROM mintmark_app", account: "mintmark_app", says: "lacks EXECUTE on ensure_events_partition"},
		{name: "a privilege too many", as: "mintmark_migrate", do: "GRANT DELETE ON mintmark.events TO mintmark_app", account: "mintmark_app", says: "can change or remove what is recorded, in events"},
		{name: "a privilege too many, of a partition", as: "mintmark_migrate", do: "REVOKE DELETE ON mintmark.events FROM mintmark_app; GRANT UPDATE ON mintmark.events_" + time.Now().UTC().Format("200601") + " TO mintmark_app", account: "mintmark_app", says: "what is recorded, in events_2"},
		{name: "row-level security off", as: "mintmark_migrate", do: "ALTER TABLE mintmark.usage NO FORCE ROW LEVEL SECURITY", account: "mintmark_app", says: "not forced, for usage"},
		{name: "read-only", as: "postgres", do: "ALTER ROLE mintmark_app SET default_transaction_read_only = on", account: "mintmark_app", says: "read-only"},
		{name: "an older schema", as: "mintmark_migrate", do: "DELETE FROM mintmark.goose_db_version WHERE version_id > 1", account: "mintmark_app", says: "at version 1, and"},
	} {
		if step.do != "" {
			i.psql(step.as, "mintmark", step.do)
		}
		all := examine(step.account, time.Now)
		if _, said := says(all, step.says); !said {
			t.Errorf("%s: it does not say %q, but %+v", step.name, step.says, all)
		}
	}
	// The throwaway has its safeties off, and no TLS, on one host.
	all := examine("mintmark_app", func() time.Time { return time.Now().Add(time.Minute) })
	for _, text := range []string{"fsync", "clock is -1m0s off", "does not leave the host", "PostgreSQL 1"} {
		if _, said := says(all, text); !said {
			t.Errorf("it does not say %q: %+v", text, all)
		}
	}
	if _, err := postgres.Examine(t.Context(), "postgres://u:hunter2@127.0.0.1:1/db?connect_timeout=2", nil); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a database that is not there: %v", err)
	}
}

func TestADatabaseThatIsAsThePageSaysIsSound(t *testing.T) {
	i := install(t, testpostgres.Options{Durable: true})
	i.fill()
	i.psql("mintmark_migrate", "mintmark", "SELECT mintmark.ensure_events_partition((now() + interval '1 month')::date)")
	all, err := postgres.Examine(t.Context(), i.cluster.URL("mintmark_app", "mintmark"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if worst, _ := says(all, ""); worst != postgres.Sound || len(all) < 8 {
		t.Errorf("it finds %+v", all)
	}
}

// selfSigned makes a certificate for 127.0.0.1.
func selfSigned(t *testing.T) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "database"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

func TestTheWayToTheDatabaseIsLookedAt(t *testing.T) {
	cert, key := selfSigned(t)
	cluster := testpostgres.StartFor(t, testpostgres.Options{Certificate: cert, Key: key})
	root := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(root, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	plain := strings.TrimSuffix(cluster.URL("postgres", "postgres"), "disable")
	for mode, want := range map[string]string{
		"verify-full&sslrootcert=" + root: "and the certificate verified", "verify-ca&sslrootcert=" + root: "the name in the certificate is not verified",
		"require": "the certificate is not verified", "prefer": "the certificate is not verified", "disable": "is not encrypted, and does not leave the host",
	} {
		all, err := postgres.Examine(t.Context(), plain+mode, nil)
		if err != nil {
			t.Fatalf("%s: %v", mode, err)
		}
		if _, said := says(all, want); !said {
			t.Errorf("%s: it does not say %q: %+v", mode, want, all)
		}
	}
	other, _ := selfSigned(t)
	if err := os.WriteFile(root, other, 0o600); err != nil {
		t.Fatal(err)
	}
	if all, err := postgres.Examine(t.Context(), plain+"verify-full&sslrootcert="+root, nil); err == nil {
		t.Errorf("a certificate of another authority: %+v", all)
	}
}
