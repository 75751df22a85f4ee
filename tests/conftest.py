"""Caches shared by all tests, and a tiny run for those that need one."""

import gc
import os
import pathlib
import shutil
from collections.abc import Callable

ROOT = pathlib.Path(__file__).parent.parent
# Set before any test imports jax: compiled programs and prepared corpora are
# kept between tests, workers and runs.
os.environ["XDG_CACHE_HOME"] = str(ROOT / ".cache/tests")
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".cache/tests/jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile far longer than they compute, and LLVM's later passes take most
# of that; `XLA_FLAGS= make test` has them too.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")
# Tracing makes many objects and little garbage: a tenth of its seconds.
gc.set_threshold(50_000)

import pytest  # noqa: E402


def _trials_of(workdir: pathlib.Path, name: str = "pair") -> list[tuple]:
  import optuna
  from optuna.storages import JournalStorage
  from optuna.storages.journal import JournalFileBackend

  journal = workdir / f"search/{name}/study.journal"
  study = optuna.load_study(
    study_name=name,
    storage=JournalStorage(JournalFileBackend(str(journal))),
  )
  return [
    (
      trial.number,
      trial.state.name,
      trial.params,
      trial.value,
      {k: v for k, v in trial.user_attrs.items() if k != "seconds"},
      {k: v for k, v in trial.system_attrs.items() if "gp_hedge" in k},
    )
    for trial in study.trials
  ]


@pytest.fixture(scope="session")
def trials_of() -> Callable[..., list[tuple]]:
  """All that a search decided, without who did it and when."""
  return _trials_of


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """The workdir of configs/pretrain/tiny.py, trained once per worker.

  Tests that change it make a copy.
  """
  from jaxmerge import pretrain
  from tests.helpers import config_of, quiet

  workdir = tmp_path_factory.mktemp("tiny") / "run"
  pretrain.train(config_of("pretrain"), workdir, progress=quiet)
  return workdir


@pytest.fixture
def workdir(tiny_run: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
  """A copy of the tiny run, to be changed."""
  return pathlib.Path(shutil.copytree(tiny_run, tmp_path / "run"))
