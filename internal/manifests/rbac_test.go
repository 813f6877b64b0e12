package manifests

import (
	"testing"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/pod"
)

func TestRightsHoldWhereReservationsLiveAndNowhereElse(t *testing.T) {
	t.Parallel()
	all := objects(t, build(t, "knative/account"))
	everywhere := ofKind(all, "ClusterRoleBinding")
	require.Len(t, everywhere, 1)
	require.Equal(t, "reservation-expiry-cluster", everywhere[0].GetName())
	var namespaces []string
	for _, o := range ofKind(all, "RoleBinding") {
		namespaces = append(namespaces, o.GetNamespace())
	}
	require.ElementsMatch(t, pod.Namespaces(""), namespaces)
}
