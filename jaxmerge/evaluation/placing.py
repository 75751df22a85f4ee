"""The place of the trees of a search, and what fits beside them."""

import functools
from collections.abc import Sequence
from typing import Any

import jax

from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.errors import Problems
from jaxmerge.evaluation.search_plan import Prepared
from jaxmerge.files import human_bytes
from jaxmerge.formats.records.metadata import abstract_params
from jaxmerge.merging.resident import ON_DEVICES, Placement, choose_placement
from jaxmerge.model.tangents import head_params

# Beside the checkpoints on the devices: the merge before and this one, and what
# derivatives by the weights make. Tangents are of a layer, less than a tree.
_PLAIN, _CURVED = 2, 3
# A gradient is as much again in float32, and a tangent or a spare tree.
_DIFFERENTIATED = 5


def place_trees(
  checkpoints: Sequence[Checkpoint],
  shardings: Any,
  memory_budget_gb: float,
  *,
  derivatives: bool,
  made: int = _PLAIN,
) -> Placement:
  """Finds where checkpoints fit beside what is made of them.

  Args:
    shardings, memory_budget_gb: as for choose_placement.
    derivatives: by the weights are measured.
    made: trees that are made without them.

  Raises:
    InputError: what is made does not fit on the devices.
  """
  elsewhere = float(made)
  if derivatives:
    made = max(made, _CURVED)
    elsewhere = max(elsewhere, _secant_trees(checkpoints))
  return choose_placement(
    checkpoints,
    shardings,
    merged_trees=made,
    merged_elsewhere=elsewhere,
    memory_budget_gb=memory_budget_gb,
  )


def _secant_trees(checkpoints: Sequence[Checkpoint]) -> float:
  """Trees that derivatives make of checkpoints that are not on the devices.

  A merge and a displaced one in float32, and so the heads of K - 1 more.
  """
  leaves = jax.tree.leaves
  params = abstract_params(checkpoints[-1].metadata)
  whole = sum(leaf.size for leaf in leaves(params))
  head = sum(leaf.size for leaf in leaves(head_params(params)))
  made = 4 * (2 * whole + (len(checkpoints) - 1) * head)
  held = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves(params))
  return made / held


def placed(ready: Prepared, memory_budget_gb: float) -> Prepared:
  """Finds the place of the trees, and whether derivatives fit there too.

  In a job all processes call it.

  Raises:
    InputError: what a trial makes does not fit on the devices.
  """
  search = ready.search
  place = functools.partial(
    place_trees,
    ready.checkpoints,
    ready.setting.shardings,
    memory_budget_gb,
    made=_DIFFERENTIATED if search.use_gradients else _PLAIN,
  )
  chosen = place(derivatives=search.use_curvature)
  beside: Placement | None = chosen
  if ready.evaluator.has_curvature:
    beside = Problems()(lambda: place(derivatives=True))
  has_room = beside is not None and beside.where == chosen.where
  return ready._replace(place=chosen, has_room=has_room)


def memory(ready: Prepared) -> str:
  """Says what parameters take, and derivatives by the weights beside them.

  The latter as the compiler says: it compiles their programs, for some seconds.
  """
  told = f"{human_bytes(ready.place.needed)} for parameters"
  search, measured = ready.search, ready.evaluator.derivative_bytes
  is_told = search.use_curvature and ready.place.where == ON_DEVICES
  # The other processes of a job do not compile with this one.
  if measured is None or not is_told or jax.process_count() > 1:
    return told
  count, groups = len(ready.checkpoints), search.domain.groups
  size = measured(ready.setting, count, groups, ready.search_sequences)
  return (
    f"{told}; derivatives take {human_bytes(size)} on each device beside "
    f"{count + 2} of its trees"
  )
