package simulation

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/availability"
	"gpudev.internal/reservation-expiry/internal/cleanup"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/home"
	"gpudev.internal/reservation-expiry/internal/simulation/model"
)

// networkAPI is all that the services ask of Route 53, the load balancer, S3, Lambda and STS.
type networkAPI interface {
	cleanup.DNS
	cleanup.Router
	cleanup.Bucket
	availability.Invoker
	home.Identity
}

// networkSide is one of the two, with somebody who makes things in it. Its zone is model.Zone.
type networkSide interface {
	api() networkAPI
	// astray is where the settings name a zone, a bucket and a function that are not there.
	astray() networkAPI
	// publish makes a host's A record, or gives it another address, and makes the TXT record of its port.
	publish(host string)
	unpublish(host string)
	records() []string
	// between has something happen after the next look at records, and before their deletion.
	between(do func())
	makeRule(name string) (rule, group string)
	objects() map[string]string
	invoked() int
	// troubles are the ways in which every call fails from then on, until all is well again.
	troubles() []trouble
	well()
	eventually(condition func() bool)
}

type trouble struct {
	kind  fault.Kind // of each error
	begin func()
}

// networkContract is one case per behaviour that the services rely on, each in a network of its own.
var networkContract = []struct {
	name string
	hold func(ctx context.Context, t *testing.T, s networkSide)
}{
	{"records of a server go, and those of others stay", func(ctx context.Context, t *testing.T, s networkSide) {
		for _, host := range []string{"dev", "dev2", "x.dev", "grumpy_bear"} {
			s.publish(host + "." + model.Zone)
		}
		deleted, err := s.api().DeleteRecords(ctx, "dev."+model.Zone)
		require.NoError(t, err)
		require.Equal(t, []string{"A dev." + model.Zone, "TXT _port.dev." + model.Zone}, deleted)
		deleted, err = s.api().DeleteRecords(ctx, "Grumpy_Bear."+model.Zone+".")
		require.NoError(t, err)
		require.Equal(t, []string{"A grumpy_bear." + model.Zone, "TXT _port.grumpy_bear." + model.Zone}, deleted)
		require.ElementsMatch(t, []string{
			"A dev2." + model.Zone, "TXT _port.dev2." + model.Zone, "A x.dev." + model.Zone, "TXT _port.x.dev." + model.Zone,
		}, s.records())
	}},
	{"records that are not there are no failure", func(ctx context.Context, t *testing.T, s networkSide) {
		s.publish("dev2." + model.Zone)
		deleted, err := s.api().DeleteRecords(ctx, "dev."+model.Zone)
		require.NoError(t, err)
		require.Empty(t, deleted)
		require.Len(t, s.records(), 2)
	}},
	{"records changed meanwhile are a conflict, and stay", func(ctx context.Context, t *testing.T, s networkSide) {
		host := "dev." + model.Zone
		s.publish(host)
		for _, change := range []func(string){s.publish, s.unpublish} {
			s.between(func() { change(host) })
			deleted, err := s.api().DeleteRecords(ctx, host)
			requireKind(t, fault.Conflict, err)
			require.Empty(t, deleted)
			left := s.records()
			deleted, err = s.api().DeleteRecords(ctx, host) // as they are now
			require.NoError(t, err)
			require.Len(t, deleted, len(left))
			require.Empty(t, s.records())
			s.publish(host)
		}
	}},
	{"names outside of the zone are refused", func(ctx context.Context, t *testing.T, s networkSide) {
		s.publish("dev." + model.Zone)
		for _, name := range []string{"", model.Zone, "." + model.Zone, "*." + model.Zone, "dev.example.org", "dev" + model.Zone, "a b." + model.Zone} {
			_, err := s.api().DeleteRecords(ctx, name)
			requireKind(t, fault.Permanent, err)
		}
		require.Len(t, s.records(), 2)
	}},
	{"a rule goes, and then its target group", func(ctx context.Context, t *testing.T, s networkSide) {
		rule, group := s.makeRule("dev")
		otherRule, otherGroup := s.makeRule("other")
		requireKind(t, fault.Conflict, s.api().DeleteTargetGroup(ctx, group))
		require.NoError(t, s.api().DeleteRule(ctx, rule))
		requireKind(t, fault.Gone, s.api().DeleteRule(ctx, rule))
		s.eventually(func() bool {
			err := s.api().DeleteTargetGroup(ctx, group)
			if err != nil {
				requireKind(t, fault.Conflict, err)
			}
			return err == nil
		})
		requireAbsent(t, s.api().DeleteTargetGroup(ctx, group))
		requireKind(t, fault.Conflict, s.api().DeleteTargetGroup(ctx, otherGroup))
		require.NoError(t, s.api().DeleteRule(ctx, otherRule))
	}},
	{"an object is what was put last", func(ctx context.Context, t *testing.T, s networkSide) {
		for _, text := range []string{"first", "", "1.2G\t/home/dev\nü\n"} {
			url, err := s.api().PutListing(ctx, "ada/work/r-1.txt", []byte(text))
			require.NoError(t, err)
			require.Regexp(t, `^s3://[^/]+/ada/work/r-1\.txt$`, url)
			require.Equal(t, map[string]string{"ada/work/r-1.txt": text}, s.objects())
		}
		_, err := s.api().PutListing(ctx, "ada/work/r-2.txt", []byte("second"))
		require.NoError(t, err)
		require.Len(t, s.objects(), 2)
	}},
	{"a function is invoked as often as it is asked to", func(ctx context.Context, t *testing.T, s networkSide) {
		for n := range 3 {
			require.Equal(t, n, s.invoked())
			require.NoError(t, s.api().Invoke(ctx, []byte(`{"source":"reservation-expiry"}`)))
		}
		require.Equal(t, 3, s.invoked())
	}},
	{"settings that lead nowhere are no sign that anything has gone", func(ctx context.Context, t *testing.T, s networkSide) {
		astray := s.astray()
		_, err := astray.DeleteRecords(ctx, "dev."+model.Zone)
		requireKind(t, fault.Permanent, err)
		_, err = astray.PutListing(ctx, "ada/work/r-1.txt", nil)
		requireKind(t, fault.Permanent, err)
		requireKind(t, fault.Permanent, astray.Invoke(ctx, nil))
		require.Zero(t, s.invoked())
	}},
	{"the account is always the same", func(ctx context.Context, t *testing.T, s networkSide) {
		first, err := s.api().Account(ctx)
		require.NoError(t, err)
		require.Regexp(t, `^\d{12}$`, first.ID)
		require.NotEmpty(t, first.Region)
		second, err := s.api().Account(ctx)
		require.NoError(t, err)
		require.Equal(t, first, second)
	}},
	// A call that fails may have taken effect or not, and says neither; asked again, each comes to the same end.
	{"a failure tells nothing, and asking again makes it good", func(ctx context.Context, t *testing.T, s networkSide) {
		before, err := s.api().Account(ctx)
		require.NoError(t, err)
		for n, trouble := range s.troubles() {
			rule, group := s.makeRule("dev" + string(rune('a'+n)))
			_, otherGroup := s.makeRule("other" + string(rune('a'+n)))
			s.publish("dev." + model.Zone)
			trouble.begin()
			_, err := s.api().DeleteRecords(ctx, "dev."+model.Zone)
			requireKind(t, trouble.kind, err)
			requireKind(t, trouble.kind, s.api().DeleteRule(ctx, rule))
			requireKind(t, trouble.kind, s.api().DeleteTargetGroup(ctx, otherGroup))
			_, err = s.api().PutListing(ctx, "k", []byte("text"))
			requireKind(t, trouble.kind, err)
			requireKind(t, trouble.kind, s.api().Invoke(ctx, nil))
			_, err = s.api().Account(ctx)
			requireKind(t, trouble.kind, err)

			s.well()
			_, err = s.api().DeleteRecords(ctx, "dev."+model.Zone)
			require.NoError(t, err)
			require.Empty(t, s.records())
			requireAbsent(t, s.api().DeleteRule(ctx, rule))
			s.eventually(func() bool { return !fault.Is(s.api().DeleteTargetGroup(ctx, group), fault.Conflict) })
			requireAbsent(t, s.api().DeleteTargetGroup(ctx, group))
			requireKind(t, fault.Conflict, s.api().DeleteTargetGroup(ctx, otherGroup))
			_, err = s.api().PutListing(ctx, "k", []byte("text"))
			require.NoError(t, err)
			require.Equal(t, map[string]string{"k": "text"}, s.objects())
			invoked := s.invoked()
			require.NoError(t, s.api().Invoke(ctx, nil))
			require.Equal(t, invoked+1, s.invoked())
			account, err := s.api().Account(ctx)
			require.NoError(t, err)
			require.Equal(t, before, account)
		}
	}},
}

func requireKind(t *testing.T, want fault.Kind, err error) {
	t.Helper()
	require.Error(t, err)
	require.Equal(t, want, fault.KindOf(err), err)
}

// requireAbsent is content with both ways to say that a thing was not there.
func requireAbsent(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		requireKind(t, fault.Gone, err)
	}
}

func TestContractOfTheRestOfAWS(t *testing.T) {
	t.Parallel()
	for _, c := range networkContract {
		for name, side := range map[string]func(t *testing.T) networkSide{"the model": newModelNetwork, "the emulator": newRealNetwork} {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				t.Parallel()
				ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), processKey{}, &process{name: "contract"}), time.Minute)
				defer cancel()
				c.hold(ctx, t, side(t))
			})
		}
	}
}
