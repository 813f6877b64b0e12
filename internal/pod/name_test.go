package pod_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/pod"
)

func TestNameFor(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		id, named string
		want      string
		ok        bool
	}{
		"from the id":              {id: "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9", want: "gpu-dev-0a1b2c3d", ok: true},
		"from a short id":          {id: "r1", want: "gpu-dev-r1", ok: true},
		"named by the row":         {id: "0a1b2c3d-4e5f", named: "gpu-dev-mine", want: "gpu-dev-mine", ok: true},
		"no id":                    {id: "", want: "gpu-dev-"},
		"an id in capitals":        {id: "0A1B2C3D-4E5F", want: "gpu-dev-0A1B2C3D"},
		"an id in another script":  {id: "予約番号一二三四五", want: "gpu-dev-予約番号一二三四"},
		"a name that leads astray": {id: "r", named: "../nodes/n1", want: "../nodes/n1"},
		"a name of 3,000 letters":  {id: "r", named: strings.Repeat("a", 3000), want: strings.Repeat("a", 3000)},
		"the longest name":         {id: "r", named: strings.Repeat("a", 253), want: strings.Repeat("a", 253), ok: true},
		"a letter longer":          {id: "r", named: strings.Repeat("a", 254), want: strings.Repeat("a", 254)},
		"a name that ends badly":   {id: "r", named: "gpu-dev-", want: "gpu-dev-"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, ok := pod.NameFor(c.id, c.named)
			require.Equal(t, c.want, got)
			require.Equal(t, c.ok, ok)
		})
	}
}

func TestNamespaces(t *testing.T) {
	t.Parallel()
	require.Equal(t, []string{"gpu-dev", "default"}, pod.Namespaces(""))
	require.Equal(t, []string{"gpu-dev", "default"}, pod.Namespaces("default"), "the column's default says nothing")
	require.Equal(t, []string{"team-a"}, pod.Namespaces("team-a"))
	require.Equal(t, []string{"gpu-dev"}, pod.Namespaces("gpu-dev"))
	require.Nil(t, pod.Namespaces("Team A"))
	require.Nil(t, pod.Namespaces("a/../b"))
	require.Nil(t, pod.Namespaces(strings.Repeat("a", 64)))
	require.Len(t, pod.Namespaces(strings.Repeat("a", 63)), 1)
}
