package controlplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Names of the binaries that Binary knows.
const (
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Kubectl           = "kubectl"
)

// packages holds the main package of each binary in the module hack/controlplane.
var packages = map[string]string{
	Etcd:              "go.etcd.io/etcd/server/v3",
	APIServer:         "k8s.io/kubernetes/cmd/kube-apiserver",
	ControllerManager: "k8s.io/kubernetes/cmd/kube-controller-manager",
	Kubectl:           "k8s.io/kubernetes/cmd/kubectl",
}

// envtestIndex is where setup-envtest looks first. It is asked before
// setup-envtest is, for setup-envtest itself waits long where there is no way out.
const envtestIndex = "https://raw.githubusercontent.com/kubernetes-sigs/controller-tools/HEAD/envtest-releases.yaml"

// buildSpace is the free disk space, in bytes, that building the control plane
// takes in the Go build cache, the module cache and the cache folder.
const buildSpace = 6 << 30

// Assets returns a folder with etcd and kube-apiserver, fit for
// KUBEBUILDER_ASSETS, and makes it where there is none. Progress goes to out.
func Assets(ctx context.Context, out io.Writer) (string, error) {
	if dir := os.Getenv("KUBEBUILDER_ASSETS"); dir != "" && executable(filepath.Join(dir, Etcd)) &&
		executable(filepath.Join(dir, APIServer)) {
		return dir, nil
	}
	for _, name := range []string{Etcd, APIServer} {
		if _, err := obtain(ctx, out, name); err != nil {
			return "", err
		}
	}
	return cacheDir()
}

// Binary returns the path of one binary of the control plane, from
// KUBEBUILDER_ASSETS or from the cache folder, where it is put if need be.
// Progress goes to out.
func Binary(ctx context.Context, out io.Writer, name string) (string, error) {
	if _, known := packages[name]; !known {
		return "", fmt.Errorf("%s is no binary of the control plane", name)
	}
	if dir := os.Getenv("KUBEBUILDER_ASSETS"); dir != "" && executable(filepath.Join(dir, name)) {
		return filepath.Join(dir, name), nil
	}
	return obtain(ctx, out, name)
}

// obtain returns the path of a binary in the cache folder.
func obtain(ctx context.Context, out io.Writer, name string) (string, error) {
	dir, err := cacheDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	if executable(path) {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the cache folder of the control plane: %w", err)
	}
	unlock, err := lock(ctx, out, dir)
	if err != nil {
		return "", err
	}
	defer unlock()
	if executable(path) { // another process made it while we waited
		return path, nil
	}
	if name != ControllerManager && download(ctx, out, dir) && executable(path) {
		return path, nil
	}
	if err := build(ctx, out, name, path); err != nil {
		return "", err
	}
	return path, nil
}

// cacheDir is named after the versions in it, so that a newer checkout makes
// its own.
func cacheDir() (string, error) {
	v, err := versions()
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the user's cache folder (set XDG_CACHE_HOME or HOME): %w", err)
	}
	name := fmt.Sprintf("kubernetes-%s-etcd-%s-%s-%s", v.kubernetes, v.etcd, runtime.GOOS, runtime.GOARCH)
	return filepath.Join(cache, "mintmark", "controlplane", name), nil
}

type versionSet struct{ kubernetes, etcd string }

var requirement = regexp.MustCompile(`(?m)^\s*(?:require\s+)?(k8s\.io/kubernetes|go\.etcd\.io/etcd/server/v3) (v[^\s]+)`)

// versions reads what hack/controlplane/go.mod pins.
func versions() (versionSet, error) {
	root, err := Root()
	if err != nil {
		return versionSet{}, err
	}
	file := filepath.Join(root, "hack", "controlplane", "go.mod")
	text, err := os.ReadFile(file)
	if err != nil {
		return versionSet{}, fmt.Errorf("read the versions of the control plane: %w", err)
	}
	var v versionSet
	for _, m := range requirement.FindAllSubmatch(text, -1) {
		switch string(m[1]) {
		case "k8s.io/kubernetes":
			v.kubernetes = string(m[2])
		default:
			v.etcd = string(m[2])
		}
	}
	if v.kubernetes == "" || v.etcd == "" {
		return versionSet{}, fmt.Errorf("%s does not require k8s.io/kubernetes and go.etcd.io/etcd/server/v3", file)
	}
	return v, nil
}

// Root is the folder of this repository: the one above the working directory
// that holds hack/controlplane, else where this file was compiled from.
func Root() (string, error) {
	isRoot := func(dir string) bool {
		_, err := os.Stat(filepath.Join(dir, "hack", "controlplane", "go.mod"))
		return err == nil
	}
	if dir, err := os.Getwd(); err == nil {
		for {
			if isRoot(dir) {
				return dir, nil
			}
			parent := filepath.Dir(dir)
			if parent == dir {
				break
			}
			dir = parent
		}
	}
	if _, file, _, ok := runtime.Caller(0); ok {
		if dir := filepath.Join(filepath.Dir(file), "..", ".."); isRoot(dir) {
			return filepath.Clean(dir), nil
		}
	}
	return "", errors.New("cannot find the Mintmark repository (hack/controlplane/go.mod): run this from inside a checkout")
}

// lock keeps two processes from building the same binaries at once.
func lock(ctx context.Context, out io.Writer, dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the cache folder of the control plane: %w", err)
	}
	told := false
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		if !told {
			fmt.Fprintln(out, "controlplane: another process is making the binaries; waiting for it")
			told = true
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("wait for another process that makes the control plane's binaries: %w", ctx.Err())
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// download lets setup-envtest fetch etcd, kube-apiserver and kubectl into dir.
// It is an attempt: where it fails the binaries are built.
func download(ctx context.Context, out io.Writer, dir string) bool {
	tried := filepath.Join(dir, ".download-failed")
	if info, err := os.Stat(tried); err == nil && time.Since(info.ModTime()) < 24*time.Hour {
		return false
	}
	err := func() error {
		if err := reachable(ctx, envtestIndex); err != nil {
			return err
		}
		return setupEnvtest(ctx, out, dir)
	}()
	if err != nil {
		fmt.Fprintf(out, "controlplane: nothing to download (%s); building instead\n", firstLine(err))
		_ = os.WriteFile(tried, nil, 0o600)
		return false
	}
	return true
}

func reachable(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, url, nil)
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

func setupEnvtest(ctx context.Context, out io.Writer, dir string) error {
	root, err := Root()
	if err != nil {
		return err
	}
	v, err := versions()
	if err != nil {
		return err
	}
	minor := strings.Join(strings.Split(strings.TrimPrefix(v.kubernetes, "v"), ".")[:2], ".")
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	fmt.Fprintf(out, "controlplane: downloading kube-apiserver %s.x and etcd with setup-envtest\n", minor)
	store, err := os.MkdirTemp(dir, ".envtest-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(store) }()
	cmd := exec.CommandContext(ctx, "go", "tool", "setup-envtest", "use", minor+".x", "--bin-dir", store, "-p", "path")
	cmd.Dir = filepath.Join(root, "hack", "tools", "envtest")
	cmd.Env = append(os.Environ(), isolated...)
	var messages bytes.Buffer
	cmd.Stderr = &messages
	path, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("setup-envtest: %w: %s", err, messages.String())
	}
	for _, name := range []string{Etcd, APIServer, Kubectl} {
		if err := os.Rename(filepath.Join(string(path), name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// build compiles one binary. Go's own caches make a second build short.
func build(ctx context.Context, out io.Writer, name, path string) error {
	root, err := Root()
	if err != nil {
		return err
	}
	if _, err := exec.LookPath("go"); err != nil {
		return fmt.Errorf("building %s needs the go command in PATH: install Go 1.26 or newer, "+
			"or set KUBEBUILDER_ASSETS to a folder with etcd and kube-apiserver", name)
	}
	if err := CheckSpace(filepath.Dir(path), buildSpace); err != nil {
		return fmt.Errorf("build %s: %w, or set KUBEBUILDER_ASSETS to a folder with etcd and kube-apiserver", name, err)
	}
	v, err := versions()
	if err != nil {
		return err
	}
	version := v.kubernetes
	if name == Etcd {
		version = v.etcd
	}
	fmt.Fprintf(out, "controlplane: building %s %s from Go modules (once; the first build takes several minutes)\n", name, version)
	began := time.Now()
	if err := (GoBuild{
		Dir: filepath.Join(root, "hack", "controlplane"), Package: packages[name], Output: path, Out: out, Env: isolated,
		Flags: []string{"-buildvcs=false", "-mod=readonly", "-ldflags", linkFlags(v.kubernetes)},
	}).Run(ctx); err != nil {
		return err
	}
	fmt.Fprintf(out, "controlplane: built %s in %s\n", name, time.Since(began).Round(time.Second))
	return nil
}

// linkFlags stamp the version the API server reports.
func linkFlags(version string) string {
	parts := strings.Split(strings.TrimPrefix(version, "v"), ".")
	const pkg = "k8s.io/component-base/version"
	return fmt.Sprintf("-s -w -X %s.gitVersion=%s -X %s.gitMajor=%s -X %s.gitMinor=%s", pkg, version, pkg, parts[0], pkg, parts[1])
}

// isolated is the environment of a Go command that must see neither a workspace nor
// flags of the caller.
var isolated = []string{"GOWORK=off", "GOFLAGS=", "CGO_ENABLED=0"}

// CheckSpace is an error where the disk of dir has less than need bytes left.
func CheckSpace(dir string, need uint64) error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("look how much space is left on the disk of %s: %w", dir, err)
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < need {
		return fmt.Errorf("the disk of %s has %.1f GiB left, and %.1f GiB are needed: free some", dir,
			float64(free)/(1<<30), float64(need)/(1<<30))
	}
	return nil
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
