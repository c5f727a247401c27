package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/mintmark-dev/mintmark/test/controlplane"
)

// settings of one run. Each has a flag and an environment variable.
type settings struct {
	root          string // of the repository
	dir           string // everything this run writes, except bin/
	port          int    // of the first server; the others follow
	apiPort       int
	servers       int
	proxies       string
	database      string // URL; empty: SQLite in dir
	exitAfterDemo bool
	restart       bool
}

const mostServers = 9

func parseSettings(args []string, stderr io.Writer) (settings, error) {
	root, err := controlplane.Root()
	if err != nil {
		return settings{}, err
	}
	s := settings{root: root}
	numbers := map[string]struct {
		target       *int
		fallback     int
		env, meaning string
	}{
		"port":     {&s.port, 8443, "MINTMARK_PORT", "port of the server; further servers take the ports after it (0: free ones)"},
		"api-port": {&s.apiPort, 0, "MINTMARK_API_PORT", "port of the Kubernetes API (0: a free one)"},
		"servers":  {&s.servers, 1, "MINTMARK_SERVERS", "number of servers"},
	}
	flags := flag.NewFlagSet("dev", flag.ContinueOnError)
	flags.SetOutput(stderr)
	for name, n := range numbers {
		value, err := fromEnv(n.env, n.fallback)
		if err != nil {
			return settings{}, err
		}
		flags.IntVar(n.target, name, value, n.meaning+" ("+n.env+")")
	}
	dir := os.Getenv("MINTMARK_DEV_DIR")
	if dir == "" {
		dir = filepath.Join(root, ".dev")
	}
	flags.StringVar(&s.dir, "dir", dir, "folder for data, logs and the file env (MINTMARK_DEV_DIR)")
	flags.StringVar(&s.proxies, "trusted-proxies", os.Getenv("MINTMARK_TRUSTED_PROXIES"),
		"networks of the proxies whose X-Forwarded headers count (MINTMARK_TRUSTED_PROXIES)")
	flags.StringVar(&s.database, "database", os.Getenv("MINTMARK_DEV_DATABASE_URL"),
		"URL of a PostgreSQL database for the servers; without one they use SQLite in the folder (MINTMARK_DEV_DATABASE_URL)")
	flags.BoolVar(&s.exitAfterDemo, "exit-after-demo", false, "stop after the demonstration")
	flags.BoolVar(&s.restart, "restart", false, "start the controller or a server again when it ends, as a kubelet would")
	if err := flags.Parse(args); err != nil {
		return settings{}, err
	}
	if s.servers < 1 || s.servers > mostServers {
		return settings{}, fmt.Errorf("%d servers: run 1 to %d (MINTMARK_SERVERS)", s.servers, mostServers)
	}
	s.dir, err = filepath.Abs(s.dir)
	return s, err
}

func fromEnv(name string, fallback int) (int, error) {
	text := os.Getenv(name)
	if text == "" {
		return fallback, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > 65535 {
		return 0, fmt.Errorf("%s=%q: give a number from 0 to 65535", name, text)
	}
	return n, nil
}

// serverPorts are the ports of the servers that people use.
type serverPorts struct{ public, grpc, internal, metrics int }

// ports of everything that listens, all on 127.0.0.1.
type ports struct {
	webhook, health, metrics int
	servers                  []serverPorts
}

// choosePorts takes the public ports that were asked for and free ones for the
// rest. All are held until all are chosen, so that none is chosen twice.
func choosePorts(s settings) (ports, error) {
	var held []net.Listener
	defer func() {
		for _, l := range held {
			_ = l.Close()
		}
	}()
	hold := func(port int) (int, error) {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if errors.Is(err, syscall.EADDRINUSE) {
			return 0, fmt.Errorf("port %d of 127.0.0.1 is in use: end the program that uses it, or choose another port "+
				"with MINTMARK_PORT (0: a free one)", port)
		}
		if err != nil {
			return 0, fmt.Errorf("port %d of 127.0.0.1 cannot be used: %w", port, err)
		}
		held = append(held, l)
		return l.Addr().(*net.TCPAddr).Port, nil
	}
	var p ports
	p.servers = make([]serverPorts, s.servers)
	for i := range p.servers {
		wanted := 0
		if s.port != 0 {
			wanted = s.port + i
		}
		var err error
		if p.servers[i].public, err = hold(wanted); err != nil {
			return ports{}, err
		}
	}
	free := []*int{&p.webhook, &p.health, &p.metrics}
	for i := range p.servers {
		free = append(free, &p.servers[i].grpc, &p.servers[i].internal, &p.servers[i].metrics)
	}
	for _, target := range free {
		port, err := hold(0)
		if err != nil {
			return ports{}, err
		}
		*target = port
	}
	return p, nil
}
