package controlplane

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"
)

var shared struct {
	sync.Mutex
	plane *ControlPlane
	err   error
}

// ForTest returns the control plane of this test binary, with the CRDs
// installed. The first call starts it; it runs kube-controller-manager too. Tests that share it
// keep to namespaces of their own. It ends with the test binary: by Main where
// TestMain calls that, else by the kernel.
func ForTest(t testing.TB) *ControlPlane {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.plane == nil && shared.err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), 45*time.Minute)
		defer cancel()
		shared.plane, shared.err = Start(ctx, Options{Out: os.Stderr, ControllerManager: true, CRDs: true})
	}
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.plane
}

// Until tries until it succeeds or the time is over, and gives the last error.
func Until(within time.Duration, try func() error) error {
	deadline := time.Now().Add(within)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		<-tick.C
	}
}

// Main runs the tests and then stops the control plane, if ForTest started one:
//
//	func TestMain(m *testing.M) { controlplane.Main(m) }
func Main(m *testing.M) {
	code := m.Run()
	shared.Lock()
	defer shared.Unlock()
	if shared.plane != nil {
		if code != 0 {
			for _, p := range shared.plane.Processes() {
				if err := p.Failure(); err != nil {
					fmt.Fprintln(os.Stderr, err)
				}
			}
		}
		shared.plane.Stop()
	}
	os.Exit(code)
}
