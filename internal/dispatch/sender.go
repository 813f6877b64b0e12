package dispatch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/cloudevents/sdk-go/v2/binding"
	ce "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"

	"gpudev.internal/reservation-expiry/internal/fault"
)

// Sender brings one event to where it is meant to go. An error of kind fault.Permanent means that it will never be
// taken as it is.
type Sender interface {
	Send(ctx context.Context, e ce.Event) error
}

// SenderOptions tune an HTTPSender. The zero value is right for a broker or another sink.
type SenderOptions struct {
	Transport http.RoundTripper // nil: NewTransport()
	// Timeout is of one try; 0: 10 s. To oneself it must outlast a follow-up, to a sink it must not pass 20 s.
	Timeout time.Duration
	Tries   uint // 0: 3
	// Token returns the bearer token by which the sink knows us, for each try anew; nil or "": none is sent.
	Token func() (string, error)
}

// HTTPSender POSTs events to one address, in structured mode: what an id or a subject holds need not fit a header.
type HTTPSender struct {
	target  string
	client  *http.Client
	timeout time.Duration
	tries   uint
	token   func() (string, error)
}

// NewTransport returns the transport of a sender: a few connections to one host.
func NewTransport() *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		TLSHandshakeTimeout:   5 * time.Second,
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       30 * time.Second,
		ForceAttemptHTTP2:     true,
		ExpectContinueTimeout: time.Second,
	}
}

// NewHTTPSender returns a sender to an absolute URL.
func NewHTTPSender(target string, opts SenderOptions) *HTTPSender {
	if opts.Transport == nil {
		opts.Transport = NewTransport()
	}
	opts.Timeout = cmp.Or(opts.Timeout, 10*time.Second)
	opts.Tries = cmp.Or(opts.Tries, 3)
	client := &http.Client{
		Transport: opts.Transport,
		// A redirected POST would arrive as a GET.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return &HTTPSender{target: target, client: client, timeout: opts.Timeout, tries: opts.Tries, token: opts.Token}
}

// Send delivers the event, trying again a few times where that may help.
func (s *HTTPSender) Send(ctx context.Context, e ce.Event) error {
	pauses := backoff.NewExponentialBackOff()
	pauses.InitialInterval = 200 * time.Millisecond
	var last error
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		last = s.try(ctx, e)
		if fault.Is(last, fault.Permanent) {
			return struct{}{}, backoff.Permanent(last)
		}
		return struct{}{}, last
	}, backoff.WithBackOff(pauses), backoff.WithMaxTries(s.tries))
	if err != nil {
		return last // says more than "context canceled"
	}
	return nil
}

func (s *HTTPSender) try(ctx context.Context, e ce.Event) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.target, nil)
	if err != nil {
		return fault.Errorf(fault.Permanent, "send %s: the sink's address is malformed", e.Type())
	}
	if err := cehttp.WriteRequest(binding.WithForceStructured(ctx), binding.ToMessage(&e), request); err != nil {
		return fault.Errorf(fault.Permanent, "send %s: encode the event: %w", e.Type(), err)
	}
	if err := s.authorize(request); err != nil {
		return fmt.Errorf("send %s to the sink: %w", e.Type(), err)
	}
	response, err := s.client.Do(request)
	if err != nil {
		if inner := errors.Unwrap(err); inner != nil { // without the address, which may hold a password
			err = inner
		}
		return fmt.Errorf("send %s to the sink: %w", e.Type(), err)
	}
	defer func() { _ = response.Body.Close() }()
	_, _ = io.CopyN(io.Discard, response.Body, 64<<10) // so that the connection can be used again
	if response.StatusCode/100 == 2 {
		return nil
	}
	kind := fault.Transient
	if final(response.StatusCode) {
		kind = fault.Permanent
	}
	return fault.Errorf(kind, "send %s: the sink answered %s", e.Type(), response.Status)
}

// authorize says who sends.
func (s *HTTPSender) authorize(request *http.Request) error {
	if s.token == nil {
		return nil
	}
	token, err := s.token()
	if err != nil {
		return fmt.Errorf("the token for it: %w", err)
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	return nil
}

// TokenFile returns the token in a file, which is renewed: a SinkBinding mounts it where the sink wants one. Without the
// file nothing is asked for; one that cannot be read is worth another try.
func TokenFile(path string) func() (string, error) {
	return func() (string, error) {
		token, err := os.ReadFile(path) //nolint:gosec // named by whoever runs the service
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
		if err != nil {
			return "", fmt.Errorf("read it: %w", err)
		}
		return strings.TrimSpace(string(token)), nil
	}
}

// final reports whether an answer is for good, by the rules of a Knative broker: it tries again after 404, 408, 409,
// 429 and every 5xx.
func final(status int) bool {
	switch status {
	case http.StatusNotFound, http.StatusRequestTimeout, http.StatusConflict, http.StatusTooManyRequests:
		return false
	}
	return status < 500
}
