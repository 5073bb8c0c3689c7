# meshq: everything a developer runs. Needs Python 3.11 or newer, bash and make; the rest goes into .venv.
#
# Another interpreter: make PYTHON=/path/to/python3.12 test

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
# What docs/generate.py writes, the last one in part.
PAGES := limits messages membership
FUZZ_S ?= 60
SEEDS ?= 500
FIRST ?= 0
READY := $(VENV)/.ready

# $(call stage,name,command): runs it and says how long it took.
stage = @echo "== $(1)"; SECONDS=0; { $(2); } || exit 1; echo "   $(1): $${SECONDS} s"

# Tests of processes, sockets and network namespaces run one after the other: they wait for each other and the clock.
TIMED := tests/transport tests/mesh tests/hostile tests/cli tests/examples tests/lab
PYTEST = $(BIN)/python -m pytest -m 'not long' --durations=10 --durations-min=1

.PHONY: help test lint format types imports docs docs-current units check-long simulate mutants simulate-membership fuzz-membership lab lab-replication lab-groups demo bench bench-churn bench-membership bench-peers lab-deps venv clean

help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-20s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

test: lint units  ## lint, types, import contracts, then every test that does not take minutes

lint: format types imports docs-current  ## all that is checked without running the code

format: $(READY)
	$(call stage,ruff,$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check .)

types: $(READY)
	$(call stage,mypy,$(BIN)/mypy)

imports: $(READY)
	$(call stage,import contracts,$(BIN)/lint-imports)

docs-current: $(READY)
	$(call stage,generated docs,for page in $(PAGES); do \
		$(BIN)/python docs/generate.py $$page | diff -u docs/$$page.md - \
		|| { echo "docs/$$page.md is not what the source says: run 'make docs'" >&2; exit 1; }; done)

units: $(READY)
	$(call stage,pytest of what computes,$(PYTEST) -n 2 --dist worksteal $(addprefix --ignore=,$(TIMED)))
	$(call stage,pytest of what waits,$(PYTEST) $(TIMED))

check-long: $(READY)  ## the tests that take minutes
	$(call stage,long tests,$(BIN)/python -m pytest -m long)
	$(call stage,membership simulated,$(BIN)/python -m tests.gossip.simulate --whole --write)

lab: $(READY) lab-deps  ## every test in network namespaces, and what it measured (root; about eight minutes)
	@$(BIN)/python -m pytest tests/lab

lab-replication: $(READY) lab-deps  ## peers under load and every fault, judged by their histories (root; half an hour)
	@$(BIN)/python -m pytest tests/lab/test_replication.py

lab-groups: $(READY) lab-deps  ## ordered groups of 1 to 20 members, killed, stopped and cut off (root; ten minutes)
	@$(BIN)/python -m pytest tests/lab/test_group_times.py

simulate: $(READY)  ## the replicated log under faults: make simulate SEEDS=1000 FIRST=0
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS) --first $(FIRST)
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS) --first $(FIRST) --witness

mutants: $(READY)  ## how many schedules it takes to catch each fault built in on purpose
	@$(BIN)/python -m tests.simulation --mutants --seeds $(SEEDS) --first $(FIRST)

demo: $(READY)  ## three peers on this host, real records
	@$(BIN)/meshq demo

bench: $(READY)  ## the benchmarks, beside what one would use instead
	@$(BIN)/python -m benchmarks

bench-churn: $(READY)  ## a topic with a limit of bytes, written over and over
	@$(BIN)/python -m benchmarks --only churn

bench-membership: $(READY)  ## a kill at 10 and 30 peers, beside the package kinship (about six minutes)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --editable '.[dev,bench]'
	@$(BIN)/python -m benchmarks.membership

bench-peers: $(READY)  ## the same work on Kafka, NATS JetStream, Redis Streams and RabbitMQ; ARGS="--quick" or "--only nats"
	@bash benchmarks/peers/install.sh $(BIN)/python
	@$(BIN)/python -m benchmarks.peers $(ARGS)

docs: $(READY)  ## write the generated pages of docs/ again
	@for page in $(PAGES); do \
		$(BIN)/python docs/generate.py $$page > docs/$$page.new && mv docs/$$page.new docs/$$page.md; done

simulate-membership: $(READY)  ## the tables of docs/membership.md, small sizes; ARGS="--whole" for all, "--help"
	@$(BIN)/python -m tests.gossip.simulate $(ARGS)

fuzz-membership: $(READY)  ## feed broken datagrams to gossip's decoders for FUZZ_S seconds
	@$(BIN)/python -m tests.gossip.fuzz $(FUZZ_S)

lab-deps:  ## what the tests in network namespaces need from the system (root, apt-get)
	@bash tests/lab/install.sh

venv: $(READY)  ## only the environment

# The stamp is written last, so that an installation that broke off is begun again.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "meshq needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1 || true)." >&2; \
		echo "Install one and run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "== environment in $(VENV)"
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV) || { \
		echo "could not make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --editable '.[dev]'
	@touch $@

clean:  ## remove what was made here, the environment too
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .hypothesis .pytest_cache .import_linter_cache
	@rm -rf benchmarks/out
	@find meshq tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
