package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"gpudev.internal/reservation-expiry/internal/demo/platform"
)

const (
	binary     = "bin/reservation-expiry"
	readyTime  = 30 * time.Second
	stopTime   = 25 * time.Second
	grace      = 3 * time.Second
	missing    = 3 * time.Second // MISSING_CONFIRM: less than between two ticks
	driver     = 8 * time.Second // DRIVER_GRACE
	tickEvery  = 4 * time.Second
	spotServer = "t4"
)

// service is the function: the binary that also goes into the image.
type service struct {
	environ   []string // its own, for its other commands too
	url       string
	log       string
	announced *announcements // what it has announced to others
	process   *os.Process
	ended     chan error
}

// stop lets the service hand back what it holds, for at most the time that a container is given.
func (s *service) stop() {
	if s.process.Signal(syscall.SIGTERM) == nil {
		select {
		case <-s.ended: //nolint:errcheck // it ends as it was told to
		case <-time.After(stopTime):
		}
	}
}

// environ is how the service is configured: through PgBouncer, its own sink, and with the times that make a demo short.
func serviceEnviron(c *components, p *platform.Platform, port int, facts string) ([]string, error) {
	pooled, err := url.Parse(c.env["STACK_PGBOUNCER_URL"])
	if err != nil {
		return nil, errors.New("the address of PgBouncer cannot be read")
	}
	var environ []string
	for _, entry := range os.Environ() { // nothing of the caller's must lead to a real account, cluster or sink
		name, _, _ := strings.Cut(entry, "=")
		if name == "PATH" || name == "HOME" || name == "TMPDIR" || strings.HasPrefix(name, "OTEL_") {
			environ = append(environ, entry)
		}
	}
	return append(append(environ, tracing(c.env)...),
		"PORT="+strconv.Itoa(port), "FACTS_SINK=http://"+facts, "LOG_FORMAT=json",
		"POSTGRES_HOST="+pooled.Hostname(), "POSTGRES_PORT="+pooled.Port(), "POSTGRES_DB="+database,
		"POSTGRES_USER="+c.env["POSTGRES_USER"], "POSTGRES_PASSWORD="+c.env["POSTGRES_PASSWORD"],
		"KUBECONFIG="+c.env["KUBECONFIG"],
		"AWS_ENDPOINT_URL="+c.env["AWS_ENDPOINT_URL"], "AWS_REGION="+c.env["AWS_REGION"], "AWS_DEFAULT_REGION="+c.env["AWS_REGION"],
		"AWS_ACCESS_KEY_ID="+p.Account, "AWS_SECRET_ACCESS_KEY=demo", "AWS_EC2_METADATA_DISABLED=true",
		"DISK_CONTENTS_BUCKET="+p.Bucket, "DOMAIN_NAME="+platform.Domain, "HOSTED_ZONE_ID="+p.ZoneID,
		"AVAILABILITY_UPDATER_FUNCTION_NAME="+p.Function, "SPOT_GPU_TYPES="+spotServer,
		fmt.Sprintf("GRACE_PERIOD_SECONDS=%d", int(grace.Seconds())), "MISSING_CONFIRM="+missing.String(), "DRIVER_GRACE="+driver.String(),
	), nil
}

func migrate(ctx context.Context, environ []string) error {
	cmd := exec.CommandContext(ctx, binary, "migrate", "--platform-tables")
	cmd.Env = environ
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("migrate: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// command runs one of the service's own commands, as an operator would, and returns what it prints.
func (s *service) command(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = s.environ
	out, err := cmd.CombinedOutput()
	said := strings.Join(strings.Fields(string(out)), " ")
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", binary, args[0], err, said)
	}
	return said, nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// serve starts the service and waits until it is ready.
func serve(ctx context.Context, c *components, environ []string, port int) (*service, error) {
	s := &service{environ: environ, url: "http://127.0.0.1:" + strconv.Itoa(port), log: filepath.Join(c.dir, "reservation-expiry.log"),
		ended: make(chan error, 1)}
	cmd, err := c.spawn("reservation-expiry", s.log, environ, binary, "serve")
	if err != nil {
		return nil, err
	}
	s.process = cmd.Process
	go func() { s.ended <- cmd.Wait() }()
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/readyz", nil)
		if err != nil {
			return nil, fmt.Errorf("ask whether the service is ready: %w", err)
		}
		response, err := http.DefaultClient.Do(request)
		if err == nil {
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return s, nil
			}
			err = errors.New(response.Status)
		}
		select {
		case err := <-s.ended:
			return nil, fmt.Errorf("the service has ended: %w (see %s)", orEnded(err), s.log)
		case <-ctx.Done():
			return nil, fmt.Errorf("the service is not ready after %s: %w (see %s)", readyTime, err, s.log)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func orEnded(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}
