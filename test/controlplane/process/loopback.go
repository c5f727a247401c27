package process

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Loopback is the address of a port on 127.0.0.1.
func Loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// Ports that programs are told to listen at. They lie below those that the kernel gives
// to outgoing connections (32768 on Linux, 49152 elsewhere): a port of those can be taken
// by anybody's connection between its choice and its use.
const firstPort, lastPort = 10240, 32767

// given are the ports this process has been given.
var given struct {
	sync.Mutex
	ports map[int]bool
}

// FreePorts finds n ports of 127.0.0.1 that nobody uses, each another one, and none of
// an earlier call. It is safe for concurrent use.
func FreePorts(n int) ([]int, error) {
	given.Lock()
	defer given.Unlock()
	if given.ports == nil {
		given.ports = map[int]bool{}
	}
	ports := make([]int, 0, n)
	for range 100 * (n + 1) {
		if len(ports) == n {
			return ports, nil
		}
		port := firstPort + rand.IntN(lastPort-firstPort+1) //nolint:gosec // spreads choices, hides nothing
		if given.ports[port] {
			continue
		}
		l, err := net.Listen("tcp", Loopback(port))
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			return nil, fmt.Errorf("free port %d: %w", port, err)
		}
		given.ports[port] = true
		ports = append(ports, port)
	}
	return nil, fmt.Errorf("no %d free ports on 127.0.0.1 from %d to %d", n, firstPort, lastPort)
}

// FreeAddress finds an address of 127.0.0.1 that nobody listens at.
func FreeAddress() (string, error) {
	ports, err := FreePorts(1)
	if err != nil {
		return "", err
	}
	return Loopback(ports[0]), nil
}

// Probe asks a URL as a kubelet does: anything but 200 within two seconds is an error.
func Probe(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return nil
}
