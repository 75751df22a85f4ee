"""Says what an evaluation will do, and what it takes."""

import functools
import math

from jaxmerge.errors import Problems
from jaxmerge.evaluation.config import EvaluateConfig
from jaxmerge.evaluation.evaluator import EVALUATORS
from jaxmerge.evaluation.scored_models import Models
from jaxmerge.evaluation.speeds import (
  STORAGE_BYTES_A_SECOND,
  rounded,
  speeds,
)
from jaxmerge.evaluation.task_scores import Questions, open_questions
from jaxmerge.files import human_bytes
from jaxmerge.formats.records.metadata import abstract_params
from jaxmerge.parallel.rules import named_leaves


def plan(config: EvaluateConfig, models: Models, questions: Questions) -> str:
  """Lines of a fact each; tokenizes questions, and prepares no text.

  Raises:
    InputError: a model does not fit the devices, or items do not fit a model.
  """
  place = models.place(config.memory_budget_gb)
  tokens = _tokens(config, models, questions)
  speed = speeds()
  seconds = read = 0.0
  for kind in models.kinds:
    leaves = named_leaves(abstract_params(models.settings[kind].metadata))
    sizes = [math.prod(leaf.shape) for leaf in leaves.values()]
    each = [leaf.dtype.itemsize for leaf in leaves.values()]
    size = sum(n * width for n, width in zip(sizes, each))
    of_kind = sum(tokens[kind].values())
    seconds += speed.forward_seconds(sum(sizes), of_kind)
    read += size
  seconds += read / STORAGE_BYTES_A_SECOND
  rows = {"inputs": ", ".join(c.name for c in models.checkpoints)}
  for name in config.corpora:
    rows[name] = f"{config.sequences:,} sequences at most, "
  for name, items in questions.items():
    rows[name] = f"{len(items):,} items, "
  for name in rows.keys() - {"inputs"}:
    counts = [tokens[kind][name] for kind in models.settings]
    rows[name] += f"{max(counts):,} tokens"
  rows["time"] = (
    f"about {rounded(seconds)} s for {len(models.kinds)} inputs, compiling "
    "apart; what is in the cache takes none"
  )
  rows["read"] = human_bytes(read)
  rows["memory"] = f"{human_bytes(place.needed)} for parameters"
  return "\n".join(f"{name:>16}: {value}" for name, value in rows.items())


def _tokens(
  config: EvaluateConfig, models: Models, questions: Questions
) -> dict[int, dict[str, int]]:
  """Tokens that each task takes, by kind of model and by task."""
  problems = Problems()
  found: dict[int, dict[str, int]] = {kind: {} for kind in models.settings}
  record = EVALUATORS[config.evaluator]
  for name, corpus in config.corpora.items():
    for kind, setting in models.settings.items():
      on_corpus = setting._replace(data=corpus.data)
      each = problems(functools.partial(record.check, on_corpus))
      found[kind][name] = config.sequences * (each or 0)
  for task in problems(lambda: open_questions(config, models, questions)) or ():
    for kind in models.settings:
      count = problems(functools.partial(task.tokens, kind))
      found[kind][task.name] = count or 0
  problems.check()
  return found
