# What takes longer than a test may: crashes, faults, races and inputs by the thousand. docs/reliability.md has the figures.

# Whatever comes of it, the last lines say what failed, and that the stack stays up.
IN_STACK = shown=$$(mktemp); trap 'grep -E "^ *--- FAIL" $$shown || :; rm $$shown; $(STILL_UP)' EXIT; set -a; source $${STACK_DIR:-.stack}/env; set +a

# Of tests within tests, those that failed.
SHOWN := 2>&1 | grep --line-buffered -vE '^=== |testdbconf|^ +--- PASS' | tee -a $$shown

.PHONY: crashtest
crashtest: stack-up ## Kill processes at every call they make (CRASH_EVERY=10: at each tenth), and put every fault on the wire
	@$(IN_STACK); export CRASH_EVERY=$(or $(CRASH_EVERY),1) WIRE_FAULTS_ALL=1; lost=0; \
	go test -count=1 -v -timeout 3h -parallel 8 -run 'TestAProcessMayBeKilled|OnTheWire|TestAnAnswerLost|TestAnExecThatHangs' ./function $(SHOWN) || lost=1; \
	go test -count=1 -v -timeout 0 -run TestAProcessMayDieAtEveryCall ./internal/simulation -workers $$(nproc) $(SHOWN) || lost=1; \
	go test -count=1 -v -run TestAProcessMayDieAnywhere ./internal/snapshot $(SHOWN) || lost=1; \
	exit $$lost

.PHONY: races
races: stack-up ## Sweeps, cleanups, extends and cancels at once on a real PostgreSQL, thousands of rounds, with -race (RACE_ROUNDS=1000 of each)
	@$(IN_STACK); export RACE_ROUNDS=$(or $(RACE_ROUNDS),1000); lost=0; \
	for package in sweep simulation; do \
		go test -race -count=1 -v -timeout 2h -run 'WhoCommitsFirst|WhoeverCommitsFirst|AnExtensionOfTheMaster|UsersWhoLockManyRows' \
			./internal/$$package $(SHOWN) || lost=1; \
	done; exit $$lost

.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZTIME (30s) with FUZZWORKERS (4) and print how many inputs it saw
	@tools/fuzz.sh

.PHONY: mutation
mutation: stack-up ## Change the pure core and the handlers (MUTATE=internal/pod: one of them) in small ways, and see whether the tests tell
	@$(IN_STACK); tools/mutation.sh
