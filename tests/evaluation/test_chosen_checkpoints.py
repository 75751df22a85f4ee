"""Which checkpoints a search merges, and how it says that they are missing."""

import types

import pytest

from jaxmerge.config_reading import read
from jaxmerge.errors import InputError
from jaxmerge.evaluation import search_plan
from jaxmerge.evaluation.config import SearchConfig
from tests.helpers import quiet


@pytest.fixture
def chosen(tmp_path, monkeypatch):
  """The steps that are opened of a run with steps 1 to 9."""
  for step in range(1, 10):
    (tmp_path / f"checkpoints/{step}").mkdir(parents=True)

  def opened(workdir, steps):
    metadata = [types.SimpleNamespace(step=step) for step in steps]
    return [types.SimpleNamespace(metadata=m) for m in metadata]

  monkeypatch.setattr(search_plan, "open_steps", opened)
  monkeypatch.setattr(search_plan, "as_model", lambda checkpoint: checkpoint)

  def call(steps, window, trail_length=9):
    found, trail = search_plan.open_checkpoints(
      tmp_path, steps, window, (), quiet
    )
    assert len(trail) == trail_length
    return [c.metadata.step for c in found]

  return call


def test_the_last_ones_of_a_run(chosen):
  assert chosen((), 2) == [8, 9]
  assert chosen((), 6) == [4, 5, 6, 7, 8, 9]
  assert chosen((7, 3), 2) == [3, 7]


def test_temporary_ones_are_left_out_unless_named(chosen, monkeypatch):
  def read_metadata(path):
    return types.SimpleNamespace(temporary=path.name in ("7", "9"))

  monkeypatch.setattr(search_plan, "read_metadata", read_metadata)
  assert chosen((), 3, trail_length=7) == [5, 6, 8]
  assert chosen((3, 9), 2, trail_length=8) == [3, 9]


def test_steps_that_are_missing_are_one_line(chosen):
  with pytest.raises(InputError) as error:
    chosen((400, 500, 600, 9), 2)
  [line] = error.value.problems
  assert "has no steps 400, 500, 600; it has 1, 2, 3, 4, 5, 6, 7, 8, 9" in line
  assert "=() takes the last config.checkpoint_window ones, two" in line


def test_a_run_with_fewer_checkpoints_is_refused(chosen):
  with pytest.raises(InputError, match="has 9 checkpoints, not the 12 of"):
    chosen((), 12)


@pytest.mark.parametrize(
  ("keys", "said"),
  [
    ({"checkpoint_window": 1}, "checkpoint_window must be at least 2"),
    (
      {"checkpoint_window": 6, "checkpoint_steps": (1, 2)},
      "checkpoint_window means nothing beside config.checkpoint_steps",
    ),
  ],
)
def test_a_window_is_of_two_or_more_and_alone(keys, said):
  with pytest.raises(InputError, match=said):
    read(SearchConfig, keys)
