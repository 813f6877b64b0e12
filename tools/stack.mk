# The real components that tests and the demo run against. `go run -C tools ./stack help` says how to bring your own.

STACK := CGO_ENABLED=0 go run -C tools -trimpath -gcflags=all=-dwarf=false ./stack

# What ends by itself and leaves the stack to the next run says so.
STILL_UP := echo "the stack is still up, for the next run: make stack-down"

.PHONY: stack-up
stack-up: ## Start PostgreSQL, PgBouncer, Kubernetes and AWS; writes .stack/env
	@$(STACK) up

.PHONY: stack-down
stack-down: ## Stop them and leave nothing behind
	@$(STACK) down

.PHONY: stack-build
stack-build: ## Install and build what they need (minutes, once)
	@$(STACK) build

.PHONY: lint-tools
lint-tools: ## Check the form of the nested modules
	lint=$$(go tool -modfile=tools/go.mod -n golangci-lint); \
	(cd tools && "$$lint" run --allow-parallel-runners ./...); \
	cd tools/kube && CGO_ENABLED=0 GOFLAGS="-trimpath -gcflags=all=-dwarf=false" "$$lint" run --allow-parallel-runners ./...  # the flags of the build, whose packages it reuses

.PHONY: test-tools
test-tools: ## Test that the stack comes up, heals, and goes without a trace
	go test -C tools ./...
