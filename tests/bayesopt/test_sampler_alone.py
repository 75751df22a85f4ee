"""The sampler in the hands of a user: what is wrong is said, once."""

import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxmerge.bayesopt.gp.compiling import compiling
from jaxmerge.bayesopt.sampler import GPHedgeSampler
from jaxmerge.errors import InputError


@pytest.fixture
def log(monkeypatch):
  """The lines that the log gets of the sampler."""
  lines, logger = [], logging.getLogger("optuna.jaxmerge")
  handler = logging.Handler()
  handler.emit = lambda record: lines.append(record.getMessage())
  monkeypatch.setattr(logger, "handlers", [handler])
  level = logger.level
  logger.setLevel(logging.INFO)
  yield lines
  logger.setLevel(level)


def _study(**kwargs):
  sampler = GPHedgeSampler(**{"seed": 0, "n_startup_trials": 9, **kwargs})
  return optuna.create_study(sampler=sampler)


def _tell(study, gradient=None, names=("a", "b"), high=1.0):
  trial = study.ask()
  for name in names:
    trial.suggest_float(name, 0, high)
  if gradient is not None:
    trial.set_user_attr("gradient", gradient)
  study.tell(trial, 1.0)


@pytest.mark.parametrize(
  ("gradient", "said"),
  [
    (None, "for a, b.*got none"),
    ([1.0, 2.0], "{name: slope}.*got list"),
    ({"a": 1.0, "B": 2.0}, "lacks b; it has a, B"),
    ({"a": 1.0, "b": "2"}, "of b must be a number, got '2'"),
  ],
)
@pytest.mark.parametrize("simplex", [("a", "b"), None])
def test_a_gradient_that_cannot_be_used_is_refused(simplex, gradient, said):
  study = _study(simplex=simplex, use_gradients=True)
  with pytest.raises(InputError, match=said):
    _tell(study, gradient)


def test_a_slope_that_is_not_known_is_nan():
  _tell(_study(use_gradients=True), {"a": 1.0, "b": math.nan})


def test_a_failed_trial_needs_neither_gradient_nor_parameters():
  study = _study(simplex=("a", "b"), use_gradients=True)
  study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)


@pytest.mark.parametrize("names", [("a", "B"), ("a",), ()])
def test_a_name_that_was_never_suggested_is_named(names):
  with pytest.raises(
    InputError, match="not suggested (a, )?b, which `simplex` names"
  ):
    _tell(_study(simplex=("a", "b")), names=names)


@pytest.mark.parametrize("high", [2.0, 1e-9])
def test_bounds_other_than_0_and_1_are_refused(high):
  with pytest.raises(InputError, match=r"must be .* a float in \[0, 1\]"):
    _tell(_study(simplex=("a", "b")), high=high)


@pytest.mark.parametrize("simplex", ["abc", "", [("a", "b"), "cd"], ()])
def test_what_is_no_sequence_of_names_is_refused(simplex):
  with pytest.raises(InputError, match="a simplex "):
    _study(simplex=simplex)


def test_no_seed_draws_one():
  samplers = [GPHedgeSampler(), GPHedgeSampler(seed=None)]
  assert samplers[0].seed != samplers[1].seed
  study = optuna.create_study(sampler=samplers[0])
  _tell(study)
  again = _study(seed=samplers[0].seed, n_startup_trials=None)
  _tell(again)
  assert again.trials[0].params == study.trials[0].params


@pytest.mark.parametrize("simplex", [("a", "b"), None])
def test_what_is_not_modelled_is_told_once(simplex, log):
  study = _study(simplex=simplex)
  for _ in range(2):
    trial = study.ask()
    for name in ("a", "b"):
      trial.suggest_float(name, 0, 1)
    trial.suggest_int("count", 1, 3)
    trial.suggest_categorical("kind", ["x", "y"])
    study.tell(trial, 1.0)
  told = [line.partition(" is drawn")[0] for line in log]
  assert told == ["count", "kind"]


@pytest.fixture
def _no_cache():
  """No directory of the caller's, as in a program that uses the sampler."""
  name = "jax_compilation_cache_dir"
  before = getattr(jax.config, name)
  jax.config.update(name, None)
  compilation_cache.reset_cache()
  yield
  jax.config.update(name, before)
  compilation_cache.reset_cache()


@pytest.mark.usefixtures("_no_cache")
def test_compiling_is_told_once_and_kept(log, monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  # JAX has compiled before, and looked for a directory.
  jax.block_until_ready(jax.jit(lambda x: x + 1)(np.ones(2)))
  for _ in range(2):
    with compiling("test", (7, 1), "key"):
      jax.block_until_ready(jax.jit(jnp.sinh)(np.ones(3)))
  assert log == [
    "Compiling the Gaussian process's test for up to 7 rows: seconds, once in "
    "a process."
  ]
  assert list((tmp_path / "jaxmerge/jax").iterdir())
  assert jax.config.jax_compilation_cache_dir is None
