package aws

import (
	"context"
	"sync"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
)

// STS knows whose credentials these are.
type STS struct {
	client *sts.Client
	region string

	mu      sync.Mutex
	account string
}

// NewSTS returns a client that has not connected yet.
func NewSTS(cfg awssdk.Config) *STS {
	return &STS{client: sts.NewFromConfig(bounded(cfg)), region: cfg.Region}
}

// Account returns the account that owns what this service makes, and the region that it works in. AWS is asked once per
// process, whatever the credentials say of themselves: it is to be seen who answers. A failure is not remembered.
func (s *STS) Account(ctx context.Context) (disk.Account, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.account == "" {
		out, err := s.client.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
		if err != nil {
			return disk.Account{}, failed(err, "ask for the own account")
		}
		if s.account = awssdk.ToString(out.Account); s.account == "" {
			return disk.Account{}, fault.Errorf(fault.Transient, "ask for the own account: none in the answer")
		}
	}
	return disk.Account{ID: s.account, Region: s.region}, nil
}
