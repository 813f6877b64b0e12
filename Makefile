# Reservation Expiry. `make` or `make help` lists what can be done.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
BIN := bin/reservation-expiry
GO_TOOL := go tool -modfile=tools/go.mod
# The flags of tools/stack/gobuild.go: what the service and its tools have in common is compiled once.
GO_BUILD := GOGC=off GOMEMLIMIT=2GiB CGO_ENABLED=0 go build -trimpath -gcflags=all=-dwarf=false
GO_BUILD_SERVICE := $(GO_BUILD) -ldflags '-s -w -X main.version=$(VERSION)' -o $(BIN)

include tools/stack.mk
include tools/deploy.mk
include tools/simulate.mk
include tools/reliability.mk
include tools/e2e.mk

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z][a-zA-Z0-9_-]*:.*## / {printf "  \033[1m%-12s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/reservation-expiry
	$(GO_BUILD_SERVICE) ./function

# A long build says now and then that it is still at it; what goes wrong is shown as it is.
COUNTED := 2>&1 | awk '/^go: downloading / || /^[^ :\#]+$$/ { if (++n % 100 == 0) { print "  " n " steps, at " $$0; fflush() } next } { print; fflush() }'

.PHONY: demo
demo: ## Watch reservations end, on real components (KEEP=1 leaves it running)
	@echo "building the service and the demo (some minutes the first time, seconds later)"
	@$(GO_BUILD_SERVICE) -v ./function $(COUNTED)
	@$(GO_BUILD) -v -o bin/demo ./internal/demo $(COUNTED)
	@cd tools && $(GO_BUILD) -v -o $(CURDIR)/bin/stack ./stack $(COUNTED)
	@KEEP=$(KEEP) bin/demo

.PHONY: demo-down
demo-down: ## Stop what make demo KEEP=1 has left running
	@bin/demo down

# What tracing costs and how long a start takes is measured alone and without the race detector: beside other tests it
# would measure them.
COST := 'TestTracingCostsASweepLittle|TestAStartFromZeroIsFast'

# The longest first, lest they run alone at the end.
PACKAGES := ./internal/snapshot ./function ./internal/manifests ./internal/sweep ./internal/cleanup ./internal/postgres ./internal/simulation \
	./internal/lifecycle ./internal/kube ./...

# At its exit a process waits for the race detector's last reports, by default a second for each of hundreds.
export GORACE ?= atexit_sleep_ms=50

.PHONY: test
test: ## Everything, on the real components, from a bare machine
	@$(MAKE) --no-print-directory -j3 lint lint-tools stack-up || { $(MAKE) --no-print-directory stack-down; exit 1; }
	set +e; set -a; source .stack/env; set +a; \
	$(GO_TOOL) gotestsum --format pkgname -- -race -ldflags '-s -w' -parallel 8 -timeout 25m -skip $(COST) $(PACKAGES) \
	&& go test -ldflags '-s -w' -count=1 -v -run $(COST) ./function | grep -vE '^=== |testdbconf' && $(MAKE) --no-print-directory test-tools; code=$$?; \
	$(MAKE) --no-print-directory stack-down; exit $$code

.PHONY: lint
lint: ## Check the code's form and the modules' sums
	$(GO_TOOL) golangci-lint run --allow-parallel-runners ./...
