package aws_test

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/aws"
	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
)

func newSnapshot() disk.NewSnapshot {
	return disk.NewSnapshot{
		VolumeID: "vol-1", Disk: disk.Key{User: "ada", Name: "work"}, ReservationID: "r-1", Attempt: 1, CreatedAt: time.Unix(1, 0),
	}
}

func page(ids, next string) answer {
	return xmlAnswer(`<DescribeSnapshotsResponse><snapshotSet>` + ids + `</snapshotSet>` + next + `</DescribeSnapshotsResponse>`)
}

func item(id string) string {
	return `<item><snapshotId>` + id + `</snapshotId><status>completed</status></item>`
}

func TestAllPagesOfSnapshotsAreReadEmptyOnesIncluded(t *testing.T) {
	t.Parallel()
	fake, cfg := newFake(t,
		page(item("snap-1")+item("snap-2"), "<nextToken>a</nextToken>"), page("", "<nextToken>b</nextToken>"), page(item("snap-3"), ""))
	snapshots, err := aws.NewEC2(cfg).DescribeSnapshots(t.Context())
	require.NoError(t, err)
	require.Len(t, snapshots, 3)
	var tokens []string
	for _, r := range fake.seen() {
		tokens = append(tokens, r.Form.Get("NextToken"))
		require.Equal(t, "1000", r.Form.Get("MaxResults"))
		require.Equal(t, "self", r.Form.Get("Owner.1"))
		require.Equal(t, "tag-key", r.Form.Get("Filter.1.Name"))
		require.Equal(t, "gpu-dev-user", r.Form.Get("Filter.1.Value.1"))
	}
	require.Equal(t, []string{"", "a", "b"}, tokens)
}

func TestAPartOfTheSnapshotsIsNeverPassedForTheWhole(t *testing.T) {
	t.Parallel()
	first := page(item("snap-1"), "<nextToken>a</nextToken>")
	for name, second := range map[string]answer{
		"refused":     ec2Error(400, "InvalidParameterValue"),
		"unavailable": ec2Error(503, "Unavailable"),
		"cut":         lost,
		"garbage":     xmlAnswer(`<Describe`),
		"circle":      first,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, cfg := newFake(t, first, second)
			snapshots, err := aws.NewEC2(cfg).DescribeSnapshots(t.Context())
			require.ErrorContains(t, err, "list snapshots: ")
			require.Empty(t, snapshots)
		})
	}
}

func TestALostAnswerNeverMakesASecondSnapshot(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]answer{
		"connection closed": lost,
		"unavailable":       ec2Error(503, "Unavailable"),
		"internal":          ec2Error(500, "InternalError"),
		"gateway":           func(w http.ResponseWriter) { w.WriteHeader(http.StatusGatewayTimeout) },
		"throttled":         ec2Error(503, "RequestLimitExceeded"),
		"half an answer":    xmlAnswer(`<CreateSnapshotResponse><snapsh`),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fake, cfg := newFake(t, answer)
			cfg.RetryMaxAttempts = 5
			_, err := aws.NewEC2(cfg).CreateSnapshot(t.Context(), newSnapshot())
			require.Equal(t, fault.Transient, fault.KindOf(err))
			require.ErrorContains(t, err, "create snapshot of vol-1 for r-1, attempt 1: ")
			fake.calls(t, 1)
		})
	}
}

// A connection that the server closed while it was idle is where HTTP clients like to send again.
func TestALostAnswerOnAUsedConnectionNeverMakesASecondSnapshot(t *testing.T) {
	t.Parallel()
	fake, cfg := newFake(t, ec2Error(400, "IncorrectState"), lost)
	ec2 := aws.NewEC2(cfg)
	_, err := ec2.CreateSnapshot(t.Context(), newSnapshot())
	require.Equal(t, fault.Conflict, fault.KindOf(err))
	_, err = ec2.CreateSnapshot(t.Context(), newSnapshot())
	require.Equal(t, fault.Transient, fault.KindOf(err))
	fake.calls(t, 2)
}

func TestReadsAreTriedAgain(t *testing.T) {
	t.Parallel()
	fake, cfg := newFake(t, ec2Error(503, "RequestLimitExceeded"), lost,
		xmlAnswer(`<DescribeVolumesResponse><volumeSet><item><volumeId>vol-1</volumeId><status>available</status></item></volumeSet></DescribeVolumesResponse>`))
	v, err := aws.NewEC2(cfg).DescribeVolume(t.Context(), "vol-1")
	require.NoError(t, err)
	require.Equal(t, disk.VolumeAvailable, v.State)
	fake.calls(t, 3)
}

func TestThrottlingThatDoesNotEndIsTransient(t *testing.T) {
	t.Parallel()
	fake, cfg := newFake(t, ec2Error(503, "RequestLimitExceeded"))
	_, err := aws.NewEC2(cfg).DescribeVolume(t.Context(), "vol-1")
	require.Equal(t, fault.Transient, fault.KindOf(err))
	fake.calls(t, 3)
}

func TestAnAnswerWithoutWhatWasAskedForIsNotGone(t *testing.T) {
	t.Parallel()
	_, cfg := newFake(t, xmlAnswer(`<Response/>`))
	ec2 := aws.NewEC2(cfg)
	_, err := ec2.DescribeVolume(t.Context(), "vol-1")
	require.Equal(t, fault.Transient, fault.KindOf(err))
	require.Error(t, err)
	_, err = ec2.DescribeSnapshot(t.Context(), "snap-1")
	require.Equal(t, fault.Transient, fault.KindOf(err))
	require.Error(t, err)
	_, err = ec2.DescribeInstance(t.Context(), "i-1")
	require.Equal(t, fault.Transient, fault.KindOf(err))
	require.Error(t, err)
}

func TestVolumesAreFoundByTheirTagsOnAllPages(t *testing.T) {
	t.Parallel()
	page := func(id, user, next string) answer {
		return xmlAnswer(`<DescribeVolumesResponse><volumeSet><item><volumeId>` + id + `</volumeId><status>available</status>
			<tagSet><item><key>gpu-dev-user</key><value>` + user + `</value></item></tagSet></item></volumeSet><nextToken>` + next + `</nextToken></DescribeVolumesResponse>`)
	}
	fake, cfg := newFake(t, page("vol-1", "a*", "2"), page("vol-2", "abc", "3"), page("vol-3", "a*", ""))
	found, err := aws.NewEC2(cfg).FindVolumes(t.Context(), map[string]string{disk.TagUser: "a*"})
	require.NoError(t, err)
	require.Len(t, found, 2, "a wildcard in a name matches itself alone")
	require.Equal(t, []string{"vol-1", "vol-3"}, []string{found[0].ID, found[1].ID})
	fake.calls(t, 3)

	_, cfg = newFake(t, page("vol-1", "a*", "2"), ec2Error(403, "UnauthorizedOperation"))
	found, err = aws.NewEC2(cfg).FindVolumes(t.Context(), map[string]string{disk.TagUser: "a*"})
	require.Equal(t, fault.Permanent, fault.KindOf(err))
	require.Empty(t, found, "a part is not all")
}

func TestADeletedVolumeThatEC2StillNamesIsGone(t *testing.T) {
	t.Parallel()
	_, cfg := newFake(t, xmlAnswer(`<DescribeVolumesResponse><volumeSet><item><volumeId>vol-1</volumeId><status>deleted</status></item></volumeSet></DescribeVolumesResponse>`))
	_, err := aws.NewEC2(cfg).DescribeVolume(t.Context(), "vol-1")
	require.True(t, fault.Is(err, fault.Gone))
}

func TestErrorsOfEC2AreClassifiedByTheirCode(t *testing.T) {
	t.Parallel()
	for code, kind := range map[string]fault.Kind{
		"InvalidVolume.NotFound":                fault.Gone,
		"InvalidSnapshot.NotFound":              fault.Gone,
		"InvalidInstanceID.NotFound":            fault.Gone,
		"InvalidAttachment.NotFound":            fault.Gone,
		"VolumeInUse":                           fault.Conflict,
		"IncorrectState":                        fault.Conflict,
		"InvalidSnapshot.InUse":                 fault.Conflict,
		"UnauthorizedOperation":                 fault.Permanent,
		"InvalidParameterValue":                 fault.Permanent,
		"InvalidVolumeID.Malformed":             fault.Permanent,
		"InvalidSnapshotID.Malformed":           fault.Permanent,
		"RequestLimitExceeded":                  fault.Transient,
		"SnapshotCreationPerVolumeRateExceeded": fault.Transient,
		"RequestExpired":                        fault.Transient,
		"SomethingNew":                          fault.Transient,
		"InvalidZone.NotFound":                  fault.Transient,
	} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			_, cfg := newFake(t, ec2Error(400, code))
			require.Equal(t, kind, fault.KindOf(aws.NewEC2(cfg).DeleteVolume(t.Context(), "vol-1")))
		})
	}
}

func TestACancelledCallEndsAtOnceAndSaysNothingOfTheWorld(t *testing.T) {
	t.Parallel()
	arrived, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	_, cfg := newFake(t, func(http.ResponseWriter) { close(arrived); <-release })
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	_, err := aws.NewEC2(cfg).DescribeVolume(ctx, "vol-1")
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, fault.Transient, fault.KindOf(err))

	_, err = aws.NewEC2(cfg).DescribeVolume(ctx, "vol-1")
	require.ErrorIs(t, err, context.Canceled)
}

func TestTagsAreSetInBatches(t *testing.T) {
	t.Parallel()
	fake, cfg := newFake(t, xmlAnswer(`<CreateTagsResponse><return>true</return></CreateTagsResponse>`))
	ec2 := aws.NewEC2(cfg)
	ids := make([]string, 501)
	for i := range ids {
		ids[i] = "snap-1"
	}
	require.NoError(t, ec2.TagSnapshots(t.Context(), ids, map[string]string{"k": "v"}))
	require.NoError(t, ec2.UntagSnapshots(t.Context(), ids, []string{"k"}))
	require.NoError(t, ec2.TagSnapshots(t.Context(), nil, map[string]string{"k": "v"}))
	requests := fake.seen()
	require.Len(t, requests, 4)
	for i, want := range []struct{ action, last, beyond string }{
		{"CreateTags", "ResourceId.500", "ResourceId.501"}, {"CreateTags", "ResourceId.1", "ResourceId.2"},
		{"DeleteTags", "ResourceId.500", "ResourceId.501"}, {"DeleteTags", "ResourceId.1", "ResourceId.2"},
	} {
		require.Equal(t, want.action, requests[i].Form.Get("Action"))
		require.True(t, requests[i].Form.Has(want.last))
		require.False(t, requests[i].Form.Has(want.beyond))
	}
	require.False(t, requests[2].Form.Has("Tag.1.Value"), "whatever the tag's value")
}

func TestAFailedBatchEndsTheTagging(t *testing.T) {
	t.Parallel()
	fake, cfg := newFake(t, ec2Error(400, "InvalidSnapshot.NotFound"))
	ec2 := aws.NewEC2(cfg)
	ids := make([]string, 501)
	require.True(t, fault.Is(ec2.TagSnapshots(t.Context(), ids, map[string]string{"k": "v"}), fault.Gone))
	require.True(t, fault.Is(ec2.UntagSnapshots(t.Context(), ids, []string{"k"}), fault.Gone))
	fake.calls(t, 2)
}
