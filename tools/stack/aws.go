package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

const motoVersion = "5.2.1"

// aws is moto's server, started by tools/aws/emulator.py, which says what that adds.
type aws struct{ python string }

func (*aws) name() string { return "aws" }

func (a *aws) build(ctx context.Context, s *stack) error {
	if os.Getenv("USE_AWS_ENDPOINT") != "" {
		return nil
	}
	venv := filepath.Join(s.cache, "moto-"+motoVersion)
	if a.python = os.Getenv("USE_MOTO_PYTHON"); a.python != "" {
		return checkMoto(ctx, a.python)
	}
	for _, python := range []string{"python3", filepath.Join(venv, "bin", "python")} {
		if checkMoto(ctx, python) == nil {
			a.python = python
			return nil
		}
	}
	s.log.say(a.name(), "installing moto[server] %s into %s", motoVersion, venv)
	for _, args := range [][]string{
		{"python3", "-m", "venv", "--clear", venv},
		{filepath.Join(venv, "bin", "pip"), "install", "--quiet", "moto[server]==" + motoVersion},
	} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s\ninstall it by hand (python3 -m venv DIR && DIR/bin/pip install 'moto[server]==%s') "+
				"and set USE_MOTO_PYTHON=DIR/bin/python", strings.Join(args, " "), err, out, motoVersion)
		}
	}
	a.python = filepath.Join(venv, "bin", "python")
	return checkMoto(ctx, a.python)
}

// checkMoto asks for the one version that tools/aws/fidelity.py knows, and for its server extra.
func checkMoto(ctx context.Context, python string) error {
	out, err := exec.CommandContext(ctx, python, "-c",
		"from importlib.metadata import version; version('flask-cors'); print(version('moto'))").CombinedOutput()
	if found := strings.TrimSpace(string(out)); err == nil && found != motoVersion {
		err = errors.New("found version " + found)
	}
	if err != nil {
		return fmt.Errorf("%s has no moto[server] %s: %w", python, motoVersion, err)
	}
	return nil
}

func (a *aws) start(ctx context.Context, s *stack) (*instance, error) {
	in := &instance{Signal: syscall.SIGTERM}
	endpoint := os.Getenv("USE_AWS_ENDPOINT")
	if endpoint != "" {
		s.log.say(a.name(), "using USE_AWS_ENDPOINT %s", endpoint)
	} else {
		var err error
		if endpoint, err = a.startEmulator(ctx, s, in); err != nil {
			return nil, err
		}
	}
	in.Exports = map[string]string{
		"AWS_ENDPOINT_URL":      endpoint,
		"AWS_REGION":            "us-east-1",
		"AWS_ACCESS_KEY_ID":     "111122223333", // the emulator's account of that number
		"AWS_SECRET_ACCESS_KEY": "stack",
	}
	return in, nil
}

func (a *aws) startEmulator(ctx context.Context, s *stack, in *instance) (endpoint string, err error) {
	dir, err := s.dataDir(a.name())
	if err != nil {
		return "", err
	}
	portFile := filepath.Join(dir, "port")
	s.log.say(a.name(), "starting moto %s", motoVersion)
	cmd := exec.Command(a.python, "-B", filepath.Join(s.repo, "tools", "aws", "emulator.py"), portFile)
	err = s.spawn(ctx, a.name(), cmd, in, func(ctx context.Context) error {
		port, err := os.ReadFile(portFile)
		if err != nil {
			return err
		}
		endpoint = "http://127.0.0.1:" + string(port)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint+"/moto-api/", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	return endpoint, err
}
