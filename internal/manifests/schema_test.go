package manifests

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// conform runs kubeconform, which talks to nobody, on manifests.
func conform(t *testing.T, schemas, text string) (string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "manifests.yaml")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	return output(".", tool(t, "kubeconform"), "-strict", "-summary", "-schema-location", schemas, file)
}

func TestEveryManifestIsAsItsSchemaWantsIt(t *testing.T) {
	t.Parallel()
	schemas := writeSchemas(t)
	for _, kustomization := range kustomizations {
		t.Run(kustomization, func(t *testing.T) {
			t.Parallel()
			said, err := conform(t, schemas, build(t, kustomization))
			require.NoError(t, err)
			require.Contains(t, said, "Invalid: 0, Errors: 0, Skipped: 0")
		})
	}
	// That it would be seen.
	good := build(t, "knative/overlays/production") + "---\n" + build(t, "keda/scaled")
	for right, wrong := range map[string]string{
		"  schedule: ":             "  scheduel: ",
		"containerConcurrency: 10": "containerConcurrency: ten",
		"  subscriber:":            "  subscribr:",
		"readOnlyRootFilesystem":   "readonlyRootFilesystem",
		"pollingInterval":          "polingInterval",
		"targetPort":               "targetport",
	} {
		t.Run(wrong, func(t *testing.T) {
			t.Parallel()
			bad := strings.ReplaceAll(good, right, wrong)
			require.NotEqual(t, good, bad)
			_, err := conform(t, schemas, bad)
			require.Error(t, err)
		})
	}
}
