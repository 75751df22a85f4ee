"""Which checkpoints of a run stay: the newest, the best, declared windows.

A rule keeps a checkpoint or lets it go for good: what one deletes at a save it
would not have kept at any later one. So a run that is stopped and goes on has
the same checkpoints as one that never stopped.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from etils import epath

from jaxmerge.config_fields import key
from jaxmerge.errors import InputError, Problems
from jaxmerge.files import free_bytes, human_bytes

_WINDOW = re.compile(
  r"(?P<count>[1-9]\d{0,9}) every (?P<every>[1-9]\d{0,9})"
  r"( of ((?P<phase>[a-z_]+)|(?P<first>\d{1,10})-(?P<last>\d{1,10})))?"
)
# Runs of more checkpoints are not counted through.
_MANY = 5000


@dataclasses.dataclass(frozen=True)
class KeepConfig:
  """The `keep` section of a run's config; all defaults: everything stays."""

  latest: int = key(
    0, "newest checkpoints that stay", at_least=0, changes_numbers=False
  )
  best: int = key(
    0,
    "checkpoints of the lowest validation_loss that stay",
    at_least=0,
    changes_numbers=False,
  )
  windows: tuple[str, ...] = key(
    (),
    'such as "16 every 500 of stable": the last 16 at every 500 steps of a '
    'phase of the schedule, or "of 2000-9000", or of the whole run, stay; '
    "latest 0, best 0 and windows (): all checkpoints do",
    changes_numbers=False,
  )


class Span(NamedTuple):
  """A run, as far as it decides of its checkpoints.

  Attributes:
    start: the step that it begins behind.
    num_steps: its last.
    save_every: steps between checkpoints; the last step is saved too.
    phases: first and last step of those of its schedule, by name.
  """

  start: int
  num_steps: int
  save_every: int
  phases: Mapping[str, tuple[int, int]]

  @property
  def saves(self) -> int:
    """The number of checkpoints that it saves."""
    return -(-self.num_steps // self.save_every) - self.start // self.save_every

  @property
  def steps(self) -> Iterator[int]:
    """Their steps, in increasing order."""
    first = self.start - self.start % self.save_every + self.save_every
    yield from range(first, self.num_steps, self.save_every)
    yield self.num_steps


class Window(NamedTuple):
  """The newest of the checkpoints at multiples of `every` in a range."""

  newest: int
  every: int
  first: int
  last: int

  def of(self, steps: Sequence[int]) -> list[int]:
    """Those of the steps, in increasing order, that it keeps."""
    inside = [
      step
      for step in steps
      if self.first <= step <= self.last and not step % self.every
    ]
    return inside[-self.newest :]


class Policy(NamedTuple):
  """Keeps the union of what each rule keeps, and the newest always.

  Attributes:
    latest, best: as in the config.
    windows: of steps.
  """

  latest: int = 0
  best: int = 0
  windows: tuple[Window, ...] = ()

  @property
  def keeps_all(self) -> bool:
    return self == Policy()

  def kept(self, steps: Sequence[int], losses: Mapping[int, float]) -> set[int]:
    """The steps that stay.

    Args:
      steps: of the checkpoints there are, in increasing order.
      losses: their validation losses in nats/token; one whose loss is not
        known is none of the best.
    """
    if self.keeps_all:
      return {*steps}
    ranked = sorted((losses[step], step) for step in steps if step in losses)
    return self._by_age(steps) | {step for _, step in ranked[: self.best]}

  def _by_age(self, steps: Sequence[int]) -> set[int]:
    kept = {*steps[-max(self.latest, 1) :]}
    return kept.union(*(window.of(steps) for window in self.windows))

  def most(self, span: Span) -> int:
    """The most checkpoints that are there at once, whatever the losses are.

    With one that is being written, before what it replaces is deleted. Of more
    than 5000 checkpoints, the sum of what the rules keep by themselves.
    """
    if self.keeps_all:
      return span.saves
    most, there = 0, list[int]()
    if span.saves > _MANY:
      most = max(self.latest, 1) + sum(w.newest for w in self.windows)
    else:
      for step in span.steps:
        there = sorted(self._by_age([*there, step]))
        most = max(most, len(there))
    return min(span.saves, most + self.best + 1)


def policy(config: KeepConfig, span: Span, needed: int = 0) -> Policy:
  """The rules of a run's config.

  Args:
    needed: checkpoints before the next one that the run itself will read; they
      stay whatever the config says.

  Raises:
    InputError: lists each window that is none, is of a phase that the schedule
      does not have, of steps that are not saved, or can never be full.
  """
  problems = Problems()
  windows = [
    problems(functools.partial(_window, text, span)) for text in config.windows
  ]
  problems.check()
  rules = Policy(config.latest, config.best, tuple(w for w in windows if w))
  if rules.keeps_all or not needed:
    return rules
  own = Window(needed, span.save_every, span.start + 1, span.num_steps)
  return rules._replace(windows=(*rules.windows, own))


def _window(text: str, span: Span) -> Window:
  told = f"config.keep.windows {text!r}"
  found = _WINDOW.fullmatch(text)
  if found is None:
    raise InputError(
      f'{told} is none such as "16 every 500 of stable", "16 every 500 of '
      '2000-9000" or "16 every 500"'
    )
  count, every = int(found["count"]), int(found["every"])
  first, last = span.start + 1, span.num_steps
  where = f"the run has steps {first}-{last}"
  if phase := found["phase"]:
    if phase not in span.phases:
      names = ", ".join(span.phases) or "none"
      raise InputError(
        f"{told}: the schedule has no phase {phase!r}; it has {names}"
      )
    begins, ends = span.phases[phase]
    where = f"{phase} is steps {begins}-{ends}"
    first, last = max(first, begins), min(last, ends)
  elif found["first"]:
    first, last = max(first, int(found["first"])), int(found["last"])
    where = f"of these steps the run has {first}-{min(last, span.num_steps)}"
  problems = Problems()
  if every % span.save_every:
    problems.add(
      f"{told}: {every} is not a multiple of config.save_every "
      f"{span.save_every}"
    )
  there = max(min(last, span.num_steps) // every - (first - 1) // every, 0)
  if there < count:
    problems.add(
      f"{told} can never be full: {where}, of which {there} are multiples of "
      f"{every}"
    )
  problems.check()
  return Window(count, every, first, last)


def room_problems(
  workdir: epath.Path,
  rules: Policy,
  span: Span,
  there: Sequence[int],
  size: int,
  needed: int = 0,
) -> list[str]:
  """Says why a run's checkpoints cannot fit on the disk of its workdir.

  Args:
    there: steps that are saved already, in increasing order.
    size: of one checkpoint, in bytes.
    needed: as for policy.
  """
  if there and there[-1] >= span.num_steps:
    return []
  most, free = rules.most(span), free_bytes(workdir)
  # Others, as of a stop, are no part of the most. Too many go at the start.
  regular = sum(step % span.save_every == 0 for step in there)
  room = max(most - regular, 0) * size
  if room <= free:
    return []
  fits = min(int(free) // size + regular, most) - 1
  way = (
    f"config.keep.latest={fits} alone would fit"
    if fits > 0 and fits >= needed
    else "none of its rules makes them fit"
  )
  had = f" beside the {regular} that are there" if regular else ""
  return [
    f"{workdir} needs room for {most} checkpoints of {human_bytes(size)} at "
    f"once, one of them being written: {human_bytes(room)}{had}, where "
    f"{human_bytes(free)} are free; config.keep says which stay, and {way}"
  ]


def kept_text(config: KeepConfig, rules: Policy, span: Span, size: int) -> str:
  """The rules in words, and the disk that they take; `size` is of one."""
  if rules.keeps_all:
    return f"all {span.saves}, {human_bytes(span.saves * size)}"
  told = [f"latest {config.latest}"] * (config.latest > 0)
  told += [f"best {config.best}"] * (config.best > 0)
  most = rules.most(span)
  return (
    f"{', '.join([*told, *config.windows])}: {most} at once at most, one of "
    f"them being written, {human_bytes(most * size)}"
  )
