package sqlite_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mintmark-dev/mintmark/internal/store/sqlite"
	"github.com/mintmark-dev/mintmark/internal/store/storetest"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Open {
		path := filepath.Join(t.TempDir(), "a folder", "mintmark.db")
		if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		var first *sqlite.Store
		return func(t *testing.T) storetest.Store {
			// One process has one store: opening it again is the same one.
			if first != nil {
				return first
			}
			s, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(s.Close)
			if err := s.Migrate(t.Context()); err != nil {
				t.Fatal(err)
			}
			first = s
			return s
		}
	})
}

func TestAFolderThatIsNotThereIsNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing", "mintmark.db")
	if _, err := sqlite.Open(t.Context(), sqlite.Config{Path: path}); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "mount") {
		t.Errorf("the error is %v", err)
	}
}
