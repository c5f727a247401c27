// Package operations holds what the pages for operators say to what there is: commands and
// their flags, paths, values of the chart, metrics, alerts, conditions and reasons, links,
// and the tests that the security model names.
package operations
