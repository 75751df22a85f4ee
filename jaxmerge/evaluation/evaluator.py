"""The protocol of evaluators, which score parameters, and their records.

N items (sequences, questions), D directions of the parameters.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jax.sharding import Mesh

from jaxmerge.data.config import CorpusConfig
from jaxmerge.evaluation.score import Direction, Score
from jaxmerge.formats.records.metadata import Metadata, abstract_params
from jaxmerge.parallel.rules import shardings
from jaxmerge.registry import Registry

DEFAULT_EVALUATOR = "heldout_loss"
# What a derivative costs in forward passes (docs/results/search.md).
JVP_PASSES = 3
VJP_PASSES = 6


class Evaluator(Protocol):
  """Scores trees of parameters on the items of one split."""

  def score(self, params: Any, upto: int | None = None) -> Score:
    """Scores the first `upto` items (None: all), or a few more in a batch.

    The first items must be a random sample of all.
    """


@runtime_checkable
class Resumable(Protocol):
  """An evaluator that scores further items without those before."""

  def extend(self, params: Any, known: Score, upto: int) -> Score:
    """As score, of parameters of which an earlier call gave `known`."""


@runtime_checkable
class Differentiable(Protocol):
  """An evaluator with derivatives of its values by the parameters."""

  def slope(self, params: Any, tangent: Any) -> tuple[Score, np.ndarray]:
    """The score and d values_N / d t at params + t tangent (float64[N])."""

  def gradient(self, params: Any) -> tuple[Score, Any]:
    """The score and d sum(values_N) / d params, in float32."""


@runtime_checkable
class ItemDifferentiable(Protocol):
  """An evaluator with the gradient of each item by the parameters."""

  def item_gradients(self, params: Any) -> Iterator[tuple[Score, Any]]:
    """Yields each item's own score and d value / d params, in float32.

    In order, a tree at a time; their sum is that of Differentiable.gradient.
    """


@runtime_checkable
class Curved(Protocol):
  """An evaluator with a curvature of its values along D directions."""

  def curvature(
    self, params: Any, tangents_D: Sequence[Any], upto: int | None = None
  ) -> tuple[Score, np.ndarray]:
    """The score of the first items, and t_i' H t_j (float64[D, D]).

    H is the Gauss-Newton matrix of sum(values_N) by the parameters; over
    sum(weights_N) it is that of the mean. A tangent is a tree like params.
    """


class Setting(NamedTuple):
  """Models, devices and text that an evaluator is opened for.

  Attributes:
    metadata: of the checkpoint; others of its tokenizer are scored too.
    mesh: where to compute.
    batch_size: sequences scored at once, over all devices.
    data: a corpus other than that of the checkpoint's run, if it names one.
    seq_len: targets in a sequence; 0: as in training.
    allow_unrelated: accept that the run's corpus has changed since training.
    knobs: of the evaluator's record.
  """

  metadata: Metadata
  mesh: Mesh
  batch_size: int
  data: CorpusConfig | None = None
  seq_len: int = 0
  allow_unrelated: bool = False
  knobs: Any = None

  @property
  def shardings(self) -> Any:
    """The shardings of a parameter tree on the mesh."""
    return shardings(abstract_params(self.metadata), self.mesh)


class Opened(Protocol):
  """The items of an evaluator, ready to be scored."""

  @property
  def source(self) -> str:
    """Names the items for people."""

  @property
  def content(self) -> str:
    """The hash of the items."""

  def on(self, split: str, count: int) -> Evaluator:
    """The evaluator of at most so many items of a split."""


class EvaluatorRecord(NamedTuple):
  """An evaluator, as evaluate and search know it.

  Attributes:
    name, summary: in a config and its help.
    direction: of its scores.
    knobs: a frozen dataclass of its keys in the config.
    check: refuses what cannot be scored, prepares and writes nothing; gives
      the tokens of an item, for the time that a trial will take.
    open: given a function that is called with a line of text while a corpus
      is prepared.
    is_differentiable: its evaluators are Differentiable.
  """

  name: str
  summary: str
  direction: Direction
  knobs: type
  check: Callable[[Setting], int]
  open: Callable[[Setting, Callable[[str], None]], Opened]
  is_differentiable: bool = False


EVALUATORS: Registry[EvaluatorRecord] = Registry(
  "evaluator", "jaxmerge.evaluation.evaluators"
)
