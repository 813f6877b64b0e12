// Package jaeger reads traces from Jaeger's query API over HTTP, the one that its web pages use and that is the
// same in v1 and v2.
package jaeger

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"gpudev.internal/reservation-expiry/internal/fault"
)

const (
	timeout   = 15 * time.Second // for one answer
	answerMax = 64 << 20         // bytes of one answer
)

// Client asks one Jaeger.
type Client struct {
	base *url.URL
	http *http.Client
}

// New returns a client for a query address such as http://jaeger-query:16686 (JAEGER_QUERY_URL); a path before
// /api is kept.
func New(address string, client *http.Client) (*Client, error) {
	base, err := url.Parse(address)
	if err != nil || base.Host == "" || (base.Scheme != "http" && base.Scheme != "https") {
		return nil, fmt.Errorf("%q is not the http address of a Jaeger query service", address)
	}
	return &Client{base: base, http: client}, nil
}

// Page returns the address at which a person can look at a trace.
func (c *Client) Page(traceID string) string { return c.base.JoinPath("trace", traceID).String() }

// Trace returns one trace whole, its spans in order of their start. It is fault.Gone where Jaeger has no such trace.
func (c *Client) Trace(ctx context.Context, traceID string) (Trace, error) {
	traces, err := c.get(ctx, c.base.JoinPath("api", "traces", traceID))
	if err != nil {
		return Trace{}, fmt.Errorf("get trace %s: %w", traceID, err)
	}
	if len(traces) == 0 {
		return Trace{}, fault.Errorf(fault.Gone, "get trace %s: not found", traceID)
	}
	return traces[0], nil
}

// Query says what to search for. Empty fields do not restrict, except that Jaeger wants a service.
type Query struct {
	Service    string
	Operation  string            // name of a span
	Attributes map[string]string // all on the same span
	From, To   time.Time         // when that span may have started; zero: an hour back until now
	Limit      int               // traces; zero: 20
}

// Search returns the traces in which a span matches, each whole.
func (c *Client) Search(ctx context.Context, q Query) ([]Trace, error) {
	values := url.Values{"service": {q.Service}}
	if q.Operation != "" {
		values.Set("operation", q.Operation)
	}
	if len(q.Attributes) > 0 {
		tags, err := json.Marshal(q.Attributes)
		if err != nil {
			return nil, fmt.Errorf("search traces: %w", err)
		}
		values.Set("tags", string(tags))
	}
	if !q.From.IsZero() {
		values.Set("start", strconv.FormatInt(q.From.UnixMicro(), 10))
	}
	if !q.To.IsZero() {
		values.Set("end", strconv.FormatInt(q.To.UnixMicro(), 10))
	}
	if q.Limit > 0 {
		values.Set("limit", strconv.Itoa(q.Limit))
	}
	address := c.base.JoinPath("api", "traces")
	address.RawQuery = values.Encode()
	traces, err := c.get(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("search traces: %w", err)
	}
	return traces, nil
}

func (c *Client) get(ctx context.Context, address *url.URL) ([]Trace, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address.String(), nil)
	if err != nil {
		return nil, fault.Errorf(fault.Permanent, "ask %s: %w", c.base.Redacted(), err)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, fault.Errorf(fault.Transient, "ask %s: %w", c.base.Redacted(), err)
	}
	defer func() { _ = response.Body.Close() }()
	a, notJSON := decode(io.LimitReader(response.Body, answerMax))
	switch {
	case response.StatusCode == http.StatusNotFound && notJSON == nil:
		return nil, nil // Jaeger itself says so, and not some proxy before it
	case response.StatusCode >= 500 || response.StatusCode == http.StatusTooManyRequests:
		return nil, fault.Errorf(fault.Transient, "%s answered %s: %s", c.base.Redacted(), response.Status, a.message())
	case response.StatusCode != http.StatusOK:
		return nil, fault.Errorf(fault.Permanent, "%s answered %s: %s", c.base.Redacted(), response.Status, a.message())
	case notJSON != nil:
		return nil, fault.Errorf(fault.Permanent, "%s does not answer as Jaeger does: %w", c.base.Redacted(), notJSON)
	}
	return a.traces(), nil
}

func (a answer) message() string {
	var words []string
	for _, e := range a.Errors {
		words = append(words, e.Msg)
	}
	return strings.Join(words, "; ")
}

// Decode reads traces from a file in which an answer of the query API was saved.
func Decode(r io.Reader) ([]Trace, error) {
	a, err := decode(r)
	if err != nil {
		return nil, err
	}
	return a.traces(), nil
}
