# Reservation Expiry. `make` or `make help` lists what can be done.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
BIN := bin/reservation-expiry
GO_TOOL := go tool -modfile=tools/go.mod

include tools/stack.mk

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z][a-zA-Z_-]*:.*## / {printf "  \033[1m%-12s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/reservation-expiry
	go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $(BIN) ./function

.PHONY: demo
demo: build stack-build ## Watch twenty reservations end, on real components (KEEP=1 leaves it running)
	go run ./tools/demo

.PHONY: test
test: lint stack-up ## Everything, on the real components, from a bare machine
	set +e; set -a; source .stack/env; set +a; \
	$(GO_TOOL) gotestsum --format pkgname --packages ./... -- -race -timeout 15m; code=$$?; \
	$(MAKE) --no-print-directory stack-down; exit $$code

.PHONY: lint
lint: ## Check the code's form and the modules' sums
	$(GO_TOOL) golangci-lint run ./...
