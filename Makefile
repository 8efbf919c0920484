# `make demo` and `make test` need Python >= 3.11 and make, nothing else.
# PYTHON chooses the interpreter; uv is used where it is on PATH.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := bot config db fleet local pool poolctl telemetry worker
SCRIPTS := .ci/run $(wildcard deploy/*.sh deploy/*/*.sh pgbouncer/*.sh)
UV := $(shell command -v uv 2>/dev/null)

.PHONY: $(VENV) help demo test test-slow e2e secrets check bench reference lock clean

help: ## this list
	@awk -F ':.*## ' '/^[$$a-z0-9()VENV-]+:.*## / { sub(/\$$\(VENV\)/, ".venv", $$1); printf "%-12s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/demo.stamp ## a whole fleet on servers of its own: 3 workers, 1 bot, 300 jobs
	LOG_LEVEL=$${LOG_LEVEL:-WARNING} $(BIN)/poolctl up --workers 3 --bots 1 --exercise 300 --once

# Three processes on two cores: the tests wait for their servers much of the time.
test: $(VENV)/dev.stamp ## the fast tests, on real servers of their own
	$(BIN)/python -m pytest -n 3 --dist loadfile -m "not slow and not e2e"

test-slow: $(VENV)/dev.stamp ## the tests that take long, about 20 minutes
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "slow and not e2e"

e2e: $(VENV)/dev.stamp ## the stack on a Docker engine, under 20 minutes; skipped where there is none
	$(BIN)/python -m pytest -m e2e -rs --durations=0 --durations-min=5

secrets: ## random passwords for the stack, in files in secrets/; none is overwritten
	@sh deploy/secrets.sh

check: $(VENV)/dev.stamp ## ruff, mypy --strict, layers, shell scripts, Dockerfiles
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests/typing examples
	$(BIN)/lint-imports
	$(BIN)/shellcheck --severity style $(SCRIPTS)
	$(BIN)/hadolint Dockerfile pgbouncer/Dockerfile

bench: $(VENV)/bench.stamp ## this engine beside other pools, this worker beside arq's, about 7 minutes; BENCH=--help for its options
	$(BIN)/python -m benchmarks.engine $(BENCH)
	$(BIN)/python -m benchmarks.jobs $(filter --quick --help,$(BENCH))

reference: $(VENV)/dev.stamp ## write what the documentation has from the code: tables, .env.example, charts
	$(BIN)/python -m poolctl.documentation

lock: $(VENV)/dev.stamp ## compile the hashed lock files from pyproject.toml
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --python-version 3.11 --extra telegram pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --python-version 3.11 -c requirements.lock --extra local pyproject.toml -o requirements-local.lock
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --python-version 3.11 -c requirements-local.lock --extra local --extra chart --extra telegram --group dev pyproject.toml -o requirements-dev.lock
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --python-version 3.11 -c requirements-dev.lock --extra local --extra chart --group bench pyproject.toml -o requirements-bench.lock

$(VENV): $(VENV)/dev.stamp ## the virtual environment with all that development needs

clean: ## remove what make and the tests made, the data of `poolctl up` too
	-@test ! -x $(BIN)/python || $(BIN)/python -c 'import pathlib, shutil, local; shutil.rmtree(local.data_directory(pathlib.Path()), ignore_errors=True)'
	rm -rf $(VENV) .local .mypy_cache .pytest_cache .ruff_cache .hypothesis dist build
	find $(PACKAGES) tests -name __pycache__ -prune -exec rm -rf {} +

# Only what `make demo` needs, so that a first run is short; `make test` adds the rest.
$(VENV)/demo.stamp: requirements-local.lock pyproject.toml | $(VENV)/pyvenv.cfg
	@$(call install,requirements-local.lock)
	@touch $@

$(VENV)/dev.stamp: requirements-dev.lock pyproject.toml | $(VENV)/pyvenv.cfg
	@$(call install,requirements-dev.lock)
	@touch $@ $(VENV)/demo.stamp

$(VENV)/bench.stamp: requirements-bench.lock pyproject.toml | $(VENV)/pyvenv.cfg
	@$(call install,requirements-bench.lock)
	@touch $@ $(VENV)/demo.stamp

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "$(PYTHON) is missing or older than 3.11: install Python >= 3.11, or name one with 'make PYTHON=/path/to/python3 ...'" >&2; exit 2; }
ifdef UV
	@uv venv -q --python "$$(command -v $(PYTHON))" $(VENV)
else
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || \
	  { rm -rf $(VENV); echo "cannot make a virtual environment: run 'sudo apt install python3-venv' (Debian, Ubuntu), or install uv" >&2; exit 2; }
endif

# The project itself is put on the path by one line in site-packages, so that no build tool is needed.
define install
echo "installing from $(1) ..." >&2; \
if [ -n "$(UV)" ]; then uv pip install -q --python $(BIN)/python --require-hashes -r $(1); \
else $(BIN)/python -m pip install -q --no-compile --disable-pip-version-check --require-hashes -r $(1); fi && \
printf '%s\n' "$(CURDIR)" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/poolctl.pth" && \
printf '#!/bin/sh\nexec "%s/$(BIN)/python" -m poolctl "$$@"\n' "$(CURDIR)" > $(BIN)/poolctl && chmod +x $(BIN)/poolctl
endef
