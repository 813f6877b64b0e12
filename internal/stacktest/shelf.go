package stacktest

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
)

// Shelf lends the databases of one test to its subtests, one after the other: making one takes longer than most of what
// is done in it.
type Shelf struct {
	t    testing.TB
	lock sync.Mutex
	free []string
}

// NewShelf returns an empty shelf. Its databases are dropped when the test ends.
func NewShelf(t testing.TB) *Shelf { return &Shelf{t: t} }

// Database is like the function of this name. A subtest's comes back, emptied, unless the subtest fails.
func (s *Shelf) Database(t testing.TB) string {
	t.Helper()
	if t == s.t {
		return Database(t)
	}
	s.lock.Lock()
	defer s.lock.Unlock()
	var url string
	if last := len(s.free) - 1; last >= 0 {
		url, s.free = s.free[last], s.free[:last]
	} else {
		url = Database(s.t)
	}
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		if err := empty(context.WithoutCancel(t.Context()), url); err != nil {
			t.Errorf("empty the database: %v", err)
			return
		}
		s.lock.Lock()
		defer s.lock.Unlock()
		s.free = append(s.free, url)
	})
	return url
}

// empty makes a database as it was when it was made: nothing in it but its version and the sweeps' lease.
func empty(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, `
		do $$
		declare t text;
		begin
		    for t in select format('%I.%I', schemaname, tablename) from pg_tables
		             where schemaname in ('public', 'expiry')
		               and tablename not in ('sweep_lease', 'migration_lock') and tablename not like '%version'
		    loop
		        execute 'delete from ' || t;
		    end loop;
		    update expiry.sweep_lease set token = null, holder = null, expires_at = '-infinity';
		end $$`)
	return errors.Join(err, conn.Close(ctx))
}
