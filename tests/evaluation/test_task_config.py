"""What a search may seek: tasks, weights, metric and tolerances."""

import pytest

from jaxmerge.config_reading import examine
from jaxmerge.evaluation.config import SearchConfig

A, B = "pairs:a.jsonl", "choice:b.jsonl"


def goal(**keys):
  config, problems = examine(SearchConfig, keys)
  assert not problems
  return config.goal


def test_held_out_text_alone_is_no_goal_of_tasks():
  assert goal() is None
  assert goal(tasks=("heldout",), evaluator="heldout_loss") is None


@pytest.mark.parametrize(
  ("keys", "told"),
  [
    ({"tasks": (A,)}, f"maximize acc of {A}"),
    ({"tasks": (A,), "metric": "gold"}, f"minimize gold of {A}"),
    ({"tasks": (A, B)}, f"maximize the mean acc of {A}, {B}"),
    (
      {"tasks": (A, "heldout"), "task_weights": (1.0, 0.5)},
      f"maximize 1 x acc of {A} - 0.5 x heldout_loss of heldout",
    ),
    (
      {"tasks": (A, "heldout"), "task_weights": (1, 2), "metric": "gold"},
      f"minimize 1 x gold of {A} + 2 x heldout_loss of heldout",
    ),
    (
      {"tasks": (A, B), "task_weights": (1.0, -1.0)},
      f"maximize 1 x acc of {A} - 1 x acc of {B}",
    ),
  ],
)
def test_direction_and_signs_are_told(keys, told):
  assert goal(**keys).told("minimize") == told


def test_a_tolerance_is_of_all_tasks_or_of_each():
  found = goal(tasks=(A, B), task_tolerance=(0.1,))
  assert found.tolerances == (0.1, 0.1)
  assert found.constraint.endswith("by more than 0.1")
  found = goal(tasks=(A, B), task_tolerance=(0.1, 0.2), task_weights=(1, 0))
  assert found.tolerances == (0.1, 0.2)
  assert found.constraint.endswith(f"more than 0.1 ({A}), 0.2 ({B})")
  assert goal(tasks=(A, B)).constraint == ""


@pytest.mark.parametrize(
  ("keys", "words"),
  [
    ({"tasks": ()}, ["tasks is empty"]),
    ({"metric": "gold", "search_items": 5}, ["metric, config.search_items: "]),
    ({"shots": 1, "report_items": 5}, ["shots: ", "report_items: "]),
    ({"tasks": (A,), "metric": "f1"}, ["must be one of"]),
    (
      {"tasks": (A,), "task_weights": (1.0,), "task_tolerance": (0.1,)},
      ["task_weights is of several", "task_tolerance is of several"],
    ),
    ({"tasks": (A, "heldout")}, ["have other units"]),
    (
      {"tasks": (A, B), "task_weights": (1.0,), "task_tolerance": (1, 2, 3)},
      ["1 numbers for 2 tasks", "3 numbers for 2 tasks"],
    ),
    ({"tasks": (A, B), "task_weights": (0.0, 0.0)}, ["all are 0"]),
    ({"tasks": (A, B), "task_weights": (1.0, 0.0)}, [f"{B} weighs 0"]),
    ({"tasks": (A, B), "task_tolerance": (-0.1,)}, ["at least 0"]),
    ({"tasks": (A,), "solver": "newton"}, ["no curvature"]),
    ({"tasks": (A,), "use_gradients": True}, ["no derivatives"]),
    ({"tasks": (A,), "search_items": 1}, ["standard error"]),
  ],
)
def test_senseless_combinations_are_refused_at_once(keys, words):
  _, problems = examine(SearchConfig, keys)
  assert len(problems) == len(words), problems
  for word, problem in zip(words, problems):
    assert word in problem


def test_another_evaluator_needs_the_text():
  from jaxmerge.evaluation.task_config import ObjectiveConfig

  [problem] = ObjectiveConfig(tasks=(A,)).objective_problems("config.", "mine")
  assert "evaluator 'mine': config.tasks has no 'heldout'" in problem
