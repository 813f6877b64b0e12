# The manifests and the image.

, := ,
DEPLOY_TOOL := go tool -modfile=$(CURDIR)/tools/deploy/go.mod

.PHONY: manifests
manifests: stack-up ## Hold the manifests to their schemas, to a real API server and to what the code calls
	go test -count=1 ./internal/manifests
	@$(STILL_UP)

# As the Dockerfile has it.
BASE_IMAGE = $(shell sed -n 's,^ARG BASE_IMAGE=$${BASE_REGISTRY}/,,p' Dockerfile)

.PHONY: image
image: ## Build the image without a daemon (BASE_REGISTRY=host to build on; IMAGE_REPO=host/path pushes it, else image.tar)
	@: $${BASE_REGISTRY:?names the registry that has the distroless images to build on, see docs/deploying.md}
	VERSION=$(VERSION) KO_DEFAULTBASEIMAGE=$(BASE_REGISTRY)/$(BASE_IMAGE) KO_DOCKER_REPO=$(or $(IMAGE_REPO),reservation-expiry) \
		$(DEPLOY_TOOL) ko build --bare --tags=$(VERSION) \
		$(if $(IMAGE_REPO),--platform=linux/amd64$(,)linux/arm64,--push=false --tarball=image.tar) ./function
