"""Tasks whose items are there, ready to be scored with models of some kinds.

N items, C choices of an item at most.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxmerge.data.tokenizers.protocol import Tokenizer
from jaxmerge.evaluation import choice_scores
from jaxmerge.evaluation.comparison import Items, Text
from jaxmerge.evaluation.evaluator import Setting
from jaxmerge.evaluation.evaluators.heldout_loss import BITS
from jaxmerge.evaluation.held_out_splits import tokenizer_of
from jaxmerge.evaluation.score import Score
from jaxmerge.evaluation.score_cache import Measured
from jaxmerge.evaluation.task_config import METRICS
from jaxmerge.evaluation.tasks.task import ChoiceItem, hash_of
from jaxmerge.model.loss import UNIT

PERPLEXITY = "perplexity"


class TaskScores(NamedTuple):
  """The scores of all models on the items of one table.

  Attributes:
    name: of the table.
    metrics: by name, that which decides first, the score of each model.
    hashes_N: of the items; () where they are not known.
    notes: lines for people.
    logs_KxNxC: nats, the log-likelihoods of choices; None of a text.
  """

  name: str
  metrics: Mapping[str, Sequence[Score]]
  hashes_N: Sequence[str] = ()
  notes: Sequence[str] = ()
  logs_KxNxC: np.ndarray | None = None

  @property
  def first(self) -> Score:
    """That of the first model by the metric that decides."""
    return next(iter(self.metrics.values()))[0]


class ReadyTask(Protocol):
  """A task on models of several kinds."""

  @property
  def name(self) -> str:
    """As its table is named."""

  def content(self, kind: int) -> str:
    """A hash of all that decides what is measured but the parameters.

    "": nothing is known of it, and nothing can be kept.
    """

  def open(self, kind: int) -> None:
    """Prepares to measure models of a kind; InputError where it cannot."""

  def measure(self, kind: int, params: Any) -> Measured:
    """Measures a model of a kind that has been opened."""

  def scores(
    self, kinds: Sequence[int], found: Sequence[Measured]
  ) -> list[TaskScores]:
    """The scores of models of these kinds, a table or more."""


class HeldOutTask:
  """A held-out split by an evaluator; of a mixture its parts besides.

  Args:
    name: of the whole.
    texts: by kind of model, opened for it.
  """

  def __init__(self, name: str, texts: Mapping[int, Text]):
    self.name = name
    self._texts = texts

  def content(self, kind: int) -> str:
    items = self._texts[kind].items
    return items.content if items else ""

  def open(self, kind: int) -> None:
    """It is open."""

  def measure(self, kind: int, params: Any) -> Measured:
    score = self._texts[kind].evaluator.score(params)
    fields = dict(vars(score))
    arrays = {name: fields.pop(name) for name in _ARRAYS}
    return Measured(arrays, fields | {"extras": dict(score.extras)})

  def scores(
    self, kinds: Sequence[int], found: Sequence[Measured]
  ) -> list[TaskScores]:
    scores = [_score(each) for each in found]
    first = self._texts[kinds[0]].items
    if first is None:
      return [TaskScores(self.name, {scores[0].unit: scores})]
    known = [self._texts[kind].items or first for kind in kinds]
    whole = np.ones(len(first.parts_N), bool)
    tables = [self._table(self.name, scores, known, whole)]
    for part in dict.fromkeys(first.parts_N):
      if part:
        is_in_N = np.array([each == part for each in first.parts_N])
        name = f"{self.name}/{part}"
        tables.append(self._table(name, scores, known, is_in_N))
    return tables

  def _table(
    self,
    name: str,
    scores: Sequence[Score],
    known: Sequence[Items],
    is_in_N: np.ndarray,
  ) -> TaskScores:
    chosen = [_some(*each, is_in_N) for each in zip(scores, known)]
    hashes = [h for h, is_in in zip(known[0].hashes_N, is_in_N) if is_in]
    notes = []
    if scores[0].unit == BITS:
      notes.append(
        f"The tokenizers differ: bits/byte are compared, over {len(hashes)} "
        "whole documents; nats/token are of each input's own tokens."
      )
    return TaskScores(name, {scores[0].unit: chosen}, hashes, notes)


_ARRAYS = ("values_N", "weights_N", "clusters_N")


def _score(measured: Measured) -> Score:
  fields: dict[str, Any] = {**measured.arrays, **measured.facts}
  return Score(**fields)


def _some(score: Score, items: Items, is_in_N: np.ndarray) -> Score:
  """The score of some of the items, in its other units too."""
  some = dataclasses.replace(
    score, **{name: getattr(score, name)[is_in_N] for name in _ARRAYS}
  )
  if score.unit != UNIT:
    return some if is_in_N.all() else dataclasses.replace(some, extras={})
  bits = some.values_N.sum() / math.log(2) / items.bytes_N[is_in_N].sum()
  with np.errstate(over="ignore"):
    perplexity = float(np.exp(some.mean))
  extras = {BITS: float(bits), PERPLEXITY: perplexity}
  tokens = int(some.weights_N.sum())
  return dataclasses.replace(some, extras=extras, tokens=tokens)


class Choosing(Protocol):
  """As much as is needed of evaluators.choices.Choices."""

  @property
  def num_inputs(self) -> int:
    """Inputs that the items take, of a shared prompt once."""

  @property
  def num_cut(self) -> int:
    """Items whose prompt has lost its left end."""

  def log_likelihoods(self, params: Any) -> np.ndarray:
    """Nats of choices, float64[N, C]; -inf where there is none."""


# Opens the items for the models of a setting: tokenizer, context.
OpenChoices = Callable[
  [Setting, Sequence[ChoiceItem], Tokenizer, int], Choosing
]


class ChoiceTask:
  """Questions with choices.

  Args:
    name: as it was typed.
    items: of it.
    settings: by kind of model.
    contexts: by kind, the positions that its texts may take.
    open_choices: makes what measures them.
  """

  def __init__(
    self,
    name: str,
    items: Sequence[ChoiceItem],
    settings: Mapping[int, Setting],
    contexts: Mapping[int, int],
    open_choices: OpenChoices,
  ):
    self.name = name
    self.items = items
    self._settings = settings
    self._contexts = contexts
    self._open = open_choices
    self._opened: dict[int, Choosing] = {}
    self._hash = hash_of(items)

  def content(self, kind: int) -> str:
    tokenizer = tokenizer_of(self._settings[kind].metadata)
    return f"{self._hash} {tokenizer.hash} {self._contexts[kind]}"

  def open(self, kind: int) -> None:
    setting, context = self._settings[kind], self._contexts[kind]
    tokenizer = tokenizer_of(setting.metadata)
    with choice_scores.naming(self.name):
      self._opened[kind] = self._open(setting, self.items, tokenizer, context)

  def measure(self, kind: int, params: Any) -> Measured:
    opened = self._opened[kind]
    logs_NxC = opened.log_likelihoods(params)
    return Measured({"logs_NxC": logs_NxC}, {"num_cut": opened.num_cut})

  def tokens(self, kind: int) -> int:
    """Opens the items for a kind; the inputs that these take."""
    self.open(kind)
    return self._opened[kind].num_inputs

  def scores(
    self, kinds: Sequence[int], found: Sequence[Measured]
  ) -> list[TaskScores]:
    del kinds
    each = [
      choice_scores.scores(self.items, m.arrays["logs_NxC"], 0) for m in found
    ]
    metrics = {m: [s[m] for s in each] for m in METRICS}
    hashes = [item.hash for item in self.items]
    notes = []
    if cut := max(m.facts["num_cut"] for m in found):
      notes.append(
        f"{cut} of {len(self.items)} prompts are longer than the context and "
        "have lost their left end"
      )
    logs_KxNxC = np.stack([m.arrays["logs_NxC"] for m in found])
    return [TaskScores(self.name, metrics, hashes, notes, logs_KxNxC)]
