package pod_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"gpudev.internal/reservation-expiry/internal/pod"
)

func TestBelongsTo(t *testing.T) {
	t.Parallel()
	start, end := noon.Add(300*time.Millisecond), noon.Add(4*time.Hour)
	object := pod.Object{Namespace: "gpu-dev", PodName: "gpu-dev-0a1b2c3d", UID: "u1", Created: noon.Add(time.Minute)}
	ended := pod.Ended{PodName: "gpu-dev-0a1b2c3d", Namespace: "default", Start: start, End: end}
	for name, c := range map[string]struct {
		change func(*pod.Object, *pod.Ended)
		want   pod.Verdict
	}{
		"created within its life":                    {func(o *pod.Object, r *pod.Ended) {}, pod.Belongs},
		"in the other namespace a placeholder means": {func(o *pod.Object, r *pod.Ended) { o.Namespace = "default" }, pod.Belongs},
		"in a namespace that the row does not name":  {func(o *pod.Object, r *pod.Ended) { r.Namespace = "team-a" }, pod.NotOurs},
		"of another name":                            {func(o *pod.Object, r *pod.Ended) { o.PodName = "gpu-dev-ffffffff" }, pod.NotOurs},
		"the name is a live reservation's":           {func(o *pod.Object, r *pod.Ended) { r.NameIsLive = true }, pod.NotOurs},
		"a live name wins over a recorded UID":       {func(o *pod.Object, r *pod.Ended) { r.NameIsLive, r.UID = true, "u1" }, pod.NotOurs},
		"the recorded UID":                           {func(o *pod.Object, r *pod.Ended) { r.UID = "u1" }, pod.Belongs},
		"the recorded UID decides over times":        {func(o *pod.Object, r *pod.Ended) { r.UID, o.Created = "u1", end.Add(time.Hour) }, pod.Belongs},
		"another UID than recorded":                  {func(o *pod.Object, r *pod.Ended) { r.UID = "u0" }, pod.NotOurs},
		"no UID":                                     {func(o *pod.Object, r *pod.Ended) { o.UID = "" }, pod.UnknownOwner},
		"no pod name":                                {func(o *pod.Object, r *pod.Ended) { o.PodName, r.PodName = "", "" }, pod.UnknownOwner},
		"no pod name at it":                          {func(o *pod.Object, r *pod.Ended) { o.PodName = "" }, pod.UnknownOwner},
		"no pod name at the reservation":             {func(o *pod.Object, r *pod.Ended) { r.PodName = "" }, pod.UnknownOwner},
		"no creation time":                           {func(o *pod.Object, r *pod.Ended) { o.Created = time.Time{} }, pod.UnknownOwner},
		"no start":                                   {func(o *pod.Object, r *pod.Ended) { r.Start = time.Time{} }, pod.UnknownOwner},
		"no end":                                     {func(o *pod.Object, r *pod.Ended) { r.End = time.Time{} }, pod.UnknownOwner},
		"an end in the far future":                   {func(o *pod.Object, r *pod.Ended) { r.End = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC) }, pod.UnknownOwner},
		"a start at the epoch":                       {func(o *pod.Object, r *pod.Ended) { r.Start = time.Unix(0, 0) }, pod.UnknownOwner},
		"an end before the start":                    {func(o *pod.Object, r *pod.Ended) { r.End = r.Start.Add(-time.Second) }, pod.UnknownOwner},
		"in the second in which it started":          {func(o *pod.Object, r *pod.Ended) { o.Created = noon }, pod.Belongs},
		"at its very end":                            {func(o *pod.Object, r *pod.Ended) { o.Created = end }, pod.Belongs},
		"a second before its start":                  {func(o *pod.Object, r *pod.Ended) { o.Created = noon.Add(-time.Second) }, pod.UnknownOwner},
		"a second after its end":                     {func(o *pod.Object, r *pod.Ended) { o.Created = end.Add(time.Second) }, pod.UnknownOwner},
		"a minute before its start":                  {func(o *pod.Object, r *pod.Ended) { o.Created = noon.Add(-time.Minute) }, pod.UnknownOwner},
		"a minute after its end":                     {func(o *pod.Object, r *pod.Ended) { o.Created = end.Add(time.Minute) }, pod.UnknownOwner},
		"long before its start":                      {func(o *pod.Object, r *pod.Ended) { o.Created = noon.Add(-61 * time.Second) }, pod.NotOurs},
		"long after its end":                         {func(o *pod.Object, r *pod.Ended) { o.Created = end.Add(61 * time.Second) }, pod.NotOurs},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, r := object, ended
			c.change(&o, &r)
			verdict, why := pod.BelongsTo(o, r)
			require.Equal(t, c.want, verdict, why)
			require.NotEmpty(t, why)
		})
	}
}

func TestVerdictsHaveNames(t *testing.T) {
	t.Parallel()
	require.Equal(t, []string{"unknown", "belongs", "not ours"},
		[]string{pod.Verdict(0).String(), pod.Belongs.String(), pod.NotOurs.String()})
}

func TestNothingIsTakenFromALiveReservationOrOnADoubtfulDate(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.SampledFrom([]string{"", "gpu-dev-0a1b2c3d", "gpu-dev-ffffffff"})
		uid := rapid.SampledFrom([]string{"", "u1", "u2"})
		namespace := rapid.SampledFrom([]string{"", "default", "gpu-dev", "team-a"})
		o := pod.Object{Namespace: namespace.Draw(t, "in"), PodName: name.Draw(t, "of"), UID: uid.Draw(t, "uid"), Created: drawTime(t, "created")}
		r := pod.Ended{PodName: name.Draw(t, "name"), Namespace: namespace.Draw(t, "namespace"), UID: uid.Draw(t, "recorded"),
			Start: drawTime(t, "start"), End: drawTime(t, "end"), NameIsLive: rapid.Bool().Draw(t, "live")}
		if verdict, _ := pod.BelongsTo(o, r); verdict != pod.Belongs {
			return
		}
		require.False(t, r.NameIsLive)
		require.NotEmpty(t, o.UID)
		require.Equal(t, r.PodName, o.PodName)
		require.Contains(t, pod.Namespaces(r.Namespace), o.Namespace)
		if r.UID != "" {
			require.Equal(t, r.UID, o.UID)
			return
		}
		require.False(t, o.Created.IsZero() || r.Start.IsZero() || r.End.IsZero())
		require.False(t, o.Created.Before(r.Start.Truncate(time.Second)))
		require.False(t, o.Created.After(r.End))
	})
}
