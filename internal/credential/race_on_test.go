//go:build race

package credential

const raceDetector = true
