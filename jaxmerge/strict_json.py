"""JSON of files that may be damaged, or made to do damage."""

import json
from typing import Any


def read_json(text: str | bytes) -> Any:
  """JSON in which no key is given twice; a byte-order mark is passed over.

  Raises:
    ValueError: it is damaged; the message says how.
  """

  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
      raise ValueError("a key is given twice")
    return value

  try:
    if isinstance(text, bytes):
      text = text.decode()
    return json.loads(text.removeprefix("\ufeff"), object_pairs_hook=unique)
  except RecursionError as error:
    raise ValueError("it is nested too deeply") from error
