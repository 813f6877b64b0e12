package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// jaegerVersion is what tools/jaeger/go.mod requires.
const jaegerVersion = "v1.76.0"

// jaeger is Jaeger v2, all in one process, which keeps traces in Badger. It is built from source, since its go.mod
// forbids go install.
type jaeger struct{ bin string }

func (*jaeger) name() string { return "jaeger" }

func (*jaeger) given() (query, otlp string) {
	return os.Getenv("USE_JAEGER_QUERY_URL"), os.Getenv("USE_OTLP_URL")
}

func (j *jaeger) build(ctx context.Context, s *stack) error {
	if query, otlp := j.given(); query != "" || otlp != "" {
		return nil
	}
	if j.bin = os.Getenv("USE_JAEGER_BIN"); j.bin != "" {
		return nil
	}
	source := filepath.Join(s.repo, "tools", "jaeger")
	key, err := hashTree(source)
	if err != nil {
		return err
	}
	j.bin = filepath.Join(s.cache, "jaeger-"+jaegerVersion+"-"+key)
	if _, err := os.Stat(j.bin); err == nil {
		return nil
	}
	s.log.say(j.name(), "building %s (a first build takes 3 to 4 minutes)", jaegerVersion)
	if err := s.goBuild(ctx, j.name(), source, j.bin+".tmp", "", "github.com/jaegertracing/jaeger/cmd/jaeger"); err != nil {
		return fmt.Errorf("build jaeger: %w", err)
	}
	return os.Rename(j.bin+".tmp", j.bin)
}

func (j *jaeger) start(ctx context.Context, s *stack) (*instance, error) {
	in := &instance{Signal: syscall.SIGKILL} // it would tidy up for ten seconds what goes with it
	query, otlp := j.given()
	if query != "" || otlp != "" {
		s.log.say(j.name(), "using USE_JAEGER_QUERY_URL %s and USE_OTLP_URL %s", query, otlp)
	} else {
		var err error
		if query, otlp, err = j.startServer(ctx, s, in); err != nil {
			return nil, err
		}
	}
	// Not under the names that the OpenTelemetry SDK reads: whoever sources this is asked to send nothing.
	in.Exports = map[string]string{"JAEGER_QUERY_URL": query, "STACK_OTLP_URL": otlp}
	return in, nil
}

func (j *jaeger) startServer(ctx context.Context, s *stack, in *instance) (query, otlp string, err error) {
	dir, err := s.dataDir(j.name())
	if err != nil {
		return "", "", err
	}
	addresses := map[string]string{"JAEGER_QUERY_HTTP": "", "JAEGER_QUERY_GRPC": "", "JAEGER_OTLP_HTTP": "", "JAEGER_OTLP_GRPC": ""}
	cmd := exec.Command(j.bin, "--config", filepath.Join(s.repo, "tools", "jaeger", "badger.yaml"))
	cmd.Env = append(os.Environ(), "JAEGER_DIR="+dir)
	for name := range addresses {
		port, err := freePort()
		if err != nil {
			return "", "", err
		}
		addresses[name] = fmt.Sprintf("127.0.0.1:%d", port)
		cmd.Env = append(cmd.Env, name+"="+addresses[name])
	}
	query, otlp = "http://"+addresses["JAEGER_QUERY_HTTP"], "http://"+addresses["JAEGER_OTLP_HTTP"]
	s.log.say(j.name(), "starting %s, query API at %s", jaegerVersion, query)
	in.Remove = []string{dir}
	err = s.spawn(ctx, j.name(), cmd, in, func(ctx context.Context) error { // both ends answer
		for _, address := range []string{query + "/api/services", otlp + "/v1/traces"} {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
			if err != nil {
				return err
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return err
			}
			if err := resp.Body.Close(); err != nil {
				return err
			}
		}
		return nil
	})
	return query, otlp, err
}
