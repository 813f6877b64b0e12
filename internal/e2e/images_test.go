//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// image writes an image of one layer as `docker save` would, without Docker, and returns the archive's path. A file that
// begins with "->" is a link.
func image(t *testing.T, ref, user string, entrypoint []string, files map[string]string) string {
	t.Helper()
	var layer bytes.Buffer
	l := tar.NewWriter(&layer)
	for _, dir := range []string{"tmp/", "home/", "home/dev/", "etc/", "ko-app/"} {
		require.NoError(t, l.WriteHeader(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o1777}))
	}
	for _, path := range slices.Sorted(maps.Keys(files)) {
		if to, link := strings.CutPrefix(files[path], "->"); link {
			require.NoError(t, l.WriteHeader(&tar.Header{Name: path, Typeflag: tar.TypeSymlink, Linkname: to}))
			continue
		}
		content, err := os.ReadFile(files[path])
		require.NoError(t, err)
		require.NoError(t, l.WriteHeader(&tar.Header{Name: path, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content))}))
		_, err = l.Write(content)
		require.NoError(t, err)
	}
	require.NoError(t, l.Close())
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{"User": user, "Entrypoint": entrypoint, "Env": []string{"PATH=/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest(layer.Bytes())}},
	})
	require.NoError(t, err)
	manifest, err := json.Marshal([]map[string]any{{
		"Config": digest(config) + ".json", "RepoTags": []string{ref}, "Layers": []string{"layer.tar"},
	}})
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "image.tar")
	archive, err := os.Create(path)
	require.NoError(t, err)
	a := tar.NewWriter(archive)
	for name, content := range map[string][]byte{digest(config) + ".json": config, "layer.tar": layer.Bytes(), "manifest.json": manifest} {
		require.NoError(t, a.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}))
		_, err = a.Write(content)
		require.NoError(t, err)
	}
	require.NoError(t, a.Close())
	require.NoError(t, archive.Close())
	return path
}

// busybox returns the files of an image that people can work in.
func busybox(t *testing.T, debian string) map[string]string {
	t.Helper()
	program := filepath.Join(debian, "bin", "busybox")
	files := map[string]string{"bin/busybox": program}
	for name := range strings.Lines(string(output(t, "/", program, "--list"))) {
		if name = strings.TrimSpace(name); name != "busybox" {
			files["bin/"+name] = "->busybox"
		}
	}
	return files
}

// shipped builds the image that is shipped, with ko as `make image` does, but for its base: that would have to be
// pulled, and holds nothing that the service needs here.
func shipped(t *testing.T, repository, tag string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	cmd := exec.CommandContext(t.Context(), "go", "tool", "-modfile=tools/deploy/go.mod", "ko", "build", "--bare", "--push=false",
		"--tags="+tag, "--sbom=none", "--platform=linux/"+runtime.GOARCH, "--tarball="+path, "./function")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "KO_DOCKER_REPO="+repository, "KO_DEFAULTBASEIMAGE="+emptyBase(t), "VERSION="+tag)
	said, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", said)
	return path
}

// emptyBase serves an image of nothing and returns its name.
func emptyBase(t *testing.T) string {
	t.Helper()
	config := fmt.Sprintf(`{"architecture":%q,"os":"linux","config":{"User":"65532"},"rootfs":{"type":"layers","diff_ids":[]}}`, runtime.GOARCH)
	const media = "application/vnd.oci.image.manifest.v1+json"
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":%d},"layers":[]}`,
		media, digest([]byte(config)), len(config))
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/v2/":
		case strings.HasPrefix(r.URL.Path, "/v2/base/manifests/"):
			w.Header().Set("Content-Type", media)
			w.Header().Set("Docker-Content-Digest", "sha256:"+digest([]byte(manifest)))
			_, _ = io.WriteString(w, manifest)
		case strings.HasSuffix(r.URL.Path, digest([]byte(config))):
			_, _ = io.WriteString(w, config)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(registry.Close)
	return strings.TrimPrefix(registry.URL, "http://") + "/base:latest"
}

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}
