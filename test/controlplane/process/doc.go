// Package process runs child processes that cannot outlive the program that
// started them: a test binary that panics, or a `make run` that is killed,
// leaves nothing behind.
package process
