package kube

import (
	"errors"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gpudev.internal/reservation-expiry/internal/fault"
)

// classify says what was being done to whom, and what may be concluded. What was concluded further in, by whoever
// found the cluster or fetched a token, is about something else: of that only Permanent is kept.
func classify(err error, verb string, t target) error {
	if err == nil {
		return nil
	}
	return fault.Errorf(kindOf(err, t), "%s %s: %w", verb, t, err)
}

func kindOf(err error, t target) fault.Kind {
	switch {
	case saysAbsent(err, t):
		return fault.Gone
	case apierrors.IsConflict(err):
		return fault.Conflict
	case apierrors.IsForbidden(err), apierrors.IsInvalid(err), fault.Is(err, fault.Permanent):
		return fault.Permanent
	}
	return fault.Transient
}

// saysAbsent reports whether the API server itself answered that this very object does not exist. A 404 alone is less:
// a proxy, a wrong address or an API server that does not know the resource answers so too.
func saysAbsent(err error, t target) bool {
	var status apierrors.APIStatus
	if !apierrors.IsNotFound(err) || !errors.As(err, &status) {
		return false
	}
	details := status.Status().Details
	return details != nil && t.name != "" && details.Kind == t.resource && details.Name == t.name &&
		!apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse)
}
