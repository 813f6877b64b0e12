package instrument

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// gone is a transport below a span to whose caller an answer that there is no such thing is as good as any other: the
// conventions leave it to those who know. A status that is Ok stays so.
type gone struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (g gone) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := g.RoundTripper.RoundTrip(r)
	if err == nil && response.StatusCode == http.StatusNotFound {
		trace.SpanFromContext(r.Context()).SetStatus(codes.Ok, "")
	}
	return response, err //nolint:wrapcheck // the transport is not told apart from the one it wraps
}

// goneFromAWS is gone for AWS, whose codes say of what there is none ("InvalidVolume.NotFound").
func goneFromAWS(stack *middleware.Stack) error {
	return stack.Initialize.Add(middleware.InitializeMiddlewareFunc("Gone", func( //nolint:wrapcheck // the SDK's own words
		ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler,
	) (middleware.InitializeOutput, middleware.Metadata, error) {
		out, metadata, err := next.HandleInitialize(ctx, in)
		if api, ok := errors.AsType[smithy.APIError](err); ok && strings.HasSuffix(api.ErrorCode(), "NotFound") {
			trace.SpanFromContext(ctx).SetStatus(codes.Ok, "")
		}
		return out, metadata, err //nolint:wrapcheck // the SDK's own words
	}), middleware.After)
}
