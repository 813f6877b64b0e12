package manifests

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// modules are where the resources' definitions come from, with the sums that the Go checksum database knows.
var modules = map[string]struct{ version, sum, folder string }{
	"knative.dev/eventing":        {"v0.47.0", "h1:FfM1aS7iBn9o0v7xqIBEWcR4XZ8Ny7YyFPAOyLEgMok=", "config/core/resources"},
	"knative.dev/serving":         {"v0.42.2", "h1:yKieg3MeNvpVz+4JJPbvmpee3v3LK3zO5h5HJBtzaNk=", "config/core/300-resources"},
	"github.com/kedacore/keda/v2": {"v2.21.0", "h1:R6z2HZvstK4RLUMxroNACzBj74xGxt3kG59b5Xc+Xps=", "config/crd/bases"},
	"k8s.io/kubernetes":           {"v1.36.4", "h1:08GT0ZOMtyCcRnslyvnpWurf1wm20KHbC/aRS+0LxSo=", "api/openapi-spec/v3"},
}

// files reads a folder of a module, downloaded if need be. Nothing of it is built.
func files(t *testing.T, module string) map[string][]byte {
	t.Helper()
	m := modules[module]
	dir, err := download(module+"@"+m.version, m.sum)
	require.NoError(t, err)
	found := map[string][]byte{}
	paths, err := filepath.Glob(filepath.Join(dir, filepath.FromSlash(m.folder), "*"))
	require.NoError(t, err)
	for _, path := range paths {
		if ext := filepath.Ext(path); ext == ".yaml" || ext == ".json" {
			found[filepath.Base(path)], err = os.ReadFile(path)
			require.NoError(t, err)
		}
	}
	require.NotEmpty(t, found)
	return found
}

var downloading sync.Mutex

// download returns the folder of a module, whose content is held to its sum.
func download(module, sum string) (string, error) {
	downloading.Lock()
	defer downloading.Unlock()
	text, err := output(os.TempDir(), "go", "mod", "download", "-json", module)
	if err != nil {
		return "", err
	}
	var got struct{ Dir, Sum string }
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		return "", fmt.Errorf("read what go says of %s: %w", module, err)
	}
	if got.Sum != sum {
		return "", fmt.Errorf("%s has the sum %s, not %s", module, got.Sum, sum)
	}
	return got.Dir, nil
}

// definitions returns the CustomResourceDefinitions of Knative and KEDA, by group and kind ("keda.sh/ScaledObject").
func definitions(t *testing.T) map[string]*unstructured.Unstructured {
	t.Helper()
	all := map[string]*unstructured.Unstructured{}
	for module := range modules {
		if module == "k8s.io/kubernetes" {
			continue
		}
		for _, text := range files(t, module) {
			for _, crd := range ofKind(objects(t, string(text)), "CustomResourceDefinition") {
				// The webhook that would convert between versions does not run here; only stored versions are sent.
				unstructured.RemoveNestedField(crd.Object, "spec", "conversion")
				group, _, _ := unstructured.NestedString(crd.Object, "spec", "group")
				kind, _, _ := unstructured.NestedString(crd.Object, "spec", "names", "kind")
				all[group+"/"+kind] = crd
			}
		}
	}
	return all
}

// writeSchemas writes a JSON Schema for every kind of Kubernetes, Knative and KEDA, in which a field that the kind does
// not have is an error, and returns how kubeconform finds them.
func writeSchemas(t *testing.T) (location string) {
	t.Helper()
	dir := t.TempDir()
	write := func(group, version, kind string, schema any) {
		text, err := json.Marshal(schema)
		require.NoError(t, err)
		name := strings.ToLower(fmt.Sprintf("%s_%s_%s.json", group, version, kind))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	for _, crd := range definitions(t) {
		group, _, _ := unstructured.NestedString(crd.Object, "spec", "group")
		kind, _, _ := unstructured.NestedString(crd.Object, "spec", "names", "kind")
		versions, _, _ := unstructured.NestedSlice(crd.Object, "spec", "versions")
		for _, v := range versions {
			version := v.(map[string]any)
			schema, ok, _ := unstructured.NestedMap(version, "schema", "openAPIV3Schema")
			require.True(t, ok, kind)
			properties := schema["properties"].(map[string]any)
			for _, ofAll := range []string{"apiVersion", "kind"} {
				properties[ofAll] = map[string]any{"type": "string"}
			}
			properties["metadata"] = map[string]any{"type": "object"}
			write(group, version["name"].(string), kind, closed(schema))
		}
	}
	for name, text := range files(t, "k8s.io/kubernetes") {
		var api struct {
			Components struct {
				Schemas map[string]map[string]any `json:"schemas"`
			} `json:"components"`
		}
		text := strings.ReplaceAll(string(text), "#/components/schemas/", "#/definitions/")
		require.NoError(t, json.Unmarshal([]byte(text), &api), name)
		for definition, schema := range api.Components.Schemas {
			kinds, _ := schema["x-kubernetes-group-version-kind"].([]any)
			if len(kinds) != 1 { // those of every group, such as DeleteOptions
				continue
			}
			kind := kinds[0].(map[string]any)
			group := kind["group"].(string)
			if group == "" {
				group = "v1" // what kubeconform takes for it
			}
			write(group, kind["version"].(string), kind["kind"].(string), map[string]any{
				"$ref": "#/definitions/" + definition, "definitions": closed(api.Components.Schemas),
			})
		}
	}
	return filepath.Join(dir, "{{.Group}}_{{.ResourceAPIVersion}}_{{.ResourceKind}}.json")
}

// closed allows no fields but those that an object is said to have, even where a server would keep others: a Trigger's
// misspelt retries would go unnoticed.
func closed(schema any) any {
	switch s := schema.(type) {
	case map[string]map[string]any:
		all := map[string]any{}
		for name, one := range s {
			all[name] = closed(one)
		}
		return all
	case map[string]any:
		all := map[string]any{}
		for name, value := range s {
			all[name] = closed(value)
		}
		properties, isObject := all["properties"].(map[string]any)
		_, open := s["additionalProperties"]
		if isObject && !open && s["type"] != nil {
			all["additionalProperties"] = false
			if _, delivery := properties["backoffDelay"]; delivery {
				properties["timeout"] = map[string]any{"type": "string"} // known to Knative's code, not to its schema
			}
		}
		return all
	case []any:
		all := make([]any, len(s))
		for i, value := range s {
			all[i] = closed(value)
		}
		return all
	}
	return schema
}
