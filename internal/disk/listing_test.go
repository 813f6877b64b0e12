package disk_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"gpudev.internal/reservation-expiry/internal/disk"
)

func TestAListingsKeyReadsLikeItsNames(t *testing.T) {
	t.Parallel()
	for want, in := range map[string][3]string{
		"ada@example.com/work_1/r-1.txt": {"ada@example.com", "work_1", "r-1.txt"},
		"_/_/_":                          {"", "", ""},
		"%2E%2E/%2E/%5F":                 {"..", ".", "_"},
		"a%2Fb/%C3%A9/..x":               {"a/b", "é", "..x"},
		"azAZ09@._-/x/x":                 {"azAZ09@._-", "x", "x"},
		"a%2Bb@x/%25/%20":                {"a+b@x", "%", " "},
	} {
		require.Equal(t, want, disk.ListingKey(disk.Key{User: in[0], Name: in[1]}, in[2]))
	}
	sixty := strings.Repeat("x", 60)
	require.Equal(t, "u/d/"+sixty, disk.ListingKey(disk.Key{User: "u", Name: "d"}, sixty))
	for name, want := range map[string]string{
		sixty + "x":                           "x{43}",
		sixty[:40] + strings.Repeat("é", 5):   "x{40}%C3",
		sixty[:41] + strings.Repeat("é", 5):   "x{41}", // not half an escape
		sixty[:42] + strings.Repeat("é", 5):   "x{42}",
		sixty[:37] + strings.Repeat("é", 500): "x{37}%C3%A9",
	} {
		require.Regexp(t, "^u/d/"+want+"~[0-9a-f]{16}$", disk.ListingKey(disk.Key{User: "u", Name: "d"}, name))
	}
}

var safeKey = regexp.MustCompile(`^(?:[A-Za-z0-9@._~-]|%[0-9A-F]{2}){1,60}(?:/(?:[A-Za-z0-9@._~-]|%[0-9A-F]{2}){1,60}){2}$`)

func TestListingKeysAreSafeAndDifferentForDifferentNames(t *testing.T) {
	t.Parallel()
	names := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"", ".", "..", "_", "/", "a/b", "é"}),
		rapid.StringN(50, 3000, -1), rapid.StringMatching(`[._~%]{0,4}`))
	rapid.Check(t, func(t *rapid.T) {
		a := [3]string{names.Draw(t, "user"), names.Draw(t, "disk"), names.Draw(t, "name")}
		b := [3]string{names.Draw(t, "user"), names.Draw(t, "disk"), names.Draw(t, "name")}
		keyA := disk.ListingKey(disk.Key{User: a[0], Name: a[1]}, a[2])
		keyB := disk.ListingKey(disk.Key{User: b[0], Name: b[1]}, b[2])
		if !safeKey.MatchString(keyA) || len(keyA) > 182 {
			t.Fatalf("unsafe key %q", keyA)
		}
		for segment := range strings.SplitSeq(keyA, "/") {
			if segment == "." || segment == ".." {
				t.Fatalf("key %q climbs", keyA)
			}
		}
		if (a == b) != (keyA == keyB) {
			t.Fatalf("%q and %q give %q and %q", a, b, keyA, keyB)
		}
	})
}

func TestTheSizeIsWhatDuSaid(t *testing.T) {
	t.Parallel()
	for du, want := range map[string]string{
		"1.2G\t/home/dev\n":       "1.2G",
		"512M\t/home/dev":         "512M",
		"4.0K /home/dev":          "4.0K",
		"0\t/home/dev":            "0",
		"1,2G\t/home/dev":         "1.2G",
		"  17T":                   "17T",
		"":                        "",
		"\n":                      "",
		"du: cannot access '/x'":  "",
		"1.2GG\t/home/dev":        "",
		"-1G\t/home/dev":          "",
		"1.2.3G\t/home/dev":       "",
		strings.Repeat("x", 1000): "",
	} {
		require.Equal(t, want, disk.SizeText(du), "%q", du)
	}
}
