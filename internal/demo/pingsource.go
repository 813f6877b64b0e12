package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"
)

// tickTime is how long a tick may take to be answered.
const tickTime = 75 * time.Second

// post sends a CloudEvent in binary mode, with further attributes as "ce-name: value", and returns the answer's body.
func post(ctx context.Context, url, kind, data, accept string, more ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, tickTime)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("tick: %w", err)
	}
	for name, value := range map[string]string{
		"Content-Type": "application/json", "Accept": accept, "Ce-Specversion": "1.0", "Ce-Type": kind, "Ce-Id": uuid.NewString(),
		"Ce-Source": "/apis/v1/namespaces/demo/pingsources/reservation-expiry", "Ce-Time": time.Now().UTC().Format(time.RFC3339Nano),
	} {
		request.Header.Set(name, value)
	}
	for _, attribute := range more {
		name, value, _ := strings.Cut(attribute, ": ")
		request.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("tick: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	said, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode >= http.StatusMultipleChoices {
		return nil, fmt.Errorf("tick: %s %.300s", response.Status, said)
	}
	return said, nil
}

// ping posts one tick as Knative's PingSource does.
func ping(ctx context.Context, url string) error {
	_, err := post(ctx, url, "dev.knative.sources.ping", `{"body":"tick"}`, "*/*")
	return err
}

// dryRun asks, as a person would, what a sweep would do now.
func dryRun(ctx context.Context, url string) ([]string, error) {
	said, err := post(ctx, url, "dev.gpudev.expiry.sweep.requested.v1", `{"dryRun":true}`, "application/json")
	if err != nil {
		return nil, err
	}
	var result struct {
		Planned []struct{ Action, Subject, ReservationID, Reason string }
	}
	if err := json.Unmarshal(said, &result); err != nil {
		return nil, fmt.Errorf("read the result of a dry run: %w", err)
	}
	var planned []string
	for _, p := range result.Planned {
		planned = append(planned, strings.Join([]string{p.Action, p.Subject + p.ReservationID, p.Reason}, " "))
	}
	return planned, nil
}

// runPingSource posts a tick now and then every so often, until ctx ends.
func runPingSource(ctx context.Context, url string, every time.Duration, answered func(error)) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		// A tick that was posted is waited for: going away would cut its sweep short.
		if err := ping(context.WithoutCancel(ctx), url); ctx.Err() == nil {
			answered(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
