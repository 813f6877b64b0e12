package reservation

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var now = time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) Instant { return At(now.Add(-d)) }
func in(d time.Duration) Instant  { return At(now.Add(d)) }

// running is a reservation with nothing wrong: launched two hours ago, one hour to go.
func running() Reservation {
	return Reservation{
		ID: "0b9d3c1e-8a51-4d6f-9f43-0f4dfe2b7a10", UserID: "ada", Status: Active,
		CreatedAt: ago(3 * time.Hour), LaunchedAt: ago(2 * time.Hour), UpdatedAt: ago(time.Minute), ExpiresAt: in(time.Hour),
	}
}

func TestEveryStatusIsLiveOrEndedAndUnknownOnesAreNeither(t *testing.T) {
	t.Parallel()
	for _, s := range []Status{Pending, Queued, Preparing, Active} {
		require.True(t, s.Live(), s)
		require.False(t, s.Ended(), s)
	}
	for _, s := range []Status{Expired, Cancelled, Failed} {
		require.False(t, s.Live(), s)
		require.True(t, s.Ended(), s)
	}
	for _, s := range []Status{"", "ACTIVE", "terminated"} {
		require.False(t, s.Live(), s)
		require.False(t, s.Ended(), s)
	}
}

func TestDiskIsKnownByNameOrVolume(t *testing.T) {
	t.Parallel()
	require.False(t, Reservation{}.HasDisk())
	require.True(t, Reservation{DiskName: "data"}.HasDisk())
	require.True(t, Reservation{EBSVolumeID: "vol-1"}.HasDisk())
}

func TestDNSNameIsAlwaysBelowTheZone(t *testing.T) {
	t.Parallel()
	const zone = "dev.example.org"
	for name, tc := range map[string]struct {
		fqdn, domain, zone, want string
	}{
		"fqdn":                         {"a.dev.example.org", "b", zone, "a.dev.example.org"},
		"fqdn with dot and capitals":   {" A.Dev.Example.Org. ", "", zone, "a.dev.example.org"},
		"label":                        {"", "grumpy_bear", zone, "grumpy_bear.dev.example.org"},
		"label already qualified":      {"", "a.dev.example.org", zone, "a.dev.example.org"},
		"zone written with dot":        {"", "a", "Dev.Example.org.", "a.dev.example.org"},
		"two labels":                   {"", "a.b", zone, "a.b.dev.example.org"},
		"longest label":                {"", strings.Repeat("a", 63), zone, strings.Repeat("a", 63) + ".dev.example.org"},
		"no zone":                      {"a.dev.example.org", "a", "", ""},
		"neither":                      {"", "", zone, ""},
		"the zone itself":              {zone, "", zone, ""},
		"the zone itself as label":     {"", zone, zone, ""},
		"another zone":                 {"a.example.com", "", zone, ""},
		"another zone that ends alike": {"a.evildev.example.org", "", zone, ""},
		"wildcard":                     {"*.dev.example.org", "", zone, ""},
		"empty label":                  {"a..dev.example.org", "", zone, ""},
		"label too long":               {"", strings.Repeat("a", 64), zone, ""},
		"longest name":                 {"", strings.Repeat("a.", 118) + "a", zone, strings.Repeat("a.", 118) + "a." + zone},
		"a letter longer":              {"", strings.Repeat("a.", 118) + "aa", zone, ""},
		"name too long":                {"", strings.Repeat("a.", 150) + "a", zone, ""},
		"hyphen first":                 {"", "-a", zone, ""},
		"unicode":                      {"", "bär", zone, ""},
		"space":                        {"", "a b", zone, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, ok := Reservation{FQDN: tc.fqdn, DomainName: tc.domain}.DNSName(tc.zone)
			require.Equal(t, tc.want, got)
			require.Equal(t, tc.want != "", ok)
		})
	}
}

func FuzzDNSName(f *testing.F) {
	f.Fuzz(func(t *testing.T, fqdn, domain, zone string) {
		name, ok := Reservation{FQDN: fqdn, DomainName: domain}.DNSName(zone)
		if !ok {
			require.Empty(t, name)
			return
		}
		require.LessOrEqual(t, len(name), 253)
		require.NotContains(t, name, "*")
		require.NotContains(t, name, "..")
		require.Equal(t, strings.ToLower(name), name)
		require.Greater(t, len(name), len(canonicalHost(zone))+1)
		again, ok := Reservation{FQDN: name}.DNSName(zone)
		require.True(t, ok)
		require.Equal(t, name, again)
	})
}
