// Command testsummary reads the events of `go test -json` and prints what
// `go test` prints, with the number of tests in the end:
//
//	go test -json ./... | go run ./hack/testsummary
//
// It exits with 1 if a test or a package failed, or if there was no test.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

// event is one of those described by `go doc test2json`.
type event struct {
	Action     string
	Package    string
	ImportPath string // of build events
	Test       string
	Output     string
}

// summary counts tests; a subtest counts as a test.
type summary struct {
	passed, failed, skipped int
	// broken packages: those that failed without a test that did.
	broken int
	// output of what runs, by package and test, until its end is known.
	output map[string]*strings.Builder
	// failures of tests by package.
	failures map[string]int
}

func main() {
	failed, err := summarize(os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testsummary:", err)
		os.Exit(1)
	}
	if failed {
		os.Exit(1)
	}
}

func summarize(in io.Reader, out io.Writer) (failed bool, err error) {
	s := summary{output: map[string]*strings.Builder{}, failures: map[string]int{}}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil || e.Action == "" {
				fmt.Fprintf(out, "%s", line) // no event: what the go command itself says
			} else {
				s.add(e, out)
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return true, err
		}
	}
	if s.skipped > 0 {
		fmt.Fprintf(out, "%d skipped\n", s.skipped)
	}
	if s.broken > 0 {
		fmt.Fprintf(out, "%d packages failed outside of a test\n", s.broken)
	}
	fmt.Fprintf(out, "%d passed, %d failed\n", s.passed, s.failed+s.broken)
	return s.failed+s.broken > 0 || s.passed == 0, nil
}

func (s *summary) add(e event, out io.Writer) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "build-output":
		fmt.Fprint(out, e.Output)
	case "output":
		s.keep(key, e, out)
	case "pass", "fail", "skip":
		if e.Test == "" {
			s.endPackage(e)
		} else {
			s.endTest(e, key, out)
		}
		delete(s.output, key)
	}
}

// keep holds back the output of tests, for only that of failed ones is shown,
// and passes on what the package says.
func (s *summary) keep(key string, e event, out io.Writer) {
	if e.Test == "" {
		if e.Output != "PASS\n" && e.Output != "FAIL\n" {
			fmt.Fprint(out, e.Output)
		}
		return
	}
	if strings.HasPrefix(e.Output, "=== ") {
		return
	}
	b := s.output[key]
	if b == nil {
		b = &strings.Builder{}
		s.output[key] = b
	}
	b.WriteString(e.Output)
}

func (s *summary) endTest(e event, key string, out io.Writer) {
	switch e.Action {
	case "pass":
		s.passed++
	case "skip":
		s.skipped++
	case "fail":
		s.failed++
		s.failures[e.Package]++
		if b := s.output[key]; b != nil {
			fmt.Fprint(out, b.String())
		}
	}
}

func (s *summary) endPackage(e event) {
	if e.Action == "fail" && s.failures[e.Package] == 0 {
		s.broken++
	}
}
