package cli

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// importOutcome is what becomes of a line.
type importOutcome string

const (
	outcomeImported  importOutcome = "imported"
	outcomeUnchanged importOutcome = "unchanged" // it is in the cluster already
	outcomeFailed    importOutcome = "failed"    // the API server refused it
	// What is over in the old system as well.
	outcomeInactive importOutcome = "inactive"
	outcomeRevoked  importOutcome = "revoked"
	outcomeExpired  importOutcome = "expired"
	// What works in the old system, and would stop working.
	outcomeDamaged     importOutcome = "damaged-line"
	outcomeHash        importOutcome = "malformed-hash"
	outcomeDuplicate   importOutcome = "duplicate-hash"
	outcomeAdmin       importOutcome = "admin-needs-class"
	outcomePermissions importOutcome = "invalid-permissions"
	outcomeTime        importOutcome = "invalid-time"
	outcomeFlag        importOutcome = "invalid-flag"
	outcomeMetadata    importOutcome = "invalid-metadata"
	outcomeName        importOutcome = "no-name"
	outcomeTaken       importOutcome = "taken"
)

var importOutcomes = []importOutcome{
	outcomeImported, outcomeUnchanged, outcomeInactive, outcomeRevoked, outcomeExpired, outcomeFailed, outcomeTaken, outcomeDamaged, outcomeHash,
	outcomeDuplicate, outcomeAdmin, outcomePermissions, outcomeTime, outcomeFlag, outcomeMetadata, outcomeName,
}

// lost tells whether what works in the old system would stop working.
func (o importOutcome) lost() bool {
	switch o {
	case outcomeImported, outcomeUnchanged, outcomeInactive, outcomeRevoked, outcomeExpired:
		return false
	}
	return true
}

// importLine is what becomes of one line of the table.
type importLine struct {
	line    int
	id      string
	source  string // the name in the table
	outcome importOutcome
	detail  string
	// notes on what is different from the table, of what is imported.
	notes  []string
	hash   string
	object v1alpha1.Credential
	done   bool // it is written, or was checked
}

// importRules say how lines become credentials.
type importRules struct {
	kind        *kind
	namespace   string
	class       string
	adminClass  string
	ttl         v1alpha1.Duration
	zone        *time.Location
	permissions map[string]string // other names
	labels      map[string]string
	now         time.Time
}

// plan decides about every line of the table. Nothing falls out of it.
func (r *importRules) plan(t *importTable) []*importLine {
	var lines []*importLine
	for _, n := range t.damaged {
		lines = append(lines, &importLine{line: n, outcome: outcomeDamaged, detail: "it has another number of columns than the header"})
	}
	first := map[string]int{}
	for i := range t.rows {
		lines = append(lines, r.line(&t.rows[i], first))
	}
	slices.SortStableFunc(lines, func(a, b *importLine) int { return a.line - b.line })
	nameAll(lines)
	return lines
}

// line decides about one line. first are the lines that hashes were found in.
func (r *importRules) line(row *importRow, first map[string]int) *importLine {
	l := &importLine{line: row.line, id: printable(row.values["id"]), source: printable(row.values["name"])}
	skip := func(o importOutcome, format string, args ...any) *importLine {
		l.outcome, l.detail = o, fmt.Sprintf(format, args...)
		return l
	}
	if field := row.valueIn(); field != "" {
		l.id, l.source = "", ""
		return skip(outcomeMetadata, "its %s has the form of a token: it would stand in the manifest for everybody to read, and has leaked into this file", field)
	}
	// NULL is not true: where there is such a column, the old system refuses it.
	_, said := row.values["active"]
	if active, err := boolean(row.values["active"], !said); err != nil {
		return skip(outcomeFlag, "active is %v: %s", err, quoted(row.values["active"]))
	} else if !active {
		return skip(outcomeInactive, "it is not active in the table")
	}
	if revoked, err := revokedIn(row.values["revoked"], r.zone); err != nil {
		return skip(outcomeFlag, "revoked is %v: %s", err, quoted(row.values["revoked"]))
	} else if revoked {
		return skip(outcomeRevoked, "it is revoked in the table")
	}
	expires, err := tableTime(row.values["expires"], r.zone)
	if err != nil {
		return skip(outcomeTime, "its expiry is %v: %s", err, quoted(row.values["expires"]))
	}
	if !expires.IsZero() && !expires.After(r.now) {
		return skip(outcomeExpired, "it expired at %s", expires.Format(time.RFC3339))
	}
	hash, problem := hashIn(row.values["hash"])
	if problem != "" {
		return skip(outcomeHash, "%s", problem)
	}
	if before, twice := first[hash]; twice {
		return skip(outcomeDuplicate, "line %d has the same hash", before)
	}
	l.hash = hash
	admin, err := boolean(row.values["admin"], false)
	if err != nil {
		return skip(outcomeFlag, "admin is %v: %s", err, quoted(row.values["admin"]))
	}
	if admin && r.adminClass == "" {
		return skip(outcomeAdmin, "it is an administrator's: name a class that allows those, and external ones, with --admin-class")
	}
	permissions, problem := r.permissionsIn(row.values["permissions"])
	if problem != "" && !admin {
		return skip(outcomePermissions, "%s", problem)
	}
	metadata, problem := metadataOf(row)
	if problem != "" {
		return skip(outcomeMetadata, "%s", problem)
	}
	if l.source == "" && l.id == "" {
		return skip(outcomeName, "it has neither a name nor an id")
	}
	first[hash] = row.line
	l.outcome = outcomeImported
	r.object(l, row, admin, permissions, metadata, expires)
	return l
}

// valueIn is the field, other than the hash, that holds the value of a credential; empty
// where none does.
func (row *importRow) valueIn() string {
	for _, f := range importFields {
		if f.name != "hash" && isValue(row.values[f.name]) {
			return f.name
		}
	}
	for _, key := range slices.Sorted(maps.Keys(row.extra)) {
		if isValue(row.extra[key]) {
			return "metadata." + key
		}
	}
	return ""
}

// object makes the credential, but for its name.
func (r *importRules) object(
	l *importLine, row *importRow, admin bool, permissions []v1alpha1.Permission, metadata map[string]v1alpha1.MetadataValue, expires time.Time,
) {
	o := r.kind.object()
	o.GetObjectKind().SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(string(r.kind.name)))
	o.SetNamespace(r.namespace)
	o.SetLabels(maps.Clone(r.labels))
	spec := o.CredentialSpec()
	spec.CredentialClassName = r.class
	spec.Description = l.cut("description", row.values["description"], 1024)
	spec.Owner = l.cut("owner", row.values["owner"], 253)
	spec.Metadata = metadata
	spec.TTL = r.ttl
	spec.External = &v1alpha1.External{SHA256: []string{l.hash}}
	if admin {
		spec.Admin, spec.CredentialClassName = true, r.adminClass
		if len(permissions) > 0 {
			l.notes = append(l.notes, "is an administrator's: its permissions are every one")
		}
	} else if spec.Permissions = permissions; len(permissions) == 0 {
		l.notes = append(l.notes, "has no permissions")
	}
	if expires.IsZero() {
		if r.ttl == "" {
			l.notes = append(l.notes, "had no end, and gets the ttl of its class: --ttl Never keeps it without one")
		}
	} else {
		spec.ExpiresAt = &metav1.Time{Time: expires.Truncate(time.Second)}
		if r.ttl == "" {
			// Else the class's ttl might end it before.
			spec.TTL = v1alpha1.Never
		}
	}
	l.object = o
}

// cut keeps a text within what the API takes, and says so.
func (l *importLine) cut(what, text string, limit int) string {
	text = oneLine(visible(text))
	if len(text) <= limit {
		return text
	}
	l.notes = append(l.notes, fmt.Sprintf("its %s was cut to %d bytes", what, limit))
	return strings.ToValidUTF8(text[:limit], "")
}

// quoted repeats no more of a cell than a mistake in it needs: a key may stand there.
func quoted(text string) string {
	return publicPart(shorten(printable(text), 24))
}

// revokedIn reads a flag, or a time of a revocation.
func revokedIn(text string, zone *time.Location) (bool, error) {
	if revoked, err := boolean(text, false); err == nil {
		return revoked, nil
	}
	at, err := tableTime(text, zone)
	if err != nil {
		return false, fmt.Errorf("neither a flag nor a time")
	}
	return !at.IsZero(), nil
}

// emptyHash is the SHA-256 of nothing.
var emptyHash = hex.EncodeToString(func() []byte { sum := sha256.Sum256(nil); return sum[:] }())

// hashIn reads a SHA-256 as databases have it, and says what it is where it is none. It
// repeats nothing: it may be the token itself.
func hashIn(text string) (hash, problem string) {
	text = strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(text, `\x`), "sha256:"), "0x")
	hash = strings.ToLower(text)
	if _, err := credential.ParseInner(hash); err == nil {
		if hash == emptyHash || strings.Trim(hash, "0") == "" {
			return "", "its hash is that of nothing"
		}
		return hash, ""
	}
	switch {
	case text == "":
		return "", "it has no hash"
	case strings.HasPrefix(text, "$2") || strings.HasPrefix(text, "$argon2") || strings.HasPrefix(text, "$scrypt") || strings.HasPrefix(text, "pbkdf2"):
		return "", "it is hashed as a password is, and not by SHA-256: no verification in microseconds can be had of it; issue a new one"
	case strings.HasPrefix(text, "sk_") || strings.Count(text, ".") == 1 && strings.IndexByte(text, '.') == 8:
		return "", "in the place of its hash stands what looks like the token itself: the table is not what it should be, and that token has leaked into this file"
	case len(text) == 44 && strings.HasSuffix(text, "="):
		if raw, err := base64.StdEncoding.DecodeString(text); err == nil && len(raw) == sha256.Size {
			return hex.EncodeToString(raw), ""
		}
	}
	return "", fmt.Sprintf("its hash is no SHA-256: it has %d characters, and 64 hexadecimal digits are wanted", len(text))
}

// permissionPattern is the API's.
var permissionPattern = regexp.MustCompile(`^([*]|\w[\w./-]*(:\w[\w./-]*)*(:[*])?)$`)

const maxPermissions = 256

func (r *importRules) permissionsIn(text string) (permissions []v1alpha1.Permission, problem string) {
	list, err := textList(text)
	if err != nil {
		return nil, "its permissions are " + err.Error()
	}
	for _, p := range list {
		if other, renamed := r.permissions[p]; renamed {
			p = other
		}
		if p == "" {
			continue
		}
		if len(p) > 128 || !permissionPattern.MatchString(p) {
			return nil, fmt.Sprintf("%s is no permission here: give it another name with --permission OLD=NEW", quoted(p))
		}
		permissions = append(permissions, v1alpha1.Permission(p))
	}
	if permissions = unique(permissions); len(permissions) > maxPermissions {
		return nil, fmt.Sprintf("it has %d permissions, and at most %d are kept", len(permissions), maxPermissions)
	}
	return permissions, ""
}

// metadataOf takes over what a person may look for: where it came from, and the facts in
// the table.
func metadataOf(row *importRow) (metadata map[string]v1alpha1.MetadataValue, problem string) {
	metadata = map[string]v1alpha1.MetadataValue{}
	if text := row.values["metadata"]; text != "" && !strings.EqualFold(text, "null") {
		var facts map[string]any
		if err := json.Unmarshal([]byte(text), &facts); err != nil {
			return nil, "its metadata is no JSON object"
		}
		for key, value := range facts {
			switch v := value.(type) {
			case nil:
			case string:
				metadata[key] = v1alpha1.MetadataValue(v)
			default:
				data, err := json.Marshal(v)
				if err != nil {
					return nil, "its metadata is no JSON object"
				}
				metadata[key] = v1alpha1.MetadataValue(data)
			}
		}
	}
	for key, value := range row.extra {
		metadata[key] = v1alpha1.MetadataValue(value)
	}
	for key, field := range map[string]string{"imported-id": "id", "imported-name": "name", "imported-created": "created", "imported-last-used": "last-used"} {
		metadata[key] = v1alpha1.MetadataValue(row.values[field])
	}
	maps.DeleteFunc(metadata, func(_ string, v v1alpha1.MetadataValue) bool { return v == "" })
	if len(metadata) > 64 {
		return nil, fmt.Sprintf("it has %d facts in its metadata, and at most 64 are kept", len(metadata))
	}
	for key, value := range metadata {
		if key == "" || len([]rune(key)) > 128 || len([]rune(value)) > 1024 {
			return nil, fmt.Sprintf("its metadata has a key of more than 128, or a value of more than 1024 characters: %s", quoted(key))
		}
	}
	return metadata, ""
}

// Names.

// maxName leaves room for what makes a name unique, and can stand in a label.
const maxName = 63

// nameAll names what is imported: as in the table, as far as Kubernetes takes it. Lines
// whose names would be the same all get a mark made from their hash, so that the order of
// lines makes no difference.
func nameAll(lines []*importLine) {
	names := map[string]int{}
	for _, l := range lines {
		if l.object != nil {
			names[dnsName(l.source)]++
		}
	}
	for _, l := range lines {
		if l.object == nil {
			continue
		}
		name := dnsName(l.source)
		if name == "" || names[name] > 1 {
			name = marked(name, l.hash)
		}
		l.object.SetName(name)
		if name != l.source {
			l.notes = append(l.notes, "is called "+name+" here")
		}
	}
	// A mark may make the name of another line: that one gets its own then.
	taken := map[string]bool{}
	for _, l := range lines {
		if l.object == nil {
			continue
		}
		if name := l.object.GetName(); taken[name] {
			l.object.SetName(marked(name, l.hash))
			l.notes = append(l.notes, "is called "+l.object.GetName()+" here")
		}
		taken[l.object.GetName()] = true
	}
}

// marked adds eight digits that come from the hash, and do not show it.
func marked(name, hash string) string {
	sum := sha256.Sum256([]byte("mintmark import " + hash))
	if name == "" {
		name = "token"
	}
	if most := maxName - 9; len(name) > most {
		name = strings.TrimRight(name[:most], "-")
	}
	return name + "-" + hex.EncodeToString(sum[:4])
}

// dnsName makes a name that Kubernetes takes (RFC 1123); empty where nothing is left.
func dnsName(source string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(source) {
		switch {
		case 'a' <= r && r <= 'z' || '0' <= r && r <= '9':
			b.WriteRune(r)
		case unicode.Is(unicode.Mn, r): // an accent on the letter before
		default:
			b.WriteByte('-')
		}
	}
	name := b.String()
	for strings.Contains(name, "--") {
		name = strings.ReplaceAll(name, "--", "-")
	}
	name = strings.Trim(name, "-")
	if len(name) > maxName {
		sum := sha256.Sum256([]byte(source))
		name = strings.TrimRight(name[:maxName-9], "-") + "-" + hex.EncodeToString(sum[:4])
	}
	if len(validation.IsDNS1123Label(name)) > 0 {
		return ""
	}
	return name
}
