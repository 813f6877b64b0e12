package notice

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"gpudev.internal/reservation-expiry/internal/reservation"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing with them")

var (
	deadline = time.Date(2026, time.March, 1, 12, 30, 0, 0, time.UTC)
	withDisk = reservation.Reservation{
		ID: "0b9d3c1e-8a51-4d6f-9f43-0f4dfe2b7a10", Name: "train the big one", GPUType: "h100", GPUCount: 8, DiskName: "data",
	}
	withoutDisk = reservation.Reservation{ID: withDisk.ID}
	node        = reservation.Reservation{
		ID: "5c0ffee5-0000-4000-8000-000000000002", GPUType: "b200", GPUCount: 8, EBSVolumeID: "vol-0123456789abcdef0",
		MasterID: "5c0ffee5-0000-4000-8000-000000000001", NodeIndex: 1, TotalNodes: 4,
	}
	hostile = reservation.Reservation{
		ID: "$(rm -rf ~)\n; `id`", Name: "\x1b[31mred\x1b[0m\r\nWhen:  never\u202egnol" + strings.Repeat("é", 3000), DiskName: strings.Repeat("x", 3000), GPUType: "\xff\xfe", GPUCount: -1,
	}
)

func TestTextsReadAsTheyShould(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"warning_disk":    Warning(withDisk, true, deadline, deadline.Add(-28*time.Minute-30*time.Second)),
		"warning_no_disk": Warning(withoutDisk, false, deadline, deadline.Add(-5*time.Minute)),
		"warning_volumes": Warning(withoutDisk, true, deadline, deadline.Add(-5*time.Minute)),
		"warning_node":    Warning(node, true, deadline, deadline.Add(-15*time.Minute)),
		"warning_hostile": Warning(hostile, true, deadline, deadline.Add(-time.Second)),
		"oom_first":       OOM(withDisk, "gpu-dev", deadline.Add(-time.Hour), 1),
		"oom_again":       OOM(withoutDisk, "jupyter\x00", time.Time{}, 3),
		"final_disk":      Final(withDisk, true, deadline, "its time was up at 2026-03-01 12:28:00 UTC"),
		"final_no_disk":   Final(withoutDisk, false, deadline, ""),
		"final_volumes":   Final(withoutDisk, true, deadline, ""),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			golden := filepath.Join("testdata", name+".golden")
			if *update {
				require.NoError(t, os.WriteFile(golden, []byte(text), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), text)
		})
	}
}

func TestWarningFilesAreNamedByTheirLevel(t *testing.T) {
	t.Parallel()
	require.Equal(t, "WARN_EXPIRES_IN_30MIN.txt", WarningFile(30))
	require.True(t, strings.HasPrefix(WarningFile(5), WarningPrefix))
}

func TestMinutesAreRoundedDown(t *testing.T) {
	t.Parallel()
	for left, want := range map[time.Duration]string{
		30 * time.Minute: "in 30 minutes", 30*time.Minute - 1: "in 29 minutes", 2*time.Minute - 1: "in 1 minute", time.Minute: "in 1 minute",
		time.Minute - 1: "in less than a minute", 1: "in less than a minute", 0: "now", -time.Hour: "now",
	} {
		require.Equal(t, want, remaining(left))
	}
}

func TestOnlyWhatIsKnownOfAReservationIsSaid(t *testing.T) {
	t.Parallel()
	longest := strings.Repeat("é", 80)
	require.Equal(t, `reservation "`+longest+`", r1, 1 x t4, node 2 of 2`,
		what(reservation.Reservation{ID: "r1", Name: longest, GPUType: "t4", GPUCount: 1, NodeIndex: 1, TotalNodes: 2}))
	require.Equal(t, "reservation r1", what(reservation.Reservation{ID: "r1", GPUType: "t4", TotalNodes: 1}))
}

func TestNoRowCanSpoilItsNotices(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"", "data", hostile.ID, hostile.Name, hostile.DiskName, hostile.GPUType}))
		r := reservation.Reservation{
			ID: text.Draw(t, "id"), Name: text.Draw(t, "name"), GPUType: text.Draw(t, "type"), GPUCount: rapid.Int().Draw(t, "count"),
			DiskName: text.Draw(t, "disk"), MasterID: text.Draw(t, "master"), NodeIndex: rapid.Int().Draw(t, "node"), TotalNodes: rapid.Int().Draw(t, "nodes"),
		}
		warning := Warning(r, rapid.Bool().Draw(t, "volumes"), deadline, deadline.Add(-time.Duration(rapid.IntRange(0, 3600).Draw(t, "left"))*time.Second))
		if strings.Count(warning, "2026-03-01 12:30:00 UTC") == 0 || !strings.Contains(warning, "\nTo extend:    gpu-dev edit ") {
			t.Fatalf("the warning does not say when, or how to extend:\n%s", warning)
		}
		for _, notice := range []string{warning, OOM(r, r.Name, deadline, r.GPUCount), Final(r, false, deadline, r.Name)} {
			if len(notice) > 8192 || !utf8.ValidString(notice) || !strings.HasSuffix(notice, "\n") {
				t.Fatalf("%d bytes, or not text:\n%q", len(notice), notice)
			}
			for _, c := range notice {
				if c != '\n' && !unicode.IsGraphic(c) {
					t.Fatalf("%q in %q", c, notice)
				}
			}
		}
	})
}
