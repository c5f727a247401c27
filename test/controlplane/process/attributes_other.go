//go:build unix && !linux

package process

import "syscall"

// attributes put the child into a process group of its own, so that Ctrl-C in
// the terminal reaches only the parent, which then ends its children in order.
// Only Linux can also kill it when the parent dies.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
