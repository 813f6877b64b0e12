package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"
)

// ping posts one tick as Knative's PingSource does: a CloudEvent in binary mode.
func ping(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(`{"body":"tick"}`))
	if err != nil {
		return fmt.Errorf("tick: %w", err)
	}
	for name, value := range map[string]string{
		"Content-Type": "application/json", "Ce-Specversion": "1.0", "Ce-Type": "dev.knative.sources.ping",
		"Ce-Source": "/apis/v1/namespaces/demo/pingsources/reservation-expiry", "Ce-Id": uuid.NewString(),
		"Ce-Time": time.Now().UTC().Format(time.RFC3339Nano),
	} {
		request.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("tick: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusAccepted {
		said, _ := io.ReadAll(io.LimitReader(response.Body, 300))
		return fmt.Errorf("tick: %s %s", response.Status, said)
	}
	return nil
}

// runPingSource posts a tick now and then every so often, until ctx ends.
func runPingSource(ctx context.Context, url string, every time.Duration, answered func(error)) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		if err := ping(ctx, url); ctx.Err() == nil {
			answered(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
