package stacktest

import (
	"net/url"
	"testing"
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
	return parse(t, Env(t, "STACK_SERVICE_URL"))
}
