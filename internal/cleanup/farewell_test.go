package cleanup_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/cleanup"
	"gpudev.internal/reservation-expiry/internal/pod"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// listings answers one try after the other, and then the last one again.
type listings struct {
	*outside
	tries []pod.Listing
}

func (l *listings) RunListing(ctx context.Context, namespace, podName, container, dir string) (pod.Listing, error) {
	_, err := l.outside.RunListing(ctx, namespace, podName, container, dir)
	found := l.tries[0]
	if len(l.tries) > 1 {
		l.tries = l.tries[1:]
	}
	return found, err
}

func TestAListingIsPutTogetherFromTwoTries(t *testing.T) {
	t.Parallel()
	size, tree := pod.Listing{Size: "1.2G"}, pod.Listing{Tree: "work\n"}
	whole := pod.Listing{Size: size.Size, Tree: tree.Tree}
	for name, c := range map[string]struct {
		tries []pod.Listing
		asked int
	}{
		"all at once":     {[]pod.Listing{whole}, 1},
		"the size first":  {[]pod.Listing{size, tree}, 2},
		"the files first": {[]pod.Listing{tree, size}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.stand(t)
			w.build(func(parts *cleanup.World) { parts.Cluster = &listings{w.outside, c.tries} })
			w.request(t)
			w.deliver(t.Context(), t)
			require.Equal(t, c.asked, w.count("list disk"))
			require.Equal(t, "1.2G\t/home/dev\nwork\n", w.objects["alice/default/"+id+".txt"])
		})
	}
}

func TestAListingIsStoredAtTheSecondTry(t *testing.T) {
	t.Parallel()
	put := "put alice/default/" + id + ".txt"
	for name, c := range map[string]struct{ fail, tries int }{"at once": {0, 1}, "after one failure": {1, 2}, "not after two": {2, 2}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.stand(t)
			w.before = func(call string) error {
				if w.count(put) <= c.fail {
					return failing("put")(call)
				}
				return nil
			}
			w.request(t)
			w.deliver(t.Context(), t)
			require.Equal(t, c.tries, w.count(put))
			require.Len(t, w.objects, c.tries-c.fail)
		})
	}
}

func TestNothingIsRunWhereTheServerDoesNotRun(t *testing.T) {
	t.Parallel()
	shelf := stacktest.NewShelf(t)
	for name, change := range map[string]func(*pod.Pod){
		"its container has stopped":                                   func(p *pod.Pod) { p.Containers[0].Running = false },
		"its pod has failed, whatever was said of the container last": func(p *pod.Pod) { p.Phase = pod.Failed },
		"it has no such container":                                    func(p *pod.Pod) { p.Containers[0].Name = "sidecar" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorldIn(t, shelf)
			w.stand(t)
			p := w.pods[podKey]
			change(&p)
			w.pods[podKey] = p
			w.request(t)
			w.deliver(t.Context(), t)
			require.Equal(t, "missing: container gpu-dev of pod "+podKey+" does not run", w.step(t, postgres.StepListing))
			require.Empty(t, w.files)
			require.False(t, w.made("list disk"))
		})
	}
}
