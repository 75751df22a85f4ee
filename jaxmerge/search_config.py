"""The config of a search: its keys, and what is wrong with it."""

import math
import re

from ml_collections import config_dict

from jaxmerge import runner
from jaxmerge.bayesopt.acquisition import NAMES
from jaxmerge.bayesopt.controls import CONTROLS
from jaxmerge.bayesopt.reach import Reach
from jaxmerge.bayesopt.storage import address_problems
from jaxmerge.data import sections
from jaxmerge.errors import check
from jaxmerge.merging import coefficients

# Each is a slot of the study from its beginning.
_MOST_TRIALS = 10_000
SCHEMA: runner.Schema = {
  "name": str,
  "steps": tuple[int, ...],
  "alpha": float,
  "beta": float,
  "bands": int,
  "num_trials": int,
  "max_seconds": float,
  "max_tokens": int,
  "seed": int,
  "acquisitions": tuple[str, ...],
  "starts": tuple[str, ...],
  "use_gradients": bool,
  "early_stop": bool,
  "baselines": tuple[str, ...],
  "storage": str,
  "search_sequences": int,
  "report_sequences": int,
  "batch_size": int,
  "seq_len": int,
  "data": dict(sections.OTHER_CORPUS),
  "memory_budget_gb": float,
  "report": str,
  "mesh": {"data": int, "fsdp": int, "tensor": int},
}


def check_config(config: config_dict.ConfigDict) -> None:
  """Refuses what is wrong with a config whatever the inputs."""
  runner.check_config(config, SCHEMA)
  check(_problems(config))


def _problems(config: config_dict.ConfigDict) -> list[str]:
  problems = [
    f"config.{key} must be positive, got {config[key]}"
    for key in ("search_sequences", "report_sequences", "batch_size")
    if config[key] < 1
  ]
  problems += [
    f"config.{key} must be 0 (no limit) or positive, got {config[key]}"
    for key in ("max_seconds", "max_tokens", "bands")
    if config[key] < 0
  ]
  problems += sections.other_corpus_problems(config.data)
  problems += address_problems(config.storage)
  for key in ("seq_len", "memory_budget_gb"):
    if not (math.isfinite(config[key]) and config[key] >= 0):
      problems.append(f"config.{key} must be at least 0, got {config[key]}")
  if not 2 <= config.num_trials <= _MOST_TRIALS:
    problems.append(
      f"config.num_trials must be from 2 to {_MOST_TRIALS}, got "
      f"{config.num_trials}"
    )
  problems += [
    f"config.{problem}"
    for problem in Reach(config.alpha, config.beta).problems()
  ]
  for key in ("name", "report"):
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", config[key]):
      problems.append(
        f"config.{key} must be a plain file name, got {config[key]!r}"
      )
  if config.report in ("checkpoints", "search", "tensorboard"):
    problems.append(f"config.report must not be the run's own {config.report}")
  for key, known in (
    ("acquisitions", NAMES),
    ("starts", coefficients.STARTS),
    ("baselines", tuple(CONTROLS)),
  ):
    chosen = [value for value in config[key] if value in known]
    if len(chosen) < len(config[key]) or len(set(chosen)) < len(chosen):
      problems.append(
        f"config.{key} must be different ones of {known}, got {config[key]}"
      )
  if not config.acquisitions:
    problems.append("config.acquisitions must not be empty")
  if not 0 <= config.seed < 2**32:
    problems.append(f"config.seed must be in [0, 2**32), got {config.seed}")
  return problems
