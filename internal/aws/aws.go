// Package aws talks to AWS, one type and one file per service, in plain values. Every error is classified by package
// fault: gone only where the service that owns the thing says so.
//
// Nothing is dialled, and no credential is looked for, before the first call. The SDK's own environment is honoured
// (AWS_ENDPOINT_URL, AWS_PROFILE, AWS_MAX_ATTEMPTS and the rest).
package aws

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/smithy-go/logging"
	"github.com/aws/smithy-go/middleware"

	"gpudev.internal/reservation-expiry/internal/fault"
)

const (
	// callBudget bounds one API call with all the SDK's retries in it.
	callBudget = 20 * time.Second
	// attemptBudget bounds one attempt, so that a second one fits into the call's budget.
	attemptBudget = 9 * time.Second
	dialTimeout   = 3 * time.Second
)

// Load reads the SDK's environment and shared files, and touches no network.
func Load(ctx context.Context, region string) (awssdk.Config, error) {
	client := awshttp.NewBuildableClient().
		WithTimeout(attemptBudget).
		WithDialerOptions(func(d *net.Dialer) { d.Timeout = dialTimeout })
	logger := logging.LoggerFunc(func(_ logging.Classification, format string, v ...any) {
		slog.WarnContext(ctx, "AWS SDK: "+fmt.Sprintf(format, v...))
	})
	cfg, err := config.LoadDefaultConfig(ctx,
		config.WithRegion(region), config.WithHTTPClient(client), config.WithLogger(logger))
	if err != nil {
		return awssdk.Config{}, fault.Errorf(fault.Permanent, "load the AWS configuration: %w", err)
	}
	return cfg, nil
}

// bounded returns cfg with every call limited to callBudget.
func bounded(cfg awssdk.Config) awssdk.Config {
	cfg.APIOptions = append(slices.Clone(cfg.APIOptions), func(stack *middleware.Stack) error {
		return stack.Initialize.Add(middleware.InitializeMiddlewareFunc("CallBudget", func(
			ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler,
		) (middleware.InitializeOutput, middleware.Metadata, error) {
			ctx, cancel := context.WithTimeout(ctx, callBudget)
			defer cancel()
			return next.HandleInitialize(ctx, in)
		}), middleware.Before)
	})
	return cfg
}

// allPages calls page with the token that the last call returned, "" at first, until there is none. A token that
// comes back would go in circles, and stopping there would pass a part for the whole: that is an error.
func allPages(page func(token string) (next string, err error)) error {
	seen := map[string]bool{}
	for token := ""; ; {
		next, err := page(token)
		if err != nil {
			return err
		}
		if next == "" {
			return nil
		}
		if seen[next] {
			return fmt.Errorf("page token %q came twice", next)
		}
		seen[next], token = true, next
	}
}
