"""Traces of some steps of a run, for xprof."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence

import jax
from etils import epath

from jaxmerge.data.batch import Batch
from jaxmerge.training.step import StepMetrics, TrainState, TrainStep


@contextlib.contextmanager
def traced(
  train_step: TrainStep,
  start: int,
  steps: Sequence[int],
  directory: epath.Path,
) -> Iterator[TrainStep]:
  """The step of a run, which writes a trace of some of its calls.

  Args:
    start: steps taken before the first call.
    steps: the first and the last one to trace, those in between too; (): none.
      What the run does between them is in the trace as well.
    directory: of the trace; for `xprof --logdir`.
  """
  if not steps:
    yield train_step
    return
  first, last = steps
  first = max(first, start + 1)
  numbers = itertools.count(start + 1)
  with contextlib.ExitStack() as trace:

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
      number = next(numbers)
      if number == first <= last:
        trace.enter_context(jax.profiler.trace(str(directory)))
      with jax.profiler.StepTraceAnnotation("train", step_num=number):
        found = train_step(state, batch)
      if number == last:
        jax.block_until_ready(found)
        trace.close()
      return found

    yield step
