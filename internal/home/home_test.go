package home_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/home"
)

var (
	ours      = disk.Account{ID: "111122223333", Region: "us-east-1"}
	theirs    = disk.Account{ID: "999988887777", Region: "us-east-1"}
	elsewhere = disk.Account{ID: "111122223333", Region: "eu-west-1"}
	errBroken = errors.New("broken")
)

// store remembers a cluster and an account, of which first, if set, is recorded before ours can be.
type store struct {
	cluster               string
	account, first        disk.Account
	failCluster           error
	failKnown, failRecord error
	records               int
}

func (s *store) KnownCluster(context.Context) (string, error)       { return s.cluster, s.failCluster }
func (s *store) KnownAccount(context.Context) (disk.Account, error) { return s.account, s.failKnown }
func (s *store) RecordAccount(_ context.Context, a disk.Account) error {
	s.records++
	if s.failRecord == nil {
		s.account = a
		if s.first != (disk.Account{}) {
			s.account = s.first
		}
	}
	return s.failRecord
}

// answers is a cluster and an AWS that say who they are, or fail.
type answers struct {
	cluster string
	account disk.Account
	err     error
}

func (a answers) ClusterUID(context.Context) (string, error)    { return a.cluster, a.err }
func (a answers) Account(context.Context) (disk.Account, error) { return a.account, a.err }

func TestOnlyTheClusterInWhichTheReservationsLiveIsBelieved(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		store   store
		answers answers
		says    string // nothing: it is believed
	}{
		"the one that is known":     {store{cluster: "c1"}, answers{cluster: "c1"}, ""},
		"another one":               {store{cluster: "c1"}, answers{cluster: "c2"}, "another cluster answers (c2, not c1)"},
		"any, before one is known":  {store{}, answers{cluster: "c1"}, "no sweep has recorded yet"},
		"one that does not say":     {store{cluster: "c1"}, answers{cluster: "c1", err: errBroken}, "tell which cluster answers: broken"},
		"the database does not say": {store{cluster: "c1", failCluster: errBroken}, answers{cluster: "c1"}, "broken"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := home.Guard{Store: &c.store, Cluster: c.answers}.SameCluster(t.Context())
			if c.says == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.says)
			require.False(t, fault.Is(err, fault.Permanent), "it may be put right")
		})
	}
}

func TestOnlyTheAccountAndRegionInWhichTheDisksLiveAreBelieved(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		store   store
		answers answers
		says    string // nothing: it is believed
		records int
	}{
		"those that are known":              {store{account: ours}, answers{account: ours}, "", 0},
		"the first, and they are recorded":  {store{}, answers{account: ours}, "", 1},
		"not where another was faster":      {store{first: theirs}, answers{account: ours}, "another AWS account answers", 1},
		"another account":                   {store{account: ours}, answers{account: theirs}, "another AWS account answers", 0},
		"another region":                    {store{account: ours}, answers{account: elsewhere}, "(111122223333 in eu-west-1, not 111122223333 in us-east-1)", 0},
		"AWS does not say":                  {store{account: ours}, answers{account: ours, err: errBroken}, "tell which AWS account answers: broken", 0},
		"the database does not say":         {store{failKnown: errBroken}, answers{account: ours}, "broken", 0},
		"the first, but not to be recorded": {store{failRecord: errBroken}, answers{account: ours}, "broken", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			guard := home.Guard{Store: &c.store, Identity: c.answers}
			gone := fault.Errorf(fault.Gone, "no such volume")
			id, err := guard.Account(t.Context())
			require.Equal(t, c.records, c.store.records)
			believed, asGone := guard.Gone(t.Context(), gone)
			require.Equal(t, c.says == "", believed, "what is gone")
			if c.says == "" {
				require.NoError(t, err)
				require.NoError(t, asGone)
				require.Equal(t, ours.ID, id)
				return
			}
			require.ErrorContains(t, err, c.says)
			require.ErrorContains(t, asGone, c.says)
			require.Empty(t, id)
		})
	}
}

func TestOfOtherErrorsNobodyIsAsked(t *testing.T) {
	t.Parallel()
	for _, err := range []error{nil, errBroken, fault.Errorf(fault.Transient, "throttled")} {
		gone, same := home.Guard{}.Gone(t.Context(), err)
		require.False(t, gone)
		require.Equal(t, err, same)
	}
}
