# What takes longer than a test may: crashes, faults, races and inputs by the thousand. docs/reliability.md has the figures.

IN_STACK = set -a; source $${STACK_DIR:-.stack}/env; set +a

.PHONY: crashtest
crashtest: stack-up ## Kill processes at every call they make, and put every fault on the wire (CRASH_EVERY=10: a tenth)
	$(IN_STACK); CRASH_EVERY=$(or $(CRASH_EVERY),1) WIRE_FAULTS_ALL=1 go test -count=1 -v -timeout 3h -parallel 8 \
		-run 'TestAProcessMayBeKilled|OnTheWire|TestAnAnswerLost|TestAnExecThatHangs' ./function 2>&1 \
		| grep --line-buffered -vE '^=== |testdbconf|^ *--- PASS'; \
	CRASH_EVERY=$(or $(CRASH_EVERY),1) go test -count=1 -v -timeout 0 -run TestAProcessMayDieAtEveryCall ./internal/simulation -workers $$(nproc) 2>&1 \
		| grep --line-buffered -vE '^=== |testdbconf|^ *--- PASS'; \
	CRASH_EVERY=$(or $(CRASH_EVERY),1) go test -count=1 -v -run TestAProcessMayDieAnywhere ./internal/snapshot 2>&1 \
		| awk '/^ *--- PASS.*\// {n++} /^(ok|FAIL)/ || /^ *--- FAIL/ {print} /^FAIL/ {bad=1} END {print n " calls of a disk died at on the emulator"; exit bad}'
	@$(STILL_UP)

.PHONY: races
races: stack-up ## Sweeps, cleanups, extends and cancels at once on a real PostgreSQL, thousands of rounds, with -race (RACE_ROUNDS=1000 of each)
	$(IN_STACK); export RACE_ROUNDS=$(or $(RACE_ROUNDS),1000); lost=0; for package in sweep simulation; do \
		go test -race -count=1 -v -timeout 2h -run 'WhoCommitsFirst|WhoeverCommitsFirst|AnExtensionOfTheMaster|UsersWhoLockManyRows' \
			./internal/$$package 2>&1 | grep --line-buffered -vE '^=== |testdbconf|^ +--- PASS' || lost=1; done; exit $$lost
	@$(STILL_UP)

.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZTIME (30s) and print how many inputs it saw
	tools/fuzz.sh

.PHONY: mutation
mutation: stack-up ## Change the pure core and the handlers in small ways, and see whether the tests tell (docs/mutation.md)
	$(IN_STACK); tools/mutation.sh
	@$(STILL_UP)
