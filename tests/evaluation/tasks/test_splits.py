"""Search and report items have no cluster and no question in common."""

import pytest

from jaxmerge.errors import InputError
from jaxmerge.evaluation.tasks.splits import split_items, split_tasks
from jaxmerge.evaluation.tasks.task import ChoiceItem


def item(number, cluster, hash=""):
  hash = hash or f"{number * 7919 % 1000:03d}"
  return ChoiceItem(f"{number}", f"q{number}", ("a", "b"), 0, cluster, hash)


def test_splits_share_no_cluster_and_no_question():
  items = [item(i, f"c{i // 4}", f"h{i % 150}") for i in range(400)]
  found = split_items(items)
  for attribute in ("cluster", "hash"):
    search, report = (
      {getattr(i, attribute) for i in part} for part in found[:2]
    )
    assert search.isdisjoint(report)
  assert found.left_out > 0
  assert len(found.search) + len(found.report) + found.left_out == 400
  hashes = [i.hash for i in found.search]
  assert hashes == sorted(hashes)


def test_a_share_is_kept_and_others_move_no_item():
  items = [item(i, f"c{i}") for i in range(1000)]
  for share in (0.2, 0.5):
    found = split_items(items, share)
    assert abs(len(found.search) / 1000 - share) < 0.05
    assert found.left_out == 0
  fewer = split_items(items[::2])
  assert set(fewer.search) == set(split_items(items).search) & set(items[::2])


def test_too_few_clusters():
  items = [item(i, f"c{i % 2}") for i in range(100)]
  with pytest.raises(InputError, match="100 items of 2 clusters leave"):
    split_items(items)


def test_what_two_tasks_ask_is_in_one_split_of_both():
  """Of another passage, so that each task alone would share it out anew."""
  a = [item(i, f"a{i // 2}", f"h{i:03d}") for i in range(100)]
  b = [item(i, f"b{i // 2}", f"h{i:03d}") for i in range(40, 140)]
  found = split_tasks({"a": a, "b": b})
  assert found["a"] == split_items(a)
  search, report = (
    {i.hash for splits in found.values() for i in getattr(splits, split)}
    for split in ("search", "report")
  )
  assert search.isdisjoint(report)
  alone = split_items(b)
  assert {i.hash for i in alone.search} & {i.hash for i in found["a"].report}
  assert found["b"].left_out > alone.left_out


def test_tasks_of_too_few_clusters_are_named_together():
  few = [item(i, f"c{i % 2}") for i in range(10)]
  with pytest.raises(InputError) as caught:
    split_tasks({"a": few, "b": few})
  assert [p.partition(":")[0] for p in caught.value.problems] == ["a", "b"]
