package cleanup

import (
	"testing"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/disk"
)

func TestAVolumeThatIsGoneOrSetAsideIsNoAnswerWhileAnotherIsLeft(t *testing.T) {
	t.Parallel()
	known := map[string]disk.Volume{"there": {}, "other": {}, "aside": {}}
	aside := []string{"aside", "deleted"} // the books say so; EC2 does not know "deleted" and "gone"
	for name, c := range map[string]struct{ of, left named }{
		"all are there":                              {named{row: "there", disk: "other"}, named{row: "there", disk: "other"}},
		"what the row names is gone":                 {named{row: "gone", disk: "there"}, named{disk: "there"}},
		"what the row names is set aside":            {named{row: "aside", disk: "there"}, named{disk: "there"}},
		"what the former life had is deleted":        {named{former: "deleted", disk: "there"}, named{disk: "there"}},
		"the disk names one set aside":               {named{row: "there", disk: "aside"}, named{row: "there", disk: "aside"}},
		"so does the row":                            {named{row: "aside", disk: "aside"}, named{row: "aside", disk: "aside"}},
		"the pod has its home on one set aside":      {named{row: "there", home: "aside"}, named{row: "there", home: "aside"}},
		"so it has, and the row names that":          {named{row: "aside", home: "aside", disk: "there"}, named{row: "aside", home: "aside", disk: "there"}},
		"the pod's home is gone":                     {named{row: "there", home: "gone"}, named{row: "there"}},
		"the pod has two, of which one is aside":     {named{pod: []string{"aside", "there"}}, named{pod: []string{"aside", "there"}}},
		"the pod has nothing but one set aside":      {named{pod: []string{"aside"}}, named{pod: []string{"aside"}}},
		"the pod's are gone":                         {named{row: "aside", pod: []string{"gone"}}, named{}},
		"each is gone":                               {named{row: "gone", disk: "deleted", former: "gone"}, named{}},
		"the row's is set aside, the disk's is gone": {named{row: "aside", disk: "gone"}, named{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			left := c.of.left(known, aside)
			if len(left.pod) == 0 {
				left.pod = nil
			}
			require.Equal(t, c.left, left)
		})
	}
}

func TestWhereNoneIsLeftTheOneGoesOnOfWhichNobodyKnowsWhatBecameOfIt(t *testing.T) {
	t.Parallel()
	aside := []string{"deleted", "aside"}
	for want, n := range map[string]named{
		"deleted": {row: "deleted"},
		"row":     {row: "row", disk: "disk", former: "former"},
		"disk":    {row: "deleted", disk: "disk", former: "former"},
		"former":  {row: "deleted", disk: "aside", former: "former"},
		"aside":   {disk: "aside", former: "deleted"},
		"":        {},
	} {
		require.Equal(t, want, n.last(aside))
	}
}
