"""Caches shared by all tests, and a tiny run for those that need one."""

import os
import pathlib

ROOT = pathlib.Path(__file__).parent.parent
# Set before any test imports jax: compiled programs and prepared corpora are
# kept between tests, workers and runs.
os.environ["XDG_CACHE_HOME"] = str(ROOT / ".cache/tests")
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".cache/tests/jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PLATFORMS"] = "cpu"

import pytest  # noqa: E402


def no_progress(stage: str, done: int, total: int, note: str) -> None:
  del stage, done, total, note


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """The workdir of configs/pretrain/tiny.py, trained once per worker.

  Tests that change it make a copy.
  """
  from jaxmerge import pretrain, runner

  workdir = tmp_path_factory.mktemp("tiny") / "run"
  config = runner.load_config(str(ROOT / "configs/pretrain/tiny.py"))
  pretrain.train(config, workdir, progress=no_progress)
  return workdir
