# Two commands do everything on a machine with Python 3.11 and make: `make serve` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
QUIET := --quiet --disable-pip-version-check
# One lock for every platform and Python: what is needed only on some stands there with a marker.
COMPILE := .venv/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --only-binary :all: --generate-hashes \
	--no-annotate --custom-compile-command 'make lock'

.DEFAULT_GOAL := help
.PHONY: help install serve servers test container-test crash-test fault-test stress-test fuzz check openapi bench bench-peers lock check-deps dist clean
# A recipe that fails half-way must not leave its target behind, or the next run would take it for done.
.DELETE_ON_ERROR:

help:  ## list these commands
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1|\2/p' Makefile | while IFS='|' read -r command text; do \
		printf '%-16s %s\n' "$$command" "$$text"; done

serve: $(INSTALLED)  ## run the service on 127.0.0.1:8000, data in ./rstore.db
	@exec $(BIN)/rstored serve

test: servers check  ## everything that must pass: check, then all tests
	$(BIN)/pytest -q -n 3 --dist worksteal

stress-test: $(INSTALLED)  ## the attacks on the service's limits, five times as large; a minute of clients that are cut off (RSTORE_SOAK_SEED)
	RSTORE_STRESS=1 $(BIN)/pytest -q tests/service/test_attacks.py tests/service/test_soak.py

crash-test: servers $(INSTALLED)  ## kill the service and its servers under load, 100 times on each backend (half an hour)
	RSTORE_CRASH_KILLS=100 $(BIN)/pytest -q -s tests/crash

container-test: $(INSTALLED)  ## build the image and run it and the Compose file, in a Docker engine of their own; as root on Linux
	@scripts/containers.sh

servers:  ## PostgreSQL, Redis and nginx for the tests: installed if missing, as root on Debian
	@scripts/servers.sh

check: $(INSTALLED)  ## the fast gate: style, types, layers, OpenAPI and docs drift
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports --no-cache >.venv/layers.txt || { cat .venv/layers.txt; exit 1; }
	$(BIN)/rstored openapi | diff -u openapi/openapi.json - || { echo 'openapi/openapi.json is stale: make openapi'; exit 1; }
	$(BIN)/pytest -q tests/test_docs.py tests/test_style.py tests/client/test_exported_members.py

fault-test: servers $(INSTALLED)  ## a bad network between clients and services, a minute on each backend (RSTORE_FAULT_SECONDS, RSTORE_FAULT_SEED)
	RSTORE_FAULT_SECONDS=$${RSTORE_FAULT_SECONDS:-60} $(BIN)/pytest -q -s tests/faults/test_once.py

fuzz: $(INSTALLED)  ## the fuzz tests at length: RSTORE_FUZZ_EXAMPLES for each operation (50), from RSTORE_FUZZ_SEED on
	RSTORE_FUZZ_EXAMPLES=$${RSTORE_FUZZ_EXAMPLES:-50} $(BIN)/pytest -q tests/fuzz tests/client/test_hostile_server.py

openapi: $(INSTALLED)  ## write openapi/openapi.json again from the routes
	$(BIN)/rstored openapi >openapi/.new && mv openapi/.new openapi/openapi.json

bench: bench-peers  ## measure, and write the figures into benchmarks/ (PARTS="kv series" for some)
	$(BIN)/python -m benchmarks --write $(PARTS)

bench-peers: $(INSTALLED)  ## what rstore is measured against: installed if missing, as root on Debian
	@scripts/peers.sh

install: $(INSTALLED)  ## make .venv and install everything at the versions of locks/development.txt

# The stamp is the whole memory of an installation: it is older than what it depends on exactly when pip must run again.
# Only wheels whose hash is in the lock are installed: building one would fetch and run what the lock does not know.
$(INSTALLED): pyproject.toml locks/development.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rstore needs Python 3.11 or newer; try make PYTHON=python3.11")'
	@echo 'Installing into .venv (once; again when pyproject.toml or locks/development.txt change) …'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install $(QUIET) --require-hashes --only-binary :all: --no-deps -r locks/development.txt
	@$(BIN)/python -m pip install $(QUIET) --no-deps --no-build-isolation -e .
	@touch $@

lock:  ## write locks/ again, keeping the versions that still fit; UPGRADE=1 chooses the newest
	@$(PYTHON) -m venv --clear .venv/lock && .venv/lock/bin/python -m pip install $(QUIET) 'uv>=0.9,<1'
	@mkdir -p locks
	$(COMPILE) $(if $(UPGRADE),--upgrade) --all-extras pyproject.toml -o locks/development.txt
	$(COMPILE) --upgrade -c locks/development.txt --extra service pyproject.toml -o locks/service.txt
	echo hatchling | $(COMPILE) --upgrade -c locks/development.txt - -o locks/build.txt

check-deps: $(INSTALLED)  ## ask the advisory database about every version of the locks; needs the network
	@$(PYTHON) -m venv .venv/audit && .venv/audit/bin/python -m pip install $(QUIET) 'pip-audit>=2.9,<3'
	@$(BIN)/pytest -q tests/test_locks.py
	@.venv/audit/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off -r locks/development.txt || \
		{ echo 'check-deps FAILED: the locks have advisories, or the database could not be asked about all; see above.' >&2; exit 1; }

dist: $(INSTALLED)  ## build sdist and wheel into dist/, and try them in empty environments; needs the network
	@scripts/dist.sh

clean:  ## remove what make made (not rstore.db)
	rm -rf .venv .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find client service tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +
