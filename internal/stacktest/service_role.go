package stacktest

import (
	"net/url"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/postgres"
)

// serviceRole is what the service logs in as where it has only what `migrate --print-grants` gives it.
const serviceRole = "reservation_expiry_service"

var serviceRoleMade sync.Mutex

// AsService returns the address of a database that Database made, logged in to with the rights that the service has in
// production and no more. It goes past PgBouncer, which does not know this role.
func AsService(t testing.TB, database string) string {
	t.Helper()
	address := parse(t, database)
	password, _ := address.User.Password()
	makeServiceRole(t, password)
	require.NoError(t, postgres.Grant(t.Context(), database, serviceRole))
	address.User = url.UserPassword(serviceRole, password)
	return address.String()
}

func makeServiceRole(t testing.TB, password string) {
	t.Helper()
	serviceRoleMade.Lock()
	defer serviceRoleMade.Unlock()
	super, err := pgx.Connect(t.Context(), Env(t, "STACK_POSTGRES_URL"))
	require.NoError(t, err, notUp)
	defer func() { _ = super.Close(t.Context()) }()
	// Other test binaries may do it, too.
	_, err = super.Exec(t.Context(), `
		do $$ begin
		    if not exists (select from pg_roles where rolname = '`+serviceRole+`') then
		        create role `+serviceRole+` login password '`+password+`';
		    end if;
		exception when duplicate_object or unique_violation then null;
		end $$`)
	require.NoError(t, err)
}
