package stacktest

import (
	"net/url"
	"testing"

	"github.com/jackc/pgx/v5"
)

// AsService returns the address by which the service comes to a database that Database made: through PgBouncer in
// transaction mode, with the rights that `migrate --print-grants` gives and no more.
func AsService(t testing.TB, database string) string {
	t.Helper()
	address := serviceURL(t)
	address.Path = parse(t, database).Path
	return address.String()
}

// ServiceRole is what it logs in as.
func ServiceRole(t testing.TB) string {
	t.Helper()
	return serviceURL(t).User.Username()
}

func serviceURL(t testing.TB) *url.URL {
	t.Helper()
	exports, err := readExports()
	if err == nil && exports["STACK_SERVICE_URL"] == "" { // a stack that was started before it had this role
		direct := parse(t, Env(t, "STACK_POSTGRES_URL"))
		if super, err := pgx.Connect(t.Context(), direct.String()); err == nil {
			_, _ = super.Exec(t.Context(), "create role reservation_expiry_service login password '"+Env(t, "POSTGRES_PASSWORD")+"'")
			_, _ = super.Exec(t.Context(), "grant pg_read_all_stats to reservation_expiry")
			_ = super.Close(t.Context())
		}
		direct.User = url.UserPassword("reservation_expiry_service", Env(t, "POSTGRES_PASSWORD"))
		return direct
	}
	return parse(t, Env(t, "STACK_SERVICE_URL"))
}
