"""Records of Optuna's journal, and a checksum in each of ours.

Optuna reads the keys that it knows and no others, so a record may have one
more. Records of other programs (a dashboard, an older jaxmerge) have none.
"""

import hashlib
import json
from typing import Any

CHECKSUM = "jaxmerge_checksum"
# Which line of its file a record is: lines that are missing, doubled or in
# another order are seen. The checksum is of this too.
LINE = "jaxmerge_line"
# Optuna numbers what a record does.
_CREATE_STUDY = 0


def _checksum(record: dict[str, Any]) -> str:
  """Hashes a record as JSON gave it, however it was spaced and ordered."""
  text = json.dumps(record, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def sealed(record: dict[str, Any]) -> dict[str, Any]:
  """The record as JSON gives it again, with its checksum."""
  record = json.loads(json.dumps(record))
  return {**record, CHECKSUM: _checksum(record)}


def bare(record: dict[str, Any]) -> dict[str, Any]:
  """The record as Optuna gave it."""
  return {k: v for k, v in record.items() if k not in (CHECKSUM, LINE)}


def is_record(record: Any) -> bool:
  """Says whether a value that JSON gave is a record of Optuna's journal."""
  return isinstance(record, dict) and {"op_code", "worker_id"} <= record.keys()


def creates_study(record: Any) -> bool:
  """Says whether a journal may begin with this value; none begins with another.

  Optuna skips, without a word, the records of a study never created.
  """
  return (
    is_record(record)
    and record["op_code"] == _CREATE_STUDY
    and {"study_name", "directions"} <= record.keys()
  )


def problem_of(record: Any, number: int | None = None) -> str:
  """Says what is wrong with an entry, as parsed() gave it; "" if nothing is.

  The number is that of its line, from 1; None where it lies in no file.
  """
  if record is None:
    return "it is no JSON"
  if not is_record(record):
    return "it is no record of a study"
  rest = {key: value for key, value in record.items() if key != CHECKSUM}
  if CHECKSUM in record and record[CHECKSUM] != _checksum(rest):
    return "it was changed after it had been written"
  if number is not None and record.get(LINE, number) != number:
    return f"it was written as line {record[LINE]}: lines are missing or moved"
  return ""


def parsed(text: bytes) -> Any:
  """The value of a JSON text, None where it is no JSON."""
  try:
    return json.loads(text)
  except (ValueError, RecursionError):
    return None
