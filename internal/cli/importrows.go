package cli

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// importField is something a service_tokens table has and that is taken over, with the
// names that columns for it usually have.
type importField struct {
	name    string
	aliases []string
}

var importFields = []importField{
	{"id", []string{"id", "token_id", "uuid"}},
	{"name", []string{"name", "token_name", "service_name", "identifier"}},
	{"hash", []string{"token_hash", "hash", "key_hash", "sha256", "token_sha256"}},
	{"permissions", []string{"permissions", "scopes"}},
	{"admin", []string{"is_admin", "admin"}},
	{"active", []string{"is_active", "active", "enabled"}},
	{"revoked", []string{"revoked_at", "is_revoked", "revoked"}},
	{"expires", []string{"expires_at", "expires", "expiry"}},
	{"created", []string{"created_at", "created"}},
	{"last-used", []string{"last_used", "last_used_at"}},
	{"owner", []string{"owner", "created_by", "owner_email"}},
	{"description", []string{"description"}},
	{"metadata", []string{"metadata"}},
}

// importRow is one line of the table, its texts as they stand there.
type importRow struct {
	line   int
	values map[string]string // by field
	extra  map[string]string // metadata.KEY by KEY
}

// importTable is a table as it was read.
type importTable struct {
	rows []importRow
	// damaged lines have another number of columns than the header.
	damaged []int
	// ignored columns are taken over by nothing.
	ignored []string
}

const (
	// maxTable is the largest table that is read, in bytes.
	maxTable = 256 << 20
	// maxCell is the longest text of a cell that is worth a look.
	maxCell = 64 << 10
)

// readTableCSV reads CSV with a header. columns maps fields to the names of columns.
func readTableCSV(in io.Reader, delimiter rune, columns map[string]string) (*importTable, error) {
	limited := &io.LimitedReader{R: in, N: maxTable + 1}
	buffered := bufio.NewReader(limited)
	if mark, _ := buffered.Peek(3); string(mark) == "\ufeff" {
		_, _ = buffered.Discard(3)
	}
	r := csv.NewReader(buffered)
	r.Comma, r.FieldsPerRecord, r.ReuseRecord = delimiter, -1, true
	header, err := r.Read()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("it is empty: the first line has to name the columns, as \\copy ... WITH CSV HEADER writes it")
	}
	if err != nil {
		return nil, csvError(err)
	}
	at, extra, ignored, err := placeColumns(slices.Clone(header), columns)
	if err != nil {
		return nil, err
	}
	table, width := &importTable{ignored: ignored}, len(header)
	for {
		record, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, csvError(err)
		}
		line, _ := r.FieldPos(0)
		if len(record) != width {
			table.damaged = append(table.damaged, line)
			continue
		}
		row := importRow{line: line, values: map[string]string{}, extra: map[string]string{}}
		for field, i := range at {
			row.values[field] = clone(record[i])
		}
		for key, i := range extra {
			row.extra[key] = clone(record[i])
		}
		table.rows = append(table.rows, row)
	}
	if limited.N <= 0 {
		return nil, fmt.Errorf("it has more than %d MiB: import it in parts", maxTable>>20)
	}
	return table, nil
}

// clone keeps no more of a cell than may be of use.
func clone(text string) string {
	return strings.Clone(strings.TrimSpace(text[:min(len(text), maxCell)]))
}

// csvError says where, and repeats nothing of the line.
func csvError(err error) error {
	var parse *csv.ParseError
	if errors.As(err, &parse) {
		return fmt.Errorf("line %d is no CSV: %w; nothing was imported", parse.Line, parse.Err)
	}
	return err
}

// placeColumns finds the column of each field: the one that was named, or one that is
// called as usual.
func placeColumns(header []string, columns map[string]string) (at, extra map[string]int, ignored []string, err error) {
	find := func(name string) int {
		return slices.IndexFunc(header, func(h string) bool { return strings.EqualFold(strings.TrimSpace(h), name) })
	}
	at, extra = map[string]int{}, map[string]int{}
	for field, name := range columns {
		i := find(name)
		if i < 0 {
			return nil, nil, nil, usageError("--column %s=%s: there is no such column; there are %s", field, name, headerInWords(header))
		}
		if key, isExtra := strings.CutPrefix(field, "metadata."); isExtra {
			extra[key] = i
		} else {
			at[field] = i
		}
	}
	for _, f := range importFields {
		if _, named := at[f.name]; named {
			continue
		}
		if _, off := columns[f.name]; off {
			continue
		}
		for _, alias := range f.aliases {
			if i := find(alias); i >= 0 {
				at[f.name] = i
				break
			}
		}
	}
	for _, needed := range []string{"name", "hash"} {
		if _, there := at[needed]; !there {
			return nil, nil, nil, usageError("no column is known to be the %s: say which with --column %s=COLUMN; there are %s", needed, needed,
				headerInWords(header))
		}
	}
	used := map[int]bool{}
	for _, places := range []map[string]int{at, extra} {
		for _, i := range places {
			used[i] = true
		}
	}
	for i, h := range header {
		if !used[i] {
			ignored = append(ignored, printable(h))
		}
	}
	return at, extra, ignored, nil
}

// headerInWords names the columns there are: what is no table may have a very long first line.
func headerInWords(header []string) string {
	return shorten(printable(strings.Join(header, ", ")), 400)
}

// boolean reads what databases write for one; empty is the fallback.
func boolean(text string, fallback bool) (bool, error) {
	switch strings.ToLower(text) {
	case "", "null", `\n`:
		return fallback, nil
	case "t", "true", "1", "yes", "y", "on":
		return true, nil
	case "f", "false", "0", "no", "n", "off":
		return false, nil
	}
	return false, errors.New("neither true nor false")
}

// timeLayouts are those of PostgreSQL (ISO style), SQLite and RFC 3339. Without a zone they
// are in the one that was given.
var timeLayouts = []string{
	time.RFC3339Nano, "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02 15:04:05.999999999Z07", "2006-01-02T15:04:05.999999999Z07",
	"2006-01-02 15:04:05.999999999-0700", "2006-01-02 15:04:05.999999999 -0700",
	"2006-01-02 15:04:05.999999999", "2006-01-02T15:04:05.999999999", time.DateOnly,
}

// tableTime reads a time; empty, NULL and infinity are none.
func tableTime(text string, zone *time.Location) (time.Time, error) {
	switch strings.ToLower(text) {
	case "", "null", `\n`, "infinity", "never":
		return time.Time{}, nil
	}
	if in, ok := strings.CutSuffix(text, " UTC"); ok {
		text, zone = in, time.UTC
	}
	for _, layout := range timeLayouts {
		if at, err := time.ParseInLocation(layout, text, zone); err == nil {
			if y := at.Year(); y < 1970 || y > 9999 {
				break
			}
			return at.UTC(), nil
		}
	}
	if seconds, err := strconv.ParseInt(text, 10, 64); err == nil && seconds > 1e8 && seconds < 1e11 {
		return time.Unix(seconds, 0).UTC(), nil
	}
	return time.Time{}, errors.New("not a time")
}

// textList reads a list: a JSON array, a PostgreSQL array, or words between commas or
// spaces.
func textList(text string) ([]string, error) {
	switch {
	case text == "" || strings.EqualFold(text, "null") || text == `\N`:
		return nil, nil
	case strings.HasPrefix(text, "["):
		var list []string
		if err := json.Unmarshal([]byte(text), &list); err != nil {
			return nil, errors.New("not a JSON array of texts")
		}
		return list, nil
	case strings.HasPrefix(text, "{"):
		return postgresArray(text)
	}
	return words([]string{text}), nil
}

// postgresArray reads an array literal of one dimension (PostgreSQL, 8.15.6).
func postgresArray(text string) ([]string, error) {
	bad := errors.New("not an array as PostgreSQL writes it")
	inner, ok := strings.CutSuffix(strings.TrimPrefix(text, "{"), "}")
	if !ok {
		return nil, bad
	}
	if strings.TrimSpace(inner) == "" {
		return nil, nil
	}
	var list []string
	for rest, more := inner, true; more; {
		item, quoted := "", false
		rest = strings.TrimLeft(rest, " ")
		if quoted = strings.HasPrefix(rest, `"`); quoted {
			var b strings.Builder
			i := 1
			for ; i < len(rest) && rest[i] != '"'; i++ {
				if rest[i] == '\\' && i+1 < len(rest) {
					i++
				}
				b.WriteByte(rest[i])
			}
			if i >= len(rest) {
				return nil, bad
			}
			item, rest = b.String(), strings.TrimLeft(rest[i+1:], " ")
			if rest != "" && rest[0] != ',' {
				return nil, bad
			}
			if more = rest != ""; more {
				rest = rest[1:]
			}
		} else {
			item, rest, more = strings.Cut(rest, ",")
			item = strings.TrimSpace(item)
			if item == "" || strings.ContainsAny(item, `{}"\`) {
				return nil, bad
			}
		}
		if !utf8.ValidString(item) {
			return nil, bad
		}
		list = append(list, item)
	}
	return list, nil
}
