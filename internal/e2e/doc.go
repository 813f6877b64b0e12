// Package e2e drives the service for real: the components that send it events and scale it run as processes built from
// their own modules, against the real API server, under the manifests and the permissions that are shipped. `make e2e`
// runs it; it takes minutes, so `make test` does not.
package e2e
