# The real components that tests and the demo run against. `go run -C tools ./stack help` says how to bring your own.

STACK := go run -C tools ./stack

.PHONY: stack-up
stack-up: ## Start PostgreSQL, PgBouncer, Kubernetes and AWS; writes .stack/env
	@$(STACK) up

.PHONY: stack-down
stack-down: ## Stop them and leave nothing behind
	@$(STACK) down

.PHONY: stack-build
stack-build: ## Install and build what they need (minutes, once)
	@$(STACK) build
