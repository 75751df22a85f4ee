# make quickstart   everything, from a bare clone to the report
# make test         everything, from a bare clone to the tested package
# make check        lint, format, types, contracts, then make test
# make test-tpu     what the TPU compiler makes of our programs (no TPU needed)
# make fuzz         2,000 damaged files of each kind, others at each run
# make install      only the environment, in .venv
#
# LANE=newest does the same with the jax that GPU images have, in .venv-newest.
# SHORT=1 leaves out the tests that hardly depend on the version of jax.

LANE ?= default
ifeq ($(LANE),default)
  VENV := .venv
  LOCK := requirements.lock
  SERIES := 3.11 3.12
  RIGHT := sys.version_info >= (3, 11)
  NEEDS := 3.11 or newer
else ifeq ($(LANE),newest)
  VENV := .venv-newest
  LOCK := requirements.newest.lock
  SERIES := 3.12
  RIGHT := sys.version_info[:2] == (3, 12)
  NEEDS := 3.12
  # GPJax's metadata forbid this jax, so nothing may be resolved anew.
  NO_DEPS := --no-deps
else
  $(error LANE is default or newest, not $(LANE))
endif

# An interpreter is believed after it has run: pyenv's shims exist and fail,
# and distributions ship Pythons that cannot make an environment.
TRY := -c 'import ensurepip, sys; sys.exit(not ($(RIGHT)))' >/dev/null 2>&1
PYENV = $(wildcard $(foreach s,$(SERIES),$(shell pyenv root 2>/dev/null)/versions/$(s).*/bin/python))
PYTHON ?= $(firstword $(foreach p,$(SERIES:%=python%) python3 $(PYENV),$(shell $(p) $(TRY) && echo $(p))))
WORKDIR ?= runs/quickstart
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install quickstart test test-tpu check fuzz lock format

install: $(INSTALLED)

$(INSTALLED): $(LOCK) pyproject.toml
	@found="$(PYTHON)"; $${found:-false} $(TRY) || { \
	  echo "jaxmerge (LANE=$(LANE)) needs Python $(NEEDS); name one: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(NO_DEPS) --require-hashes -r $(LOCK)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

quickstart: install
	$(BIN)/python -m jaxmerge.quickstart --workdir=$(WORKDIR)

# Processes and signals, journals, files, pages, and what is refused before
# anything is computed: what of them needs jax is in the tests of whole runs,
# searches and merges, which stay. Newton's searches are of a loss in NumPy.
LEFT_OUT := multiprocess cli/test_interrupts.py \
  bayesopt/test_journal.py bayesopt/test_object_journal.py \
  bayesopt/test_shared_study.py bayesopt/test_study.py \
  bayesopt/test_foreign_journals.py bayesopt/test_baselines.py \
  bayesopt/test_constraints.py \
  data formats fuzz real_world reporting \
  notebooks test_extending.py test_tutorials.py test_locks.py evaluation/tasks \
  evaluation/test_statistics.py evaluation/test_significance.py \
  evaluation/test_newton.py evaluation/test_newton_kept.py \
  evaluation/test_trajectory.py huggingface/test_torch_bin.py \
  huggingface/test_places.py merging/test_merge_plan.py \
  merging/test_streaming.py merging/test_grouped_models.py \
  simplex/test_quadratic.py simplex/test_capped_rows.py \
  test_addresses.py test_attacks.py test_bad_input.py test_half_done.py \
  test_ownership.py test_paths.py test_search_dry_run.py \
  test_sentencepiece_run.py
test: install
	$(BIN)/python -m pytest -n 2 $(if $(SHORT),$(LEFT_OUT:%=--ignore=tests/%))

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory test

# The compiler (680 MB) lies beside the environment: with it on the path, JAX
# would look for a TPU wherever it starts.
LIBTPU := next(r for r in requires("jax") if "libtpu" in r).split(";")[0]
$(VENV)/tpu: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $@ \
	  "$$($(BIN)/python -c 'from importlib.metadata import requires; print($(LIBTPU))')"
	@touch $@

test-tpu: $(VENV)/tpu
	XLA_FLAGS= PYTHONPATH=$(VENV)/tpu $(BIN)/python -m pytest -m tpu tests/tpu

fuzz: install
	FUZZ=2000 $(BIN)/python -m pytest -n 2 tests/fuzz

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Needs `uv`; the locks hold exact versions and hashes, and name no index.
COMPILE := uv pip compile pyproject.toml --extra dev --universal \
  --generate-hashes --no-emit-index-url --no-emit-find-links \
  --no-annotate --no-header --upgrade
lock:
	$(COMPILE) --python-version 3.11 --output-file requirements.lock
	$(COMPILE) --python-version 3.12 --output-file requirements.newest.lock \
	  --override requirements.newest.override
