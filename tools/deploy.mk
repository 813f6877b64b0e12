# The manifests and the image.

, := ,
DEPLOY_TOOL := go tool -modfile=$(CURDIR)/tools/deploy/go.mod

.PHONY: manifests
manifests: stack-up ## Hold the manifests to their schemas, to a real API server and to what the code calls
	go test -count=1 ./internal/manifests

.PHONY: image
image: ## Build the image without a daemon (IMAGE_REPO=registry/path pushes it, else image.tar)
	VERSION=$(VERSION) KO_DOCKER_REPO=$(or $(IMAGE_REPO),reservation-expiry) $(DEPLOY_TOOL) ko build --bare --tags=$(VERSION) \
		$(if $(IMAGE_REPO),--platform=linux/amd64$(,)linux/arm64,--push=false --tarball=image.tar) ./function
