"""The steps of a run from which a branch takes the optimiser's state.

Of a step of a run itself; of a merge those that it was made of, found by what
its provenance says of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxmerge.checkpoints.inputs import (
  Checkpoint,
  open_checkpoint,
  open_inputs,
)
from jaxmerge.checkpoints.merged import identity
from jaxmerge.errors import InputError, Problems
from jaxmerge.formats.records.provenance import ITEM

# The optimiser's state that a branch begins with: of the newest source, the
# mean of all, or a new one.
NEWEST, MEAN, ZERO = STATES = ("newest", "mean", "zero")
MERGED, TRAINED = "merged", "trained"


class Sources(NamedTuple):
  """Steps of one run, oldest first, and the weights of a merge of them."""

  checkpoints: Sequence[Checkpoint]
  weights: Sequence[float]


def sources_of(parent: Checkpoint, state: str) -> Sources:
  """The steps that a branch reads the state of, none for a new state.

  Args:
    parent: a step of a run, or a merge of steps of one run.
    state: one of STATES.

  Raises:
    InputError: lists sources that are not there, or not what was merged, and
      says so of a parent that is something else.
  """
  if parent.metadata.kind == TRAINED:
    chosen = [] if state == ZERO else [parent]
    return Sources(chosen, [1.0] * len(chosen))
  told = f"--init_from {parent.name}"
  known = sorted(
    parent.metadata.provenance.get("sources", []),
    key=lambda source: source["step"],
  )
  steps = [source["step"] for source in known]
  if (
    {source["run_id"] for source in known} != {parent.metadata.run_id}
    or not parent.metadata.run_id
    or len({*steps}) < len(steps)
    or steps[-1] != parent.metadata.step
  ):
    raise InputError(
      f"{told} is no merge of different steps of one run: nothing says where a "
      "branch is to go on; without config.branch a run starts from the "
      "parameters alone"
    )
  problems = Problems()
  if state == NEWEST:
    known = known[-1:]
  elif state == ZERO:
    known = []
  elif any(source["weight"] < 0 for source in known):
    problems.add(
      f"{told} has negative weights, with which no optimiser state can be "
      "averaged; config.branch_state may be newest or zero"
    )
  # The newest has the counts, whatever its weight.
  known = [s for s in known if s["weight"] or s is known[-1]]
  found = [
    problems(lambda: _found(parent, source, told))  # noqa: B023
    for source in known
  ]
  problems.check()
  weights = [source["weight"] for source in known]
  return Sources([c for c in found if c], weights)


def _found(
  parent: Checkpoint, source: Mapping[str, Any], told: str
) -> Checkpoint:
  """A source where it was, or else in the run in which its merge lies."""
  was = f"{told}: its source {source['name']}, step {source['step']},"
  others = 0
  for place in _places(parent, source):
    try:
      [checkpoint] = open_inputs([place])
    except InputError:
      continue
    if checkpoint.leaves is None and identity(checkpoint) == source["params"]:
      if checkpoint.metadata.kind == TRAINED:
        # Where an average was merged, the state is that of its step.
        return open_checkpoint(checkpoint.path, checkpoint.name)
      raise InputError(f"{was} is {checkpoint.metadata.kind}, no step of a run")
    others += 1
  why = "is not there, or damaged"
  if others:
    why = "has other parameters than those that were merged"
  raise InputError(f"{was} {why}; a branch takes optimiser state from it")


def _places(parent: Checkpoint, source: Mapping[str, Any]) -> Iterator[str]:
  yield source["name"]
  for folder in parent.path.parents:
    if (folder / "run.json").exists():
      item = f":{source[ITEM]}" if ITEM in source else ""
      yield f"{folder}@{source['step']}{item}"
