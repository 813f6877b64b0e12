package fault_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/fault"
)

func TestUnclassifiedErrorsAreTransient(t *testing.T) {
	t.Parallel()
	require.Equal(t, fault.Transient, fault.KindOf(errors.New("boom")))
	require.Equal(t, fault.Transient, fault.KindOf(fmt.Errorf("list pods: %w", context.DeadlineExceeded)))
}

func TestKindSurvivesWrappingAndKeepsTheCause(t *testing.T) {
	t.Parallel()
	cause := errors.New("404 page")
	err := fmt.Errorf("clean up r1: %w", fault.Errorf(fault.Gone, "get pod a/b: %w", cause))
	require.Equal(t, fault.Gone, fault.KindOf(err))
	require.True(t, fault.Is(err, fault.Gone))
	require.False(t, fault.Is(err, fault.Transient))
	require.ErrorIs(t, err, cause)
	require.EqualError(t, err, "clean up r1: get pod a/b: 404 page")
}

func TestTheOutermostClassificationWins(t *testing.T) {
	t.Parallel()
	inner := fault.Errorf(fault.Gone, "inner")
	require.Equal(t, fault.Conflict, fault.KindOf(fault.Errorf(fault.Conflict, "outer: %w", inner)))
}

func TestNilIsOfNoKind(t *testing.T) {
	t.Parallel()
	require.False(t, fault.Is(nil, fault.Transient))
}
