//go:build e2e

package e2e

import (
	"testing"
)

func TestKnative(t *testing.T) {
	c := newCluster(t)
	n := newNetwork(t, c)
	k := installEventing(t, c, n)
	_ = k
}
