# Two commands do everything on a machine with Python 3.11 and make: `make serve` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install serve servers test check openapi bench lock clean
# A recipe that fails half-way must not leave its target behind, or the next run would take it for done.
.DELETE_ON_ERROR:

help:  ## list these commands
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1|\2/p' Makefile | while IFS='|' read -r command text; do \
		printf '%-14s %s\n' "$$command" "$$text"; done

serve: $(INSTALLED)  ## run the service on 127.0.0.1:8000, data in ./rstore.db
	@exec $(BIN)/rstored serve

test: servers check  ## everything that must pass: check, then all tests
	$(BIN)/pytest -q -n 2 --dist worksteal

servers:  ## PostgreSQL and Redis for the tests: installed if missing, as root on Debian
	@scripts/servers.sh

check: $(INSTALLED)  ## the fast gate: style, types, layers, OpenAPI and docs drift
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports --no-cache >.venv/layers.txt || { cat .venv/layers.txt; exit 1; }
	$(BIN)/rstored openapi | diff -u openapi/openapi.json - || { echo 'openapi/openapi.json is stale: make openapi'; exit 1; }
	$(BIN)/pytest -q tests/test_docs.py

openapi: $(INSTALLED)  ## write openapi/openapi.json again from the routes
	$(BIN)/rstored openapi >openapi/.new && mv openapi/.new openapi/openapi.json

bench: $(INSTALLED)  ## measure, and write the figures into benchmarks/README.md (PARTS="kv series" for some)
	$(BIN)/python benchmarks/run.py --write $(PARTS)

install: $(INSTALLED)  ## make .venv and install everything at the versions of constraints.txt

# The stamp is the whole memory of an installation: it is older than what it depends on exactly when pip must run again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rstore needs Python 3.11 or newer; try make PYTHON=python3.11")'
	@echo 'Installing into .venv (once; again when pyproject.toml or constraints.txt change) …'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[service,cli,dev]'
	@touch $@

lock:  ## choose the newest allowed versions again and write constraints.txt
	rm -rf .venv/lock && $(PYTHON) -m venv .venv/lock
	.venv/lock/bin/python -m pip install --quiet --disable-pip-version-check '.[service,cli,dev]'
	{ echo '# Written by `make lock`: the exact versions that are installed, tested and shipped.'; \
		.venv/lock/bin/python -m pip freeze --exclude rstore --exclude pip --exclude setuptools; } >constraints.new
	mv constraints.new constraints.txt && rm -rf .venv/lock

clean:  ## remove what make made (not rstore.db)
	rm -rf .venv .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find client service tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +
