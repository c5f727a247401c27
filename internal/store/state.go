package store

import "time"

// State is how a store was when it was last looked at.
type State struct {
	// Configured: there is one.
	Configured bool
	// Up: it answered, and its schema fits.
	Up bool
	// Since when that has been so.
	Since time.Time
	// Checked is when it was last asked.
	Checked time.Time
	// Trouble is what it said last, or what kept it from being asked; empty while it is
	// up. It holds no password.
	Trouble string
	// Health, as far as it is known.
	Health Health
}
