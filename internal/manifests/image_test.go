package manifests

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// imageManifest is what of an OCI image's manifest or index is looked at here.
type imageManifest struct {
	Manifests []descriptor
	Config    descriptor
	Layers    []descriptor
}

type descriptor struct{ Digest string }

// baseImage serves an image of nothing, in place of the one that production builds on, and returns its name.
func baseImage(t *testing.T) string {
	t.Helper()
	digest := func(text string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(text))) }
	config := fmt.Sprintf(`{"architecture":%q,"os":"linux","config":{"User":"65532"},"rootfs":{"type":"layers","diff_ids":[]}}`, runtime.GOARCH)
	const media = "application/vnd.oci.image.manifest.v1+json"
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[]}`,
		media, digest(config), len(config))
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/v2/":
		case strings.HasPrefix(r.URL.Path, "/v2/base/manifests/"):
			w.Header().Set("Content-Type", media)
			w.Header().Set("Docker-Content-Digest", digest(manifest))
			_, _ = io.WriteString(w, manifest)
		case r.URL.Path == "/v2/base/blobs/"+digest(config):
			_, _ = io.WriteString(w, config)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(registry.Close)
	return strings.TrimPrefix(registry.URL, "http://") + "/base:latest"
}

func TestTheImageIsMadeWithoutADaemonAndItsBinaryRuns(t *testing.T) {
	t.Parallel()
	// ko takes the path for a repository's name, and a test's own directory has capitals in it.
	layout, err := os.MkdirTemp("", "image-") //nolint:usetesting // see above
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(layout) })
	ko := exec.CommandContext(t.Context(), tool(t, "ko"), "build", "--push=false", "--bare", "--sbom=spdx", "--sbom-dir="+layout,
		"--platform=linux/"+runtime.GOARCH, "--oci-layout-path="+layout, "./function")
	ko.Dir = root
	ko.Env = append(os.Environ(), "KO_DOCKER_REPO=example.com/reservation-expiry", "KO_DEFAULTBASEIMAGE="+baseImage(t), "VERSION=v1.2.3-test")
	said, err := ko.CombinedOutput()
	require.NoError(t, err, "%s", said)

	boms, err := filepath.Glob(filepath.Join(layout, "*.spdx.json"))
	require.NoError(t, err)
	require.NotEmpty(t, boms)
	bom, err := os.ReadFile(boms[0])
	require.NoError(t, err)
	require.Contains(t, string(bom), "github.com/jackc/pgx/v5", "the bill of materials names what is inside")

	var index, image imageManifest
	read(t, filepath.Join(layout, "index.json"), &index)
	require.NotEmpty(t, index.Manifests)
	blob := func(d descriptor) string {
		return filepath.Join(layout, "blobs", "sha256", strings.TrimPrefix(d.Digest, "sha256:"))
	}
	read(t, blob(index.Manifests[0]), &image)
	var config struct {
		Config struct {
			User            string
			Entrypoint, Env []string
		}
	}
	read(t, blob(image.Config), &config)
	require.Equal(t, "65532", config.Config.User)
	require.Len(t, config.Config.Entrypoint, 1)
	unpacked := t.TempDir()
	for _, layer := range image.Layers {
		unpack(t, blob(layer), unpacked)
	}
	entrypoint := filepath.Join(unpacked, config.Config.Entrypoint[0])
	size, err := os.Stat(entrypoint)
	require.NoError(t, err)
	require.Less(t, size.Size(), int64(90e6), "as docs/deploying.md has it, with little to spare")
	binary := exec.CommandContext(t.Context(), entrypoint, "version")
	binary.Env = []string{}
	answer, err := binary.CombinedOutput()
	require.NoError(t, err, "%s", answer)
	require.Equal(t, "reservation-expiry v1.2.3-test\n", string(answer))
}

func read(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, into))
}

// unpack writes the files of a layer below a directory.
func unpack(t *testing.T, layer, into string) {
	t.Helper()
	file, err := os.Open(layer)
	require.NoError(t, err)
	defer func() { _ = file.Close() }()
	plain, err := gzip.NewReader(file)
	require.NoError(t, err)
	for files := tar.NewReader(plain); ; {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(t, err)
		if header.Typeflag != tar.TypeReg {
			continue
		}
		to := filepath.Join(into, path.Join("/", header.Name))
		require.NoError(t, os.MkdirAll(filepath.Dir(to), 0o755))
		text, err := io.ReadAll(files)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(to, text, 0o700))
	}
}
