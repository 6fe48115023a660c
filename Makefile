# `make demo` and `make test` set up everything they need on a fresh machine; see .ci/bootstrap.
SHELL := /bin/bash
BIN := .venv/bin
WORKERS := 2
# What a test's timeout cannot interrupt tells where every thread stands, and ends the run: pytest-xdist's schedulers wait
# for ever once they have replaced a worker.
HANGS := -o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true --max-worker-restart=0
export PYTHONPATH := tests:tools

.PHONY: help demo test test-unit test-faults test-tenants test-evictions check format changelog verify bench bench-log bench-operator down clean
.DEFAULT_GOAL := help

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: ## Watch a training job survive `kubectl drain` on a real two-node cluster (KEEP=1 leaves it running)
	@.ci/bootstrap --cluster
	@$(BIN)/python -m demo $(if $(KEEP),--keep)

test: ## All tests: unit, store, distributed, API server, cluster (WORKERS=0 runs them in one process)
	@.ci/bootstrap
	$(BIN)/pytest --numprocesses=$(WORKERS) --no-loadscope-reorder --durations=15 --durations-min=10 $(HANGS)

test-unit: ## The tests that need no server, no process group and no cluster: seconds
	@.ci/bootstrap
	$(BIN)/pytest -m "not store and not distributed and not api and not cluster"

test-faults: ## The long profile of fault injection: store faults, crash matrix, model, data of others (an hour or so)
	@.ci/bootstrap
	CHECKPOINT_FAULTS=long $(BIN)/pytest tests/store/test_faults.py tests/store/test_large_bodies.py tests/model tests/crashes tests/control/test_foreign_data.py
	$(BIN)/python docs/faults.py

test-tenants: ## One operator with a thousand Checkpoints at a black hole and every kind of hostile store (ten minutes)
	@.ci/bootstrap
	CHECKPOINT_FAULTS=long $(BIN)/pytest --timeout=1800 tests/control/test_tenants.py

test-evictions: ## Every kind of interruption and workload on the two-node cluster (the long tail of the cluster tests)
	@.ci/bootstrap --cluster
	$(BIN)/pytest -m evictions tests/cluster

check: ## Format, lint, types, import layers, chart in step with crds/
	@.ci/bootstrap
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python charts/sync-crds.py --check
	$(BIN)/python docs/generate.py --check

format: ## Rewrite the code the way `make check` wants it
	@.ci/bootstrap
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	$(BIN)/python charts/sync-crds.py
	$(BIN)/python docs/generate.py

changelog: ## Preview the release notes that changelog.d/ makes
	@.ci/bootstrap
	$(BIN)/towncrier build --draft --version "$$($(BIN)/python -c 'from importlib.metadata import version; print(version("checkpoint-operator"))')"

verify: check test ## Everything CI does

bench: ## Saving and loading beside torch's own and AWS's connector: one table, and build/bench/engine.json (ten minutes)
	@.ci/bootstrap --bench
	$(BIN)/python benchmarks/engine.py

bench-log: ## What opening a long run log costs, with and without compaction
	@.ci/bootstrap
	$(BIN)/python benchmarks/run_log.py

bench-operator: ## What 100 and 1,000 Checkpoints cost the operator, on a real API server: build/bench/operator.json (an hour)
	@.ci/bootstrap
	$(BIN)/python benchmarks/operator_scale.py

down: ## Stop and remove a cluster that `make demo KEEP=1` (or a crash) left behind
	$(BIN)/python -m localcluster down

clean: ## Remove build results of this checkout (the cache of Kubernetes binaries stays)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
