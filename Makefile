# `make demo` and `make test` set up everything they need on a fresh machine; see .ci/bootstrap.
SHELL := /bin/bash
BIN := .venv/bin
# Many tests wait for a server, a timeout or a cluster, so there are more processes than cores.
WORKERS := 5
CLUSTER := local
ifeq ($(filter local current,$(CLUSTER)),)
  $(error CLUSTER=$(CLUSTER) is neither local (two nodes on this machine) nor current (that of the current kube context))
endif
# If a test hangs beyond its timeout, print the stack of every thread and end the run: pytest-xdist's schedulers would wait
# indefinitely once they have replaced a worker.
HANGS := -o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true --max-worker-restart=0
export PYTHONPATH := tests:tools
# Each process of the tests imports the tests, and they start hundreds of programs: bytecode is kept, whatever the shell says.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo dist docs test test-unit test-release test-faults test-tenants test-evictions test-frameworks test-oldest test-workloads check format changelog verify bench bench-log bench-operator bench-ranks down clean
.DEFAULT_GOAL := help

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

demo: ## Watch a training job survive `kubectl drain` on a real two-node cluster (KEEP=1 keeps it; CLUSTER=current: on yours)
ifeq ($(CLUSTER),local)
	@.ci/bootstrap --cluster
	@$(BIN)/python -m demo $(if $(KEEP),--keep)
else
	@.ci/bootstrap --current
	@$(BIN)/python -m demo.current --image="$(IMAGE)" --bucket="$(BUCKET)" $(if $(KEEP),--keep) $(if $(YES),--yes)
endif

test: ## Run all tests: unit, store, distributed, API server, cluster (WORKERS=0 uses one process)
	@.ci/bootstrap
	$(BIN)/pytest --numprocesses=$(WORKERS) --no-loadscope-reorder --durations=15 --durations-min=10 $(HANGS)

# These compute all the time: more processes than cores would only import more often.
test-unit: WORKERS := 2
test-unit: ## Run the tests of decisions and stores that need no server, training or cluster (a minute)
	@.ci/bootstrap
	$(BIN)/pytest --numprocesses=$(WORKERS) -m "not slow and not browser and not store and not distributed and not api and not cluster" $(addprefix --ignore=tests/,alerts benchmarks cluster crashes model training)

test-faults: ## Run the long profile of fault injection: store faults, crashes, model, foreign data (an hour)
	@.ci/bootstrap
	CHECKPOINT_FAULTS=long $(BIN)/pytest tests/store/test_faults.py tests/store/test_large_bodies.py tests/model tests/crashes tests/control/test_foreign_data.py
	$(BIN)/python docs/faults.py

test-tenants: ## Run one operator with a thousand Checkpoints and every kind of hostile store (ten minutes)
	@.ci/bootstrap
	CHECKPOINT_FAULTS=long $(BIN)/pytest --timeout=1800 tests/control/test_tenants.py

test-evictions: ## Run every kind of interruption and workload on the two-node cluster
	@.ci/bootstrap --cluster
	$(BIN)/pytest -m evictions tests/cluster tests/demo tests/localcluster_tests

test-frameworks: ## Run the trainers that people use through our adapters, each as its package ships it
	@.ci/bootstrap --frameworks
	$(BIN)/pytest -m frameworks tests/frameworks

test-oldest: ## Run the tests of CRDs, chart and injection on the oldest Kubernetes that is supported (builds it once, ten minutes)
	@.ci/bootstrap
	oldest=$$($(BIN)/python -m localcluster.oldest) && KUBEBUILDER_ASSETS=$$oldest $(BIN)/pytest -m api tests/api

test-workloads: ## Run JobSet, Kubeflow Trainer and cert-manager with their own controllers, and images as volumes
	@.ci/bootstrap
	$(BIN)/python -m workloads.build
	$(BIN)/pytest -m workloads tests/workloads

test-release: ## Build whole releases, compare them, and use what is in them (ten minutes)
	@.ci/bootstrap
	$(BIN)/pytest -m release tests/release tests/cluster

dist: ## Make the files of a release in build/dist (REGISTRY=, HOMEPAGE=, MAINTAINER=, QUICK=1, DIRTY=1: docs/releasing.md)
	@.ci/bootstrap
	@$(BIN)/python -m release $(if $(REGISTRY),--registry='$(REGISTRY)') $(if $(HOMEPAGE),--homepage='$(HOMEPAGE)') $(if $(MAINTAINER),--maintainer='$(MAINTAINER)') $(if $(BUILDER),--builder='$(BUILDER)') $(if $(QUICK),--quick) $(if $(DIRTY),--dirty)

check: ## Check format, lint, types, import layers, and generated files
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

docs: ## Build the documentation as a site in build/site; a dead link fails
	@.ci/bootstrap
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --config-file tools/site/mkdocs.yml
	@echo "open build/site/index.html"

verify: check test ## Run everything that CI runs

bench: ## Compare saving and loading with torch's and AWS's: a table, and build/bench/engine.json (ten minutes)
	@.ci/bootstrap --bench
	$(BIN)/python benchmarks/engine.py

bench-ranks: ## Measure what the metadata of 64, 256 and 1,024 ranks costs (ten minutes, 10 GB of memory)
	@.ci/bootstrap
	$(BIN)/python benchmarks/ranks.py

bench-log: ## Measure the cost of opening a long run log, with and without compaction
	@.ci/bootstrap
	$(BIN)/python benchmarks/run_log.py

bench-operator: ## Measure the operator with 100 and 1,000 Checkpoints on a real API server (an hour)
	@.ci/bootstrap
	$(BIN)/python benchmarks/operator_scale.py

down: ## Remove what `make demo KEEP=1` or a crash left behind (CLUSTER=current: in your cluster)
ifeq ($(CLUSTER),local)
	$(BIN)/python -m localcluster down
else
	$(BIN)/python -m demo.current --remove
endif

clean: ## Remove build results of this checkout (the cache of Kubernetes binaries stays)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
