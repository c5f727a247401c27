package controlplane

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

const temporaryPrefix = "mintmark-controlplane-"

// temporaryDir makes a folder that is locked for as long as this process lives,
// and removes those whose process ended without doing so itself.
func temporaryDir() (string, *os.File, error) {
	removeAbandoned()
	dir, err := os.MkdirTemp("", temporaryPrefix)
	if err != nil {
		return "", nil, fmt.Errorf("make a temporary folder: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", nil, fmt.Errorf("lock the temporary folder: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return "", nil, fmt.Errorf("lock the temporary folder %s: %w", dir, err)
	}
	return dir, lock, nil
}

// removeAbandoned removes temporary folders that nobody holds. One without a
// lock file is being made at this moment.
func removeAbandoned() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), temporaryPrefix+"*"))
	for _, dir := range dirs {
		lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_RDWR, 0)
		if err != nil {
			continue
		}
		if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			_ = os.RemoveAll(dir)
		}
		_ = lock.Close()
	}
}
