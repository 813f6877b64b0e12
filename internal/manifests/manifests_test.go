// Package manifests holds what is deployed to real schemas, to a real API server, and to what the code calls.
package manifests

import (
	"bytes"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// kustomizations are all that somebody may apply.
var kustomizations = []string{
	"knative/overlays/dev", "knative/overlays/production", "knative/migrate", "keda/scaled", "keda/cronjob",
}

// root is the repository, seen from this package.
const root = "../.."

// tool returns the path of a program that tools/deploy pins, built if need be.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := built(name)
	require.NoError(t, err)
	return path
}

var (
	building sync.Mutex
	tools    = map[string]string{}
)

func built(name string) (string, error) {
	building.Lock()
	defer building.Unlock()
	if path, ok := tools[name]; ok {
		return path, nil
	}
	path, err := output(root, "go", "tool", "-modfile="+filepath.Join("tools", "deploy", "go.mod"), "-n", name)
	tools[name] = strings.TrimSpace(path)
	return tools[name], err
}

// output runs a program in a directory and returns what it printed; what it complained of is in the error.
func output(dir, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return out.String(), errors.Join(err, errors.New(out.String()+complaint.String()))
	}
	return out.String(), nil
}

// build returns what `kubectl apply -k` of a directory would send.
func build(t *testing.T, kustomization string) string {
	t.Helper()
	text, err := output(root, tool(t, "kustomize"), "build", kustomization)
	require.NoError(t, err)
	return text
}

func objects(t *testing.T, text string) []*unstructured.Unstructured {
	t.Helper()
	var all []*unstructured.Unstructured
	documents := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096)
	for {
		var document runtime.RawExtension
		err := documents.Decode(&document)
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(t, err)
		if len(document.Raw) == 0 {
			continue
		}
		o := &unstructured.Unstructured{}
		require.NoError(t, o.UnmarshalJSON(document.Raw))
		all = append(all, o)
	}
}

// ofKind returns the objects of a kind, such as "Trigger", in the order of their names.
func ofKind(all []*unstructured.Unstructured, kind string) []*unstructured.Unstructured {
	var found []*unstructured.Unstructured
	for _, o := range all {
		if o.GetKind() == kind {
			found = append(found, o)
		}
	}
	return found
}
