#!/bin/sh
# Writes go.mod anew for a version of Kubernetes. Its own go.mod takes the staging modules from its source tree, which
# whoever requires k8s.io/kubernetes has to replace by the published ones.
# What it has in common with the service it takes in the same versions, so that both compile it once.
# usage: ./generate-gomod.sh v1.36.4      (then set kubernetesVersion in tools/stack/cluster.go)
set -eu
version=$1
cd "$(dirname "$0")"
upstream=$(cd / && GOFLAGS=-mod=mod go mod download -json "k8s.io/kubernetes@$version" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p')
{
	printf 'module gpudev.internal/reservation-expiry/tools/kube\n\ngo 1.26.0\n\n'
	printf 'require k8s.io/kubernetes %s\n\nreplace (\n' "$version"
	sed -n 's,^\t\(k8s.io/[a-z-]*\) => \./staging/.*,\1,p' "$upstream" | sort -u |
		while read -r module; do printf '\t%s => %s v0.%s\n' "$module" "$module" "${version#v1.}"; done
	printf ')\n'
} >go.mod
go mod tidy
go list -C ../.. -deps -f '{{with .Module}}{{if .Version}}{{.Path}}@{{.Version}}{{end}}{{end}}' ./function | sort -u |
	while read -r module; do ! grep -q "^[[:space:]]${module%@*} " go.mod || echo "$module"; done | sed "s,^,-require=," | xargs go mod edit
go mod tidy
