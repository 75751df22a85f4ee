"""A merge whose inputs are known: the weights that are, and what it takes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from jaxmerge.checkpoints.copied_tensors import (
  Copied,
  find_copied,
  told_left_out,
)
from jaxmerge.checkpoints.input_order import (
  describe_order,
  find_order,
  latest,
)
from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.errors import Problems
from jaxmerge.files import check_room, human_bytes
from jaxmerge.formats.lazy_tensors import TensorSpec
from jaxmerge.formats.records.provenance import SEEN, Provenance
from jaxmerge.merging import chunks
from jaxmerge.merging.grouped_weights import (
  GroupedWeights,
  grouped_weights,
)
from jaxmerge.merging.groups import Groups
from jaxmerge.merging.method import (
  Method,
  average_weights,
  knobs_of_inputs,
)
from jaxmerge.merging.weight_checks import weighing
from jaxmerge.parallel.rules import named_leaves


class MergePlan(NamedTuple):
  """A merge whose inputs have been checked.

  Attributes:
    sources: the K checkpoints.
    base: what all came from, for methods that need it.
    weights: as typed, or as the method gives them; empty: none.
    is_average: whether the weights say all.
    budget: bytes of memory for parameters.
    groups: of an average whose weights differ between groups.
    weights_GxK: of the groups; each row sums to one.
    dtype: asked of the output's weights; "" for the widest of the inputs.
    copied: tensors that are no weights.
    wide: dtypes in which others are merged, which hold those of all inputs.
    needed: bytes of memory for parameters.
    workers: chunks that are made at the same time.
    order: what is to be said of the order of the inputs.
    seen: records of the items that the method measures, as SEEN has them.
  """

  method: Method
  knobs: Any
  sources: Sequence[Checkpoint]
  base: Checkpoint | None
  weights: Sequence[float]
  is_average: bool
  budget: float
  groups: Groups | None = None
  weights_GxK: Sequence[Sequence[float]] = ()
  specs: Mapping[str, TensorSpec] = {}
  dtype: str = ""
  copied: Copied = Copied()
  wide: Mapping[str, np.dtype] = {}
  needed: int = 0
  workers: int = chunks.WORKERS
  order: str = ""
  seen: Sequence[Mapping[str, Any]] = ()

  @property
  def size(self) -> int:
    """Bytes of one tree."""
    return sum(spec.nbytes for spec in self.specs.values())

  @property
  def read(self) -> list[Checkpoint]:
    """The inputs that are read, the base first, none of weight zero."""
    used, _ = weighing(self.sources, self.uses_K)
    return [*([self.base] if self.base else []), *used]

  @property
  def latest(self) -> Checkpoint:
    """The latest of the inputs that are read, the base if no other is."""
    used, _ = weighing(self.sources, self.uses_K)
    return latest(used or self.read)

  @property
  def weights_K(self) -> Sequence[float]:
    """As typed or as the method gives them, else equal ones."""
    return self.weights or self.method.equal_weights(len(self.sources))

  @property
  def uses_K(self) -> list[float]:
    """Above zero for sources that weigh anything anywhere."""
    rows = self.weights_GxK or [self.weights_K]
    return [max(map(abs, column)) for column in zip(*rows, strict=True)]

  @property
  def provenance(self) -> Provenance:
    """The origin of the merge, as its output says it."""
    names_G = self.groups.names_G if self.groups else ()
    return Provenance(
      self.method.name,
      self.weights_K,
      groups=dict(zip(names_G, self.weights_GxK, strict=True)),
      parameters=dataclasses.asdict(self.knobs),
      notes=self.copied.notes,
      search={SEEN: list(self.seen)} if self.seen else {},
    )


def plan_merge(
  method: Method,
  knobs: Any,
  sources: Sequence[Checkpoint],
  base: Checkpoint | None,
  weights: Sequence[float],
  *,
  budget: float,
  dtype: str,
  output: epath.PathLike,
) -> MergePlan:
  """Finds the weights that are known, and what the merge needs.

  Args:
    method, knobs, weights: in which methods.problems finds nothing.
    sources: the K checkpoints.
    base: what all came from, for methods that need it.
    budget: bytes of memory for parameters.
    dtype: of the output's weights; "" for the widest of the inputs.
    output: where it is to write.

  Raises:
    InputError: a source is damaged, it has no such groups, a tensor that is no
      weight differs, or more memory or disk is needed.
  """
  order = ""
  if method.ordered:
    sources, knobs, weights, order = _oldest_first(sources, knobs, weights)
  plan = MergePlan(
    method, knobs, sources, base, weights, False, budget, dtype=dtype
  )._replace(order=order)
  # A method without typed weights finds those of its groups later.
  grouped = weights and grouped_weights(knobs, sources, weights)
  if grouped:
    plan = _grouped(plan, grouped)
  # Without a base, one that weighs alone is what the merge gives.
  is_alone = method.on_tensors and sum(w != 0 for w in plan.weights) == 1
  if method.acts == "on weights" or (is_alone and not method.base):
    usable = method.usable(plan.weights_K, knobs)
    if method.acts == "on weights":
      usable = average_weights(method, usable, knobs)
    plan = plan._replace(weights=list(usable), is_average=True)
  return sized(plan, output)


def with_groups(
  plan: MergePlan, rows: Mapping[str, Sequence[float]]
) -> MergePlan:
  """The plan at weights by group, of the groups that its knobs say."""
  if len(rows) == 1:
    [weights] = rows.values()
    return plan._replace(weights=weights)
  flat = [weight for row in rows.values() for weight in row]
  grouped = grouped_weights(plan.knobs, plan.sources, flat)
  assert grouped is not None
  assert grouped.groups.names_G == (*rows,)
  return _grouped(plan, grouped)


def _grouped(plan: MergePlan, grouped: GroupedWeights) -> MergePlan:
  groups, rows = grouped
  return plan._replace(
    groups=groups, weights_GxK=rows, weights=groups.mean_weights(rows)
  )


def _oldest_first(
  sources: Sequence[Checkpoint], knobs: Any, weights: Sequence[float]
) -> tuple[Sequence[Checkpoint], Any, Sequence[float], str]:
  """All that belongs to the inputs in their order, and what is said of it."""
  order = find_order(sources)
  indices = order.oldest_first_K
  rows_GxK = np.reshape(weights, (-1, len(sources)))
  return (
    [sources[k] for k in indices],
    knobs_of_inputs(knobs, indices),
    rows_GxK[:, indices].ravel().tolist(),
    describe_order(sources, order),
  )


def sized(plan: MergePlan, output: epath.PathLike) -> MergePlan:
  """The plan with its specs, and as many workers as its memory allows."""
  method = plan.method
  leaves = [checkpoint.open_leaves() for checkpoint in plan.read]
  several = len(leaves) > 1 and method.acts != "on models"
  copied = find_copied(leaves, plan.dtype) if several else Copied()
  by_layer = method.whole or plan.groups is not None
  newest = plan.latest
  of_latest = [tree for c, tree in zip(plan.read, leaves) if c is newest]
  kept = chunks.specs(of_latest, by_layer=by_layer)
  specs = chunks.specs(leaves, by_layer=by_layer, dtype=plan.dtype)
  specs |= {n: spec for n, spec in kept.items() if n in copied.names}
  wide = chunks.widened(leaves, specs)
  plan = plan._replace(specs=specs, copied=copied, wide=wide)
  plan = _without_ungrouped(plan) if several else plan

  def needed(workers: int) -> int:
    if method.data:  # what is made of them, and all where there is room
      made = {"on models": len(plan.sources) + 1, "on derivatives": 3}
      return plan.size * made.get(method.acts, 2)
    return chunks.needed_bytes(
      {
        name: dataclasses.replace(spec, dtype=wide.get(name, spec.dtype))
        for name, spec in specs.items()
      },
      0 if plan.is_average else len(plan.read),
      whole=method.whole,
      workers=workers,
    )

  # One alone is copied whatever it holds; measured, it may get no weight.
  summed = len(plan.read) > 1 and not method.data
  problems = Problems(_not_finite(plan) if summed else ())
  problems(lambda: check_room(output, plan.size))
  possible = range(chunks.WORKERS, 0, -1)
  workers = next((n for n in possible if needed(n) <= plan.budget), 1)
  if needed(workers) > plan.budget:
    problems.add(
      f"{human_bytes(needed(1))} of memory are needed for parameters, "
      f"{human_bytes(plan.budget)} may be used; see --memory_budget_gb"
    )
  problems.check()
  return plan._replace(needed=needed(workers), workers=workers)


def _without_ungrouped(plan: MergePlan) -> MergePlan:
  """Leaves out copies of an embedding that an input of weight zero has not.

  Groups are of what all inputs have.
  """
  if plan.groups is None:
    return plan
  known = named_leaves(plan.groups.of_leaf).keys() | plan.copied.names
  left = [name for name in plan.specs if name not in known]
  if not left:
    return plan
  notes = [*plan.copied.notes, told_left_out(left)]
  return plan._replace(
    specs={name: plan.specs[name] for name in plan.specs if name in known},
    copied=plan.copied._replace(notes=notes),
  )


def _not_finite(plan: MergePlan) -> list[str]:
  """Names parameters that a step directory's own metadata calls not finite."""
  return [
    f"{source.name}: {name} holds NaN or Inf"
    for source in plan.read
    for name, leaf in source.metadata.leaves["params"].items()
    if leaf.get("norm", 0.0) is None and name not in plan.copied.names
  ]
