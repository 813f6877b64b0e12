package instrument_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/codes"

	"gpudev.internal/reservation-expiry/internal/instrument"
)

func TestWhatIsNotThereIsNoErrorAndARefusalIs(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status int
		code   string
		want   codes.Code
	}{
		"gone":    {http.StatusNotFound, "InvalidVolume.NotFound", codes.Ok},
		"refused": {http.StatusForbidden, "UnauthorizedOperation", codes.Error},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(c.status)
				_, _ = w.Write([]byte(`<Response><Errors><Error><Code>` + c.code + `</Code></Error></Errors></Response>`))
			}))
			t.Cleanup(server.Close)
			transport := &http.Transport{}
			t.Cleanup(transport.CloseIdleConnections)
			tel, spans := setup(t)
			client := http.Client{Transport: instrument.Kubernetes(tel)(transport)}
			cloud := ec2.NewFromConfig(instrument.AWS(tel, aws.Config{
				Region: "us-east-2", BaseEndpoint: aws.String(server.URL), HTTPClient: &http.Client{Transport: transport},
				Credentials: credentials.NewStaticCredentialsProvider("id", "secret", ""),
			}))
			calls := within(t, tel, spans, func(ctx context.Context) {
				get(ctx, t, &client, server.URL+"/api/v1/namespaces/gpu-dev/pods/gpu-dev-1")
				_, err := cloud.DescribeVolumes(ctx, nil)
				require.Error(t, err)
			})
			require.Len(t, calls, 2)
			for _, call := range calls {
				require.Equal(t, c.want, call.Status.Code, call.Name)
			}
		})
	}
}
