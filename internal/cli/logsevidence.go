package cli

import (
	"bufio"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mintmark-dev/mintmark/internal/audit"
)

// readCheckpoints reads the file, if there is one.
func readCheckpoints(file string) (map[string][]checkpoint, error) {
	if file == "" {
		return nil, nil
	}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading --checkpoint: %w", err)
	}
	var all []checkpoint
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, fmt.Errorf("--checkpoint %s was not written by this command: %w", file, err)
	}
	of := map[string][]checkpoint{}
	for _, c := range all {
		of[c.Chain] = append(of[c.Chain], c)
	}
	return of, nil
}

// writeCheckpoints replaces the file as a whole: half a file would be no checkpoint.
func (o *logsVerifyOptions) writeCheckpoints(v *verifyReport, before map[string][]checkpoint) error {
	if o.checkpoint == "" {
		return nil
	}
	var all []checkpoint
	for _, c := range v.Chains {
		all = append(all, checkpoint{c.Name, c.Last, c.Head})
	}
	for _, name := range sortedNames(before) { // those that were not looked at this time
		if !slices.ContainsFunc(all, func(c checkpoint) bool { return c.Chain == name }) {
			all = append(all, before[name]...)
		}
	}
	slices.SortFunc(all, func(a, b checkpoint) int { return cmp.Compare(a.Chain, b.Chain) })
	data, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(o.checkpoint, append(data, '\n'))
}

// writable tells whether replaceFile is going to find the folder of a file in order, before
// much is done whose outcome is to be written there. An empty name is no file.
func writable(name string) error {
	if name == "" {
		return nil
	}
	f, err := temporaryBeside(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

func temporaryBeside(name string) (*os.File, error) {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return nil, fmt.Errorf("writing %s: %w", name, err)
	}
	return f, nil
}

func replaceFile(name string, data []byte) error {
	f, err := temporaryBeside(name)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", name, err), os.Remove(f.Name()))
	}
	return nil
}

// export is what a file of JSON lines has: by the id of each event, what it says. A nil
// one has nothing.
type export struct {
	events         map[audit.ID]exportedEvent
	total, matched int
}

type exportedEvent struct {
	line    int
	at      time.Time
	content [sha256.Size]byte
	state   exportState
}

type exportState int

const (
	exportMissing exportState = iota
	exportDiffers
	exportFound
)

// maxLine is the longest line of an export.
const maxLine = 1 << 20

func readExport(file string) (*export, error) {
	if file == "" {
		return nil, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("reading --export: %w", err)
	}
	defer f.Close()
	x := &export{events: map[audit.ID]exportedEvent{}}
	lines := bufio.NewScanner(f)
	lines.Buffer(make([]byte, 64<<10), maxLine)
	for number := 1; lines.Scan(); number++ {
		if strings.TrimSpace(lines.Text()) == "" {
			continue
		}
		var e audit.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("--export %s, line %d: %w", file, number, err)
		}
		content, err := contentOf(&e)
		if err != nil {
			return nil, fmt.Errorf("--export %s, line %d: %w", file, number, err)
		}
		if _, twice := x.events[e.ID]; !twice {
			x.total++
		}
		x.events[e.ID] = exportedEvent{line: number, at: e.At, content: content}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading --export %s: %w", file, err)
	}
	return x, nil
}

// contentOf is the same for events that say the same.
func contentOf(e *audit.Event) ([sha256.Size]byte, error) {
	data, err := json.Marshal(e)
	return sha256.Sum256(data), err
}

// found takes in that an event is in the audit log.
func (x *export) found(e *audit.Event) {
	if x == nil {
		return
	}
	there, exported := x.events[e.ID]
	if !exported || there.state == exportFound {
		return
	}
	there.state = exportDiffers
	if content, err := contentOf(e); err == nil && content == there.content {
		there.state = exportFound
		x.matched++
	}
	x.events[e.ID] = there
}

// missing lists what is not in the audit log as it was exported, but for what is older
// than the oldest event in it: that went by retention.
func (x *export) missing(oldest time.Time) []string {
	if x == nil {
		return nil
	}
	var lines []exportedEvent
	names := map[int]audit.ID{}
	for id, e := range x.events {
		if e.state != exportFound && (e.state == exportDiffers || oldest.IsZero() || !e.at.Before(oldest)) {
			lines = append(lines, e)
			names[e.line] = id
		}
	}
	slices.SortFunc(lines, func(a, b exportedEvent) int { return cmp.Compare(a.line, b.line) })
	var out []string
	for i, e := range lines {
		if i == namesShown {
			return append(out, fmt.Sprintf("and %d more exported events", len(lines)-i))
		}
		what := "is not in the audit log"
		if e.state == exportDiffers {
			what = "says something else in the audit log"
		}
		out = append(out, fmt.Sprintf("event %s of %s, exported in line %d, %s", names[e.line], e.at.UTC().Format(time.RFC3339), e.line, what))
	}
	return out
}
