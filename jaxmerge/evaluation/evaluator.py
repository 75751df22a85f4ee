"""The protocol of evaluators, which score parameters, and their records.

N items (sequences, questions); K checkpoints, G groups of parameters with
weights of their own.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jax.sharding import Mesh

from jaxmerge.data.config import CorpusConfig
from jaxmerge.evaluation.score import Direction, Score
from jaxmerge.formats.records.metadata import Metadata, abstract_params
from jaxmerge.merging.groups import Groups
from jaxmerge.merging.resident import Trees
from jaxmerge.parallel.rules import shardings
from jaxmerge.registry import Registry

DEFAULT_EVALUATOR = "heldout_loss"
# What a derivative costs in forward passes (docs/results/search.md).
JVP_PASSES = 3
VJP_PASSES = 6
# The same of all weights' slopes, item by item, and of one weight's part of the
# curvature (benchmarks/weight_derivatives.py: 4.5 and 1.5 on a CPU).
WEIGHT_VJP_PASSES = 5
WEIGHT_JVP_PASSES = 2
# Of different clusters at most, that secants alone are corrected by.
SECANT_SEQUENCES = 16


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


class Derivatives(NamedTuple):
  """A score's derivatives by the weights of a merge.

  Attributes:
    score: of the merge; its tokens are those of the derivatives too.
    gradients_NxGxK: float64, d values_N / d weights. Weights of a group sum to
      one: those of the last checkpoint are 0.
    curvature: float64[G K, G K], the Gauss-Newton matrix of the mean by the
      weights, at group * K + checkpoint; None where none was wanted.
  """

  score: Score
  gradients_NxGxK: np.ndarray
  curvature: np.ndarray | None


@runtime_checkable
class WeightDifferentiable(Protocol):
  """An evaluator with derivatives of its values by the weights of a merge."""

  def weight_derivatives(
    self,
    weights_GxK: Sequence[Sequence[float]],
    trees: Trees,
    groups: Groups,
    curvature_sequences: int = 0,
  ) -> Derivatives:
    """Differentiates at a merge of finite trees.

    Args:
      weights_GxK: each row sums to one.
      trees: K trees.
      groups: which parameters have which row of weights.
      curvature_sequences: of different clusters, the first of each, for the
        curvature; 0: none is wanted.
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
    memory_budget_gb: for parameters, as choose_placement takes it.
  """

  metadata: Metadata
  mesh: Mesh
  batch_size: int
  data: CorpusConfig | None = None
  seq_len: int = 0
  allow_unrelated: bool = False
  knobs: Any = None
  memory_budget_gb: float = 0.0

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
    has_curvature: they are WeightDifferentiable, and their scores losses.
    derivative_bytes: that their derivatives by the weights take on each device
      beside trees that lie there, of K, the groups and the number of items;
      None: not known.
  """

  name: str
  summary: str
  direction: Direction
  knobs: type
  check: Callable[[Setting], int]
  open: Callable[[Setting, Callable[[str], None]], Opened]
  is_differentiable: bool = False
  has_curvature: bool = False
  derivative_bytes: Callable[[Setting, int, Groups, int], int] | None = None


EVALUATORS: Registry[EvaluatorRecord] = Registry(
  "evaluator", "jaxmerge.evaluation.evaluators"
)
