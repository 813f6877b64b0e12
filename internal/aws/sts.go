package aws

import (
	"context"
	"sync"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"gpudev.internal/reservation-expiry/internal/fault"
)

// STS knows whose credentials these are.
type STS struct {
	credentials awssdk.CredentialsProvider
	client      *sts.Client

	mu      sync.Mutex
	account string
}

// NewSTS returns a client that has not connected yet.
func NewSTS(cfg awssdk.Config) *STS {
	return &STS{credentials: cfg.Credentials, client: sts.NewFromConfig(bounded(cfg))}
}

// Account returns the number of the account that owns what this service makes. It is asked for once per process;
// credentials of a service account's role carry it already. A failure is not remembered.
func (s *STS) Account(ctx context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.account != "" {
		return s.account, nil
	}
	if c, err := s.credentials.Retrieve(ctx); err == nil && c.AccountID != "" {
		s.account = c.AccountID
		return s.account, nil
	}
	out, err := s.client.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		return "", failed(err, "ask for the own account")
	}
	if s.account = awssdk.ToString(out.Account); s.account == "" {
		return "", fault.Errorf(fault.Transient, "ask for the own account: none in the answer")
	}
	return s.account, nil
}
