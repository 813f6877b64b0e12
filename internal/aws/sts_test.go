package aws_test

import (
	"context"
	"testing"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/aws"
	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
)

func identity(account string) answer {
	return xmlAnswer(`<GetCallerIdentityResponse><GetCallerIdentityResult><Account>` + account + `</Account></GetCallerIdentityResult></GetCallerIdentityResponse>`)
}

func TestTheAccountIsAskedForOnceAndAFailureIsNotRemembered(t *testing.T) {
	t.Parallel()
	fake, cfg := newFake(t, queryError(403, "AccessDenied"), identity(""), identity("123456789012"))
	sts := aws.NewSTS(cfg)
	_, err := sts.Account(t.Context())
	require.True(t, fault.Is(err, fault.Permanent), err)
	_, err = sts.Account(t.Context())
	require.True(t, fault.Is(err, fault.Transient), err)
	for range 3 {
		account, err := sts.Account(t.Context())
		require.NoError(t, err)
		require.Equal(t, disk.Account{ID: "123456789012", Region: cfg.Region}, account)
	}
	fake.calls(t, 3)
}

func TestTheAccountIsThatOfWhoeverAnswersAndNotWhatTheCredentialsSay(t *testing.T) {
	t.Parallel()
	fake, cfg := newFake(t, identity("999999999999"))
	cfg.Credentials = awssdk.CredentialsProviderFunc(func(context.Context) (awssdk.Credentials, error) {
		return awssdk.Credentials{AccessKeyID: "AKIA", SecretAccessKey: "secret", AccountID: "123456789012"}, nil
	})
	account, err := aws.NewSTS(cfg).Account(t.Context())
	require.NoError(t, err)
	require.Equal(t, "999999999999", account.ID)
	fake.calls(t, 1)
}
