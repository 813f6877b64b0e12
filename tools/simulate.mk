# A simulated world, which only needs PostgreSQL. Each run has a stack of its own, so that several go side by side.

SEEDS ?= $(if $(SIM_LONG),1000000,10000)
SIMULATION := STACK_DIR=$(CURDIR)/.stack-simulation-$$$$ STACK_WITHOUT="pgbouncer kubernetes aws jaeger promtool"

.PHONY: simulate
simulate: ## Break everything at once, by seeds: SEED=n replays one, SEEDS=n runs so many (FROM=1 on), SIM_LONG=1 a million
	@for n in '$(SEED)' '$(SEEDS)' '$(FROM)'; do \
		[[ $$n =~ ^([1-9][0-9]{0,17})?$$ ]] || { echo "make simulate: SEED, SEEDS and FROM are whole numbers from 1 on, not $$n"; exit 2; }; \
	done; \
	trap '$(SIMULATION) $(STACK) down' EXIT; $(SIMULATION) $(STACK) up; \
	$(SIMULATION) go test ./internal/simulation -count=1 -timeout 0 -v -run '^TestSimulation$$' \
		$(if $(SEED),-seed $(SEED),-seeds $(SEEDS) -from $(or $(FROM),1) -workers $$(nproc))
