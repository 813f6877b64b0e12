# The service at work under the real components that send it events and scale it. They are built into the cache the first
# time, from the modules that tools/eventing and its like pin, and run as processes: see internal/e2e.

E2E_DIR := $(CURDIR)/.stack-e2e
E2E_STACK := STACK_DIR=$(E2E_DIR) STACK_WITHOUT="jaeger promtool" STACK_WITH="eventing serving keda node" $(STACK)

.PHONY: restarts
restarts: ## Restart the service a thousand times under load: no delivery may be lost or cut (RESTARTS=100)
	@STACK_DIR=$(E2E_DIR) STACK_WITHOUT="jaeger promtool" $(STACK) up
	@echo "restarting it $(or $(RESTARTS),1000) times; a thousand take two to three minutes"
	@set +e; STACK_DIR=$(E2E_DIR) RESTARTS=$(or $(RESTARTS),1000) go test -count=1 -timeout 60m -v -run TestRestarts ./function; code=$$?; \
	STACK_DIR=$(E2E_DIR) $(STACK) down; exit $$code

.PHONY: e2e
e2e: build ## Drive the service through Knative's and KEDA's own components (RUN=TestKnative runs one)
	@$(E2E_STACK) down
	@$(E2E_STACK) up
	@set +e; STACK_DIR=$(E2E_DIR) go test -tags e2e -count=1 -timeout 40m -v -run '$(or $(RUN),.)' ./internal/e2e 2>&1 \
		| grep --line-buffered -v testdbconf; code=$${PIPESTATUS[0]}; \
	$(E2E_STACK) down; exit $$code
