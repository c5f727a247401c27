package process

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"
)

// Loopback is the address of a port on 127.0.0.1.
func Loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// FreePorts finds n ports of 127.0.0.1 that nobody uses, each another one.
func FreePorts(n int) ([]int, error) {
	var held []net.Listener
	defer func() {
		for _, l := range held {
			_ = l.Close()
		}
	}()
	ports := make([]int, n)
	for i := range ports {
		l, err := net.Listen("tcp", Loopback(0))
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		held, ports[i] = append(held, l), l.Addr().(*net.TCPAddr).Port
	}
	return ports, nil
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
