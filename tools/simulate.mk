# A simulated world, which only needs PostgreSQL. It runs in a stack of its own, and so does a replay beside it.

SEEDS ?= $(if $(SIM_LONG),1000000,10000)
SIMULATION := STACK_DIR=$(CURDIR)/.stack-simulation$(addprefix -,$(SEED)) STACK_WITHOUT="pgbouncer kubernetes aws jaeger promtool"

.PHONY: simulate
simulate: ## Break everything at once, by seeds: SEED=n replays one, SEEDS=n runs so many (FROM=1 on), SIM_LONG=1 a million
	@trap '$(SIMULATION) $(STACK) down' EXIT; $(SIMULATION) $(STACK) up; \
	$(SIMULATION) go test ./internal/simulation -count=1 -timeout 0 -v -run '^TestSimulation$$' \
		$(if $(SEED),-seed $(SEED),-seeds $(SEEDS) -from $(or $(FROM),1) -workers $$(nproc))
