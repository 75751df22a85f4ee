# make quickstart   everything, from a bare clone to the report
# make test         everything, from a bare clone to the tested package
# make check        lint, format, types, contracts, then make test
# make install      only the environment, in .venv

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3,$(if $(shell $(p) -c 'import sys; sys.version_info >= (3, 11) and print(1)' 2>/dev/null),$(p))))
WORKDIR ?= runs/quickstart
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: install quickstart test check lock format

install: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "jaxmerge needs Python 3.11 or newer" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

quickstart: install
	$(BIN)/python -m jaxmerge.quickstart --workdir=$(WORKDIR)

test: install
	$(BIN)/python -m pytest -n 2

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory test

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Needs `uv`; the lock holds exact versions and hashes, and names no index.
lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --no-annotate --no-header --upgrade --output-file requirements.lock
