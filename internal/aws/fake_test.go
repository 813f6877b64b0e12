package aws_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/stretchr/testify/require"
)

// fakeAWS answers each request with the next of its answers, the last one again and again, and remembers the requests.
// It is for what the emulator cannot be made to say; all else is tested against that.
type fakeAWS struct {
	mu       sync.Mutex
	answers  []answer
	requests []request
}

type request struct {
	Method, Path string
	Form         url.Values
	Body         string
}

type answer func(w http.ResponseWriter)

func newFake(t *testing.T, answers ...answer) (*fakeAWS, awssdk.Config) {
	fake := &fakeAWS{answers: answers}
	server := httptest.NewServer(fake)
	t.Cleanup(server.Close)
	return fake, awssdk.Config{
		Region: "us-east-1", BaseEndpoint: &server.URL,
		Credentials: credentials.NewStaticCredentialsProvider("AKIA", "secret", ""),
		Retryer: func() awssdk.Retryer {
			return retry.NewStandard(func(o *retry.StandardOptions) { o.MaxBackoff = time.Millisecond })
		},
	}
}

func (f *fakeAWS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	_ = r.ParseForm()
	f.mu.Lock()
	f.requests = append(f.requests, request{r.Method, r.URL.EscapedPath(), r.Form, string(body)})
	next := f.answers[min(len(f.requests), len(f.answers))-1]
	f.mu.Unlock()
	next(w)
}

func (f *fakeAWS) seen() []request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.requests
}

func xmlAnswer(body string) answer {
	return func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "text/xml")
		_, _ = fmt.Fprint(w, `<?xml version="1.0"?>`+body)
	}
}

// ec2Error is an error in EC2's form, queryError in that of Route 53 and the load balancer, s3Error in S3's,
// jsonError in Lambda's.
func ec2Error(status int, code string) answer {
	return func(w http.ResponseWriter) {
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `<Response><Errors><Error><Code>%s</Code><Message>no</Message></Error></Errors></Response>`, code)
	}
}

func queryError(status int, code string) answer {
	return func(w http.ResponseWriter) {
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `<ErrorResponse><Error><Code>%s</Code><Message>no</Message></Error></ErrorResponse>`, code)
	}
}

func s3Error(status int, code string) answer {
	return func(w http.ResponseWriter) {
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `<Error><Code>%s</Code><Message>no</Message></Error>`, code)
	}
}

func jsonError(status int, code string) answer {
	return func(w http.ResponseWriter) {
		w.Header().Set("X-Amzn-ErrorType", code)
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `{"message":"no"}`)
	}
}

// lost takes the request and closes the connection.
func lost(w http.ResponseWriter) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		_ = conn.Close()
	}
}

// calls says how many requests of the action came.
func (f *fakeAWS) calls(t *testing.T, want int) {
	t.Helper()
	require.Len(t, f.seen(), want)
}
