package aws

import (
	"context"
	"encoding/base64"
	"net/http"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/eks"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"golang.org/x/oauth2"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport"

	"gpudev.internal/reservation-expiry/internal/fault"
)

const (
	tokenPrefix = "k8s-aws-v1."
	// tokenLife ends before EKS stops believing a token, 15 minutes after it was signed.
	tokenLife = 13 * time.Minute
	// clusterHeader is signed into the token, which is then of use to this cluster only.
	clusterHeader = "x-k8s-aws-id"
)

// EKS opens the way to a cluster's Kubernetes API where neither a service account nor a kubeconfig does.
type EKS struct {
	clusters    *eks.Client
	presigner   *sts.PresignClient
	credentials awssdk.CredentialsProvider
	cluster     string
	now         func() time.Time
}

// NewEKS returns a client that has not connected yet.
func NewEKS(cfg awssdk.Config, cluster string, now func() time.Time) *EKS {
	cfg = bounded(cfg)
	return &EKS{
		clusters: eks.NewFromConfig(cfg), presigner: sts.NewPresignClient(sts.NewFromConfig(cfg)),
		credentials: cfg.Credentials, cluster: cluster, now: now,
	}
}

// RESTConfig asks EKS where the cluster is and returns the configuration for its API. Each request carries a token
// that is renewed before it ends, exec included. An unknown cluster is a permanent error.
func (e *EKS) RESTConfig(ctx context.Context) (*rest.Config, error) {
	out, err := e.clusters.DescribeCluster(ctx, &eks.DescribeClusterInput{Name: &e.cluster})
	if err != nil {
		return nil, failed(err, "describe cluster %s", e.cluster)
	}
	c := out.Cluster
	if c == nil || c.Endpoint == nil || c.CertificateAuthority == nil {
		return nil, fault.Errorf(fault.Transient, "describe cluster %s: no endpoint yet", e.cluster)
	}
	ca, err := base64.StdEncoding.DecodeString(awssdk.ToString(c.CertificateAuthority.Data))
	if err != nil {
		return nil, fault.Errorf(fault.Permanent, "describe cluster %s: certificate authority: %w", e.cluster, err)
	}
	return &rest.Config{
		Host:            *c.Endpoint,
		TLSClientConfig: rest.TLSClientConfig{CAData: ca},
		WrapTransport:   e.wrapTransport(),
	}, nil
}

func (e *EKS) wrapTransport() func(http.RoundTripper) http.RoundTripper {
	return transport.ResettableTokenSourceWrapTransport(transport.NewCachedTokenSource(e))
}

// Token signs a new token; it implements [oauth2.TokenSource]. It talks to nobody unless the credentials themselves
// must be fetched.
func (e *EKS) Token() (*oauth2.Token, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callBudget)
	defer cancel()
	issued := e.now()
	credentials, err := e.credentials.Retrieve(ctx)
	if err != nil {
		return nil, failed(err, "get credentials for cluster %s", e.cluster)
	}
	signed, err := e.presigner.PresignGetCallerIdentity(ctx, &sts.GetCallerIdentityInput{}, func(o *sts.PresignOptions) {
		o.ClientOptions = append(o.ClientOptions, sts.WithAPIOptions(
			smithyhttp.SetHeaderValue(clusterHeader, e.cluster),
			smithyhttp.SetHeaderValue("X-Amz-Expires", "60"),
		))
	})
	if err != nil {
		return nil, failed(err, "sign a token for cluster %s", e.cluster)
	}
	expiry := issued.Add(tokenLife)
	if credentials.CanExpire && credentials.Expires.Before(expiry) {
		expiry = credentials.Expires
	}
	return &oauth2.Token{
		AccessToken: tokenPrefix + base64.RawURLEncoding.EncodeToString([]byte(signed.URL)),
		TokenType:   "Bearer",
		Expiry:      expiry,
	}, nil
}
