"""The place of the trees of a search, and what fits beside them."""

import jax

from jaxmerge.errors import Problems
from jaxmerge.evaluation.search_plan import Prepared
from jaxmerge.files import human_bytes
from jaxmerge.merging.resident import ON_DEVICES, Placement, choose_placement

# Beside the checkpoints on the devices: the merge before and this one, and what
# derivatives by the weights make. Tangents are of a layer, less than a tree.
_PLAIN, CURVED_TREES = 2, 3
# A gradient is as much again in float32, and a tangent or a spare tree.
_DIFFERENTIATED = 5


def placed(ready: Prepared, memory_budget_gb: float) -> Prepared:
  """Finds the place of the trees, and whether derivatives fit there too.

  In a job all processes call it.

  Raises:
    InputError: what a trial makes does not fit on the devices.
  """

  def place(made: int) -> Placement:
    return choose_placement(
      ready.checkpoints,
      ready.setting.shardings,
      merged_trees=made,
      memory_budget_gb=memory_budget_gb,
    )

  search = ready.search
  made = CURVED_TREES if search.use_curvature else _PLAIN
  made = _DIFFERENTIATED if search.use_gradients else made
  chosen = place(made)
  beside = Problems()(lambda: place(max(made, CURVED_TREES)))
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
