package cli

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/printers"

	"github.com/mintmark-dev/mintmark/internal/audit"
)

const (
	pathChains  = "/api/v1/audit/chains"
	pathBatches = "/api/v1/audit/batches"
	// chainsPage and batchesPage are how many are asked for at a time.
	chainsPage  = 1000
	batchesPage = 50
	// progressEvery so many batches it is told how far it is.
	progressEvery = 5000
)

type logsVerifyOptions struct {
	*app
	server       serverFlags
	key          keySource
	chains       []string
	checkpoint   string
	export       string
	retainedFrom string
	output       string
}

func (a *app) logsVerifyCommand() *cobra.Command {
	o := &logsVerifyOptions{app: a}
	c := &cobra.Command{
		Use:   "verify [flags]",
		Short: "Check on this machine that the audit log is what was recorded",
		Long: "Check that the audit log is what was recorded: read every batch of every chain, work its digest out here, and see that it is\n" +
			"the one stored, and that each follows the one before. Neither the server nor the database is believed. The key must be an\n" +
			"admin's. A chain is one run of one server.\n\n" +
			"A chain shows what was changed, removed or put between. It cannot show that its end, or all of it, was removed: keep\n" +
			"--checkpoint FILE elsewhere, which holds where each chain stood, or a copy of the events (--audit-log) for --export. The\n" +
			"lines of an export have no chain in them: they are compared with the events in the database, one by one.\n\n" +
			"Events that retention removed are counted and told; --retained-from says from when on none may be missing.\n\n" +
			"Exit code: 0 where everything holds, 1 where something does not, 3 where the server did not answer.",
		Example: `
			mintmark logs verify --key-file admin.key

			# Also against what was there last time, and remember how it is now
			mintmark logs verify --key-file admin.key --checkpoint /mnt/elsewhere/mintmark-chains.json

			# Against the lines that a log collector kept
			mintmark logs verify --key-file admin.key --export audit.jsonl`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	o.server.add(c.Flags())
	o.key.add(c.Flags(), "key")
	f := c.Flags()
	f.StringSliceVar(&o.chains, "chain", nil, "Check these chains alone.")
	f.StringVar(&o.checkpoint, "checkpoint", "", "File with where each chain stood: compared, and written anew if everything holds.")
	f.StringVar(&o.export, "export", "", "File of events as JSON lines, each of which has to be in the database as it is there.")
	f.StringVar(&o.retainedFrom, "retained-from", "", "Day from which on no event may be missing, such as 2026-01-01.")
	f.StringVarP(&o.output, "output", "o", "", "Output format: json.")
	fixed(c, "output", []string{"json"})
	_ = c.MarkFlagFilename("checkpoint")
	_ = c.MarkFlagFilename("export")
	return c
}

// chainInfo is a chain as the server lists it.
type chainInfo struct {
	Name        string       `json:"name"`
	First       time.Time    `json:"first"`
	Last        time.Time    `json:"last"`
	Head        audit.Digest `json:"head"`
	FirstNumber uint64       `json:"first_number"`
	LastNumber  uint64       `json:"last_number"`
}

// chainResult is what came of one chain.
type chainResult struct {
	Name    string `json:"name"`
	OK      bool   `json:"ok"`
	Batches int64  `json:"batches"`
	// Events that were read and hold, and batches whose events retention removed.
	Events  int64        `json:"events"`
	Removed int64        `json:"removed_batches,omitempty"`
	Last    uint64       `json:"last_number"`
	Head    audit.Digest `json:"head"`
	// Problem says which batch does not hold, and why.
	Problem string `json:"problem,omitempty"`

	// digests of batches that a checkpoint asks for.
	wanted map[uint64]audit.Digest
	// first is the number of the first batch there is; kept and latest are the times of
	// the first and the last event.
	first        uint64
	kept, latest time.Time
}

// checkpoint is where a chain stood.
type checkpoint struct {
	Chain  string       `json:"chain"`
	Number uint64       `json:"number"`
	Head   audit.Digest `json:"head"`
}

type verifyReport struct {
	OK     bool           `json:"ok"`
	Chains []*chainResult `json:"chains"`
	// Problems that are of no one chain.
	Problems []string `json:"problems,omitempty"`
}

func (o *logsVerifyOptions) run(ctx context.Context) error {
	if o.output != "" && o.output != "json" {
		return usageError("unknown output format %q: json", o.output)
	}
	var retained time.Time
	if o.retainedFrom != "" {
		var err error
		if retained, err = time.Parse(time.DateOnly, o.retainedFrom); err != nil {
			return usageError("--retained-from %q: write a day such as 2026-01-01", o.retainedFrom)
		}
	}
	before, err := readCheckpoints(o.checkpoint)
	if err != nil {
		return err
	}
	if err := writable(o.checkpoint); err != nil {
		return err
	}
	exported, err := readExport(o.export)
	if err != nil {
		return err
	}
	r, err := o.reader(ctx, &o.server, &o.key)
	if err != nil {
		return err
	}
	listed, err := listChains(ctx, r)
	if err != nil {
		return err
	}
	report := &verifyReport{OK: true, Chains: []*chainResult{}}
	for _, name := range o.chains {
		if !slices.ContainsFunc(listed, func(c chainInfo) bool { return c.Name == name }) {
			return fmt.Errorf("--chain %s: the audit log has no such chain; without --chain all are checked", printable(name))
		}
	}
	for i, info := range listed {
		if len(o.chains) > 0 && !slices.Contains(o.chains, info.Name) {
			continue
		}
		result, err := o.chain(ctx, r, info, retained, before[info.Name], exported)
		if err != nil {
			return err
		}
		report.Chains = append(report.Chains, result)
		report.OK = report.OK && result.OK
		if (i+1)%50 == 0 {
			o.note("%d of %d chains checked", i+1, len(listed))
		}
	}
	if len(o.chains) == 0 {
		report.missing(before, exported)
	}
	if err := o.print(report, exported); err != nil {
		return err
	}
	if !report.OK {
		return &exitError{code: 1, err: errors.New("the audit log does not hold: keep a copy of the database as it is, and see docs/runbooks")}
	}
	return o.writeCheckpoints(report, before)
}

// listChains gives every chain, the oldest first.
func listChains(ctx context.Context, r *reader) ([]chainInfo, error) {
	var all []chainInfo
	for q := (url.Values{"limit": {strconv.Itoa(chainsPage)}}); ; {
		var page struct {
			Items []chainInfo `json:"items"`
			Next  string      `json:"next"`
		}
		if err := r.get(ctx, pathChains, q, permissionRead, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Items...)
		if page.Next == "" || len(page.Items) == 0 {
			slices.SortStableFunc(all, func(a, b chainInfo) int { return a.First.Compare(b.First) })
			return all, nil
		}
		q.Set("cursor", page.Next)
	}
}

// chain reads one chain from its beginning to its end.
func (o *logsVerifyOptions) chain(
	ctx context.Context, r *reader, info chainInfo, retained time.Time, marks []checkpoint, exported *export,
) (*chainResult, error) {
	result := &chainResult{Name: info.Name, OK: true, wanted: map[uint64]audit.Digest{}}
	for _, m := range marks {
		result.wanted[m.Number] = m.Head
	}
	var before *audit.Batch
	for {
		after := uint64(0)
		if before != nil {
			after = before.Sequence
		}
		q := url.Values{"chain": {info.Name}, "limit": {strconv.Itoa(batchesPage)}, "after": {strconv.FormatUint(after, 10)}}
		var page struct {
			Items []*audit.Batch `json:"items"`
		}
		if err := r.get(ctx, pathBatches, q, permissionRead, &page); err != nil {
			return nil, err
		}
		if len(page.Items) == 0 {
			break
		}
		for _, b := range page.Items {
			if b == nil || b.Chain != info.Name || before != nil && b.Sequence <= before.Sequence {
				result.fail("the server answered with something else than the batches after %d", after)
				return result, nil
			}
			result.check(b, before, exported)
			if before = b; result.Batches%progressEvery == 0 {
				o.note("Chain %s: %d of %d batches read", printable(info.Name), result.Batches, info.LastNumber-result.first+1)
			}
		}
	}
	result.finish(info, before, retained)
	return result, nil
}

// fail keeps the first problem: what comes after it may be its consequence.
func (c *chainResult) fail(format string, args ...any) {
	if c.OK = false; c.Problem == "" {
		c.Problem = fmt.Sprintf(format, args...)
	}
}

// check looks at the next batch of the chain. Of one that retention has cleared, its place
// can still be checked; that it was retention, its being before all that is whole tells.
func (c *chainResult) check(b, before *audit.Batch, exported *export) {
	c.Batches++
	if before == nil {
		c.Removed = int64(b.Sequence) - 1
		c.first = b.Sequence
	}
	if err := b.Verify(before); errors.Is(err, audit.ErrAltered) {
		c.fail("%s", alteration(b))
	} else if err != nil {
		c.fail("%v", err)
	}
	if head, wanted := c.wanted[b.Sequence]; wanted && head != b.Digest {
		c.fail("batch %d is not the one that the checkpoint has", b.Sequence)
	}
	delete(c.wanted, b.Sequence)
	c.Last, c.Head = b.Sequence, b.Digest
	for i := range b.Events {
		exported.found(&b.Events[i]) // also those that are left of a batch of two months
	}
	if b.Cleared {
		c.Removed++
		if !c.latest.IsZero() && c.latest.Day() != 1 { // retention removes whole months
			c.fail("batch %d is marked as cleared by retention, and those before it, up to %s, are there (unless it was of a month before, and recorded days late)",
				b.Sequence, c.latest.Format(time.RFC3339))
		}
		return
	}
	c.Events += int64(len(b.Events))
	for i := range b.Events {
		if e := &b.Events[i]; e.At.After(c.latest) {
			c.latest = e.At
		}
		if e := &b.Events[i]; c.kept.IsZero() || e.At.Before(c.kept) {
			c.kept = e.At
		}
	}
}

// alteration says where to look: the digest is over all events of a batch together.
func alteration(b *audit.Batch) string {
	if len(b.Events) == 0 {
		return fmt.Sprintf("the events of batch %d were removed", b.Sequence)
	}
	first, last := &b.Events[0], &b.Events[len(b.Events)-1]
	return fmt.Sprintf("batch %d is not what was recorded: of its events between %s (%s) and %s (%s) one was changed, added or removed", b.Sequence,
		first.At.Format(time.RFC3339), first.ID, last.At.Format(time.RFC3339), last.ID)
}

// finish compares the end with what the server says of the chain, and with the checkpoint.
func (c *chainResult) finish(info chainInfo, last *audit.Batch, retained time.Time) {
	switch {
	case last == nil:
		c.fail("the server lists the chain, and has no batch of it")
	case info.LastNumber > c.Last:
		c.fail("it ends with batch %d, and the server says %d", c.Last, info.LastNumber)
	case info.LastNumber == c.Last && info.Head != c.Head:
		c.fail("its head is not the one that the server says")
	}
	for _, number := range sortedNumbers(c.wanted) {
		if number < c.first {
			continue // retention removed it
		}
		c.fail("it ended with batch %d or later when the checkpoint was made, and does so no longer", number)
	}
	if c.Removed > 0 && !retained.IsZero() && !info.First.Before(retained) {
		c.fail("events of %d batches are missing, and none may be since %s", c.Removed, retained.Format(time.DateOnly))
	}
}

func sortedNumbers(m map[uint64]audit.Digest) []uint64 {
	var numbers []uint64
	for n := range m {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	return numbers
}

// missing tells of what is in a checkpoint or an export, and not in the audit log.
func (v *verifyReport) missing(before map[string][]checkpoint, exported *export) {
	var oldest time.Time
	for _, c := range v.Chains {
		if !c.kept.IsZero() && (oldest.IsZero() || c.kept.Before(oldest)) {
			oldest = c.kept
		}
	}
	for _, name := range sortedNames(before) {
		if !slices.ContainsFunc(v.Chains, func(c *chainResult) bool { return c.Name == name }) {
			v.problem("chain %s is in the checkpoint, and not in the audit log any more", name)
		}
	}
	for _, line := range exported.missing(oldest) {
		v.problem("%s", line)
	}
}

func sortedNames(m map[string][]checkpoint) []string {
	var names []string
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (v *verifyReport) problem(format string, args ...any) {
	v.OK = false
	v.Problems = append(v.Problems, printable(fmt.Sprintf(format, args...)))
}

func (o *logsVerifyOptions) print(v *verifyReport, exported *export) error {
	if o.output == "json" {
		return writeJSON(o.Out, v)
	}
	w := printers.GetNewTabWriter(terminal{o.Out})
	fmt.Fprintf(w, "CHAIN\tBATCHES\tEVENTS\tREMOVED\tHEAD\tRESULT\n")
	for _, c := range v.Chains {
		result := "holds"
		if !c.OK {
			result = "DOES NOT HOLD: " + c.Problem
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%s\n", printable(c.Name), c.Batches, c.Events, c.Removed, c.Head.String()[:16], printable(result))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, p := range v.Problems {
		fmt.Fprintf(o.Out, "✗ %s\n", p)
	}
	if exported != nil {
		o.note("%d of %d exported events are in the audit log as they were exported", exported.matched, exported.total)
	}
	for _, c := range v.Chains {
		if c.Removed > 0 {
			o.note("Chain %s: the events of %d batches are gone, as after retention: that they are those cannot be checked, and their places in the chain hold", printable(c.Name), c.Removed)
		}
	}
	return nil
}
