package credential

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"fmt"
	"math"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// scanner is one rule of one scanner.
type scanner struct {
	name    string
	kind    v1alpha1.Kind
	entropy float64
	keyword string
	// find gives the secrets the scanner would report.
	find func(text string) []string
}

// gitleaksRules reads what of TOML the rule file uses: tables of simple values.
func gitleaksRules(t *testing.T) []scanner {
	t.Helper()
	data, err := os.ReadFile("../../docs/secret-scanning/gitleaks.toml")
	if err != nil {
		t.Fatal(err)
	}
	var rules []map[string]string
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "[[rules]]" {
			rules = append(rules, map[string]string{})
		}
		key, value, ok := strings.Cut(line, " = ")
		if !ok || strings.HasPrefix(line, "#") || len(rules) == 0 {
			continue
		}
		rules[len(rules)-1][key] = strings.Trim(value, `'"[]`)
	}
	var scanners []scanner
	for _, r := range rules {
		entropy, err := strconv.ParseFloat(r["entropy"], 64)
		if err != nil {
			t.Fatalf("rule %s: %v", r["id"], err)
		}
		re := regexp.MustCompile(r["regex"])
		if re.NumSubexp() != 0 {
			t.Errorf("rule %s has a group: gitleaks would report that alone", r["id"])
		}
		scanners = append(scanners, scanner{
			name: "gitleaks " + r["id"], kind: kindOfRule(t, r["id"]), entropy: entropy, keyword: r["keywords"],
			find: func(text string) []string { return re.FindAllString(text, -1) },
		})
	}
	return scanners
}

func githubPatterns(t *testing.T) []scanner {
	t.Helper()
	data, err := os.ReadFile("../../docs/secret-scanning/github.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Patterns []struct{ Name, SecretFormat, BeforeSecret, AfterSecret, TestString string }
	}
	if err := yaml.UnmarshalStrict(data, &file); err != nil {
		t.Fatal(err)
	}
	var scanners []scanner
	for _, p := range file.Patterns {
		re := regexp.MustCompile("(?:" + p.BeforeSecret + ")(?P<secret>" + p.SecretFormat + ")(?:" + p.AfterSecret + ")")
		s := scanner{name: "GitHub " + p.Name, kind: kindOfRule(t, p.Name), find: func(text string) []string {
			var found []string
			for _, match := range re.FindAllStringSubmatch(text, -1) {
				found = append(found, match[re.SubexpIndex("secret")])
			}
			return found
		}}
		if len(s.find(p.TestString)) != 1 {
			t.Errorf("%s does not find its own test string", s.name)
		}
		scanners = append(scanners, s)
	}
	return scanners
}

func kindOfRule(t *testing.T, name string) v1alpha1.Kind {
	t.Helper()
	switch name = strings.ReplaceAll(strings.ToLower(name), "-", " "); name {
	case "mintmark service token":
		return v1alpha1.KindServiceToken
	case "mintmark api key":
		return v1alpha1.KindAPIKey
	}
	t.Fatalf("a rule this test does not know: %q", name)
	return ""
}

func scanners(t *testing.T) []scanner {
	t.Helper()
	all := append(gitleaksRules(t), githubPatterns(t)...)
	if len(all) != 4 {
		t.Fatalf("%d rules, want two of each scanner", len(all))
	}
	return all
}

// entropy as gitleaks computes it: Shannon's, over the characters of the secret.
func entropy(s string) float64 {
	counts := map[rune]int{}
	for _, c := range s {
		counts[c]++
	}
	sum := 0.0
	for _, n := range counts {
		p := float64(n) / float64(len(s))
		sum -= p * math.Log2(p)
	}
	return sum
}

func TestScannersFindMintedValues(t *testing.T) {
	minted := []Format{
		plainFormat, liveFormat, checkedFormat, apiKeyFormat,
		{Kind: v1alpha1.KindServiceToken, Checksum: true},
		{Kind: v1alpha1.KindServiceToken, Environment: "a"},
		{Kind: v1alpha1.KindServiceToken, Environment: "abcdefghijklmno9"},
		{Kind: v1alpha1.KindServiceToken, Environment: "abcdefghijklmno9", Checksum: true},
	}
	places := []string{
		"%s", "%s\n", "token=%s", "token: %s", "\"%s\"", "'%s'", "(%s)", "Authorization: Bearer %s\r\n", "X-API-Key:%s",
		"https://user:%s@example.com/", "https://example.com/?key=%s&x=1", "a/%s/b", "{\"token\":\"%s\"}", "key=%s,next=1", "%s;", "<%s>", "\t%s\t", "sk-%s", "end with %s.",
	}
	for _, s := range scanners(t) {
		t.Run(s.name, func(t *testing.T) {
			for _, f := range minted {
				if f.Kind != s.kind {
					continue
				}
				for i := range 500 {
					value := mint(t, f, rand.Reader).Reveal()
					text := fmt.Sprintf(places[i%len(places)], value)
					if found := s.find(text); len(found) != 1 || found[0] != value {
						t.Fatalf("in %q found %q", text, found)
					}
					if e := entropy(value); e < s.entropy {
						t.Errorf("the entropy of %s is %.2f, under the rule's %.2f", value, e, s.entropy)
					}
					if !strings.Contains(strings.ToLower(value), s.keyword) {
						t.Errorf("%s does not contain the rule's keyword %q", value, s.keyword)
					}
				}
			}
		})
	}
}

func TestScannersLeaveOthersAlone(t *testing.T) {
	var (
		plain   = mint(t, plainFormat, seeded(1)).Reveal()
		checked = mint(t, checkedFormat, seeded(2)).Reveal()
		key     = mint(t, apiKeyFormat, seeded(3)).Reveal()
	)
	lookAlikes := map[string]string{
		"a SHA-256":                            "sha256:" + strings.Repeat("0f", 32),
		"a digest in status":                   "digest: " + strings.Repeat("0f", 32),
		"a Stripe key":                         "sk_live_" + strings.Repeat("Ab9", 8),
		"an OpenAI key":                        "sk-" + strings.Repeat("Ab9z", 12),
		"an identifier that ends in the lead":  "task_" + plain[3:],
		"a longer identifier":                  "my_" + plain,
		"a service token in upper case":        "sk_" + strings.ToUpper(plain[3:]),
		"a service token, one digit less":      plain[:len(plain)-1],
		"a service token, one digit more":      plain + "0",
		"a checksummed token, one digit less":  checked[:len(checked)-1],
		"a checksummed token, one digit more":  checked + "0",
		"a service token with a tail":          plain + "_old",
		"an environment in upper case":         "sk_LIVE_" + plain[3:],
		"an environment of 17 characters":      "sk_abcdefghijklmnopq_" + plain[3:],
		"an environment that begins with 1":    "sk_1_" + plain[3:],
		"the public prefix of a service token": "sk_live_0a1b",
		"the public prefix of an API key":      key[:8],
		"an API key, one character less":       key[:len(key)-1],
		"an API key, one character more":       key + "0",
		"an API key without its dot":           key[:8] + key[9:],
		"an API key within a word":             "x" + key,
		"a file's name":                        "mkimages.sh",
		"a JWT":                                "eyJhbGciOiJFUzI1NiJ9." + strings.Repeat("a", 49) + "." + strings.Repeat("b", 86),
		"a placeholder":                        "sk_live_...",
		"what is shown in a log":               "[redacted sk_live_0a1b]",
	}
	for _, s := range scanners(t) {
		for name, text := range lookAlikes {
			for _, place := range []string{"%s", "x = \"%s\"\n"} {
				if found := s.find(fmt.Sprintf(place, text)); len(found) > 0 {
					t.Errorf("%s takes %s for a secret: %s", s.name, name, found)
				}
			}
		}
	}
	for _, s := range scanners(t) {
		if s.entropy == 0 {
			continue
		}
		for _, dull := range []string{"sk_" + strings.Repeat("0", 64), "mk000000." + strings.Repeat("0", 49), "sk_" + strings.Repeat("deadbeef", 8)} {
			if len(s.find(dull)) > 0 && entropy(dull) >= s.entropy {
				t.Errorf("%s takes the example %s for a secret", s.name, dull)
			}
		}
	}
}
