package instrument_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"gpudev.internal/reservation-expiry/internal/instrument"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func setup(t *testing.T) (*telemetry.Telemetry, *tracetest.InMemoryExporter) {
	t.Helper()
	spans := tracetest.NewInMemoryExporter()
	tel, err := telemetry.Setup(t.Context(), telemetry.Options{Getenv: func(string) string { return "" }, Spans: spans})
	require.NoError(t, err)
	return tel, spans
}

// within runs work inside an action and returns the spans that it made, the action's own left out.
func within(t *testing.T, tel *telemetry.Telemetry, spans *tracetest.InMemoryExporter, work func(context.Context)) tracetest.SpanStubs {
	t.Helper()
	ctx, action := tel.StartAction(t.Context(), "action", telemetry.Reservation{ID: "r"})
	work(ctx)
	action.End("done", nil)
	require.NoError(t, tel.Flush(t.Context()))
	var calls tracetest.SpanStubs
	for _, s := range spans.GetSpans() {
		if s.Name != "action" {
			require.Equal(t, telemetry.TraceID("r"), s.SpanContext.TraceID())
			require.Equal(t, trace.SpanKindClient, s.SpanKind)
			calls = append(calls, s)
		}
	}
	return calls
}

func attributes(s tracetest.SpanStub) map[string]string {
	m := map[string]string{}
	for _, a := range s.Attributes {
		m[string(a.Key)] = a.Value.String()
	}
	return m
}

func TestKubernetesCallsAreNamedForVerbAndResource(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(server.Close)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	for path, want := range map[string]string{
		"/api/v1/namespaces/gpu-dev/pods/gpu-dev-1":             "GET pods",
		"/api/v1/namespaces/gpu-dev/pods":                       "GET pods",
		"/api/v1/namespaces/gpu-dev/pods/gpu-dev-1/log":         "GET pods/log",
		"/api/v1/namespaces/kube-system":                        "GET namespaces",
		"/api/v1/persistentvolumes/pv-1":                        "GET persistentvolumes",
		"/apis/apps/v1/namespaces/gpu-dev/deployments/x/status": "GET deployments/status",
		"/version": "GET",
		"/":        "GET",
		"/api/v1":  "GET",
	} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			tel, spans := setup(t)
			client := http.Client{Transport: instrument.Kubernetes(tel)(transport)}
			calls := within(t, tel, spans, func(ctx context.Context) { get(ctx, t, &client, server.URL+path) })
			require.Len(t, calls, 1)
			require.Equal(t, want, calls[0].Name)
			require.Equal(t, "200", attributes(calls[0])["http.response.status_code"])
		})
	}
}

func TestAnExecAndTheCommandInItsAddressMakeNoSpan(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(server.Close)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	tel, spans := setup(t)
	client := http.Client{Transport: instrument.Kubernetes(tel)(transport)}
	require.Empty(t, within(t, tel, spans, func(ctx context.Context) {
		get(ctx, t, &client, server.URL+"/api/v1/namespaces/gpu-dev/pods/gpu-dev-1/exec?command=sh&command=-c")
	}))
}

func get(ctx context.Context, t *testing.T, client *http.Client, url string) {
	t.Helper()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	require.NoError(t, err)
	response, err := client.Do(request)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
}

func TestSentEventsCarryTheTraceAndStrayCallsMakeNoSpan(t *testing.T) {
	t.Parallel()
	var parents []string
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		parents = append(parents, r.Header.Get("traceparent"))
	}))
	t.Cleanup(server.Close)
	tel, spans := setup(t)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	client := http.Client{Transport: instrument.HTTP(tel, transport)}

	get(t.Context(), t, &client, server.URL) // a probe: nobody's work
	calls := within(t, tel, spans, func(ctx context.Context) { get(ctx, t, &client, server.URL) })
	require.Len(t, calls, 1)
	require.Len(t, parents, 2)
	require.Empty(t, parents[0])
	require.Contains(t, parents[1], calls[0].SpanContext.SpanID().String())
}

func TestAWSCallsAreNamedAndSendNoTraceIDs(t *testing.T) {
	t.Parallel()
	var sent http.Header
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sent = r.Header.Clone()
		w.Header().Set("X-Amzn-Requestid", "q-1")
		_, _ = w.Write([]byte(`<DescribeVolumesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><volumeSet/></DescribeVolumesResponse>`))
	}))
	t.Cleanup(server.Close)
	tel, spans := setup(t)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	plain := aws.Config{
		Region: "us-east-2", BaseEndpoint: aws.String(server.URL), HTTPClient: &http.Client{Transport: transport},
		Credentials: credentials.NewStaticCredentialsProvider("id", "secret", ""),
	}
	client := ec2.NewFromConfig(instrument.AWS(tel, plain))
	require.Empty(t, plain.APIOptions, "the caller's own config stays as it was")

	_, err := client.DescribeVolumes(t.Context(), nil) // below no span
	require.NoError(t, err)
	asked := telemetry.WithTraceParent(t.Context(), "00-000102030405060708090a0b0c0d0e0f-0102030405060708-01")
	_, err = client.DescribeVolumes(asked, nil) // below one of another process, which may never be exported
	require.NoError(t, err)
	calls := within(t, tel, spans, func(ctx context.Context) {
		_, err := client.DescribeVolumes(ctx, nil)
		require.NoError(t, err)
	})
	require.Len(t, calls, 1)
	require.Equal(t, "EC2.DescribeVolumes", calls[0].Name)
	a := attributes(calls[0])
	require.Equal(t, "EC2/DescribeVolumes", a["rpc.method"])
	require.Equal(t, "aws-api", a["rpc.system.name"])
	require.Equal(t, "q-1", a["aws.request_id"])
	require.Empty(t, sent.Get("traceparent"))
}

func TestStatementsAreRecordedWithoutTheirParameters(t *testing.T) {
	t.Parallel()
	tel, spans := setup(t)
	tracer := instrument.Postgres(tel, "db.internal", 6432, "platform")
	calls := within(t, tel, spans, func(ctx context.Context) {
		for _, frame := range []string{"begin", "commit", "rollback"} {
			tracer.TraceQueryEnd(tracer.TraceQueryStart(ctx, nil, pgx.TraceQueryStartData{SQL: frame}), nil, pgx.TraceQueryEndData{})
		}
		require.True(t, trace.SpanFromContext(ctx).IsRecording(), "the action goes on")
		ctx = tracer.TraceQueryStart(ctx, nil, pgx.TraceQueryStartData{SQL: "select status from reservations where user_id = $1", Args: []any{"ada"}})
		tracer.TraceQueryEnd(ctx, nil, pgx.TraceQueryEndData{})
	})
	require.Len(t, calls, 1)
	require.Equal(t, "SELECT", strings.ToUpper(calls[0].Name))
	a := attributes(calls[0])
	require.Equal(t, "postgresql", a["db.system.name"])
	require.Equal(t, "platform", a["db.namespace"])
	require.Equal(t, "db.internal", a["server.address"])
	require.Equal(t, "6432", a["server.port"])
	require.Contains(t, a["db.query.text"], "$1")
	for _, value := range a {
		require.NotContains(t, value, "ada")
	}
}
