package snapshot

import (
	"context"

	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

// removeClaim asks for the deletion of the claim and the volume object through which the pod had the disk: those that
// were recorded while the pod was there, told by their UIDs, and only once the object is seen to outlive its claim
// without taking the EBS volume along. The API server keeps them until nobody uses them.
func (w worker) removeClaim(ctx context.Context, c postgres.CleanupRecord) error {
	if c.PVUID == "" {
		return nil
	}
	if err := w.home.SameCluster(ctx); err != nil {
		return err
	}
	v, err := w.Cluster.GetVolume(ctx, c.PVName)
	gone := fault.Is(err, fault.Gone)
	switch {
	case err != nil && !gone:
		return err
	case !gone && (v.UID != c.PVUID || v.VolumeID != c.VolumeID):
		w.opts.Log.WarnContext(ctx, "PersistentVolume left alone: it is another by now", "name", c.PVName, "uid", v.UID, "volume", v.VolumeID)
		return nil
	case !gone && !v.Retained():
		if _, err := w.Cluster.RetainVolume(ctx, v.Name, v.UID); err != nil {
			return err
		}
	}
	if c.ClaimUID != "" {
		if err := w.Cluster.DeleteClaim(ctx, c.Namespace, c.ClaimName, c.ClaimUID); err != nil && !goneOrReplaced(err) {
			return err
		}
	}
	if gone {
		return nil
	}
	if err := w.Cluster.DeleteVolume(ctx, v.Name, v.UID); err != nil && !goneOrReplaced(err) {
		return err
	}
	return nil
}

// goneOrReplaced reports that the very object is not there any more, whatever has its name by now.
func goneOrReplaced(err error) bool {
	return fault.Is(err, fault.Gone) || fault.Is(err, fault.Conflict)
}
