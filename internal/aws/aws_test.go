package aws_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/smithy-go/middleware"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/aws"
	"gpudev.internal/reservation-expiry/internal/fault"
)

// Not parallel: it sets the process's environment.
func TestNothingIsDialledBeforeTheFirstCall(t *testing.T) {
	var dialled atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		dialled.Add(1)
		w.WriteHeader(http.StatusForbidden)
	}))
	defer server.Close()
	for _, name := range []string{
		"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE",
		"AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CA_BUNDLE",
	} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "false")
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.URL)
	t.Setenv("AWS_ENDPOINT_URL", server.URL)

	cfg, err := aws.Load(t.Context(), "eu-west-1")
	require.NoError(t, err)
	require.Equal(t, "eu-west-1", cfg.Region)
	ec2 := aws.NewEC2(cfg)
	aws.NewSTS(cfg)
	aws.NewS3(cfg, "b")
	aws.NewRoute53(cfg, "Z", "example.com")
	aws.NewLoadBalancer(cfg)
	aws.NewLambda(cfg, "f")
	aws.NewEKS(cfg, "c", time.Now)
	require.Zero(t, dialled.Load())

	_, err = ec2.DescribeVolume(t.Context(), "vol-1")
	require.Error(t, err)
	require.NotZero(t, dialled.Load(), "the first call asks the instance for credentials")
	require.Equal(t, fault.Transient, fault.KindOf(err))
}

// Not parallel: it sets the process's environment.
func TestAConfigurationThatCannotBeReadIsSaidSo(t *testing.T) {
	t.Setenv("AWS_PROFILE", "no-such-profile")
	_, err := aws.Load(t.Context(), "eu-west-1")
	require.True(t, fault.Is(err, fault.Permanent))
	require.ErrorContains(t, err, "no-such-profile")
}

type clientFunc func(*http.Request) (*http.Response, error)

func (f clientFunc) Do(r *http.Request) (*http.Response, error) { return f(r) }

func TestEveryCallIsBoundedAndTheGivenMiddlewareSeesIt(t *testing.T) {
	t.Parallel()
	_, cfg := newFake(t, lost)
	var calls, hooked int
	cfg.HTTPClient = clientFunc(func(r *http.Request) (*http.Response, error) {
		calls++
		deadline, ok := r.Context().Deadline()
		require.True(t, ok, "%s has no deadline", r.URL)
		require.LessOrEqual(t, time.Until(deadline), 20*time.Second)
		return nil, errors.New("unreachable")
	})
	cfg.APIOptions = append(cfg.APIOptions, func(*middleware.Stack) error { hooked++; return nil })

	for name, call := range map[string]func() error{
		"ec2": func() error { return aws.NewEC2(cfg).DeleteVolume(t.Context(), "vol-1") },
		"s3":  func() error { _, err := aws.NewS3(cfg, "b").PutListing(t.Context(), "k", nil); return err },
		"route53": func() error {
			_, err := aws.NewRoute53(cfg, "Z", "a.b").DeleteRecords(t.Context(), "c.a.b")
			return err
		},
		"elb":    func() error { return aws.NewLoadBalancer(cfg).DeleteRule(t.Context(), "arn") },
		"lambda": func() error { return aws.NewLambda(cfg, "f").Invoke(t.Context(), nil) },
		"sts":    func() error { _, err := aws.NewSTS(cfg).Account(t.Context()); return err },
		"eks":    func() error { _, err := aws.NewEKS(cfg, "c", time.Now).RESTConfig(t.Context()); return err },
	} {
		calls, hooked = 0, 0
		err := call()
		require.ErrorContains(t, err, "unreachable", name)
		require.Equal(t, fault.Transient, fault.KindOf(err), name)
		require.NotZero(t, calls, name)
		require.Equal(t, 1, hooked, name)
	}
}

func TestErrorsOfTheOtherServicesAreClassifiedByTheirCode(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		answer answer
		kind   fault.Kind
		call   func(t *testing.T, answer answer) error
	}{
		{"rule gone", queryError(400, "RuleNotFound"), fault.Gone, deleteRule},
		{"rule of the listener itself", queryError(400, "OperationNotPermitted"), fault.Permanent, deleteRule},
		{"malformed arn", queryError(400, "ValidationError"), fault.Permanent, deleteRule},
		{"throttled", queryError(400, "Throttling"), fault.Transient, deleteRule},
		{"target group gone", queryError(400, "TargetGroupNotFound"), fault.Gone, deleteTargetGroup},
		{"target group in use", queryError(400, "ResourceInUse"), fault.Conflict, deleteTargetGroup},
		{"unknown function", jsonError(404, "ResourceNotFoundException"), fault.Permanent, invoke},
		{"forbidden function", jsonError(403, "AccessDeniedException"), fault.Permanent, invoke},
		{"function throttled", jsonError(429, "TooManyRequestsException"), fault.Transient, invoke},
		{"no bucket", s3Error(404, "NoSuchBucket"), fault.Permanent, putListing},
		{"slow down", s3Error(503, "SlowDown"), fault.Transient, putListing},
		{"no zone", queryError(404, "NoSuchHostedZone"), fault.Permanent, deleteRecords},
		{"zone busy", queryError(400, "PriorRequestNotComplete"), fault.Transient, deleteRecords},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			err := test.call(t, test.answer)
			require.Error(t, err)
			require.Equal(t, test.kind, fault.KindOf(err), err)
		})
	}
}

func deleteRule(t *testing.T, a answer) error {
	_, cfg := newFake(t, a)
	return aws.NewLoadBalancer(cfg).DeleteRule(t.Context(), "arn")
}

func deleteTargetGroup(t *testing.T, a answer) error {
	_, cfg := newFake(t, a)
	return aws.NewLoadBalancer(cfg).DeleteTargetGroup(t.Context(), "arn")
}

func invoke(t *testing.T, a answer) error {
	_, cfg := newFake(t, a)
	return aws.NewLambda(cfg, "f").Invoke(t.Context(), []byte("{}"))
}

func putListing(t *testing.T, a answer) error {
	_, cfg := newFake(t, a)
	_, err := aws.NewS3(cfg, "b").PutListing(t.Context(), "u/d/x", []byte("x"))
	return err
}

func deleteRecords(t *testing.T, a answer) error {
	_, cfg := newFake(t, a)
	_, err := aws.NewRoute53(cfg, "Z", "example.com").DeleteRecords(t.Context(), "x.example.com")
	return err
}

// What the SDK itself refuses to send will not be sent tomorrow either.
func TestWhatTheSDKRefusesIsPermanent(t *testing.T) {
	t.Parallel()
	_, cfg := newFake(t, lost)
	_, err := aws.NewRoute53(cfg, "", "example.com").DeleteRecords(t.Context(), "x.example.com")
	require.True(t, fault.Is(err, fault.Permanent), err)
}
