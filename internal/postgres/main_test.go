package postgres_test

import (
	"flag"
	"os"
	"testing"
)

// TestMain has properties drawn less often than by default: each draw takes a real database a good part of a second.
func TestMain(m *testing.M) {
	if err := flag.Set("rapid.checks", "40"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}
