"""Reads the metrics.jsonl that a training run leaves behind."""

from typing import Any

from etils import epath

from jaxmerge.errors import InputError, check
from jaxmerge.reading import read_file, read_json


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
  """One dictionary per logged step, in order.

  Each has at least "step" and "tokens" (whole numbers) and "loss" (nats per
  token; not finite where the run has diverged). A last line without its end,
  as a killed writer leaves it, is left out; anything else that is not such a
  line is an error.

  Raises:
    InputError: the file cannot be read, or a line is bad; lists every one.
  """
  path = epath.Path(path)
  try:
    lines = read_file(path).split(b"\n")
  except OSError as error:
    raise InputError(
      f"cannot read {path}: {error.strerror or error}"
    ) from error
  unended = lines.pop()
  records, problems = [], []
  for number, line in enumerate(lines, start=1):
    record, problem = _parse(line)
    records.append(record)
    problems += [f"{path}, line {number}: {problem}"] if problem else []
  check(problems)
  steps = [record["step"] for record in records]
  check(
    f"{path}, line {number}: step {b} comes after step {a}"
    for number, (a, b) in enumerate(zip(steps, steps[1:]), start=2)
    if b < a
  )
  # A line cut off before its end cannot close its object, so one that parses
  # is whole and only lacks its newline.
  last, problem = _parse(unended)
  return records if problem else [*records, last]


def _parse(line: bytes) -> tuple[dict[str, Any], str]:
  """The record and "", or an empty record and what is wrong with the line."""
  try:
    record = read_json(line)
  except ValueError as error:
    return {}, f"not JSON: {error}"
  if not isinstance(record, dict):
    return {}, "not an object"
  for key in ("step", "tokens", "loss"):
    kinds = (int, float) if key == "loss" else (int,)
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, kinds):
      return {}, f'no number for "{key}": {value!r}'
  return record, ""
