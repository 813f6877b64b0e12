package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// tracing has the service send its traces to the stack's Jaeger, which takes no metrics.
func tracing(env map[string]string) []string {
	return []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT=" + env["STACK_OTLP_URL"], "OTEL_METRICS_EXPORTER=none", "JAEGER_QUERY_URL=" + env["JAEGER_QUERY_URL"],
	}
}

// wholeWithin is how long it may take until a trace has its root: it is written after the delivery that settles.
const wholeWithin = 20 * time.Second

// traceOne draws the trace of one reservation, with its address.
func (d *demo) traceOne(ctx context.Context) error {
	id := d.example().ID
	fmt.Printf("\nThe same as a trace in Jaeger: %s trace %s\n\n", binary, id)
	for end := time.Now().Add(wholeWithin); ; {
		var out bytes.Buffer
		cmd := exec.CommandContext(ctx, binary, "trace", id)
		cmd.Env, cmd.Stdout, cmd.Stderr = d.service.environ, &out, &out
		err := cmd.Run()
		if err == nil && strings.Contains(out.String(), "\nreservation ") || ctx.Err() != nil || time.Now().After(end) {
			fmt.Print(out.String())
			if err != nil {
				return fmt.Errorf("draw the trace of %s: %w", id, err)
			}
			fmt.Println("(Jaeger's Go module, of which this one is built, comes without the web pages: its API answers,\n" +
				" at /api/traces instead of /trace; with a released Jaeger the address is the page.)")
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(lookEvery):
		}
	}
}
