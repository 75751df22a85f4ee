"""The exact shape of results.json, checked value by value."""

import math
import re
from collections.abc import Sequence
from typing import Any

_RESULT_KEYS = ("rows", "tokens_trained", "tokens_saved")
ROW_KEYS = (
  "name",
  "evaluations",
  "weights",
  "search_loss",
  "report_loss",
  "report_delta_vs_last",
  "report_delta_stderr",
)
_ROW_NAME = re.compile(r"[a-z][a-z0-9_]*")
_STEP = re.compile(r"0|[1-9][0-9]*")


def problems(value: Any) -> list[str]:
  """What is wrong with the decoded content of a results.json, or []."""
  found = _key_problems("the results", value, _RESULT_KEYS)
  if found:
    return found
  found += _count_problems("tokens_trained", value["tokens_trained"])
  if value["tokens_saved"] is not None:
    found += _count_problems("tokens_saved", value["tokens_saved"])
  if not isinstance(value["rows"], list):
    return [*found, "rows is not a list"]
  for index, row in enumerate(value["rows"]):
    found += _row_problems(f"rows[{index}]", row)
  names = [row.get("name") for row in value["rows"] if isinstance(row, dict)]
  if names.count("last") == 0:
    found.append('there is no row "last"')
  for name in dict.fromkeys(str(name) for name in names):
    if names.count(name) > 1:
      found.append(f'there are {names.count(name)} rows "{name}"')
  return found


def _row_problems(where: str, row: Any) -> list[str]:
  found = _key_problems(where, row, ROW_KEYS)
  if found:
    return found
  name, weights = row["name"], row["weights"]
  if not isinstance(name, str) or not _ROW_NAME.fullmatch(name):
    found.append(f"{where}.name is not a name: {name!r}")
  found += _count_problems(f"{where}.evaluations", row["evaluations"])
  if not isinstance(weights, dict) or not weights:
    found.append(f"{where}.weights is not a map from step to weight")
  else:
    for step, weight in weights.items():
      if not _STEP.fullmatch(step):
        found.append(f"{where}.weights: {step!r} is not a step")
      found += _number_problems(f"{where}.weights[{step}]", weight)
    if name == "last" and sum(weight != 0 for weight in weights.values()) != 1:
      found.append(f'{where}.weights: "last" is one checkpoint')
  for key in ROW_KEYS[3:]:
    found += _number_problems(f"{where}.{key}", row[key])
  stderr = row["report_delta_stderr"]
  if isinstance(stderr, int | float) and stderr < 0:
    found.append(f"{where}.report_delta_stderr is negative: {stderr}")
  return found


def _key_problems(where: str, value: Any, keys: Sequence[str]) -> list[str]:
  if not isinstance(value, dict):
    return [f"{where}: not an object"]
  return [f'{where}: no key "{k}"' for k in keys if k not in value] + [
    f'{where}: unknown key "{k}"' for k in value if k not in keys
  ]


def _count_problems(where: str, value: Any) -> list[str]:
  if isinstance(value, bool) or not isinstance(value, int) or value < 0:
    return [f"{where} is not a whole number of at least 0: {value!r}"]
  return []


def _number_problems(where: str, value: Any) -> list[str]:
  if isinstance(value, bool) or not isinstance(value, int | float):
    return [f"{where} is not a number: {value!r}"]
  if not math.isfinite(value):
    return [f"{where} is not finite: {value!r}"]
  return []
