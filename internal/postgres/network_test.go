package postgres_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/postgres"
)

func exec(t *testing.T, db *postgres.DB, statement string, args ...any) {
	t.Helper()
	require.NoError(t, postgres.Exec(t.Context(), db, statement, args...))
}

func text(t *testing.T, db *postgres.DB, statement string, args ...any) string {
	t.Helper()
	s, err := postgres.Text(t.Context(), db, statement, args...)
	require.NoError(t, err)
	return s
}

func TestADomainIsRemovedOnlyWhileItIsTheReservations(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		meanwhile string // what another service has done since the domains were read
		ours      bool
		left      string // whose row is left
	}{
		"nothing happened":               {"select 1", true, ""},
		"the row is a newer one's":       {"update domain_mappings set reservation_id = 'new'", false, "new"},
		"the row is gone":                {"delete from domain_mappings", false, ""},
		"a live one has the domain":      {"update reservations set domain_name = 'BEAR' where reservation_id = 'new'", false, "old"},
		"a queued one wants the domain":  {"update reservations set domain_name = 'bear', status = 'queued' where reservation_id = 'new'", true, ""},
		"the reservation is live again":  {"update reservations set status = 'active' where reservation_id = 'old'", false, "old"},
		"the reservation's status is no": {"update reservations set status = null where reservation_id = 'old'", false, "old"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bothWays(t, func(t *testing.T, db *postgres.DB) {
				exec(t, db, "insert into reservations (reservation_id, status) values ('old', 'expired'), ('new', 'active')")
				exec(t, db, "insert into domain_mappings (domain_name, reservation_id) values ('bear', 'old')")
				domains, err := db.DomainsOf(t.Context(), "old")
				require.NoError(t, err)
				require.Equal(t, []string{"bear"}, domains)

				exec(t, db, c.meanwhile)
				called := false
				ours, err := db.RemoveDomain(t.Context(), "old", "bear", func(context.Context) error { called = true; return nil })
				require.NoError(t, err)
				require.Equal(t, c.ours, ours)
				require.Equal(t, c.ours, called)
				require.Equal(t, c.left, text(t, db, "select reservation_id from domain_mappings"))
			})
		})
	}
}

func TestADomainsRowStaysWhereItsRecordsCouldNotBeRemoved(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		exec(t, db, "insert into reservations (reservation_id, status) values ('old', 'expired')")
		exec(t, db, "insert into domain_mappings (domain_name, reservation_id) values ('bear', 'old')")
		throttled := errors.New("throttled")
		_, err := db.RemoveDomain(t.Context(), "old", "bear", func(context.Context) error { return throttled })
		require.ErrorIs(t, err, throttled)
		require.Equal(t, "old", text(t, db, "select reservation_id from domain_mappings"))
	})
}

func TestNobodyTakesADomainOverWhileItsRecordsAreRemoved(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		exec(t, db, "insert into reservations (reservation_id, status) values ('old', 'expired'), ('new', 'preparing')")
		exec(t, db, "insert into domain_mappings (domain_name, reservation_id) values ('bear', 'old')")
		taken := make(chan error, 1)
		_, err := db.RemoveDomain(t.Context(), "old", "bear", func(context.Context) error {
			go func() {
				taken <- postgres.Exec(context.WithoutCancel(t.Context()), db, `
					insert into domain_mappings (domain_name, reservation_id) values ('bear', 'new')
					on conflict (domain_name) do update set reservation_id = excluded.reservation_id`)
			}()
			require.Eventually(t, func() bool {
				return text(t, db, `select count(*)::text from pg_stat_activity
					where wait_event_type = 'Lock' and datname = current_database()`) == "1"
			}, 10*time.Second, 5*time.Millisecond, "the other service waits")
			require.Empty(t, taken)
			return nil
		})
		require.NoError(t, err)
		require.NoError(t, <-taken)
		require.Equal(t, "new", text(t, db, "select reservation_id from domain_mappings"))
	})
}

func TestTheLoadBalancersPartIsRemovedWhereNoOtherRowNamesIt(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		exec(t, db, "insert into reservations (reservation_id, status) values ('a', 'expired'), ('b', 'active'), ('c', 'failed')")
		exec(t, db, `insert into alb_target_groups (reservation_id, jupyter_rule_arn, jupyter_target_group_arn)
			values ('a', 'rule-a', 'shared'), ('b', 'rule-b', 'shared'), ('c', null, 'group-c')`)
		remove := func(id string) (lb postgres.LoadBalancer, found bool) {
			found, err := db.RemoveLoadBalancer(t.Context(), id, func(_ context.Context, l postgres.LoadBalancer) error { lb = l; return nil })
			require.NoError(t, err)
			return lb, found
		}
		lb, found := remove("a")
		require.True(t, found)
		require.Equal(t, postgres.LoadBalancer{RuleARN: "rule-a"}, lb, "the shared target group is not its own")
		_, found = remove("b")
		require.False(t, found, "it is live")
		lb, found = remove("c")
		require.True(t, found)
		require.Equal(t, postgres.LoadBalancer{TargetGroupARN: "group-c"}, lb)
		_, found = remove("c")
		require.False(t, found)
		require.Equal(t, "b", text(t, db, "select string_agg(reservation_id, ',') from alb_target_groups"))
	})
}
