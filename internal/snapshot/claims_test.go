package snapshot_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/snapshot"
)

func TestObjectsThatANewerReservationHasMadeUnderTheSameNamesStay(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]snapshot.Options{"volume deleted": {}, "volume kept": {KeepVolumes: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.use(o)
			core := w.cluster.Client.CoreV1()
			require.NoError(t, core.PersistentVolumeClaims(w.cluster.Namespace).Delete(t.Context(), w.claimed, metav1.DeleteOptions{}))
			require.NoError(t, core.PersistentVolumes().Delete(t.Context(), w.pv, metav1.DeleteOptions{}))
			require.EventuallyWithT(t, func(c *assert.CollectT) {
				_, err1 := core.PersistentVolumeClaims(w.cluster.Namespace).Get(t.Context(), w.claimed, metav1.GetOptions{})
				_, err2 := core.PersistentVolumes().Get(t.Context(), w.pv, metav1.GetOptions{})
				assert.True(c, errors.IsNotFound(err1) && errors.IsNotFound(err2))
			}, wait, tick)
			w.claim(t)
			w.settle(t, 4)
			require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
			require.True(t, w.objects(t))
		})
	}
}

func TestAVolumeObjectThatWouldTakeItsVolumeAlongIsRetainedFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.use(snapshot.Options{KeepVolumes: true})
	_, err := w.cluster.Client.CoreV1().PersistentVolumes().Patch(t.Context(), w.pv, types.MergePatchType,
		[]byte(`{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`), metav1.PatchOptions{})
	require.NoError(t, err)
	w.settle(t, 4)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	retained, deleted := slices.Index(w.calls, "RetainVolume"), slices.Index(w.calls, "DeleteClaim")
	require.True(t, retained >= 0 && retained < deleted, "%v", w.calls)
	require.False(t, w.objects(t))
}

func TestAVolumeObjectThatCannotBeRetainedStaysAndSoDoesItsClaim(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, err := w.cluster.Client.CoreV1().PersistentVolumes().Patch(t.Context(), w.pv, types.MergePatchType,
		[]byte(`{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`), metav1.PatchOptions{})
	require.NoError(t, err)
	w.deliver(t, postgres.Cleanup)
	w.reset(func(call string) error {
		if call == "RetainVolume" {
			return fault.Errorf(fault.Permanent, "forbidden")
		}
		return nil
	}, nil)
	report := w.deliver(t, postgres.SnapshotSync)
	require.Equal(t, followup.StateFailed, report.State, "%+v", report)
	require.Contains(t, report.Error, "forbidden")
	require.Zero(t, w.count("DeleteClaim")+w.count("DeletePersistentVolume"))
	require.True(t, w.objects(t))
}

func TestTheObjectsOfADiskAreGoneWhenKubernetesSaysSoAndNotWhenItFails(t *testing.T) {
	t.Parallel()
	shared := newGround(t)
	for name, c := range map[string]struct {
		kind fault.Kind
		done bool
	}{"gone": {fault.Gone, true}, "another has the name": {fault.Conflict, true}, "no answer": {fault.Transient, false}} {
		for _, deletion := range []string{"DeleteClaim", "DeletePersistentVolume"} {
			t.Run(deletion+", "+name, func(t *testing.T) {
				t.Parallel()
				w := shared.world(t)
				w.deliver(t, postgres.Cleanup)
				w.reset(func(call string) error {
					if call == deletion {
						return fault.Errorf(c.kind, "so it says")
					}
					return nil
				}, nil)
				report := w.deliver(t, postgres.SnapshotSync)
				require.Equal(t, c.done, report.State == followup.StateDone, "%+v", report)
				require.Equal(t, c.done, w.outcome(t) == postgres.OutcomeReleased)
				require.Equal(t, released, w.disk(t), "the user has the disk back all the same")
			})
		}
	}
}

func TestWhatAnotherClusterSaysToBeGoneIsNotGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	known := read[string](t, w, "select uid from expiry.cluster")
	w.exec(t, "update expiry.cluster set uid = 'another'")
	w.deliver(t, postgres.Cleanup)
	report := w.deliver(t, postgres.SnapshotSync)
	require.Equal(t, followup.StateFailed, report.State)
	require.Contains(t, report.Error, "another cluster answers")
	require.Equal(t, released, w.disk(t), "the user has the disk back all the same")
	require.Equal(t, "open", w.outcome(t))
	require.True(t, w.objects(t))
	w.exec(t, "update expiry.cluster set uid = $1", known)
	w.settle(t, 2)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	require.False(t, w.objects(t))
}
