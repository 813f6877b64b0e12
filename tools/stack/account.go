package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
)

const (
	sharedMemory = "/dev/shm"
	plenty       = 6 << 30 // bytes
)

// account is whom PostgreSQL and PgBouncer run as: both refuse root.
type account struct {
	name       string
	credential *syscall.Credential // nil: the present user
}

func unprivileged() (account, error) {
	if os.Geteuid() != 0 {
		me, err := user.Current()
		if err != nil {
			return account{}, fmt.Errorf("find the present user: %w", err)
		}
		return account{name: me.Username}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(uidErr, gidErr); err != nil {
			return account{}, fmt.Errorf("user %s: %w", name, err)
		}
		return account{name, &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
	}
	return account{}, errors.New("this is root, PostgreSQL refuses root, and there is neither a user postgres nor nobody")
}

// tempDir makes a directory that belongs to the account and is closed to others: in memory where there is plenty, since
// a throw-away database is mostly files that are made and deleted.
func (a account) tempDir(prefix string) (string, error) {
	parent := ""
	var memory syscall.Statfs_t
	//nolint:gosec // the size of a block is not negative
	if err := syscall.Statfs(sharedMemory, &memory); err == nil && memory.Bavail*uint64(memory.Bsize) >= plenty {
		parent = sharedMemory
	}
	dir, err := os.MkdirTemp(parent, prefix)
	if err == nil && a.credential != nil {
		err = os.Chown(dir, int(a.credential.Uid), int(a.credential.Gid))
	}
	if err != nil {
		return "", fmt.Errorf("make a directory for %s: %w", a.name, err)
	}
	return dir, nil
}

// command runs as the account, in a directory it can enter.
func (a account) command(dir, program string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: a.credential}
	return cmd
}
